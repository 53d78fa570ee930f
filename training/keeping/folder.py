"""A run's files: no reader sees half of one, and they are cut back when a run resumes."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis import Record
from analysis.recording.atomic_files import append, write_whole
from training.data.identity import NAME as DATA
from training.data.identity import settle

_TRACES = ("config.yaml", "history.jsonl", "checkpoint.pt", "summary.json", "comparison.csv")
_FREE = ("out", "resume", "final", "device", "threads", "data_dir", "nonfinite")
_FREE += ("policy_errors", "engine", "workers", "per_gpu", "address", "dry_run")
"""Settings that a resumed run or comparison may change."""
_FOLDER = "folder:"
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


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    text: str,
    resume: bool,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Make the folder a run's own and write its config.yaml, and data.json if `data` is given.

    Raises:
        ValueError: it holds another run, or `resume` is asked with other settings or data than the
            run's (`training.data.identity`).
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out must be a folder, got the file {folder}")
        taken = any((folder / name).exists() for name in _TRACES)
    except OSError as error:  # a name that is too long, a folder that nobody may look into
        raise ValueError(f"out: {folder} cannot be read: {error.strerror}") from None
    if taken:
        if not resume:
            raise ValueError(f"out: {folder} already holds a run; choose another or add --resume")
        check_same_settings(folder, settings)
        if data is not None:
            settle(folder, data)
        if read_config(folder)["data"] != settings["data"]:  # they have moved
            write_whole(folder / "config.yaml", text)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:  # else it is of the comparison, whose runs all see the same
            (folder / DATA).unlink(missing_ok=True)
        if data is not None:
            settle(folder, data)
        write_json(folder / "environment.json", environment())
        write_whole(folder / "config.yaml", text)  # last: it makes the folder a run's
    except OSError as error:
        raise ValueError(f"out: {folder} cannot be written: {error.strerror}") from None


def claim_comparison(folder: Path, settings: Mapping[str, Any], text: str) -> None:
    """Make the folder a comparison's own, or go on with one that differs in rows or seeds alone.

    Raises:
        ValueError: it holds a training run, or a comparison with other settings.
    """
    if (folder / "history.jsonl").exists() or (folder / "checkpoint.pt").exists():
        raise ValueError(f"out: {folder} already holds a training run; choose another")
    if (folder / "config.yaml").exists():
        if "cells" not in read_config(folder):
            raise ValueError(f"out: {folder} already holds a training run; choose another")
        same = {name: value for name, value in settings.items() if name not in ("seeds", "cells")}
        check_same_settings(folder, same)
        write_whole(folder / "config.yaml", text)
        return
    claim(folder, settings, text, resume=False)


def check_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first setting in which the folder's run differs.

    Where a folder of images lies may differ if the run, or each run of a comparison, has written
    down what it saw.
    """
    before, wanted = read_config(folder), binding(settings)
    kept = binding(before)
    if "cells" not in before and not (folder / DATA).exists() and "data" in settings:
        kept["data"], wanted["data"] = before.get("data"), settings["data"]
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{name} must be {kept.get(name)!r} to resume the run in {folder}, got {value!r}"
            )


def binding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that a run keeps when it is resumed.

    Of a folder of images that is its kind: where it lies may change, what is in it may not.
    """
    kept = {name: value for name, value in settings.items() if name not in _FREE}
    if str(kept.get("data")).startswith(_FOLDER):
        kept["data"] = _FOLDER
    return kept


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Give settings that an earlier version wrote with those that it did not know yet."""
    mirrored = str(settings.get("data")).startswith(_FOLDER)  # then; now that must be asked for
    return {"augment": "crop-flip" if mirrored else "auto", "deterministic": False, **settings}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.yaml; a ValueError if it is missing or damaged."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"out: {folder} holds files of a run but no config.yaml")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"out: {path} cannot be read")
    return completed(config)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a finished run's summary.json.

    Raises:
        ValueError: it is missing, damaged or lacks what `training.running.summary` writes.
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


def environment() -> dict[str, Any]:
    """Give what a result depends on besides the settings: versions, machine, command."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it takes a second
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


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
