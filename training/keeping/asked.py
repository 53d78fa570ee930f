"""What a comparison was asked for, and when its first results were there: provenance.json.

The file outlives every rerun, so that the report can say what was added after results were seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import seeds_text
from training.keeping.result_files import write_json
from training.keeping.row_settings import changed, is_static, settings_of
from training.keeping.run_folder import read_config
from training.settings.compare_settings import pair_of

NAME = "provenance.json"


@dataclass(frozen=True)
class Asked:
    """What was asked for, and how many runs of the comparison were finished then.

    `settings` are those of each row (`settings_of`), as far as known; `static` the rows of the
    static frontier, which only who can make the policies knows. Earlier versions kept neither.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    primary: tuple[str, ...] | None
    finished: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    static: tuple[str, ...] | None = field(default=None, compare=False)


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
                dict(each.get("settings", {})),
                None if each.get("static") is None else tuple(map(str, each["static"])),
            )
            for each in found["asked"]
        )
        return Provenance(asked, {run: int(n) for run, n in found["at_a_time"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"out: {path} cannot be read") from None


def asked_before(folder: Path) -> Provenance:
    """Give what a comparison was asked for until now.

    One of an earlier version tells by its config.yaml what it was asked for last, or how its rows
    were set then; if that is all, it counts as its plan.

    Raises:
        ValueError: its files cannot be read.
    """
    found = read_provenance(folder)
    if (found.asked and found.asked[-1].settings) or not (folder / "config.yaml").exists():
        return found
    config = read_config(folder)
    if not isinstance(config.get("cells"), dict):
        return found
    settings = settings_of(config)
    if found.asked:
        last = replace(found.asked[-1], settings=settings)
        return replace(found, asked=(*found.asked[:-1], last))
    rows, seeds = tuple(map(str, config["cells"])), tuple(config["seeds"])
    pair = pair_of(config.get("primary"))
    return replace(found, asked=(Asked(rows, seeds, pair, settings=settings),))


def static_in(asked: Provenance, cells: Mapping[str, Any]) -> list[str]:
    """Give the rows of the static frontier, of rows as config.yaml has them.

    Where it was not written down, the class in the box is static, and none of one's own.
    """
    last = asked.asked[-1] if asked.asked else Asked((), (), None)
    known = {name: name in last.static for name in last.rows} if last.static is not None else {}
    return [name for name, cell in cells.items() if known.get(name, is_static(cell))]


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
    asked, last = before.asked, before.asked[-1] if before.asked else None
    if last is None or _claim(last) != _claim(now) or changed(last.settings, now.settings):
        asked += (now,)
    elif last.static is None:  # of an earlier version
        asked = (*asked[:-1], replace(now, finished=last.finished))
    beside = dict(before.at_a_time or {})
    for run, number in starting.items():
        begun = (folder / run / "history.jsonl").exists()
        beside[run] = max(number, beside.get(run, 0)) if begun else number
    found = Provenance(asked, beside)
    if asdict(found) != asdict(before):
        write_json(folder / NAME, asdict(found))
    return found


def _claim(asked: Asked) -> tuple[Any, ...]:
    return asked.rows, asked.seeds, asked.primary


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
    number = next(k for k, each in enumerate(asked.asked) if each is plan)
    later, known = asked.asked[number:], dict[str, Any]()
    for each in later:
        known = {**each.settings, **known}  # as far back as is known
    if new := [row for row in changed(known, now.settings) if row in rows]:
        told.append(_sentence(_rows(new), len(new), "changed after results were seen"))
    if plan.primary != now.primary:
        before = " - ".join(plan.primary) if plan.primary else "none"
        told.append(f"The primary comparison was changed after results were seen; it was {before}.")
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
