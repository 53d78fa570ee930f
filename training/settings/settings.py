"""Everything a run or a comparison can be told, as data; reading it imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from math import inf
from pathlib import Path, PurePath
from typing import Any

import yaml

from analysis.recording.atomic_files import path_of
from nets import Architecture, cost, preset, seed_of
from nets.checks import check_choice, check_count, check_fraction, check_kinds
from policies import (
    LayerStatistic,
    Never,
    Periodic,
    Plateau,
    Policy,
    RandomSite,
    StochasticDepth,
)

MOST_EPOCHS = 10**9
MOST_THREADS = 1024
MOST_PARAMETERS = 10**11
AUGMENTATIONS = ("auto", "none", "crop", "crop-flip", "flip")
MOST_OF_A_NAME = 200
"""Bytes of a row's name; file systems take 255."""
INITIALIZERS = ("he", "xavier", "net2net", "gradmax", "xavier-outgoing")


@dataclass(frozen=True)
class Start:
    """The net that a run starts from, as a part of the limit network.

    Args:
        width: fraction of the limit's inner widths, above 0 and at most 1.
        blocks: blocks of each stage; null keeps all.
        architecture: a run's architecture.json to start from instead, at any width and depth.
    """

    width: float = 0.25
    blocks: int | None = 1
    architecture: str | None = None

    def __post_init__(self) -> None:
        check_fraction("start.width", self.width)
        if self.blocks is not None:
            check_count("start.blocks", self.blocks)


