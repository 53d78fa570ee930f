"""One line of history: what the network was, how it did, what was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.observing.reading import LayerReading, ReadOnly
from analysis.recording.files import path_of
from analysis.recording.record_checks import check_record
from nets import Action, Architecture, Cost, action_from_dict, action_to_dict, cost

if TYPE_CHECKING:
    from torch import nn

    from analysis.observing.observer import Observer

UNBOUNDED = Cost(parameters=2**62, flops=2**62)
"""The limit of a record that was given none."""


@dataclass(frozen=True)
class Record:
    """One line of history.

    Args:
        step: training steps so far.
        epoch: passes over the training data so far, a fraction.
        spent: fraction of the budget used, in [0, 1].
        seed: the run's seed; a policy's only source of randomness, with `step`.
        architecture: the network in force when the record was made, before what was applied.
        limit: the cost that the network must not exceed.
        train_flops: floating-point operations spent so far, probes included.
        train_loss, train_accuracy: means over the window, in training mode; accuracies are
            fractions in [0, 1], None for regression.
        validation_loss, validation_accuracy: of the validation split, in eval mode.
        learning_rate: in force when the record was made.
        layers: readings by module path.
        importance: the probe "importance" by block, if a policy needs it: the loss without the
            block's branch minus the loss with it, on the probe batch.
        decided, applied, refused: what the policy asked for, what was done, and what was not and
            why; empty in the last record while the policy decides.
    """

    step: int
    epoch: float
    spent: float
    seed: int
    architecture: Architecture
    limit: Cost
    train_flops: int = 0
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float | None = None
    layers: Mapping[str, LayerReading] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    decided: Sequence[Action] = ()
    applied: Sequence[Action] = ()
    refused: Sequence[tuple[Action, str]] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "importance"):
            object.__setattr__(self, name, ReadOnly(getattr(self, name)))

    @classmethod
    def capture(cls, net: nn.Module, observer: Observer, **numbers: Any) -> Record:
        """Make a record in a training loop of one's own.

        Args:
            net: a network from `nets.build`.
            observer: its readings since the last call become `layers`.
            **numbers: any field of Record; `step` is the observer's, `spent`, `epoch` and `seed`
                are 0 and `limit` is without bound unless given.
        """
        architecture: Any = net.architecture
        given = {
            "step": observer.step,
            "epoch": 0.0,
            "spent": 0.0,
            "seed": 0,
            "limit": UNBOUNDED,
            "layers": observer.readings(),
        }
        return cls(architecture=architecture, **{**given, **numbers})

    @property
    def cost(self) -> Cost:
        """Cost of the architecture in force."""
        return cost(self.architecture)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data for one line of JSON; None and empty fields of readings are left out."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["architecture"] = self.architecture.to_dict()
        data["limit"] = asdict(self.limit)
        data["layers"] = {path: _reading_to_dict(reading) for path, reading in self.layers.items()}
        data["importance"] = dict(self.importance)
        data["decided"] = [action_to_dict(action) for action in self.decided]
        data["applied"] = [action_to_dict(action) for action in self.applied]
        data["refused"] = [[action_to_dict(action), why] for action, why in self.refused]
        return data

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: an unknown or missing field, or a value out of its range.
        """
        try:
            values = dict(d)
            values["architecture"] = Architecture.from_dict(d["architecture"])
            values["limit"] = Cost(**d["limit"])
            values["layers"] = {path: LayerReading(**data) for path, data in d["layers"].items()}
            for name in ("decided", "applied"):
                values[name] = tuple(action_from_dict(action) for action in d[name])
            values["refused"] = tuple((action_from_dict(act), why) for act, why in d["refused"])
            record = cls(**values)
            check_record(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"record cannot be read: {error!r}") from None
        return record


def _reading_to_dict(reading: LayerReading) -> dict[str, Any]:
    values = asdict(reading).items()
    return {name: value for name, value in values if name == "block" or value not in (None, {})}


def read_history(path: str | Path, records: int | None = None) -> list[Record]:
    """Read a history.jsonl file, or that of a run folder; all of it, or its first `records`.

    Raises:
        ValueError: the file is missing, a line is not a record, or its step is before that of the
            line above; the message names the line.
    """
    path = path_of("history", path)
    path = path / "history.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"history must be a history.jsonl file or a run folder, got {path}")
    found: list[Record] = []
    for number, line in enumerate(path.read_bytes().splitlines()[:records], start=1):
        try:
            record = Record.from_dict(json.loads(line.decode()))
            if found and record.step < found[-1].step:
                raise ValueError(f"step must be at least {found[-1].step}, got {record.step}")
            found.append(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found
