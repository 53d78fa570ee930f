"""Parts of a comparison that were run apart, on other machines too, judged as if in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import Finished
from analysis.recording.atomic_files import path_of
from training.comparing.comparison_files import Matrix, write_judged
from training.data.identity import NAME as DATA
from training.data.identity import difference
from training.keeping.asked import Asked, Provenance, asked_before, static_in, told_of
from training.keeping.result_files import read_summary
from training.keeping.run_folder import binding, read_config
from training.settings.checks import folder_of
from training.settings.compare_settings import pair_of
from training.settings.named_runs import check_same_runs

_APART = ("seeds", "cells", "primary")
"""Settings in which parts may differ; where two name a row, or a claim, it must be the same."""
_OWN = ("seconds", "data", "test_loss", "test_accuracy", "test_readings")
"""What may differ between two results of one run: time, where images lie, the test set read."""


@dataclass(frozen=True)
class Part:
    """A comparison's folder, its config, and what it was asked for."""

    folder: Path
    config: Mapping[str, Any]
    asked: Provenance

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it was asked for last, or that were planned for it."""
        return self.asked.asked[-1].seeds

    @property
    def binding(self) -> dict[str, Any]:
        """The settings that all parts must share."""
        kept = binding(self.config)
        return {name: value for name, value in kept.items() if name not in _APART}

    def ground(self, name: str, data: str) -> tuple[str, str]:
        """Give a row's data, `data` where it has none of its own, and net."""
        cell = self.config["cells"][name]
        return cell.get("data") or data, cell.get("net") or self.config["net"]


def judge_parts(folders: Sequence[str], out: str) -> str:
    """Judge the finished runs of several comparisons together; nothing is run.

    OUT gets the comparison.csv, comparison.md and report.html that one folder with all of the runs
    would have. Give the text.

    Raises:
        ValueError: a folder holds no comparison, settings, rows, data or claims contradict one
            another, one row and seed has two results, or OUT is a folder of runs or none.
    """
    named = dict[Path, Path]()  # one folder has many names
    for folder in (path_of("folders", name) for name in folders):
        named.setdefault(folder.resolve(), folder)
    parts, where = [_part(folder) for folder in named.values()], folder_of(out)
    inside = any(where.resolve().is_relative_to(folder) for folder in named)
    if (where / "config.yaml").exists() or inside:
        raise ValueError(f"out must be a folder that holds no runs, got {where}")
    for part in parts[1:]:
        _check_same(parts[0], part)
    matrix = _matrix(parts)
    runs = _runs(parts, matrix)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {where} cannot be written: {error.strerror}") from None
    told = _told(parts, matrix)
    return write_judged(where, matrix, runs, told, [part.folder for part in parts])


def _part(folder: Path) -> Part:
    if not folder.is_dir():
        raise ValueError(f"folders must be folders of comparisons, got {folder}")
    config = read_config(folder) if (folder / "config.yaml").exists() else {}
    if not isinstance(config.get("cells"), dict):
        raise ValueError(f"folders must be folders of comparisons, got {folder}, which holds none")
    cells = {str(name): cell for name, cell in config["cells"].items()}
    return Part(folder, {**config, "cells": cells}, asked_before(folder))


def _check_same(first: Part, part: Part) -> None:
    """Raise a ValueError that names the first setting in which two parts contradict each other."""
    before, now = first.binding, part.binding
    for name in {**before, **now}:
        _refuse(name, first, part, before.get(name), now.get(name))
    for name, cell in part.config["cells"].items():
        if name in first.config["cells"]:
            kept, given = binding(first.config["cells"][name]), binding(cell)
            for key in {**kept, **given}:
                _refuse(f"cells: {name}: {key}", first, part, kept.get(key), given.get(key))
    claims = [pair_of(each.config.get("primary")) for each in (first, part)]
    if all(claims):
        _refuse("primary", first, part, *claims)