@dataclass(frozen=True, kw_only=True)
class Common:
    """What a training run and a comparison share.

    Args:
        data: digits, mnist, fashion-mnist, cifar10, cifar100, sine or folder:PATH
            (PATH/train/CLASS/* and PATH/test/CLASS/*).
        data_dir: where torchvision keeps or downloads its files.
        augment: of training images: none, crop (from an image padded with black), flip (one of two
            is mirrored: not for what has a left and a right), crop-flip, or auto: the data set's
            standard recipe, which for a folder is none.
        net: the limit: resnet8/14/20/32/44/56/110, wrn-D-K, resnet18/34/50 or mlp-W. No network of
            the run may cost more.
        order: post or pre activation; by default as the net was published.
        epochs: the budget; see budget.
        budget: flops is the training FLOPs of that many epochs of the limit; epochs is that many
            passes over the data; seconds is that many seconds.
        records: how often layers are read and the policy is asked, at equal parts of the budget; by
            default once per budgeted epoch and at least 20 times.
        grow_until: fraction of the budget after which nothing grows, from 0 to 1.
        schedule: of the learning rate over the budget: cosine, or hold (constant until grow_until,
            then a cosine).
        batch_size: images a step, of all processes together.
        accumulate: parts into which a step's batch is divided to save memory; BatchNorm sees a part
            at a time.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: the largest learning rate; by default 0.001, and for sgd 0.1, or 0.5/W where mlp-W fits
            numbers (sine) from He's values: from about 1/W on its loss grows without bounds.
        momentum: of sgd (Nesterov).
        weight_decay: of weights; BatchNorm and biases get none.
        initializer: of the first weights and of new ones: he, xavier; net2net or gradmax, which
            begin like he; or xavier-outgoing, which begins like xavier and moves the outputs.
        observe_every: steps between readings of the layers.
        validation_images: of the validation split that a record looks at: a fixed stratified part,
            so that records stay cheap beside an epoch. The summary looks at the whole split.
        precision: float32, bf16 (autocast), fp16 (autocast with scaled gradients), or auto: bf16
            where the device computes it natively.
        nonfinite: when a loss or gradient is NaN or infinite: stop the run at the next record, or
            skip the step, which then changes nothing (asks the device at every step).
        ema: largest decay a step of a running average of the weights, judged beside them at every
            record (metrics.csv); 0 for none.
        device: a torch device; auto takes the GPU if there is one.
        deterministic: use algorithms alone that give the same bits every time, and no TF32: a run
            then repeats and resumes bit for bit on a GPU too; slower there. A CPU does so anyway.
        threads: CPU threads; by default torch's choice.
        compile: compile the network with torch.compile, anew after every growth; slower on a CPU.
        policy_errors: stop ends a run whose policy fails, with exit code 1, to be resumed when the
            policy is mended; continue says so in the record's line and does nothing there.
        final: read the test set, once, at the end.
    """

    data: str = "digits"
    data_dir: str = "data"
    augment: str = "auto"
    net: str = "resnet20"
    order: str | None = None
    epochs: float = 20
    budget: str = "flops"
    records: int | None = None
    grow_until: float = 0.6
    schedule: str = "cosine"
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    initializer: str = "he"
    observe_every: int = 10
    validation_images: int = 2000
    precision: str = "auto"
    nonfinite: str = "stop"
    ema: float = 0.999
    device: str = "auto"
    deterministic: bool = False
    threads: int | None = None
    compile: bool = False
    policy_errors: str = "stop"
    final: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0 < self.epochs <= MOST_EPOCHS:
            raise ValueError(f"epochs must be above 0 and at most {MOST_EPOCHS}, got {self.epochs}")
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("budget", self.budget, ("flops", "epochs", "seconds"))
        check_choice("schedule", self.schedule, ("cosine", "hold"))
        check_choice("optimizer", self.optimizer, ("sgd", "adam", "adamw", "rmsprop"))
        check_choice("initializer", self.initializer, INITIALIZERS)
        check_choice("policy_errors", self.policy_errors, ("stop", "continue"))
        check_choice("precision", self.precision, ("auto", "float32", "bf16", "fp16"))
        check_choice("nonfinite", self.nonfinite, ("stop", "skip"))
        if not 0 <= self.grow_until <= 1:
            raise ValueError(f"grow_until must be from 0 to 1, got {self.grow_until}")
        check_count("accumulate", self.accumulate)
        check_count("batch_size", self.batch_size, least=2 * self.accumulate)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}")
        check_count("observe_every", self.observe_every)
        check_count("validation_images", self.validation_images)
        for name in ("records", "threads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
        if self.lr is not None and not 0 < self.lr < inf:
            raise ValueError(f"lr must be above 0 and finite, got {self.lr}")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        _check_net(self.net)

    @property
    def learning_rate(self) -> float:
        """The largest learning rate: `lr`, or 0.1 for sgd and 0.001 for the others.

        A plain net of W units from He's values has W / 2 active ones of variance 2 for an input of
        variance 1, so that the curvature of a squared error is about W, and momentum is stable up
        to about 1 / W. (Measured on sine, W from 50 to 2000, momentum 0.9: 0.5 / W never raised the
        loss above its first value, 1 / W mostly not, 2 / W always did, 4 / W ended infinite.)
        Xavier's values don't grow with W, a cross-entropy's curvature is bounded, and BatchNorm
        takes the scale out: 0.1 is stable there.
        """
        if self.lr is not None or self.optimizer != "sgd":
            return self.lr or 0.001
        widths = re.fullmatch(r"mlp-(\d+)", self.net)
        if self.data == "sine" and widths and not self.initializer.startswith("xavier"):
            return min(0.1, 0.5 / int(widths[1]))
        return 0.1

    @property
    def record_count(self) -> int:
        """Records a run makes: `records`, or one per budgeted epoch and at least 20."""
        return self.records or max(20, round(self.epochs if self.budget != "seconds" else 0))


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """One training run.

    Args:
        policy: when and where to grow: a class in the box, or an import path such as mine.Mine.
        start: the net to start from; by default a quarter of the width and one block a stage, and
            the limit itself for Never.
        seed: of initial values, data order and everything random.
        out: the run folder; by default runs/DATA-NET-POLICY-seedN.
        resume: go on with the run in the folder, if there is one.
    """

    policy: Policy = field(default_factory=Never)
    start: Start | None = None
    seed: int = 0
    out: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_made("policy", self.policy, Policy)
        if self.start is not None:
            check_made("start", self.start, Start)
        check_count("seed", self.seed, least=0)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        _ = self.folder  # refuses what is none

    @property
    def folder(self) -> Path:
        """The run folder."""
        data = Path(self.data.removeprefix("folder:")).name
        policy = type(self.policy).__name__.lower()
        name = f"runs/{data}-{self.net}-{policy}-seed{self.seed}"
        return _folder(name if self.out is None else self.out)

    def limit(self, classes: int, image: tuple[int, ...]) -> Architecture:
        """Give the limit network for data of that shape."""
        return preset(self.net, classes=classes, image=image, order=self.order)

    def first(self, limit: Architecture) -> Architecture:
        """Give the network to start from; a ValueError if it costs more than the limit."""
        start = self.start
        if start is None:
            start = Start(1, None) if isinstance(self.policy, Never) else Start()
        first = seed_of(limit, start.width, start.blocks)
        if start.architecture is not None:
            first = _read_architecture(start.architecture)
            if (first.image, first.classes) != (limit.image, limit.classes):
                wanted, got = (
                    f"images {net.image} and {net.classes} classes" for net in (limit, first)
                )
                raise ValueError(
                    f"start.architecture must be made for this data ({wanted}), got {got}"
                )
        if cost(first).flops > cost(limit).flops or cost(first).parameters > cost(limit).parameters:
            raise ValueError(f"start must cost at most the limit {cost(limit)}, got {cost(first)}")
        return first


def check_made(name: str, value: object, kind: type) -> None:
    """Raise a ValueError unless the value is an object of that class; null in a file is none."""
    if not isinstance(value, kind):
        got = "null" if value is None else repr(value)
        raise ValueError(f"{name} must be a {kind.__name__}, got {got}")


def _row(name: object) -> str:
    """Give a row's name as text: YAML reads 8 and 0.5 as numbers, and on, no and null as others."""
    if name is None or isinstance(name, bool):
        said = "null" if name is None else str(name).lower()
        raise ValueError(
            f"cells must have names that are text, got {said}: put the name in quotes, as YAML "
            "reads on, off, yes, no, true, false, null and ~ otherwise"
        )
    text = str(name)
    bad = text in ("", "..") or text.startswith("~") or Path(text).name != text
    if bad or not text.isprintable() or len(text.encode()) > MOST_OF_A_NAME:
        raise ValueError(f"cells must have names that a folder can have, got {text[:99]!r}")
    return text


def _folder(out: str) -> Path:
    """Give the folder that `out` names; a ValueError if it names none."""
    if not out or "\0" in out:
        raise ValueError(f"out must be the name of a folder, got {out!r}")
    return path_of("out", out)


def _check_net(name: str) -> None:
    """Raise a ValueError unless it is the name of a network that a machine could hold."""
    if re.search(r"\d{6}", name):  # of layers or channels: counting alone would take for ever
        raise ValueError(f"net must have numbers below 100000, got {name[:40]!r}")
    parameters = cost(preset(name)).parameters
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"net must have at most {MOST_PARAMETERS} parameters, got {name!r} with {parameters}"
        )


