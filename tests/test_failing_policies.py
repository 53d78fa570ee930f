"""Policies that fail, ask for the impossible or meddle: it is said, and nothing is half done."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import quiet, short_run

import run
from analysis import Record, read_history
from nets import Action, Insert, Narrow, SetSurvival, Widen
from policies import Never, Policy
from training.comparing.job_queue import Here, run_jobs
from training.comparing.jobs import jobs_of
from training.deciding.call_policy import ask, attempt
from training.deciding.user_errors import PolicyFailed
from training.running.loop import train
from training.settings.compare_settings import Cell, Compare
from training.settings.start_settings import Start
from training.settings.train_settings import Train

pytestmark = pytest.mark.usefixtures("without_pictures")
COMMAND = "train --net resnet8 --epochs 0.15 --records 4 --batch_size 32 --device cpu "
COMMAND += "--budget epochs --grow_until 1 --policy unsteady.Mine --out run"
POLICY = """
from dataclasses import dataclass
from nets import Widen
from policies import Policy


@dataclass(frozen=True)
class Mine(Policy):
    every: int = 1

    def decide(self, history):
        if len(history) == 3:
            return {}
        return [Widen("stage1.block1", 1)]
"""


class Odd(Widen):
    """An action of one's own."""


class Endless:
    """Something that cannot be written down."""

    def __repr__(self) -> str:
        return "an endless\nthing"


ANSWERS: dict[str, tuple[Any, str]] = {
    "none": (None, "must return a sequence of actions, got None"),
    "text": ("widen", "must return a sequence of actions, got 'widen'"),
    "no text": ("", "must return a sequence of actions, got ''"),
    "generator": ((a for a in ()), "must return a sequence of actions, got <generator object"),
    "set": ({Widen("a", 1)}, "must return a sequence of actions, got {Widen("),
    "tuples": (
        [("stage1.block1", 2)],
        "must return a sequence of actions, got [('stage1.block1', 2)]",
    ),
    "kind": ([Widen], "must return a sequence of actions, got [<class"),
    "bare": ([Action()], "must return actions of Widen, WidenStage, "),
    "odd": ([Odd("stage1.block1", 1)], "must return actions of Widen, WidenStage, "),
    "object": (
        [Widen("stage1.block1", Endless())],
        "must return actions of plain numbers and text, got Widen(",
    ),
    "tensor": (
        [Widen("stage1.block1", torch.tensor(2))],
        "must return actions of plain numbers and text",
    ),
    "nan": (
        [SetSurvival("stage1.block1", float("nan"))],
        "must return actions of plain numbers and text",
    ),
}
IMPOSSIBLE = [
    Widen("stage9.block1", 1),
    Widen("stage1.block1", -3),
    Widen("stage1.block1", 0),
    Widen("stage1.block1", 10**30),
    Widen("stage1.block1", 1.5),  # pyright: ignore
    Widen(None, "two"),  # pyright: ignore
    Widen("stage1.block1", 1, initializer="zero"),
    Widen("stage1.block1", 1, initializer=[1]),
    Narrow("stage1.block1", 10**6),
    Insert("stage1.block1", [8]),  # pyright: ignore
    SetSurvival("stage1.block1", 2),
]


@dataclass(frozen=True)
class Doing(Policy):
    """Does something at its second record."""

    what: str = ""

    def decide(self, history: Sequence[Record]) -> Any:
        if len(history) != 2:
            return []
        if self.what in ANSWERS:
            return ANSWERS[self.what][0]
        if self.what == "impossible":
            return IMPOSSIBLE
        if self.what == "exit":
            sys.exit(0)
        if self.what == "meddle":
            history[0].layers.clear()  # pyright: ignore
        return 1 / 0


@dataclass(frozen=True)
class Stubborn(Policy):
    """Asks for the same impossible edits for ever."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        return [Widen("stage9.block1", 1), Widen("stage1.block1", -1, reason=str(len(history)))]


@dataclass(frozen=True)
class Deaf(Policy):
    """Asks at its second record for an edit that the architecture accepts."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        return [Narrow("stage1.block1", 1, saliency="activation")] if len(history) == 2 else []


