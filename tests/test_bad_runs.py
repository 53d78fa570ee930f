"""Run folders with damaged files: refused by every command, and left byte for byte as they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.asking.branch
from analysis import read_history
from policies import Periodic
from training.running.loop import train
from training.settings.train_settings import Train

Change = Callable[[Path], object]
TRAIN = "train --net resnet8 --epochs 0.1 --records 3 --batch_size 32 --device cpu "
RESUME = TRAIN + "--policy Periodic --out run --resume"
FINAL = RESUME + " --final"
INSPECT, REPLAY = "inspect run --out pictures", "replay run --policy Never"
BRANCH = "branch run --at STEP --steps 1 --orders 1"


def written(name: str, content: bytes | str) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda run: (run / name).write_bytes(data)


def cut(name: str, share: float) -> Change:
    def change(run: Path) -> None:
        path = next(run.glob(name))
        data = path.read_bytes()
        path.write_bytes(data[: round(share * len(data))])

    return change


def replaced(name: str, old: str, new: str) -> Change:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


def folder(name: str) -> Change:
    return lambda run: ((run / name).unlink(missing_ok=True), (run / name).mkdir())


def ended(old: str, new: str) -> Change:
    """Put the summary back, changed."""

    def change(run: Path) -> None:
        (run / "ended.json").rename(run / "summary.json")
        replaced("summary.json", old, new)(run)

    return change


def line(**changes: Any) -> Change:
    """Change fields of the second record."""

    def change(run: Path) -> None:
        lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
        lines[1] = json.dumps({**json.loads(lines[1]), **changes}) + "\n"
        (run / "history.jsonl").write_text("".join(lines))

    return change


def state(edit: Callable[[dict[str, Any]], object], name: str = "checkpoint.pt") -> Change:
    """Edit what a checkpoint holds."""

    def change(run: Path) -> None:
        path = next(run.glob(name))
        found = torch.load(path, weights_only=True)
        edit(found)
        torch.save(found, path)

    return change


def shapes(found: dict[str, Any]) -> None:
    for values in found["optimizer"]["state"].values():
        values["momentum_buffer"] = torch.zeros(3)


HISTORY: list[tuple[Change, str]] = [
    (cut("history.jsonl", 0.9), "history.jsonl, line 3: "),
    (written("history.jsonl", "garbage"), "history.jsonl, line 1: "),
    (written("history.jsonl", b"\xff\xfe\x00"), "history.jsonl, line 1: "),
    (replaced("history.jsonl", '"learning_rate"', '"rate"'), "line 1: record cannot be read: "),
    (line(spent="half"), "line 2: spent must be a number, got 'half'"),
    (line(spent=-0.1), "line 2: spent must be at least 0 and finite, got -0.1"),
    (line(spent=float("nan")), "line 2: spent must be at least 0 and finite, got nan"),
    (line(step=-1), "line 2: step must be at least 0, got -1"),
    (line(step=0), "line 2: step must be at least "),  # the first record's
    (line(step=10**6), "line 3: step must be at least 1000000, got "),
    (line(validation_loss=10**400), "line 2: validation_loss must be a number, got 1000"),
    (line(limit={"parameters": "many", "flops": 1}), "line 2: parameters of limit must be an"),
    (
        line(layers={"a": {"block": None, "role": "stem", "response_std": "x"}}),
        "response_std of 'a'",
    ),
    (line(refused=[[{"action": "Widen", "block": "a", "by": 1}, {}]]), "say why as text, got {}"),
    (line(applied=[{"action": "Widen", "block": 5, "by": 1}]), "line 2: block must be one of "),
    (
        line(applied=[{"action": "Widen", "block": "stage1.block1", "by": "x"}]),
        "by must be an integer",
    ),
    (line(applied=[{"action": "os.system"}]), "action must be one of Widen, "),
    (line(architecture={"stages": []}), "line 2: architecture cannot be read"),
]
LOST: list[tuple[Change, str]] = [
    (written("history.jsonl", ""), "with at least one record, got run"),
    (
        lambda run: (run / "history.jsonl").unlink(),
        " must be a history.jsonl file or a run folder, got run",
    ),
    (folder("history.jsonl"), " must be a history.jsonl file or a run folder"),
]
CONFIG: list[tuple[Change, str]] = [
    (written("config.yaml", ""), "config.yaml cannot be read"),
    (written("config.yaml", "- 1"), "config.yaml cannot be read"),
    (written("config.yaml", b"\xff\xfe"), "config.yaml cannot be read"),
    (written("config.yaml", "a: " + "[" * 500), "config.yaml cannot be read"),
    (lambda run: (run / "config.yaml").unlink(), "run holds files of a run but no config.yaml"),
    (folder("config.yaml"), "run holds files of a run but no config.yaml"),
]
CHECKPOINT: list[tuple[Change, str]] = [
    (cut("checkpoint.pt", 0.5), "checkpoint.pt cannot be read: "),
    (written("checkpoint.pt", ""), "checkpoint.pt cannot be read: "),
    (written("checkpoint.pt", "no checkpoint " * 99), "checkpoint.pt cannot be read: "),
    (folder("checkpoint.pt"), "checkpoint.pt cannot be read: "),
    (lambda run: torch.save(torch.zeros(3), run / "checkpoint.pt"), "read: it holds a Tensor"),
    (state(lambda s: s["identity"].update(seed=5)), "is of another run: seed is 5, not 0"),
    (state(lambda s: s["architecture"].update(stages=[])), "read: stages must not be empty"),
    (state(lambda s: s.pop("progress")), "cannot be read: KeyError('progress')"),
    (
        state(lambda s: s["progress"].update(step="x")),
        "step must be a number of at least 0, got 'x'",
    ),
    (
        state(lambda s: s["progress"].update(records=-1)),
        "records must be a number of at least 0, got -1",
    ),
    (state(lambda s: s["progress"].update(records=99)), "history.jsonl holds 3 of 99 records"),
    (state(lambda s: s.update(optimizer=[])), "checkpoint.pt cannot be read: "),
    (
        state(lambda s: s["optimizer"].update(state={"nobody": {}})),
        "cannot be read: KeyError('nobody')",
    ),
    (state(shapes), "momentum_buffer of stem.conv.weight is (3,), not (16, 1, 3, 3)"),
    (state(lambda s: s.update(window=5)), "checkpoint.pt cannot be read: "),
    (state(lambda s: s.update(generator=torch.zeros(3))), "checkpoint.pt cannot be read: "),
    (state(lambda s: s.update(observer={})), "checkpoint.pt cannot be read: "),
    (state(lambda s: s.update(ema=None)), "its weights are not those of its architecture"),
    (
        state(lambda s: s.update(weights=dict.fromkeys(s["weights"], 5))),
        "its weights are not those of",
    ),
]
SUMMARY: list[tuple[Change, str]] = [
    (written("summary.json", text), "summary.json cannot be read")
    for text in ("{", "{}", "[]", '{"test_readings": 0}', b"\xff\xfe", "[" * 10**5)
]
SUMMARY += [
    (
        ended('"parameters": ', '"parameters": "many", "x": '),
        "holds no parameters",
    ),
    (
        ended('"validation_accuracy": ', '"validation_accuracy": [], "x": '),
        "holds no valid",
    ),
    (folder("summary.json"), "summary.json cannot be read"),
]
KEPT: list[tuple[Change, str]] = [
    (cut("growth/*", 0.5), "checkpoint run/growth/step"),
    (state(lambda s: s.pop("optimizer"), "growth/*"), "cannot be read: KeyError('optimizer')"),
    (state(lambda s: s.update(progress=[]), "growth/*"), "cannot be read: TypeError"),
    (lambda run: shutil.rmtree(run / "growth"), "run must have a growth step whose state it kept"),
    (
        replaced("config.yaml", "net: resnet8", "net: resnet14"),
        "of another run: net is 'resnet8', not 'resnet14'",
    ),
    (replaced("config.yaml", "seed: 0", "seed: x"), "seed must be an integer"),
    (replaced("config.yaml", "seed: 0", "sead: 0"), "config.yaml cannot be read: it holds no seed"),
    (replaced("config.yaml", "data: digits", "data: [1]"), "data must be text, got [1]"),
    (replaced("config.yaml", "epochs: 0.1", "epochs: [x]"), "epochs must be a number, got ['x']"),
    (replaced("config.yaml", "lr: null", "lr: x"), "lr must be a number, got 'x'"),
    (replaced("config.yaml", "ema: 0.999", "ema: null"), "ema must be a number, got None"),
    (replaced("config.yaml", "net: resnet8", "net: 5"), "net must be text, got 5"),
    (
        replaced("config.yaml", "compile: false", "compile: 1"),
        "compile must be true or false, got 1",
    ),
]
CASES = [
    *((command, *case) for case in HISTORY for command in (RESUME, INSPECT)),
    *((command, *case) for case in HISTORY[:3] for command in (REPLAY, BRANCH)),
    *((command, *case) for case in LOST for command in (INSPECT, REPLAY, BRANCH)),
    *((command, *case) for case in CONFIG for command in (RESUME, BRANCH)),
    (REPLAY, CONFIG[0][0], "config.yaml cannot be read"),
    (
        REPLAY,
        replaced("config.yaml", "grow_until: 0.6", "grow_until: x"),
        "grow_until of run must be",
    ),
    *((RESUME, *case) for case in CHECKPOINT),
    *((command, *case) for case in SUMMARY for command in (RESUME, FINAL)),
    *((BRANCH, *case) for case in KEPT),
    (
        RESUME,
        replaced("config.yaml", "net: resnet8", "net: resnet14"),
        "net must be 'resnet14' to resume",
    ),
    (
        RESUME,
        replaced("config.yaml", "epochs: 0.1", "epochs: [x]"),
        "epochs must be ['x'] to resume",
    ),
    (
        TRAIN + "--out run",
        lambda run: None,
        "run already holds a run; choose another or add --resume",
    ),
    (
        TRAIN + "--out run --resume",
        lambda run: None,
        "policy must be {'class_path': 'policies.Periodic'",
    ),
    (
        "compare --net resnet8 --workers 1 --out run",
        lambda run: None,
        "already holds a training run",
    ),
    (INSPECT + " --record 3", lambda run: None, "record must be from 0 to 2, or negative, got 3"),
    (
        "branch run --at 7777",
        lambda run: None,
        "at must be one of the growth steps STEP of run, got 7777",
    ),
    ("branch run --at STEP --steps 0", lambda run: None, "steps must be at least 1, got 0"),
    ("branch run --at STEP --orders -3", lambda run: None, "orders must be at least 1, got -3"),
]


@pytest.fixture
def place(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of a run, less its summary, in the working directory; gives the step of its growth."""
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("events*"))
    monkeypatch.chdir(tmp_path)
    Path("run/summary.json").rename("run/ended.json")  # as if it had not finished

    def no_step(*_: Any, **__: Any) -> None:
        raise AssertionError("this must not train")

    monkeypatch.setattr(training.asking.branch, "train_step", no_step)
    return str(int(next((finished_run / "growth").iterdir()).name[4:-3]))


@pytest.mark.parametrize(("command", "change", "message"), CASES)
@pytest.mark.filterwarnings("default")
def test_a_damaged_run_is_refused_in_one_line_and_left_as_it_is(
    place, refusal, recwarn, command, change, message
):
    change(Path("run"))
    command, message = command.replace("STEP", place), message.replace("STEP", place)
    said = refusal(command.split())
    assert re.search(re.escape(message), said), said
    assert not recwarn.list


def test_what_follows_the_checkpoint_may_be_damaged(place):
    """A kill may leave half a line behind what the checkpoint knows: it is cut away."""
    path = Path("run/history.jsonl")
    before = path.read_bytes()
    path.write_bytes(before + b'{"step": 12, "epo')
    settings = Train(net="resnet8", epochs=0.1, records=3, batch_size=32, device="cpu")
    changes = {**vars(settings), "policy": Periodic(), "out": "run", "resume": True}
    assert train(Train(**changes), lambda line: None)["steps"] == read_history("run")[-1].step
    assert path.read_bytes() == before
