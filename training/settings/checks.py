"""Which settings are refused: ValueErrors that name the setting, what it may be, and the value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import BOARD, FRONTIER
from analysis.recording.atomic_files import path_of
from nets import Initializer, cost, preset
from nets.checks import check_choice, check_count, check_kinds, meant
from nets.plan.actions import INITIALIZERS
from policies import Never, Policy
from training.settings.start_settings import Start

MOST_EPOCHS = 10**9
MOST_THREADS = 1024
MOST_PARAMETERS = 10**11
MOST_OF_A_NAME = 200
"""Bytes of a row's name; file systems take 255."""
AUGMENTATIONS = ("auto", "none", "crop", "crop-flip", "flip")


def check_common(settings: Any) -> None:
    """Check what a training run and a comparison share."""
    check_kinds(settings)
    if not 0 < settings.epochs <= MOST_EPOCHS:
        raise ValueError(f"epochs must be above 0 and at most {MOST_EPOCHS}, got {settings.epochs}")
    check_choice("augment", settings.augment, AUGMENTATIONS)
    check_choice("budget", settings.budget, ("flops", "epochs", "seconds"))
    if settings.stem is not None:
        check_choice("stem", settings.stem, ("cifar", "imagenet"))
    check_choice("schedule", settings.schedule, ("cosine", "hold"))
    check_choice("optimizer", settings.optimizer, ("sgd", "adam", "adamw", "rmsprop"))
    check_choice("rates", settings.rates, ("shared", "cohort"))
    _check_initializer(settings.initializer)
    check_choice("policy_errors", settings.policy_errors, ("stop", "continue"))
    check_choice("precision", settings.precision, ("auto", "float32", "bf16", "fp16"))
    check_choice("nonfinite", settings.nonfinite, ("stop", "skip"))
    check_choice("graph", settings.graphs, ("auto", "true", "false"))
    if not 0 <= settings.grow_until <= 1:
        raise ValueError(f"grow_until must be from 0 to 1, got {settings.grow_until}")
    check_count("accumulate", settings.accumulate)
    check_count("batch_size", settings.batch_size, least=2 * settings.accumulate)
    check_count("batch_growth", settings.batch_growth)
    if not 0 <= settings.ema < 1:
        raise ValueError(f"ema must be at least 0 and below 1, got {settings.ema}")
    check_count("observe_every", settings.observe_every)
    check_count("validation_images", settings.validation_images)
    for name in ("records", "threads"):
        if getattr(settings, name) is not None:
            check_count(name, getattr(settings, name))
    if settings.threads is not None and settings.threads > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}, got {settings.threads}")
    if settings.lr is not None and not 0 < settings.lr < inf:
        raise ValueError(f"lr must be above 0 and finite, got {settings.lr}")
    for name in ("momentum", "weight_decay", "save_every"):
        if not 0 <= getattr(settings, name) < inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {getattr(settings, name)}")
    _check_net(settings.net)


def named_initializers(policy: object) -> dict[str, str]:
    """Give the texts that a policy's settings hold where an Initializer may stand, by setting."""
    given = fields(policy) if is_dataclass(policy) else ()
    names = [field.name for field in given if re.search(r"\bInitializer\b", str(field.type))]
    values = {name: getattr(policy, name) for name in names}
    return {name: value for name, value in values.items() if value and isinstance(value, str)}


def _check_initializer(value: object, name: str = "initializer") -> None:
    """Raise a ValueError unless it is an initializer, or the name of one."""
    if isinstance(value, Initializer) or value in INITIALIZERS:
        return
    words = f"{', '.join(INITIALIZERS)}, or an import path such as mine.Tiny; got {value!r}"
    raise ValueError(f"{name} must be one of {words}{meant(value, INITIALIZERS)}")


def check_train(settings: Any) -> None:
    """Check what a training run alone is told."""
    check_policy_and_start(settings)
    check_count("seed", settings.seed, least=0)
    if settings.seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {settings.seed}")
    _ = settings.folder  # refuses what is none


