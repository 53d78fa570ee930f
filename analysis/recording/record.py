"""One line of history: what the network was, how it did, what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from math import inf
from typing import TYPE_CHECKING, Any

from analysis.observing.reading import STATISTICS, LayerReading, ReadOnly
from nets import Action, Architecture, Cost, action_from_dict, action_to_dict, cost
from nets.checks import check_count

if TYPE_CHECKING:
    from torch import nn

    from analysis.observing.observer import Observer


import json
from pathlib import Path

from analysis.recording.atomic_files import path_of

UNBOUNDED = Cost(parameters=2**62, flops=2**62)
"""The limit of a record that was given none."""
_MEASURED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_MEASURED += ("ema_validation_loss", "learning_rate")


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
        ema_validation_loss: the same of the running average of the weights; None without one.
        learning_rate: in force when the record was made.
        layers: readings by module path.
        importance: the probe "importance" by block, if a policy needs it: the loss without the
            block's branch minus the loss with it, on the probe batch.
        grow_until: fraction of the budget after which nothing grows; of records that were written
            without it, and in a loop of one's own that does not say, the default of `train`.
        probes: by name, what other probes of the policy have measured by block. What they measure
            by layer is in the readings' `extra`; `policies.probed` finds both.
        sensitivity: by block, how much an image's loss depends on one of its inner channels
            (`analysis.block_sensitivity`), measured at every record of `train`, as the readings
            are; `analysis.capacity.missing_capacity.rank` compares them.
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
    ema_validation_loss: float | None = None
    learning_rate: float | None = None
    layers: Mapping[str, LayerReading] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    grow_until: float = 0.6
    probes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    decided: Sequence[Action] = ()
    applied: Sequence[Action] = ()
    refused: Sequence[tuple[Action, str]] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "importance", "sensitivity"):
            object.__setattr__(self, name, ReadOnly(getattr(self, name)))
        probes = {name: ReadOnly(found) for name, found in self.probes.items()}
        object.__setattr__(self, "probes", ReadOnly(probes))

    @classmethod
    def capture(cls, net: nn.Module, observer: Observer, **numbers: Any) -> Record:
        """Make a record in a training loop of one's own.

        Args:
            net: a network from `nets.build`.
            observer: its readings since the last call become `layers`.
            **numbers: any field of Record, numbers also as tensors or numpy's, (); `step` is the
                observer's, `spent`, `epoch` and `seed` are 0 and `limit` is without bound unless
                given.

        Raises:
            ValueError: `net` is no network from `nets.build`, inside a wrapper, or not the one that
                the observer reads, as after a growth that it did not follow.
        """
        architecture: Any = getattr(net, "architecture", None)
        if architecture is None:
            raise ValueError(f"net must be a network from nets.build, got a {type(net).__name__}")
        inner = getattr(net, "_orig_mod", net)  # torch.compile's wrapper passes for it
        if all(module is not inner for module in observer.net.modules()):
            raise ValueError(
                "net must be the network that observer reads, got another; after a growth both go "
                "on with the grown one (observer.follow)"
            )
        given: dict[str, Any] = {"step": observer.step, "epoch": 0.0, "spent": 0.0, "seed": 0}
        given |= {"limit": UNBOUNDED, "layers": observer.readings()}
        for name, value in numbers.items():
            given[name] = value.item() if getattr(value, "ndim", None) == 0 else value
        return cls(architecture=architecture, **given)

    @property
    def of_blocks(self) -> dict[str, Mapping[str, float]]:
        """What was measured by block, by name: importance, sensitivity and other probes."""
        own = {"importance": self.importance, "sensitivity": self.sensitivity}
        return {name: found for name, found in own.items() if found} | dict(self.probes)

    @property
    def cost(self) -> Cost:
        """Cost of the architecture in force."""
        return cost(self.architecture)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data for one line of JSON; None and empty fields of readings are left out.

        So are `probes` and `sensitivity` where there are none, as in an earlier version's history.
        """
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["architecture"] = self.architecture.to_dict()
        data["limit"] = asdict(self.limit)
        data["layers"] = {path: _reading_to_dict(reading) for path, reading in self.layers.items()}
        data["importance"] = dict(self.importance)
        data["probes"] = {name: dict(found) for name, found in self.probes.items()}
        data["sensitivity"] = dict(self.sensitivity)
        for name in ("probes", "sensitivity"):
            if not data[name]:
                del data[name]
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
            _check(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"record cannot be read: {error!r}") from None
        return record


def edits_of(
    history: Sequence[Record],
) -> Iterator[tuple[Record, Action, Architecture, Architecture]]:
    """Give each applied action with its record, and the architecture before and after it."""
    for record in history:
        before = record.architecture
        for action in record.applied:
            after = before.apply(action)
            yield record, action, before, after
            before = after


def _reading_to_dict(reading: LayerReading) -> dict[str, Any]:
    values = asdict(reading).items()
    return {name: value for name, value in values if name == "block" or value not in (None, {})}


def _check(record: Record) -> None:
    """Raise a ValueError unless all that is counted with is of its kind, and in its range."""
    for name in ("step", "train_flops"):
        check_count(name, getattr(record, name), least=0)
    check_count("seed", record.seed, least=-(2**63))
    for name in ("parameters", "flops"):
        check_count(f"{name} of limit", getattr(record.limit, name))
    for name in ("epoch", "spent", "grow_until"):
        _check_number(name, getattr(record, name))
    if not 0 <= record.spent < inf:  # in a loop of one's own it may be more than the budget
        raise ValueError(f"spent must be at least 0 and finite, got {record.spent!r}")
    if not 0 <= record.grow_until <= 1:
        raise ValueError(f"grow_until must be from 0 to 1, got {record.grow_until!r}")
    for name in _MEASURED:
        _check_number(name, getattr(record, name), optional=True)
    for name in ("importance", "sensitivity"):
        for block, value in getattr(record, name).items():
            _check_number(f"{name} of {block!r}", value)
    for name, found in record.probes.items():
        for block, value in found.items():
            _check_number(f"probe {name!r} of {block!r}", value)
    for path, reading in record.layers.items():
        _check_reading(path, reading)
    for _, why in record.refused:
        if not isinstance(why, str):
            raise ValueError(f"refused must say why as text, got {why!r}")
    reduce(Architecture.apply, record.applied, record.architecture)


def _check_reading(path: str, reading: LayerReading) -> None:
    if not isinstance(reading.role, str) or not isinstance(reading.block, str | None):
        got = (reading.block, reading.role)
        raise ValueError(f"block and role of {path!r} must be text, got {got}")
    if reading.edited is not None:
        check_count(f"edited of {path!r}", reading.edited, least=0)
    for name in STATISTICS:
        _check_number(f"{name} of {path!r}", reading.value(name), optional=True)
    for name, value in reading.extra.items():
        _check_number(f"{name!r} of {path!r}", value)


def _check_number(name: str, value: object, optional: bool = False) -> None:
    if optional and value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000
    if not whole and not isinstance(value, float):  # a larger integer cannot become one
        raise ValueError(f"{name} must be a number, got {value!r}")


def read_history(
    path: str | Path, records: int | None = None, name: str = "history"
) -> list[Record]:
    """Read a history.jsonl file, or that of a run folder; all of it, or its first `records`.

    `name` is what errors call it.

    Raises:
        ValueError: the file is missing, a line is not a record, or its step is before that of the
            line above; the message names the line.
    """
    given = path_of(name, path)
    path = given / "history.jsonl" if given.is_dir() else given
    if not path.is_file():
        raise ValueError(f"{name} must be a history.jsonl file or a run folder, got {given}")
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
