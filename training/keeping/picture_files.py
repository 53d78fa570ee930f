"""The pictures of a run folder, and the run beside it that they compare it with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from analysis import Record, read_history
from analysis.judging.anytime_regret import read_curve
from analysis.recording.atomic_files import write_whole
from training.keeping.asked import asked_before, static_in
from training.keeping.run_folder import read_config


def reference_of(folder: Path) -> list[Record]:
    """Give the history of the largest static run with the same seed in the run's comparison.

    Empty where there is no comparison, or no other static run in it that is finished and readable.
    """
    folder = folder.absolute()
    comparison, static = comparison_of(folder), []
    if comparison is None:
        return []
    rows = _static_rows(comparison)
    for path in comparison.glob(f"*/{folder.name}/summary.json"):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            fixed = summary["policy"] == "Never" if rows is None else path.parts[-3] in rows
            if fixed and path.parent != folder:
                static.append((summary["parameters"], read_history(path.parent)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(static, key=lambda pair: pair[0])[1] if static else []


def _static_rows(comparison: Path) -> list[str] | None:
    """Give the static rows of a comparison; None where its files do not tell."""
    try:
        cells = {str(name): dict(row) for name, row in read_config(comparison)["cells"].items()}
        return static_in(asked_before(comparison), cells)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def comparison_of(folder: Path) -> Path | None:
    """Give the folder of the comparison that a run's folder lies in; None where there is none.

    Before its first run ends it has no comparison.csv, but a config.yaml with cells.
    """
    above = folder.absolute().parent.parent
    if (above / "comparison.csv").is_file():
        return above
    try:
        settings = (above / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return above if "cells:" in settings.splitlines() else None


def seconds_of(folder: Path) -> list[float]:
    """Give the seconds of training at each record; none where metrics.csv cannot be read."""
    try:
        return read_curve(folder).seconds.tolist()
    except ValueError:
        return []


def write_pictures(out: Path, pictures: Mapping[str, bytes]) -> None:
    """Write PNG files into a folder; a ValueError if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            write_whole(out / f"{name}.png", png)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written: {error.strerror}") from None
