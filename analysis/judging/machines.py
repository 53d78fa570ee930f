"""Where runs ran, and beside how many others: what their seconds mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import Finished, Rows, seeds_text


@dataclass(frozen=True)
class Machine:
    """What the seconds of a run depend on, as its folder tells; None where it does not.

    `resumed` says where else it went on.
    """

    processor: str | None
    gpu: str | None
    cores: int | None
    threads: int | None
    at_a_time: int | None
    resumed: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Processor, cores and threads as people read them."""
        place = f"{self.processor or 'unknown processor'}, {self.cores or '?'} cores"
        place = f"{self.gpu} ({place})" if self.gpu else place
        return f"{place}; {self.threads or '?'} thread(s) a run"

    @property
    def text(self) -> str:
        """The machine as people read it."""
        beside = "an unknown number of runs at a time"
        if self.at_a_time:
            beside = f"{self.at_a_time} run{'s' if self.at_a_time > 1 else ''} at a time"
        later = "".join(f", resumed on {place}" for place in self.resumed)
        return f"{self.place}, {beside}{later}"


def machine_of(run: Finished) -> Machine:
    """Read a run's environment.json, and in its config.yaml whether it left the GPU alone."""
    known = environment_of(run.folder)
    cpu = re.search(r"^device: ['\"]?cpu\b", _text(run.folder / "config.yaml"), re.MULTILINE)
    first = _machine(known, bool(cpu))
    later = (_machine(each, bool(cpu)).place for each in resumed_of(known))
    also = tuple(place for place in later if place != first.place)
    return replace(first, at_a_time=run.at_a_time, resumed=also)


def resumed_of(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give where else a run went on, of what `environment_of` gives."""
    later = known.get("resumed")
    return [each for each in later if isinstance(each, dict)] if isinstance(later, list) else []


def _machine(known: Mapping[str, Any], cpu: bool) -> Machine:
    items = known.items()
    found: dict[str, Any] = {name: told for name, told in items if isinstance(told, str | int)}
    gpu = None if cpu else found.get("gpu")
    cores, threads = found.get("cores"), found.get("threads")
    return Machine(found.get("processor"), gpu, cores, threads, None)


def environment_of(folder: Path) -> dict[str, Any]:
    """Read a folder's environment.json; it tells nothing where it is missing or damaged."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def machines_of(rows: Rows) -> dict[Machine, dict[str, list[int]]]:
    """Give the machines, and by row the seeds that ran on each."""
    found: dict[Machine, dict[str, list[int]]] = {}
    for name, row in rows.items():
        for seed in sorted(row):
            found.setdefault(machine_of(row[seed]), {}).setdefault(name, []).append(seed)
    return found


def machine_notes(rows: Rows, budget: str) -> list[str]:
    """Say on which machine the runs ran, or which ran on which; nothing if no folder tells."""
    found = machines_of(rows)
    if not any(machine.processor for machine in found):
        return []
    if len(found) == 1:
        (machine,) = found
        told = f"Machine: {machine.text}."
        if machine.at_a_time and machine.at_a_time > 1:
            told += " Seconds are those of runs that ran beside others."
        return [told]
    parts = []
    for number, (machine, ran) in enumerate(found.items(), start=1):
        names = [
            name if len(seeds) == len(rows[name]) else f"{name} {seeds_text(seeds)}"
            for name, seeds in ran.items()
        ]
        parts.append(f"({number}) {machine.text}: {', '.join(names)}")
    told = f"Machines: {'. '.join(parts)}. Their seconds cannot be compared with one another"
    if budget == "seconds":
        told += ", and the budget was in seconds: what the rows could do in it differs by machine"
    return [f"{told}."]


def seconds_mark(runs: Mapping[int, Finished]) -> str:
    """Give what a row's mean seconds must not be read without, or nothing."""
    machines = {machine_of(run) for run in runs.values()}
    if len(machines) > 1 or any(machine.resumed for machine in machines):
        return "mixed"
    (machine,) = machines
    return f"{machine.at_a_time} at a time" if (machine.at_a_time or 1) > 1 else ""
