"""A comparison's folder read back: its finished runs, and tables of them for data frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.recording.atomic_files import path_of
from analysis.recording.record import Record, read_history
from analysis.recording.timeline import layer_values

TABLES = ("runs", "records", "layers")


@dataclass(frozen=True)
class ComparedRun:
    """A finished run of a comparison.

    Args:
        row: the name of its row.
        seed: its seed.
        folder: where it lies: ROW/seedN in the comparison's folder.
        summary: what its summary.json holds; accuracies are fractions in [0, 1].
        judged: what the comparison says of it beside that: `regret` (a fraction),
            `flops_to_reference`, `transient` (a loss) and their kin; None where there is nothing to
            say, or nothing was judged yet.
    """

    row: str
    seed: int
    folder: Path
    summary: Mapping[str, Any]
    judged: Mapping[str, float | None]

    @cached_property
    def history(self) -> Sequence[Record]:
        """Its records, read when they are first asked for.

        Raises:
            ValueError: history.jsonl is missing or damaged.
        """
        return read_history(self.folder)


class Comparison(tuple[ComparedRun, ...]):
    """The finished runs of a comparison, row by row and seed by seed."""

    __slots__ = ()

    def table(self, of: str = "runs") -> dict[str, list[Any]]:
        """Give columns by name, all of one length, as `pandas.DataFrame` and its kin take them.

        Args:
            of: "runs" (a line a run: row, seed, the numbers and texts of its summary, and what was
                judged), "records" (a line a record: row, seed, and the columns of metrics.csv) or
                "layers" (a line a number that was read: row, seed, step, layer, statistic, value).
                A run lacks what None stands for.

        Raises:
            ValueError: `of` is none of these, or a file of a run is missing or damaged.
        """
        if of not in TABLES:
            raise ValueError(f"of must be one of {', '.join(TABLES)}, got {of!r}")
        lines = {"runs": _summary_line, "records": _metrics, "layers": _readings}[of]
        rows = [{"row": run.row, "seed": run.seed, **line} for run in self for line in lines(run)]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}


def read_comparison(folder: str | Path) -> Comparison:
    """Read the finished runs of a comparison, which may still go on.

    Raises:
        ValueError: the folder holds no comparison.csv, or it or a run's summary.json is damaged, or
            it is of `judge`, which has no runs of its own.
    """
    place = path_of("comparison", folder)
    file = place / "comparison.csv"
    if not file.is_file():
        raise ValueError(
            f"comparison must be a folder with comparison.csv, which `compare` writes once a run "
            f"has ended, got {folder}"
        )
    runs = []
    for number, line in enumerate(_lines(file), start=2):
        row, seed = line.get("run") or "", _value(line.get("seed"))
        if not row or Path(row).name != row or not isinstance(seed, int):
            raise ValueError(f"{file}, line {number}: must have a run and its seed, got {line}")
        of_run = place / row / f"seed{seed}"
        if not of_run.is_dir() and _is_judged(place):
            raise ValueError(
                f"comparison must be a folder that holds its runs, got {folder}, where `judge` put "
                "what it says of others: read those, which its report.html names, one by one"
            )
        summary = _summary(of_run / "summary.json")
        own = {"run", None, *summary}  # None: what a line has beyond the header
        judged = {name: _value(text) for name, text in line.items() if name not in own}
        runs.append(ComparedRun(row, seed, of_run, summary, judged))
    return Comparison(runs)


def _is_judged(folder: Path) -> bool:
    """Say whether a folder is one that `judge` wrote: judged, and not asked to run anything."""
    return (folder / "comparison.md").exists() and not (folder / "config.yaml").exists()


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise ValueError(f"comparison: {path} cannot be read")
    return summary


def _summary_line(run: ComparedRun) -> Iterable[Mapping[str, Any]]:
    plain = (str, int, float, type(None))
    told = {name: value for name, value in run.summary.items() if isinstance(value, plain)}
    yield {**told, **run.judged, "row": run.row, "seed": run.seed}


def _metrics(run: ComparedRun) -> Iterable[Mapping[str, Any]]:
    for line in _lines(run.folder / "metrics.csv"):
        yield {name: _value(text) for name, text in line.items()}


def _readings(run: ComparedRun) -> Iterable[Mapping[str, Any]]:
    for step, layer, statistic, value in layer_values(run.history):
        yield {"step": step, "layer": layer, "statistic": statistic, "value": value}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Give the lines of a CSV file by its header, as text."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        raise ValueError(f"comparison: {path} cannot be read") from None


def _value(text: str | None) -> Any:
    """Give a number as such, and None for what is empty."""
    for kind in (int, float):
        try:
            return kind(text or "")
        except (TypeError, ValueError):
            continue
    return text or None
