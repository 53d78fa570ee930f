"""What a comparison was asked for, and when its first results were there: provenance.json.

The file outlives every rerun, so that the report can say what was added after results were seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import seeds_text
from training.keeping.result_files import write_json
from training.keeping.run_folder import read_config
from training.settings.compare_settings import pair_of

NAME = "provenance.json"


@dataclass(frozen=True)
class Asked:
    """What was asked for, and how many runs of the comparison were finished then."""

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    primary: tuple[str, ...] | None
    finished: int = 0


@dataclass(frozen=True)
class Provenance:
    """All that was asked for, in order, and by run (ROW/seedN) how many went on at a time."""

    asked: tuple[Asked, ...] = ()
    at_a_time: Mapping[str, int] | None = None

    def beside(self, folder: Path) -> int | None:
        """Give how many runs went on at a time with the one in that folder; None if not known."""
        return (self.at_a_time or {}).get(f"{folder.parent.name}/{folder.name}")

    @property
    def plan(self) -> Asked:
        """What was asked for last before there was a result."""
        return next((each for each in reversed(self.asked) if each.finished == 0), self.asked[0])


def read_provenance(folder: Path) -> Provenance:
    """Read a comparison's provenance.json; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return Provenance()
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        asked = tuple(
            Asked(
                tuple(map(str, each["rows"])),
                tuple(map(int, each["seeds"])),
                tuple(each["primary"]) if each["primary"] else None,
                int(each["finished"]),
            )
            for each in found["asked"]
        )
        return Provenance(asked, {run: int(n) for run, n in found["at_a_time"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"out: {path} cannot be read") from None


def asked_before(folder: Path) -> Provenance:
    """Give what a comparison was asked for until now.

    One of an earlier version tells by its config.yaml what it was asked for last; that counts as
    its plan.

    Raises:
        ValueError: its files cannot be read.
    """
    found = read_provenance(folder)
    if found.asked or not (folder / "config.yaml").exists():
        return found
    config = read_config(folder)
    if not isinstance(config.get("cells"), dict):
        return found
    pair = pair_of(config.get("primary"))
    return replace(
        found, asked=(Asked(tuple(map(str, config["cells"])), tuple(config["seeds"]), pair),)
    )


def note_asked(
    folder: Path, before: Provenance, now: Asked, starting: Mapping[str, int]
) -> Provenance:
    """Write down what is asked for now, if it is not what was, and what is about to run.

    Args:
        folder: of the comparison.
        before: what it said until now.
        now: what is asked for.
        starting: by run, how many go on at a time; one that has begun earlier keeps the most.
    """
    asked = before.asked
    if not asked or (asked[-1].rows, asked[-1].seeds, asked[-1].primary) != (
        now.rows,
        now.seeds,
        now.primary,
    ):
        asked += (now,)
    beside = dict(before.at_a_time or {})
    for run, number in starting.items():
        begun = (folder / run / "history.jsonl").exists()
        beside[run] = max(number, beside.get(run, 0)) if begun else number
    found = Provenance(asked, beside)
    if found != before:
        write_json(folder / NAME, asdict(found))
    return found


def finished_in(folder: Path) -> int:
    """Count the finished runs of a comparison, whatever is asked of it now."""
    return len(list(folder.glob("*/seed*/summary.json")))


def told_of(asked: Provenance, rows: Collection[str], seeds: Collection[int]) -> list[str]:
    """Say what was changed after results were seen, and what was asked for and is not judged here.

    Args:
        asked: of the comparison.
        rows: those of its rows that the judgement is about, run or not.
        seeds: those that it is about.
    """
    if not asked.asked:
        return []
    plan, now, told = asked.plan, asked.asked[-1], list[str]()
    if new := [seed for seed in now.seeds if seed in seeds and seed not in plan.seeds]:
        told.append(_sentence(seeds_text(new), len(new), "added after results were seen"))
    if new := [row for row in now.rows if row in rows and row not in plan.rows]:
        told.append(_sentence(_rows(new), len(new), "added after results were seen"))
    if plan.primary != now.primary:
        before = " - ".join(plan.primary) if plan.primary else "none"
        told.append(f"The primary comparison was changed after results were seen; it was {before}.")
    later = asked.asked[asked.asked.index(plan) :]
    if gone := list(dict.fromkeys(r for each in later for r in each.rows if r not in now.rows)):
        told.append(_sentence(_rows(gone), len(gone), "left out after results were seen"))
    if gone := sorted({s for each in later for s in each.seeds if s not in seeds}):
        told.append(
            _sentence(seeds_text(gone), len(gone), "asked for too, and left out of this table")
        )
    return told


def _rows(names: Sequence[str]) -> str:
    return f"row{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _sentence(what: str, count: int, told: str) -> str:
    return f"{what[0].upper()}{what[1:]} {'were' if count > 1 else 'was'} {told}."