def small(folder: Path, policy: Policy, **changes: Any) -> Train:
    given = {"epochs": 0.12, "records": 4, "budget": "epochs", "grow_until": 1.0}
    return short_run(folder, policy, **{**given, **changes})


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("what", ANSWERS)
def test_what_is_no_sequence_of_actions_is_named(what):
    answer, why = ANSWERS[what]

    @dataclass(frozen=True)
    class Mine(Policy):
        def decide(self, history: Sequence[Record]) -> Any:
            return answer

    record: Any = type("Record", (), {"step": 12})
    failure = attempt(Mine(), [record]).failure
    assert failure.startswith(f"policy Mine failed at step 12: {why}")
    assert len(failure.splitlines()) == 1
    with pytest.raises(ValueError, match=re.escape(f"policy Mine {why}")):
        ask(Mine(), [record])


@pytest.mark.parametrize("what", ["raise", "exit", "none", "meddle"])
def test_a_policy_that_fails_stops_the_run_at_the_record_before(tmp_path, what):
    fine = small(tmp_path / "fine", Doing("impossible"))
    train(fine, quiet)
    settings = small(tmp_path / what, Doing(what))
    with pytest.raises(PolicyFailed) as caught:
        train(settings, quiet)
    step = read_history(tmp_path / "fine")[1].step
    told = {
        "raise": "ZeroDivisionError: division by zero (test_failing_policies.py:",
        "exit": "SystemExit: 0 (test_failing_policies.py:",
        "none": ANSWERS["none"][1],
        "meddle": "TypeError: a record cannot be changed (test_failing_policies.py:",
    }[what]
    assert str(caught.value).startswith(f"policy Doing failed at step {step}: {told}")
    history = read_history(tmp_path / what)
    assert history == read_history(tmp_path / "fine")[:1]
    state = state_of(tmp_path / what)
    assert (state["progress"]["records"], state["progress"]["step"]) == (1, history[0].step)
    assert not (tmp_path / what / "growth").exists()
    assert not (tmp_path / what / "summary.json").exists()


def test_a_run_goes_on_when_its_policy_is_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def called(text: str, words: str) -> int:
        (tmp_path / "unsteady.py").write_text(text)
        sys.modules.pop("unsteady", None)
        importlib.invalidate_caches()
        return run.main(words.split())

    failing = POLICY.replace("return {}", "return 1 / (len(history) - 3)")
    assert called(failing, COMMAND) == 1
    output, errors = capsys.readouterr()
    assert len(output.splitlines()) == 3  # what the images go through, two records
    step = read_history("run")[-1].step
    (line,) = errors.splitlines()
    place = "ZeroDivisionError: division by zero (unsteady.py:13)"
    assert re.fullmatch(f"policy Mine failed at step (\\d+): {re.escape(place)}", line)
    assert int(line.split()[5][:-1]) > step
    for _ in range(2):  # not mended yet
        assert called(failing, COMMAND + " --resume") == 1
        assert capsys.readouterr().err.splitlines() == [line]
    mended = POLICY.replace("return {}", "return []")
    assert called(mended, COMMAND + " --resume") == 0
    assert called(mended, COMMAND.replace("--out run", "--out whole")) == 0
    for name in ("history.jsonl", "losses.csv"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
    one, other = state_of(Path("run")), state_of(Path("whole"))
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name])


def test_a_run_may_go_on_without_the_answer_of_a_policy_that_fails(tmp_path):
    lines: list[str] = []
    train(small(tmp_path / "raise", Doing("raise"), policy_errors="continue"), lines.append)
    del lines[0]  # what the images go through
    train(small(tmp_path / "none", Doing("never mind"), policy_errors="continue"), quiet)
    history = read_history(tmp_path / "raise")
    assert len(history) == len(lines) == 4
    assert (history[1].decided, history[1].applied, history[1].refused) == ((), (), ())
    told = f"  policy Doing failed at step {history[1].step}: ZeroDivisionError: division by zero ("
    assert [told in line for line in lines] == [False, True, False, False]


