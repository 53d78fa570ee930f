"""What a run tells of itself: history.jsonl, metrics.csv, losses.csv and summary.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import Record
from analysis.recording.atomic_files import append, to_disk, write_whole

_SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("data", "net", "policy"), str),
    **dict.fromkeys(("parameters", "flops", "train_flops", "steps", "test_readings"), int),
    **dict.fromkeys(("train_loss", "validation_loss", "test_loss"), int | float | None),
    **dict.fromkeys(("train_accuracy", "validation_accuracy", "test_accuracy"), int | float | None),
    "seconds": int | float,
}
"""What others read of a summary.json, and of what kind it is."""


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a dict as an indented JSON file, whole; numbers must be finite, or null."""
    write_whole(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a finished run's summary.json.

    Raises:
        ValueError: it is missing, damaged or lacks what `training.running.finished` writes.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"out: {path} cannot be read") from None
    for name, kind in _SUMMARY.items():
        if not isinstance(summary, dict) or not isinstance(summary.get(name, ...), kind):
            raise ValueError(f"out: {path} cannot be read: it holds no {name}")
    return summary


def append_record(folder: Path, record: Record) -> None:
    """Add a line to history.jsonl; its numbers must be finite."""
    append(folder / "history.jsonl", json.dumps(record.to_dict(), allow_nan=False) + "\n")


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row to metrics.csv, with a header line first."""
    path = folder / "metrics.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, row.keys())
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow(row)
    append(path, text.getvalue())


def append_losses(folder: Path, before: int, losses: Sequence[float | None]) -> None:
    """Add a line (step, training loss) to losses.csv for each step after step `before`.

    A step that was skipped has no loss, which is written as nan.
    """
    path = folder / "losses.csv"
    header = [] if path.exists() and path.stat().st_size else ["step,train_loss\n"]
    values = ("nan" if loss is None else repr(loss) for loss in losses)
    lines = [f"{step},{value}\n" for step, value in enumerate(values, start=before + 1)]
    append(path, "".join(header + lines))


def results_to_disk(folder: Path) -> None:
    """Flush to the disk what the functions above have added: a checkpoint is about to count on it.

    Raises:
        Unwritten: the disk is full, say.
    """
    for name in ("history.jsonl", "metrics.csv", "losses.csv"):
        to_disk(folder / name)


def cut_back(folder: Path, records: int, steps: int) -> None:
    """Leave in history.jsonl, metrics.csv and losses.csv what a checkpoint knows.

    Raises:
        ValueError: history.jsonl has fewer records; then nothing is cut.
    """
    names = {"history.jsonl": records, "metrics.csv": records + 1, "losses.csv": steps + 1}
    for name, lines in names.items():
        path = folder / name
        there = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if name == "history.jsonl" and len(there) < lines:
            raise ValueError(f"{path} holds {len(there)} of {lines} records")
        if path.exists():
            write_whole(path, b"".join(there[:lines]))  # bytes: line ends stay as they are
