"""Asking a policy about recorded runs: when and where it would have grown, beside what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import Record, read_history
from analysis.tables import markdown, phrase
from nets import Action
from nets.actions import adds_capacity
from policies import Policy
from training.judgement import replay

Answers = list[tuple[Record, tuple[Action, ...]]]


@dataclass(frozen=True)
class Replay:
    """A run's records with the policy's answers, or in `why` the reason that there are none."""

    run: Path
    answers: Answers
    why: str = ""


def runs_of(folders: Sequence[str]) -> list[Path]:
    """Give the run folders among and in `folders`, a comparison's in the order of their names.

    Raises:
        ValueError: one of them holds no history.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inner = sorted(path.parent for path in folder.glob("*/seed*/history.jsonl"))
        found.extend(inner or [folder])
    return list(dict.fromkeys(found))


def replay_runs(policy: Policy, runs: Sequence[Path]) -> list[Replay]:
    """Ask the policy about every run.

    Raises:
        ValueError: a history cannot be read, or the policy can decide on none of the runs.
    """
    found = []
    for run in runs:
        history = read_history(run)
        if not history:
            raise ValueError(f"run must be a folder with at least one record, got {run}")
        try:
            found.append(Replay(run, list(replay(policy, history))))
        except ValueError as error:  # it misses a probe, say, that this run did not record
            found.append(Replay(run, [], str(error)))
    if all(each.why for each in found):
        raise ValueError(found[0].why)
    return found


def replay_table(policy: Policy, folders: Sequence[str]) -> str:
    """Give as Markdown what the policy would have done: of one run every record, of several both a
    summary and the records in which anything was done or asked for.
    """
    replays = replay_runs(policy, runs_of(folders))
    asked = f"{type(policy).__name__} would have asked for"
    if len(replays) == 1:
        return markdown(["step", "spent", "done", asked], map(_row, replays[0].answers))
    rows = [
        [str(each.run), *_row(answer)]
        for each in replays
        for answer in each.answers
        if answer[0].applied or answer[1]
    ]
    header = ["run", "records", "grew", "would have grown", "when it was done", "and where"]
    lines = [
        markdown(header, [_summary(each) for each in replays if not each.why]),
        markdown(["run", "step", "spent", "done", asked], rows) if rows else "no growth",
    ]
    lines += [f"{each.run}: {each.why}" for each in replays if each.why]
    return "\n\n".join(lines)


def _row(answer: tuple[Record, Sequence[Action]]) -> list[str]:
    record, decided = answer
    done, asked = (", ".join(map(phrase, each)) or "-" for each in (record.applied, decided))
    return [str(record.step), f"{record.spent:.0%}", done, asked]


def _summary(each: Replay) -> list[str]:
    """Give counts of records: with growth, with growth asked for, with both, and at one place."""
    pairs = [(places(record.applied), places(decided)) for record, decided in each.answers]
    done, asked = (sum(bool(pair[side]) for pair in pairs) for side in (0, 1))
    both = [pair for pair in pairs if all(pair)]
    same = sum(bool(one & other) for one, other in both)
    counts = map(str, (len(pairs), done, asked, len(both), same))
    return [str(each.run), *counts]


def places(actions: Sequence[Action]) -> set[tuple[str, str]]:
    """Give kind and block, or stage, of every action that adds capacity."""
    names = ("block", "after", "stage")
    return {
        (type(action).__name__, str(getattr(action, name)))
        for action in filter(adds_capacity, actions)
        for name in names
        if hasattr(action, name)
    }
