"""Asking a policy about recorded runs: when and where it would have grown, beside what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import Record, read_history
from analysis.recording.atomic_files import path_of
from analysis.recording.phrases import no_growth, phrase
from analysis.showing.tables import fitted
from nets import Action
from nets.plan.actions import adds_capacity
from policies import Policy
from policies.base import History
from training.deciding.call_policy import ask, own_copy
from training.deciding.refusals import admit
from training.keeping.run_folder import read_config

Answer = tuple[Record, Sequence[Action]]


@dataclass(frozen=True)
class Replay:
    """A run's records with what the policy asked for; `why` says why there are none.

    `grow_until` is the run's, or all of the budget if it has no config.yaml.
    """

    run: Path
    answers: Sequence[Answer]
    grow_until: float = 1.0
    why: str = ""

    @property
    def granted(self) -> list[Answer]:
        """The records with what the run's rules and limit would have let the policy do."""
        return [
            (r, admit(r.architecture, asked, r.limit, r.spent <= self.grow_until).applied)
            for r, asked in self.answers
        ]


def runs_of(folders: Sequence[str]) -> list[Path]:
    """Give the run folders among and in `folders`, a comparison's in the order of their names.

    Raises:
        ValueError: one of them holds no history.
    """
    found: list[Path] = []
    for folder in (path_of("runs", each) for each in folders):
        inner = sorted(path.parent for path in folder.glob("*/seed*/history.jsonl"))
        found.extend(inner or [folder])
    return list(dict.fromkeys(found))


def replay(policy: Policy, history: History) -> Iterator[tuple[Record, tuple[Action, ...]]]:
    """Give, record by record, what the policy would have asked for given the history as recorded.

    One step at a time: each answer is conditional on what was really done before, and predicts no
    outcome. As in the loop, nobody is asked once the budget is spent.
    """
    for index, record in enumerate(history):
        present = replace(record, decided=(), applied=(), refused=())
        yield record, ask(policy, (*history[:index], present)) if record.spent < 1 else ()


def replay_runs(policy: Policy, runs: Sequence[Path]) -> list[Replay]:
    """Ask the policy about every run.

    Raises:
        ValueError: a history cannot be read, or the policy can decide on none of the runs.
        PolicyFailed: the policy raised something else.
    """
    found = []
    for run in runs:
        history = read_history(run, name="runs")
        if not history:
            raise ValueError(
                f"runs must be folders with at least one record, got {run}: its train command "
                "with --resume goes on"
            )
        config = read_config(run) if (run / "config.yaml").exists() else {}
        grow_until = config.get("grow_until", 1.0)
        if not isinstance(grow_until, int | float):
            raise ValueError(f"grow_until of {run} must be a number, got {grow_until!r}")
        if "grow_until" in config:  # records of an earlier version do not know it
            history = [replace(record, grow_until=float(grow_until)) for record in history]
        try:
            answers = list(replay(own_copy(policy), history))
            found.append(Replay(run, answers, grow_until))
        except ValueError as error:  # it misses a probe, say, that this run did not record
            found.append(Replay(run, [], why=str(error)))
    if all(each.why for each in found):
        raise ValueError(found[0].why)
    return found


def replay_table(policy: Policy, folders: Sequence[str], width: int | None = None) -> str:
    """Give as Markdown what the policy would have done, beside what was done.

    Of one run that is every wish, record by record; of several what would have been granted: a
    summary, and the records with any of it. Lines have at most `width` characters: what is longer
    goes on in rows that are blank elsewhere; None keeps a row in one line.
    """
    replays = replay_runs(policy, runs_of(folders))
    name = type(policy).__name__
    if len(replays) == 1:
        header = ["step", "spent", "done", f"{name} would have asked for"]
        notes = [no_growth([record for record, _ in replays[0].answers])]
        if not any(asked for _, asked in replays[0].answers):
            notes.append(f"{name} would have asked for nothing")
        return "\n\n".join(
            [fitted(header, map(_row, replays[0].answers), width), *filter(None, notes)]
        )
    rows = [
        [str(each.run), *_row(answer)]
        for each in replays
        for answer in each.granted
        if answer[0].applied or answer[1]
    ]
    header = ["run", "records", "grew", "would have grown", "when it was done", "and where"]
    lines = [
        fitted(header, [_summary(each) for each in replays if not each.why], width),
        fitted(["run", "step", "spent", "done", f"{name} would have done"], rows, width)
        if rows
        else "no growth",
    ]
    lines += [f"{each.run}: {each.why}" for each in replays if each.why]
    return "\n\n".join(lines)


def _row(answer: Answer) -> list[str]:
    record, wished = answer
    done, other = (", ".join(map(phrase, each)) or "-" for each in (record.applied, wished))
    return [str(record.step), f"{record.spent:.0%}", done, other]


def _summary(each: Replay) -> list[str]:
    """Give counts of records: with growth, with the policy's, with both, and at one place."""
    pairs = [(places(record.applied), places(granted)) for record, granted in each.granted]
    done, other = (sum(bool(pair[side]) for pair in pairs) for side in (0, 1))
    both = [pair for pair in pairs if all(pair)]
    same = sum(bool(one & other) for one, other in both)
    counts = map(str, (len(pairs), done, other, len(both), same))
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