def check_compare(settings: Any) -> None:
    """Check what a comparison alone is told; its rows have gone through `named_rows`."""
    seeds = settings.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least one, and no two the same, got {seeds}")
    for seed in seeds:
        check_count("seed", seed, least=0)
    for name in settings.cells:
        _check_source(settings, name)
    check_choice("engine", settings.engine, ("pool", "ray"))
    if settings.address is not None and settings.engine != "ray":
        raise ValueError(f"address must be left out without --engine ray, got {settings.address!r}")
    if settings.workers is not None:
        check_count("workers", settings.workers)
    if settings.per_gpu is not None:
        check_count("per_gpu", settings.per_gpu)
    _ = settings.folder  # refuses what is none
    if settings.primary is not None:
        _check_pair(settings)
    for name in settings.chosen:
        if name not in settings.cells:
            rows = f"{', '.join(settings.cells)}; got {name!r}{meant(name, settings.cells)}"
            raise ValueError(f"only must be rows of {rows}")
    if not settings.chosen:
        raise ValueError("only must be at least one row, got none")


def check_policy_and_start(settings: Any) -> None:
    """Raise a ValueError unless a run or row has a policy, and a start or none."""
    check_made("policy", settings.policy, Policy)
    for name, value in named_initializers(settings.policy).items():
        _check_initializer(value, f"policy.{name}")
    if settings.start is not None:
        check_made("start", settings.start, Start)


def check_published(value: object) -> None:
    """Raise a ValueError unless it is [mean] or [mean, spread] in %, or None."""
    if value is None:
        return
    numbers = list(value) if isinstance(value, list | tuple) else []
    real = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if len(numbers) not in (1, 2) or not real or not all(0 <= number <= 100 for number in numbers):
        raise ValueError(
            f"published must be [mean] or [mean, spread], of 0 to 100 %, got {value!r}"
        )


def check_made(name: str, value: object, kind: type) -> None:
    """Raise a ValueError unless the value is an object of that class; null in a file is none."""
    if not isinstance(value, kind):
        got = "null" if value is None else repr(value)
        raise ValueError(f"{name} must be a {kind.__name__}, got {got}")


def named_rows(cells: Mapping[Any, Any], kind: type) -> dict[str, Any]:
    """Give the rows under names that are text; a ValueError for a name or row that is none."""
    if not cells:
        raise ValueError("cells must be at least one row, got none")
    named = {_row_name(name): cell for name, cell in cells.items()}
    if len(named) < len(cells):
        raise ValueError(f"cells must have names of their own, got {list(cells)}")
    for name, cell in named.items():
        check_made(f"cells: {name}", cell, kind)
    return named


def _row_name(name: object) -> str:
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
    if text.partition(".")[0].lower() == BOARD:
        raise ValueError(f"cells must have other names than {BOARD}, the comparison's own board")
    if text == FRONTIER:
        raise ValueError(f"cells must have other names than {FRONTIER}, a curve of that board")
    return text


@contextmanager
def of_row(name: str) -> Iterator[None]:
    """Name the row in a ValueError for what it is told."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"cells: {name}: {error}") from None


def folder_of(out: str) -> Path:
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


def _check_source(settings: Any, name: str) -> None:
    """Raise a ValueError unless a row and the one that it waits for can stand together."""
    cell = settings.cells[name]
    if None not in (cell.scratch, cell.yoked):
        raise ValueError(f"cells: {name} must have one of scratch and yoked, got both")
    if cell.source is None:
        return
    grown = [row for row, other in settings.cells.items() if other.source is None and row != name]
    check_choice(f"cells: scratch or yoked of {name}", cell.source, tuple(grown))
    if settings.ground(name) != settings.ground(cell.source):
        raise ValueError(f"cells: {name} must have the data and net of {cell.source}")
    if (cell.start is not None and cell.scratch is not None) or not isinstance(cell.policy, Never):
        raise ValueError(f"cells: {name} must have no policy or start: {cell.source} gives it")


def _check_pair(settings: Any) -> None:
    """Raise a ValueError unless the claim is about two rows that can be compared."""
    pair = settings.pair
    if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(settings.cells):
        rows = ", ".join(settings.cells)
        raise ValueError(f"primary must be two of {rows}, as 'a vs b'; got {settings.primary!r}")
    if settings.ground(pair[0]) != settings.ground(pair[1]):
        raise ValueError(f"primary must be rows on the same data and net, got {settings.primary!r}")
