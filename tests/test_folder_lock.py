"""One process at a time writes in a folder; a lock ends with its holder, however that ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from runs import refusal_of, wait_until
from test_resume import PROCESSES, command, exit_code, real

import run
from training.keeping.folder_lock import NAME, alone, wait_for


def hold(folder: Path, seconds: float) -> None:
    """Hold a folder for a while, in a process of its own."""
    with alone(folder):
        time.sleep(seconds)


def holder(folder: Path, seconds: float = 60) -> PROCESSES.Process:
    """Start a process that holds the folder, and wait until it does."""
    process = PROCESSES.Process(target=hold, args=(folder, seconds))
    process.start()
    file, mark = folder / NAME, f"{process.pid} on "
    wait_until(lambda: file.exists() and file.read_text().startswith(mark))
    return process


def test_a_folder_that_a_process_holds_is_refused_until_it_is_killed(tmp_path):
    folder = tmp_path / "a" / "b"
    process = holder(folder)
    with pytest.raises(ValueError, match=rf"^out: .*b is in use by process {process.pid} on "):
        alone(folder).__enter__()
    process.kill()
    process.join(60)
    for _ in range(2):  # again and again
        with alone(folder):
            assert (folder / NAME).read_text().startswith(f"{os.getpid()} on ")


def test_a_cell_waits_until_the_holder_has_ended(tmp_path):
    wait_for(tmp_path / "none")
    process = holder(tmp_path, 1)
    begun = time.monotonic()
    wait_for(tmp_path)
    assert time.monotonic() - begun > 0.1
    process.join(60)
    assert process.exitcode == 0
    assert not (tmp_path / "none").exists()


def test_a_folder_is_free_for_a_process_that_was_refused_a_moment_before(tmp_path):
    """The holder ends while the other is still asking."""
    process = holder(tmp_path, 0.1)
    with alone(tmp_path):
        pass
    process.join(60)


def test_every_command_that_writes_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    assert exit_code(command(out)) == 0
    before = set(tmp_path.rglob("*"))
    (growth, *_) = sorted((out / "growth").iterdir())
    at = str(int(growth.stem.removeprefix("step")))
    branches = out / "branch" / growth.stem
    commands = {
        out: [command(out), command(out, "Periodic", "--final", "--resume")],
        branches: [["branch", str(out), "--at", at, "--steps", "1", "--orders", "1"]],
        tmp_path / "c": [["compare", "--net", "resnet8", "--out", str(tmp_path / "c")]],
    }
    for folder, refused in commands.items():
        process = holder(folder)
        for words in refused:
            line = refusal_of(capsys, words)
            assert line.startswith(f"out: {folder} is in use by process {process.pid} on "), line
        process.kill()
        process.join(60)
    left = set(tmp_path.rglob("*")) - before
    assert all(path.is_dir() or path.name == NAME for path in left)
    assert run.main(command(out, "Periodic", "--final", "--resume")) == 0


def test_two_real_commands_and_the_first_killed(tmp_path):
    words = command(tmp_path, "Periodic", "--epochs", "1000", "--records", "100000")
    first = real(words)
    assert first.stdout is not None
    assert first.stdout.readline().startswith("augmentation: ")
    assert first.stdout.readline().startswith("step ")
    second = real([*words, "--resume"])
    (line,) = second.communicate(timeout=1200)[1].splitlines()
    assert second.returncode == 2
    assert line.startswith(f"run.py: error: out: {tmp_path} is in use by process {first.pid} on ")
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=1200)
    resumed = [*words, "--resume"]
    assert exit_code(resumed, "training.stepping.step.train_step", 3, signal.SIGINT) == 130


def test_a_folder_that_cannot_be_held_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        alone(file).__enter__()
    with pytest.raises(ValueError, match=r"inside cannot be written: Not a directory"):
        alone(file / "inside").__enter__()
