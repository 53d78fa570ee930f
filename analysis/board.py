"""Writes records to TensorBoard: stable tags, grouped by statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from torch.utils.tensorboard import SummaryWriter

from analysis.record import STATISTICS, Record
from analysis.tables import phrase
from nets import Action


class Board:
    """A TensorBoard event file in `folder`; `purge_step` hides later events of an earlier try.

    Tags: loss/train, loss/validation, accuracy/train, accuracy/validation, learning_rate,
    images_per_second, network/parameters, network/flops (of one image's forward pass),
    network/train_flops (so far), growth/difference (of outputs on the probe batch),
    importance/<block> and <statistic>/<layer>. Text: growth, refused.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def record(self, record: Record, images_per_second: float | None = None) -> None:
        """Write every number of a record at its step."""
        scalars: dict[str, float | None] = {
            "loss/train": record.train_loss,
            "loss/validation": record.validation_loss,
            "accuracy/train": record.train_accuracy,
            "accuracy/validation": record.validation_accuracy,
            "learning_rate": record.learning_rate,
            "images_per_second": images_per_second,
            "network/parameters": record.cost.parameters,
            "network/flops": record.cost.flops,
            "network/train_flops": record.train_flops,
        }
        scalars.update({f"importance/{block}": value for block, value in record.importance.items()})
        for path, reading in record.layers.items():
            names = (*STATISTICS, *reading.extra)
            scalars.update({f"{name}/{path}": reading.value(name) for name in names})
        self._scalars(scalars, record.step)

    def growth(
        self,
        step: int,
        applied: Sequence[Action],
        refused: Sequence[tuple[Action, str]],
        difference: float | None,
    ) -> None:
        """Write what was done and why, what was refused and why, and the output difference."""
        if applied:
            lines = [f"- {phrase(action)}{_because(action)}" for action in applied]
            moved = (
                "" if difference is None else f"\n\noutputs moved by {difference:.2g} (relative)"
            )
            self._writer.add_text("growth", "\n".join(lines) + moved, step)
            self._scalars({"growth/difference": difference}, step)
        if refused:
            lines = [f"- {phrase(action)}{_because(action)}: {why}" for action, why in refused]
            self._writer.add_text("refused", "\n".join(lines), step)

    def close(self) -> None:
        """Write out what is waiting and close the file."""
        self._writer.close()

    def flush(self) -> None:
        """Write out what is waiting."""
        self._writer.flush()

    def _scalars(self, scalars: Mapping[str, float | None], step: int) -> None:
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if value is not None
        ]
        writer = self._writer._get_file_writer()
        if writer is not None:
            writer.add_summary(Summary(value=values), step)


def _because(action: Action) -> str:
    reason = getattr(action, "reason", "")
    return f", because: {reason}" if reason else ""
