"""Files of others run no code: not those of a run folder, and no policy that they name."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import Trap

import run
import training.asking.branch
from analysis import read_history

TRAIN = "train --net resnet8 --epochs 0.1 --records 3 --batch_size 32 --device cpu "


@pytest.fixture
def theirs(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of others, whose files all name a policy that makes a folder when it is imported."""
    folder = tmp_path / "theirs"
    shutil.copytree(finished_run, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "evil_policy.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trap')!r})\n")
    sys.modules.pop("evil_policy", None)
    config = (folder / "config.yaml").read_text()
    assert "policies.Periodic" in config
    (folder / "config.yaml").write_text(config.replace("policies.Periodic", "evil_policy.Mine"))
    for path in (folder / "checkpoint.pt", *(folder / "growth").iterdir()):
        state = torch.load(path, weights_only=True)
        state["identity"]["policy"]["class_path"] = "evil_policy.Mine"
        torch.save(state, path)
    return folder


def called(words: str) -> int:
    try:
        return run.main(words.split())
    except SystemExit as stop:
        return int(stop.code or 0)


def innocent() -> bool:
    return not Path("trap").exists() and "evil_policy" not in sys.modules


def test_the_trap_is_one(theirs):
    assert called("train --config theirs/config.yaml --out out") == 2  # a file that the user names
    assert Path("trap").exists()


def test_resume_imports_no_policy_that_the_folder_names(theirs, capsys):
    assert called(TRAIN + "--policy Periodic --out theirs --resume") == 2
    assert "policy must be {'class_path': 'evil_policy.Mine'" in capsys.readouterr().err
    (theirs / "summary.json").unlink()
    assert called(TRAIN + "--policy Periodic --out theirs --resume") == 2
    assert innocent()


def test_inspect_imports_no_policy_that_the_folder_names(theirs):
    assert called("inspect theirs --csv") == 0
    assert innocent()


def test_replay_imports_no_policy_that_the_folder_names(theirs):
    shutil.copytree(theirs, "all/row/seed0")
    assert called("replay theirs all --policy Never") == 0
    assert innocent()


def test_branch_imports_no_policy_that_the_folder_names(theirs, monkeypatch, capsys):
    monkeypatch.setattr(training.asking.branch, "_train", lambda *_: (1.0, 0.5, 1))
    step = next(record.step for record in read_history(theirs) if record.applied)
    assert called(f"branch theirs --at {step} --steps 1 --orders 1") == 0
    assert "the growth at step" in capsys.readouterr().out
    assert innocent()


def test_compare_imports_no_policy_that_the_folder_names(theirs, capsys):
    """Neither that of the comparison that it goes on with, nor those of its runs."""
    shutil.copytree(theirs, "all/a/seed0")
    row = "{policy: {class_path: evil_policy.Mine}}"
    Path("all/config.yaml").write_text(f"cells: {{a: {row}}}\nseeds: [0]\n")
    words = "compare --net resnet8 --seeds [0] --workers 1 --out all"
    assert run.main([*words.split(), "--cells", "{a: {policy: Never}}"]) == 2
    assert "to resume the run in all" in capsys.readouterr().err
    assert innocent()


@pytest.mark.parametrize("pickled", ["whole", "weights", "observer", "progress"])
@pytest.mark.parametrize("command", ["resume", "final", "branch"])
def test_a_checkpoint_runs_nothing(finished_run, tmp_path, monkeypatch, capsys, pickled, command):
    shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for path in (Path("run/checkpoint.pt"), *Path("run/growth").iterdir()):
        if pickled == "whole":
            path.write_bytes(pickle.dumps(Trap()))
        else:
            torch.save({**torch.load(path, weights_only=True), pickled: Trap()}, path)
    if command == "resume":
        Path("run/summary.json").unlink()
    resume = TRAIN + "--policy Periodic --out run --resume"
    step = next(record.step for record in read_history("run") if record.applied)
    words = {"resume": resume, "final": resume + " --final", "branch": f"branch run --at {step}"}
    capsys.readouterr()
    assert called(words[command]) == 2
    assert "cannot be read: " in capsys.readouterr().err
    assert not Path("trap").exists()


TAGS = ["!!python/object/apply:os.mkdir ['trap']", "!!python/name:os.mkdir", "!!python/module:os"]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_plain_values_alone(theirs, capsys, tag):
    (theirs / "summary.json").unlink()
    for path in (theirs / "config.yaml", Path("own.yaml")):
        path.write_text(f"net: resnet8\nseed: {tag}\n")
    shutil.copytree(theirs, "other")
    step = next(record.step for record in read_history(theirs) if record.applied)
    for words in (
        TRAIN + "--config own.yaml --out out",
        "compare --config own.yaml --out out",
        TRAIN + "--policy Periodic --out theirs --resume",
        "replay theirs --policy Never",
        f"branch theirs --at {step}",
    ):
        assert called(words) == 2
        assert "cannot be read" in capsys.readouterr().err
    assert innocent()


@pytest.mark.parametrize("name", ["evil_policy.Mine", "os.system", "evil_policy"])
def test_a_history_and_an_architecture_name_actions_and_kinds_of_a_list_alone(theirs, capsys, name):
    lines = (theirs / "history.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    record["decided"] = [{"action": name}]
    (theirs / "history.jsonl").write_text(json.dumps(record) + "\n")
    for words in ("inspect theirs", "replay theirs --policy Never", "branch theirs --at 5"):
        assert called(words) == 2
        assert "action must be one of Widen, " in capsys.readouterr().err
    for key in ("block", "stem", "activation", "order"):
        data = {**json.loads((theirs / "architecture.json").read_text()), key: name}
        Path("a.json").write_text(json.dumps(data))
        assert called(TRAIN + "--start.architecture a.json --out out") == 2
        assert f"{key} must be one of" in capsys.readouterr().err
    assert innocent()


def test_an_initializer_of_a_history_is_a_name_and_nothing_more(theirs):
    lines = (theirs / "history.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    for action in (*record["decided"], *record["applied"]):
        action["initializer"] = "evil_policy.Mine"
    (theirs / "history.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    assert read_history(theirs)[0].applied[0].initializer == "evil_policy.Mine"
    step = record["step"]
    assert called(f"branch theirs --at {step} --steps 1 --orders 1") == 2
    assert innocent()
