"""A folder becomes a run's, or a comparison's, own; config.yaml says whose it is."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis.judging.machines import environment_of, resumed_of
from analysis.recording.atomic_files import write_whole
from training.data.identity import NAME as DATA
from training.data.identity import settle
from training.keeping.result_files import write_json
from training.settings.compare_settings import pair_of
from training.settings.named_runs import seen_from_out, settle_runs

_TRACES = ("config.yaml", "history.jsonl", "checkpoint.pt", "summary.json", "comparison.csv")
_FREE = ("out", "resume", "final", "device", "threads", "data_dir", "nonfinite")
_FREE += ("graph", "save_every", "policy_errors")
_FREE += ("only", "engine", "workers", "per_gpu", "address", "dry_run")
"""Settings that a resumed run or comparison may change."""
_PLACES = ("folder:", "npz:")
"""Data that may move: what is in them is told by data.json."""
_MACHINE = ("processor", "cores", "threads", "gpu", "torch")
"""What makes another machine of it."""
_WORDED = ("start", "policy", "primary")
"""Settings that may say one thing in several ways."""


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
        settle_runs(folder, settings)
        _note_machine(folder)
        before = read_config(folder)
        if any(before.get(name) != settings.get(name) for name in ("data", "start", "policy")):
            # what they name has moved
            write_whole(folder / "config.yaml", text)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:  # else it is of the comparison, whose runs all see the same
            (folder / DATA).unlink(missing_ok=True)
        if data is not None:
            settle(folder, data)
        settle_runs(folder, settings)
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

    Where images of one's own lie may differ if the run, or each run of a comparison, has written
    down what it saw; where recorded runs lie may, if they lie in the same place beside this one. A
    claim is the same however its two rows are written.
    """
    before, wanted = read_config(folder), binding(settings)
    kept = binding(before)
    said, meant = _meant(before), _meant(settings)
    if "cells" not in before and not (folder / DATA).exists() and "data" in settings:
        kept["data"], wanted["data"] = before.get("data"), settings["data"]
    for name, value in wanted.items():
        alike = name in _WORDED and said.get(name) == meant[name]
        if kept.get(name) != value and not alike:
            raise ValueError(
                f"{name} must be {kept.get(name)!r} to resume the run in {folder}, got {value!r}"
            )


def _meant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give settings in the words that all ways to say one thing share."""
    found = seen_from_out(settings)
    if isinstance(primary := found.get("primary"), str | list | tuple):
        found["primary"] = pair_of(primary)
    return found


def binding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that a run keeps when it is resumed.

    Of images of one's own that is their kind: where they lie may change, what they are may not.
    """
    kept = {name: value for name, value in settings.items() if name not in _FREE}
    for kind in _PLACES:
        if str(kept.get("data")).startswith(kind):
            kept["data"] = kind
    return kept


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Give settings that an earlier version wrote with those that it did not know yet."""
    mirrored = str(settings.get("data")).startswith("folder:")  # then; now that must be asked for
    augment = "crop-flip" if mirrored else "auto"
    known = {"augment": augment, "deterministic": False, "rates": "shared"}
    known = {**known, "batch_growth": 1, **settings}
    if isinstance(known.get("start"), dict):
        known["start"] = {"stream": 1.0, **known["start"]}
    return known


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


def _note_machine(folder: Path) -> None:
    """Write down where a run goes on, unless that is where it was last or it is finished."""
    now, before = environment(), environment_of(folder)
    later = resumed_of(before)
    last = later[-1] if later else before
    if not (folder / "checkpoint.pt").exists():
        write_json(folder / "environment.json", now)
    elif not (folder / "summary.json").exists() and any(now[k] != last.get(k) for k in _MACHINE):
        write_json(folder / "environment.json", {**before, "resumed": [*later, now]})


def environment() -> dict[str, Any]:
    """Give what a result depends on besides the settings: versions, machine, command."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it takes a second
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """Give the processor's name, which Linux tells in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()