def _read_architecture(path: str) -> Architecture:
    file = path_of("start.architecture", path)
    try:
        return Architecture.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"start.architecture must be an architecture.json, got {path!r}: {why}"
        ) from None


@dataclass(frozen=True)
class Cell:
    """One row of a comparison.

    Args:
        policy: when and where to grow.
        start: the net to start from; by default as for a training run.
        schedule: of the learning rate, if other than the comparison's.
        lr: the largest learning rate, if other than the comparison's.
        data: the data set, if other than the comparison's; rows are judged beside those on the same
            data and net.
        net: the limit, if other than the comparison's.
        scratch: a row whose final architecture this row trains from fresh weights, without growth,
            seed by seed.
        yoked: a row at whose times this row grows, by the same kinds and costs, at random sites.
    """

    policy: Policy = field(default_factory=Never)
    start: Start | None = None
    schedule: str | None = None
    lr: float | None = None
    data: str | None = None
    net: str | None = None
    scratch: str | None = None
    yoked: str | None = None

    def __post_init__(self) -> None:
        check_made("policy", self.policy, Policy)
        if self.start is not None:
            check_made("start", self.start, Start)

    @property
    def source(self) -> str | None:
        """The row that must be finished before this one."""
        return self.scratch or self.yoked

    @property
    def is_static(self) -> bool:
        """Whether the row belongs to the static frontier."""
        return isinstance(self.policy, Never) and self.source is None