def _refuse(what: str, first: Part, part: Part, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(
            f"{what} must be the same in all folders, got {before!r} in {first.folder} and {now!r} "
            f"in {part.folder}"
        )


def _matrix(parts: Sequence[Part]) -> Matrix:
    """Give the rows and seeds of all parts, in the order in which they are first named."""
    cells, grounds, static = dict[str, Any](), dict[str, tuple[str, str]](), list[str]()
    for part in parts:
        static += [n for n in static_in(part.asked, part.config["cells"]) if n not in cells]
        for name, cell in part.config["cells"].items():
            cells.setdefault(name, cell)
            # images of one's own may lie elsewhere in each part: the first says where
            grounds.setdefault(name, part.ground(name, parts[0].config["data"]))
    claims = [pair_of(part.config.get("primary")) for part in parts]
    seeds = sorted({seed for part in parts for seed in part.seeds})
    published = {name: cell["published"] for name, cell in cells.items() if cell.get("published")}
    pair = next(filter(None, claims), None)
    controls = [name for name, cell in cells.items() if cell.get("scratch")]
    budget = parts[0].config["budget"]
    return Matrix(grounds, seeds, static, pair, budget, published, controls)


def _runs(parts: Sequence[Part], matrix: Matrix) -> dict[tuple[str, int], Finished]:
    """Give all finished runs; data and results must not contradict each other."""
    found, data = dict[tuple[str, int], Finished](), dict[tuple[str, str], tuple[Path, Any]]()
    for part in parts:
        for name, seed, folder in _folders(part):
            _check_data(folder, data, matrix.grounds[name])
            check_same_runs(folder, read_config(folder))
            summary = {**read_summary(folder), "data": matrix.grounds[name][0]}
            run = Finished(folder, summary, part.asked.beside(folder))
            other = found.get((name, seed))
            if other is not None:
                _check_twice(f"{name}, seed {seed}", other, run)
            if other is None or summary["test_readings"] > other.summary["test_readings"]:
                found[name, seed] = run
    if not found:
        told = ", ".join(str(part.folder) for part in parts)
        raise ValueError(f"folders must hold a finished run, got {told}")
    return found


def _folders(part: Part) -> Iterator[tuple[str, int, Path]]:
    """Give the row, seed and folder of a part's finished runs."""
    for name in part.config["cells"]:
        for seed in part.seeds:
            folder = part.folder / name / f"seed{seed}"
            if (folder / "summary.json").exists():
                yield name, seed, folder


def _check_data(
    folder: Path, seen: dict[tuple[str, str], tuple[Path, Any]], ground: tuple[str, str]
) -> None:
    """Raise a ValueError if a run saw other data than the first on the same data set and net."""
    try:
        now = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # a run of an earlier version, which did not say what it saw
    except (OSError, ValueError):
        raise ValueError(f"folders: {folder / DATA} cannot be read") from None
    first, before = seen.setdefault(ground, (folder, now))
    try:
        told = difference(before, now)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"folders: {folder / DATA} or {first / DATA} cannot be read") from None
    if told:
        raise ValueError(f"data of {folder} must be those of {first}, got {told}")


def _check_twice(what: str, first: Finished, second: Finished) -> None:
    """Raise a ValueError unless two results of one row and seed are the same."""
    kept, given = (
        {name: value for name, value in run.summary.items() if name not in _OWN}
        for run in (first, second)
    )
    histories = {(run.folder / "history.jsonl").read_bytes() for run in (first, second)}
    if kept != given or len(histories) > 1:
        raise ValueError(
            f"{what}: {second.folder} must hold what {first.folder} does, got another result"
        )


def _told(parts: Sequence[Part], matrix: Matrix) -> dict[tuple[str, str], list[str]]:
    """Give by data and net what a reader has to know of when the parts were asked for."""
    told = dict[tuple[str, str], list[str]]()
    whole = [set(part.asked.plan.seeds) >= set(matrix.seeds) for part in parts]
    whole += [set(part.asked.plan.rows) >= set(matrix.grounds) for part in parts]
    for ground in dict.fromkeys(matrix.grounds.values()):
        rows = [name for name, of in matrix.grounds.items() if of == ground]
        notes = told[ground] = []
        for part in parts:
            said = told_of(part.asked, rows, matrix.seeds)
            notes += [f"{part.folder}: {line}" for line in said]
        if len(parts) > 1 and not all(whole):
            asked = "; ".join(f"{part.folder} ({_plan(part.asked.plan)})" for part in parts)
            notes.append(
                f"The parts were asked for apart: {asked}. Whether results of one were seen before "
                "another was asked for is not recorded."
            )
    return told


def _plan(plan: Asked) -> str:
    return f"{len(plan.rows)} rows, seeds {', '.join(map(str, plan.seeds))}"
