"""docs/policies.md prints what examples/ holds, and its commands are run in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import run
from nets.plan.actions import INITIALIZERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "policies.md").read_text()
COMMANDS = re.findall(r"^(?:PYTHONPATH=(\S+) )?python (.*)$", TEXT, re.MULTILINE)
FILES = ("spread.py", "test_spread.py", "spread.yaml", "own_probe.py")
SHORTER = {
    "compare": "--epochs 0.2 --records 20 --workers 1",
    "north.North": "--epochs 0.3",
    "tiny.Tiny": "--epochs 0.3",
}


@pytest.mark.parametrize("name", FILES)
def test_the_page_prints_the_examples(name):
    assert f"`{name}`:\n\n```" in TEXT
    kind = "yaml" if name.endswith("yaml") else "python"
    assert f"```{kind}\n{(ROOT / 'examples' / name).read_text()}```" in TEXT


def test_the_page_prints_an_initializer_and_names_all():
    text = (ROOT / "examples" / "initializers" / "orthogonal.py").read_text()
    assert f"`orthogonal.py`:\n\n```python\n{text}```" in TEXT
    for path in (ROOT / "examples" / "initializers").glob("*.py"):
        assert f"`{path.name}`" in TEXT or f"`examples/initializers/{path.name}`" in TEXT
    assert "a name (" + ", ".join(f"`{name}`" for name in INITIALIZERS) + ")" in TEXT
    edits = (ROOT / "docs" / "edits.md").read_text()
    assert all(f"`{name}`" in edits for name in INITIALIZERS)


def test_the_page_names_every_policy_of_the_examples():
    for path in (ROOT / "examples" / "policies").glob("*.py"):
        assert f"| `{path.stem}." in TEXT


@pytest.mark.usefixtures("plain_reports")
def test_the_commands_of_the_page_run_in_their_order(tmp_path, monkeypatch, capsys):
    """As printed, but for the comparison's and the last run's length."""
    for name in FILES:
        (tmp_path / name).write_text((ROOT / "examples" / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    printed = {}
    for folder, command in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["-m", "pytest"]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout
            continue
        assert words.pop(0) == "run.py"
        if folder:
            monkeypatch.syspath_prepend(str(ROOT / folder))
        for mark, more in SHORTER.items():
            words += more.split() if mark in words else []
        assert run.main(words) == 0, command
        printed[command] = capsys.readouterr().out
    replays = [text for command, text in printed.items() if "replay" in command]
    assert "Spread would have asked for" in replays[0]
    assert "runs/spread/static-half/seed0" in replays[1]
    (branch,) = (text for command, text in printed.items() if "branch" in command)
    # the growths that the page's table shows are those that are tried
    for action in re.findall(r"^\| (Widen\(.*?\)|Insert\(.*?\)) \|", TEXT, re.MULTILINE):
        assert f"| {action} " in branch
    assert "15 growths of about 313,344 FLOPs, 5 steps, 2 data orders" in branch
    kinds = {shlex.split(command)[1] for _, command in COMMANDS}
    assert kinds == {"train", "branch", "replay", "compare", "pytest"}
