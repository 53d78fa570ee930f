"""The README prints what examples/ holds, and its commands are accepted and run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import run
from training.commandline import underscored
from training.settings import Compare

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python (run\.py .*)$", README, re.MULTILINE)


def python(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["mine.py", "own_loop.py"])
def test_the_readme_prints_the_examples(name):
    assert f"```python\n{(ROOT / 'examples' / name).read_text()}```" in README


def test_the_policy_of_the_readme_has_at_most_15_lines():
    code = (ROOT / "examples" / "mine.py").read_text().split("\n\n\n", 1)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_policy_of_the_readme_runs_from_a_users_own_file(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "examples" / "mine.py").read_text())
    command = "train --data digits --net resnet8 --policy mine.Mine --policy.every 2 --epochs 1"
    python(str(ROOT / "run.py"), *command.split(), "--records", "8", "--out", "run", cwd=tmp_path)
    told = python(str(ROOT / "run.py"), "inspect", "run", cwd=tmp_path)
    assert "smallest gradients" in told


def test_the_loop_of_the_readme_runs_as_printed(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "loop.py").write_text(code)
    assert "is wider by 8; outputs moved by" in python("loop.py", cwd=tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    arguments = [underscored(word) for word in shlex.split(command)[1:]]
    if arguments[-1] != "--help":
        assert run.make_parser().parse_args(arguments).subcommand == arguments[0]


def test_the_readme_has_commands():
    kinds = {shlex.split(command)[1] for command in COMMANDS}
    assert kinds >= {"train", "compare", "inspect", "replay", "branch"}


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "experiments").glob("*.yaml")])
def test_the_experiments_are_complete_configurations(name):
    path = ROOT / "experiments" / name
    chosen = run.make_parser().parse_args(["compare", "--config", str(path)])
    given = vars(run.make_parser().instantiate(chosen).compare)
    settings = Compare(**{name: value for name, value in given.items() if name != "config"})
    assert any(cell.is_static for cell in settings.cells.values())
    assert settings.seeds
