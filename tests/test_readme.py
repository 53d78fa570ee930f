"""The README is short, its code does what it says, and so do its first commands.

test_commands runs all others, small.
"""

import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from analysis import read_history
from analysis.recording.phrases import phrase
from training.commandline.parser import underscored
from training.data.npz_files import read_npz
from training.settings.compare_settings import Compare

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^python (run\.py .*)$", README, re.MULTILINE)


def python(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_at_most_1200_words_and_begins_with_a_picture_and_code():
    assert len(README.split()) <= 1200
    begin = README.splitlines()[:18]
    places = [next(k for k, line in enumerate(begin) if part in line) for part in ("![", "grow(")]
    assert places == sorted(places)


def test_the_first_lines_of_the_readme_say_that_outputs_moved_by_0(capsys):
    assert len([line for line in CODE[0].splitlines() if line]) == 5
    exec(CODE[0], {})
    assert capsys.readouterr().out == "outputs moved by 0.00000\n"
    assert "# outputs moved by 0.00000\n" in CODE[0]


def test_the_lines_of_the_readme_make_a_file_that_data_accepts(tmp_path, monkeypatch):
    def cifar100(folder: str, train: bool, download: bool) -> SimpleNamespace:
        count = 20 if train else 10
        images = np.zeros((count, 32, 32, 3), np.uint8)
        return SimpleNamespace(data=images, targets=[0, 1] * (count // 2))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", cifar100)
    exec(CODE[1], {})
    parts = read_npz("cifar100.npz")
    assert (len(parts.train), len(parts.test)) == (20, 10)
    assert "make cifar100 DATA=cifar100.npz" in README


def test_the_first_table_has_the_rows_of_make_cifar100():
    table = README[README.index("| run ") :].partition("\n\n")[0].splitlines()[2:]
    config = yaml.safe_load((ROOT / "experiments" / "cifar100.yaml").read_text())
    assert [line.split("|")[1].strip() for line in table] == list(config["cells"])


def test_the_lines_of_the_readme_watch_a_network_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = [code for code in CODE if "observer.log" in code]
    exec(code, {})
    events = EventAccumulator(str(tmp_path / "runs" / "own"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        f"{layer}/{name}" for layer in "02" for name in ("response_std", "update_ratio")
    } <= tags
    assert "0/dead_fraction" in tags
    assert [each.step for each in events.Scalars("0/gradient_norm")] == [100, 200, 300, 400, 500]


def test_the_readme_prints_its_policy():
    assert f"```python\n{(ROOT / 'examples' / 'mine.py').read_text()}```" in README


def test_the_policy_of_the_readme_has_at_most_15_lines():
    code = (ROOT / "examples" / "mine.py").read_text().split("\n\n\n", 1)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_policy_of_the_readme_runs_from_a_users_own_file(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "examples" / "mine.py").read_text())
    command = "train --data digits --net resnet8 --policy mine.Mine --policy.every 2 --epochs 1"
    python(str(ROOT / "run.py"), *command.split(), "--records", "8", "--out", "run", cwd=tmp_path)
    told = python(str(ROOT / "run.py"), "inspect", "run", cwd=tmp_path)
    assert "smallest gradients" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    arguments = [underscored(word) for word in shlex.split(command)[1:]]
    if arguments[-1] != "--help":
        assert run.make_parser().parse_args(arguments).subcommand == arguments[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The README's first block of commands, run as it is in an empty folder: what each printed.

    `branch` takes fewer steps; the run draws no pictures for TensorBoard.
    """
    block = re.search(r"## Train, inspect, replay\n\n```\n(.*?)```", README, re.DOTALL)
    assert block is not None
    folder, printed = tmp_path_factory.mktemp("first"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for command in block[1].splitlines():
            words = shlex.split(command)[2:]
            words += ["--steps", "2", "--orders", "1"] if words[0] == "branch" else []
            with redirect_stdout(StringIO()) as output:
                assert run.main(words) == 0, command
            printed[" ".join([words[0], *(["--csv"] if "--csv" in words else [])])] = output
    return folder / "runs" / "first", {name: out.getvalue() for name, out in printed.items()}


def test_the_first_run_of_the_readme_grows_and_is_told_about(first):
    """On any processor: when it grows hangs on rounding, that it grows does not."""
    folder, printed = first
    assert list(printed) == ["train", "inspect", "inspect --csv", "replay", "branch"]
    history = read_history(folder)
    grown = [record for record in history if record.applied]
    assert grown
    assert all(record.spent <= 0.6 for record in grown)
    assert (len(history), history[-1].spent) == (20, 1)
    for record in grown:
        for action in record.applied:
            assert phrase(action) in printed["inspect"]
            assert action.reason in printed["inspect"]
    for heading in ("Growth and other edits", "Layers at step", "Rules of thumb", "pictures in"):
        assert heading in printed["inspect"]
    assert list((folder / "pictures").iterdir())
    assert printed["inspect --csv"].startswith("step,layer,statistic,value\n")
    assert len([line for line in printed["replay"].splitlines() if "%" in line]) == 20
    assert "Periodic would have asked for" in printed["replay"]


def test_branch_without_at_takes_the_first_growth(first):
    folder, printed = first
    step = next(record.step for record in read_history(folder) if record.applied)
    assert f"the growth at step {step} " in printed["branch"]
    names = {path.name for path in (folder / "branch" / f"step{step:07d}").iterdir()}
    assert names >= {"branch.md", "gains.csv", "correlations.csv"}


def test_the_readme_has_commands():
    kinds = {shlex.split(command)[1] for command in COMMANDS}
    assert kinds >= {"train", "inspect", "replay", "branch"}


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "experiments").glob("*.yaml")])
def test_the_experiments_are_complete_configurations(name):
    path = ROOT / "experiments" / name
    chosen = run.make_parser().parse_args(["compare", "--config", str(path)])
    given = vars(run.make_parser().instantiate(chosen).compare)
    settings = Compare(**{name: value for name, value in given.items() if name != "config"})
    assert any(cell.is_static for cell in settings.cells.values())
    assert settings.seeds
