"""Writes records to TensorBoard: stable tags, grouped by stage and statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # pyright: ignore
from torch.utils.tensorboard.summary import hparams, text

from analysis.observing.reading import pattern_of, tag_of
from analysis.recording.phrases import phrase
from analysis.recording.probes import Histogram
from analysis.recording.record import Record
from analysis.recording.timeline import statistics_of
from analysis.showing import history_pictures
from analysis.showing.capacity_page import capacity_text
from analysis.showing.matplotlib_figures import drawing
from analysis.showing.tables import growth_table
from analysis.showing.tensorboard_event_file import (
    EventFile,
    WriterEvents,
    category,
    images_summary,
    layout_summary,
    lines_chart,
    scalars_summary,
)
from nets import Action, Cost

METRICS = (
    *("accuracy/validation", "loss/validation", "loss/train"),
    *("network/parameters", "network/flops", "network/train_flops"),
)
"""Tags whose last value stands beside the hyperparameters of a run without numbers of its end."""
FIRST_LOOK = {
    "how_well": "0_one_look/1_how_well",
    "architecture": "0_one_look/2_what_grew",
    "capacity": "0_one_look/3_where_capacity_is_missing",
}
"""Tags of the pictures that TensorBoard shows first: it sorts by name."""
UNCHANGED = "unchanged_outputs/growth_difference"
"""The tag of a number that is always near 0; by its name it comes last."""
MEGA = 1e6
"""FLOPs of one step of an axis of FLOPs."""
_REST = 60
"""Seconds between pictures while a run goes on: they take about one."""


class Board:
    """A TensorBoard event file in `folder`; `purge_step` hides later events of an earlier try.

    `charted` says whether that try has written the custom scalars; by default it has if it made a
    step. `kept` is what is left of that try's history. With `many` the layers' charts are closed at
    first: of a run beside others, where TensorBoard would mix the layers of all.

    Scalars: loss/train, loss/validation, accuracy/train, accuracy/validation, those on validation
    also with _of_average (of the weights), learning_rate, images_per_second, network/parameters,
    network/flops (of one image's forward pass), network/train_flops (so far), growth_difference (of
    outputs on the probe batch, under UNCHANGED), and every number of every layer and block under
    the tag that `tag_of` gives. Losses and accuracies stand once more under <name>_over_MFLOPs,
    where TensorBoard's step is training FLOPs in millions.
    Custom scalars: one chart per statistic. Text: capacity, growth, refused, growth_history.
    Images: FIRST_LOOK, and pictures/<name>, as `history_pictures.draw` names them. HParams: the
    settings beside what the summary has, which stands under final/ too.
    """

    def __init__(
        self,
        folder: str | Path | WriterEvents,
        purge_step: int | None = None,
        charted: bool | None = None,
        kept: Sequence[Record] = (),
        many: bool = False,
    ) -> None:
        given = isinstance(folder, WriterEvents)
        self._events = folder if given else EventFile(Path(folder), purge_step)
        resumed = purge_step is not None and purge_step > 1
        self._charted = resumed if charted is None else charted
        self._many = many
        self._drawn = perf_counter()
        for record in kept:  # the mark has hidden them if their FLOPs come after its step
            if purge_step is not None and record.train_flops // MEGA >= purge_step:
                self._over_flops(record)
        if not given:  # the run may end without another record
            self.flush()

    def record(
        self,
        record: Record,
        images_per_second: float | None = None,
        average: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """Write every number of a record at its step.

        Args:
            record: what is not known in it is left out.
            images_per_second: of the steps before it.
            average: validation loss and accuracy of a running average of the weights.
        """
        scalars: dict[str, float | None] = {
            "loss/train": record.train_loss,
            "loss/validation": record.validation_loss,
            "accuracy/train": record.train_accuracy,
            "accuracy/validation": record.validation_accuracy,
            "loss/validation_of_average": average[0],
            "accuracy/validation_of_average": average[1],
            "learning_rate": record.learning_rate,
            "images_per_second": images_per_second,
            "network/parameters": record.cost.parameters,
            "network/flops": record.cost.flops,
            "network/train_flops": record.train_flops,
        }
        for name, found in record.of_blocks.items():
            scalars.update({tag_of(name, block): value for block, value in found.items()})
        names = statistics_of([record])
        for path, reading in record.layers.items():
            scalars.update({tag_of(name, path): reading.value(name) for name in names})
        self._scalars(scalars, record.step)
        self._over_flops(record)
        if names and not self._charted:
            charts = [lines_chart(name, [pattern_of(name)]) for name in names]
            how_well = [lines_chart(n, [rf"{n}_over_MFLOPs/"]) for n in ("accuracy", "loss")]
            layers = category("layers, one chart per statistic", charts, closed=self._many)
            given = [category("how well, over training MFLOPs", how_well), layers]
            self._events.add(layout_summary(given), record.step)
            self._charted = True

    def _over_flops(self, record: Record) -> None:
        """Write a record's losses and accuracies once more, at its FLOPs."""
        scalars = {
            "accuracy_over_MFLOPs/train": record.train_accuracy,
            "accuracy_over_MFLOPs/validation": record.validation_accuracy,
            "loss_over_MFLOPs/train": record.train_loss,
            "loss_over_MFLOPs/validation": record.validation_loss,
        }
        if record.train_flops:  # else nobody has counted them
            self._scalars(scalars, int(record.train_flops // MEGA))

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
            if difference is not None:
                lines.append(f"\noutputs moved by {difference:.2g} (relative)")
            self._events.add(text("growth", "\n".join(lines)), step)
            self._scalars({UNCHANGED: difference}, step)
        if refused:
            lines = [f"- {phrase(action)}{_because(action)}: {why}" for action, why in refused]
            self._events.add(text("refused", "\n".join(lines)), step)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write response histograms, by layer, as `analysis.response_histograms` counted them."""
        values = [
            Summary.Value(
                tag=tag_of("response", path),
                histo=HistogramProto(
                    min=counted.min,
                    max=counted.max,
                    num=counted.num,
                    sum=counted.sum,
                    sum_squares=counted.sum_squares,
                    bucket_limit=counted.bucket_limits,
                    bucket=counted.bucket_counts,
                ),
            )
            for path, counted in histograms.items()
        ]
        self._events.add(Summary(value=values), step)

    @property
    def pictures_due(self) -> bool:
        """Whether a minute has passed since the board was opened or the last pictures drawn."""
        return perf_counter() - self._drawn > _REST

    def pictures(
        self,
        history: Sequence[Record],
        reference: Sequence[Record] = (),
        seconds: Sequence[float] = (),
    ) -> None:
        """Write the pictures of a history, and its growth as a table, at the last record's step.

        Args:
            history: at least one record.
            reference: the history of a run to compare with.
            seconds: of training, at each record.

        Raises:
            Undrawn: the table alone is written.
        """
        step = history[-1].step
        self._drawn = perf_counter()
        self._events.add(text("growth_history", growth_table(history)), step)
        with drawing():
            drawn = history_pictures.draw(history, reference, seconds)
        images = {FIRST_LOOK.get(name, f"pictures/{name}"): png for name, png in drawn.items()}
        self._events.add(images_summary(images), step)

    def capacity(self, history: Sequence[Record]) -> None:
        """Write where capacity is missing, as a text at the last record's step."""
        self._events.add(text("capacity", capacity_text(history)), history[-1].step)

    def size(self, step: int, size: Cost) -> None:
        """Write the size of a network that is no longer the last record's."""
        sizes = {"network/parameters": size.parameters, "network/flops": size.flops}
        self._scalars(sizes, step)

    def hyperparameters(
        self,
        step: int,
        values: Mapping[str, str | float],
        final: Mapping[str, float | None] | None = None,
    ) -> None:
        """Write a finished run's settings; runs sort and filter by keys that all of them have.

        `final` are the numbers beside them, which become final/NAME; without, they are METRICS.
        """
        scalars = {f"final/{name}": value for name, value in (final or {}).items()}
        self._scalars(scalars, step)
        for summary in hparams(dict(values), dict.fromkeys(scalars or METRICS, 0.0)):
            self._events.add(summary, step)

    def flush(self) -> None:
        """Write out what is waiting; no file is held open."""
        self._events.flush()

    def to_disk(self) -> None:
        """Write out what is waiting, and flush all to the disk: it outlives the machine then."""
        self._events.to_disk()

    def _scalars(self, scalars: Mapping[str, float | None], step: int) -> None:
        self._events.add(scalars_summary(scalars), step)


_CHARTED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Statistics whose charts `log_record` has given, by the writer's file."""


def log_record(writer: Any, record: Record, difference: float | None = None) -> None:
    """Write a record of a loop of one's own as `run.py train` writes its own: the same tags.

    What it knows becomes scalars, with the custom scalars that show each statistic in one chart;
    what was applied and refused becomes text, with the reasons. Of a record that says neither, what
    was decided is shown: `replace(record, decided=policy.decide(history), applied=...)`.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`.
        record: of `Record.capture`, say.
        difference: of the outputs after growth, `grow(...).difference`.
    """
    names = set(statistics_of([record]))
    charted = _CHARTED.setdefault(writer._get_file_writer(), set())
    board = Board(WriterEvents(writer), charted=names <= charted)
    board.record(record)
    charted |= names
    done = record.applied or (() if record.refused else record.decided)
    board.growth(record.step, done, record.refused, difference)


def _because(action: Action) -> str:
    reason = getattr(action, "reason", "")
    return f", because: {reason}" if reason else ""