def test_the_stop_can_be_lifted_when_a_run_is_resumed(tmp_path):
    with pytest.raises(PolicyFailed):
        train(small(tmp_path, Doing("raise")), quiet)
    settings = small(tmp_path, Doing("raise"), policy_errors="continue", resume=True)
    assert train(settings, quiet)["growth"] == []
    assert len(read_history(tmp_path)) == 4


def test_the_impossible_is_refused_and_a_history_tells_why(tmp_path):
    lines: list[str] = []
    train(small(tmp_path, Doing("impossible")), lines.append)
    del lines[0]  # what the images go through
    record = read_history(tmp_path)[1]
    assert record.applied == ()
    assert [action for action, _ in record.refused] == list(record.decided) == IMPOSSIBLE
    reasons = [why for _, why in record.refused]
    assert reasons[0].startswith("block must be one of stage1.block1, ")
    assert reasons[1] == "by must be at least 1, got -3"
    assert reasons[6].startswith("initializer must be one of he, xavier, ")
    for why in set(reasons):
        assert f" refused: {why}" in lines[1]


def test_an_edit_that_is_refused_for_ever_is_said_once(tmp_path):
    lines: list[str] = []
    train(small(tmp_path, Stubborn()), lines.append)
    del lines[0]  # what the images go through
    assert "Widen(block='stage9.block1', by=1) refused: block must be one of " in lines[0]
    assert "Widen(block='stage1.block1', by=-1) refused: by must be at least 1, got -1" in lines[0]
    assert not any("refused" in line for line in lines[1:])
    assert [len(record.refused) for record in read_history(tmp_path)] == [2, 2, 2, 0]


def test_an_edit_that_only_the_weights_can_refuse_leaves_no_trace(tmp_path, monkeypatch):
    def no_growth(*_: Any, **__: Any) -> Any:
        raise ValueError("there is nothing to rank by")

    monkeypatch.setattr("training.running.decide_and_grow.grow", no_growth)
    with pytest.raises(PolicyFailed, match=r"policy Deaf failed at step .*: ValueError: there is"):
        train(small(tmp_path / "stop", Deaf()), quiet)
    assert len(read_history(tmp_path / "stop")) == 1
    lines: list[str] = []
    train(small(tmp_path / "on", Deaf(), policy_errors="continue"), lines.append)
    del lines[0]  # what the images go through
    assert "failed at step" in lines[1]
    assert not any(record.applied for record in read_history(tmp_path / "on"))


def test_a_failing_policy_fails_its_cell_of_a_comparison_alone(tmp_path):
    cells = {"bad": Cell(Doing("raise")), "good": Cell(Never(), Start(0.25, 1))}
    given: dict[str, Any] = {"net": "resnet8", "epochs": 0.12, "records": 4, "batch_size": 32}
    given |= {"device": "cpu", "budget": "epochs", "workers": 1, "seeds": [0], "threads": 1}
    settings = Compare(cells=cells, out=str(tmp_path), **given)
    bad, good = (failure for _, failure in run_jobs(jobs_of(settings), Here()))
    assert (bad or "").startswith("policy Doing failed at step ")
    assert "ZeroDivisionError" in (tmp_path / "bad/seed0/error.txt").read_text()
    assert good is None
    assert json.loads((tmp_path / "good/seed0/summary.json").read_text())["policy"] == "Never"


def test_replay_names_a_policy_that_fails(finished_run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = POLICY.replace("== 3", "== 2").replace("return {}", "return history[9]")
    (tmp_path / "unsteady.py").write_text(text)
    sys.modules.pop("unsteady", None)
    importlib.invalidate_caches()
    capsys.readouterr()
    assert run.main(["replay", str(finished_run), "--policy", "unsteady.Mine"]) == 1
    step = read_history(finished_run)[1].step
    told = f"policy Mine failed at step {step}: IndexError: tuple index out of range"
    assert capsys.readouterr() == ("", f"{told} (unsteady.py:13)\n")