def standard_cells() -> dict[str, Cell]:
    """Give the rows of a comparison: static nets, controls and policies."""
    return {
        "static-quarter": Cell(Never(), Start(0.25, None)),
        "static-half": Cell(Never(), Start(0.5, None)),
        "static-full": Cell(Never(), Start(1, None)),
        "periodic": Cell(Periodic()),
        "random-site": Cell(RandomSite()),
        "plateau": Cell(Plateau()),
        "layer-statistic": Cell(LayerStatistic()),
        "stochastic-depth": Cell(StochasticDepth()),
    }


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Policies x seeds in one table, at equal budget, limit and data order.

    Args:
        seeds: one run of every row each.
        cells: the rows by name; by default static nets at a quarter, half and all of the limit's
            width, and every policy in the box.
        primary: the claim, named before the first run: two rows, as [a, b] or "a vs b".
        out: the folder; it holds ROW/seedN/, comparison.csv, comparison.md and report.html. What is
            finished in it is not run again.
        engine: pool (processes on this machine) or ray.
        workers: runs at a time, without ray; by default one a GPU, or on CPUs as many as there are
            cores for their threads. 1 runs them in this process.
        per_gpu: runs at a time on each GPU.
        address: of a Ray cluster to join, such as auto or HOST:6379; by default Ray runs here.
        dry_run: print the matrix and what it will take, and run nothing.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    cells: dict[str, Cell] = field(default_factory=standard_cells)
    primary: list[str] | str | None = None
    out: str = "runs/comparison"
    engine: str = "pool"
    workers: int | None = None
    per_gpu: int = 1
    address: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be at least one, and no two the same, got {self.seeds}")
        for seed in self.seeds:
            check_count("seed", seed, least=0)
        if not self.cells:
            raise ValueError("cells must be at least one row, got none")
        cells = {_row(name): cell for name, cell in self.cells.items()}
        if len(cells) < len(self.cells):
            raise ValueError(f"cells must have names of their own, got {list(self.cells)}")
        object.__setattr__(self, "cells", cells)
        for name, cell in self.cells.items():
            check_made(f"cells: {name}", cell, Cell)
        for name in self.cells:
            self._check_source(name)
        check_choice("engine", self.engine, ("pool", "ray"))
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address must be left out without --engine ray, got {self.address!r}")
        if self.workers is not None:
            check_count("workers", self.workers)
        check_count("per_gpu", self.per_gpu)
        _ = self.folder  # refuses what is none
        self._check_pair()

    @property
    def folder(self) -> Path:
        """The comparison's folder."""
        return _folder(self.out)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two rows of the primary comparison."""
        if self.primary is None:
            return None
        first, second = _words(self.primary)
        return first, second

    def ground(self, name: str) -> tuple[str, str]:
        """Give a row's data and net: rows that share them are judged together."""
        cell = self.cells[name]
        return cell.data or self.data, cell.net or self.net

    def _check_source(self, name: str) -> None:
        cell = self.cells[name]
        if cell.scratch and cell.yoked:
            raise ValueError(f"cells: {name} must have one of scratch and yoked, got both")
        if cell.source is None:
            return
        grown = [row for row, other in self.cells.items() if other.source is None and row != name]
        check_choice(f"cells: scratch or yoked of {name}", cell.source, tuple(grown))
        if self.ground(name) != self.ground(cell.source):
            raise ValueError(f"cells: {name} must have the data and net of {cell.source}")
        if (cell.start is not None and cell.scratch) or not isinstance(cell.policy, Never):
            raise ValueError(f"cells: {name} must have no policy or start: {cell.source} gives it")

    def _check_pair(self) -> None:
        if self.primary is None:
            return
        pair = _words(self.primary)
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(self.cells):
            raise ValueError(
                f"primary must be two of {', '.join(self.cells)}, as 'a vs b'; got {self.primary!r}"
            )
        if self.ground(pair[0]) != self.ground(pair[1]):
            raise ValueError(f"primary must be rows on the same data and net, got {self.primary!r}")


def _words(primary: str | list[str]) -> list[str]:
    words = primary.split(" vs ") if isinstance(primary, str) else primary
    return [word.strip() for word in words]


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """Give the settings as plain data, as a config file has them."""
    return {item.name: _plain(getattr(settings, item.name)) for item in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name  # by which it is read again
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Policy):
        kind = type(value)
        module = "policies" if kind.__module__.startswith("policies.") else kind.__module__
        path = f"{module}.{kind.__qualname__}"
        if not is_dataclass(value):
            raise ValueError(
                f"policy must be a dataclass, whose fields are its settings, got {path}"
            )
        return {"class_path": path, "init_args": _fields(path, value)}
    if isinstance(value, Cell):
        return settings_to_dict(value)
    if isinstance(value, Start):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)  # numpy's float is a float
    return value


def _fields(path: str, policy: Policy) -> dict[str, Any]:
    """Give what a policy is made of; a ValueError names what no file could hold."""
    found = {}
    for item in fields(policy):  # pyright: ignore[reportArgumentType]
        if item.init:
            value = _plain(getattr(policy, item.name))
            if not _storable(value):
                words = "fields of numbers, text, lists and mappings"
                raise ValueError(
                    f"policy {path} must have {words}, got {item.name}={value!r}"[:300]
                )
            found[item.name] = value
    return found


def _storable(value: Any) -> bool:
    """Say whether a config file and a checkpoint hold the value and give it back the same."""
    if isinstance(value, list):
        return all(map(_storable, value))
    if isinstance(value, dict):
        return all(map(_storable, [*value, *value.values()]))
    kinds = (type(None), bool, int, float, str)
    return type(value) in kinds and value == value  # NaN is not


def settings_to_yaml(settings: Any) -> str:
    """Give the settings as the text of a complete config file."""
    return yaml.safe_dump(settings_to_dict(settings), sort_keys=False)
