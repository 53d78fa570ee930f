"""Reads a run's history.jsonl: a Record a line, as `Record.to_dict` gives it."""

from __future__ import annotations

import json
from pathlib import Path

from analysis.recording.atomic_files import path_of
from analysis.recording.record import Record


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
