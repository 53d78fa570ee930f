"""kill -9 at any moment, also inside the writing of a file, again and again: nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from makers import differences
from test_resume import PROCESSES, command, ending

import run

CALLS = ("write", "fsync", "replace")
"""The moments inside the writing of a file: a part of it written, all of it, put in its place."""


def run_and_die(arguments: Sequence[str], call: str, count: int) -> None:
    """Run the command; the count-th call of this kind is the process' last."""
    calls = 0

    def due() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync, replace, opened = os.fsync, Path.replace, Path.open

    def flushed(number: int) -> None:
        if call == "fsync":
            due()
        fsync(number)

    def replaced(path: Path, target: Path) -> Path:
        if call == "replace":
            due()
        return replace(path, target)

    def half_written(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = opened(path, mode, *rest, **options)
        if call == "write" and mode in ("wb", "ab"):
            write = file.write

            class Half:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def write(self, data: bytes) -> int:
                    if calls + 1 == count:
                        write(data[: len(data) // 2])
                        file.flush()
                    due()
                    return write(data)

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

            return Half()
        return file

    os.fsync, Path.replace, Path.open = flushed, replaced, half_written  # pyright: ignore
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sys.exit(run.main(arguments))


def killed(arguments: Sequence[str], call: str = "", count: int = 0, delay: float = 0) -> bool:
    """Run the command until it is killed, by itself or after a delay; say whether it was."""
    process = PROCESSES.Process(target=run_and_die, args=(arguments, call, count))
    process.start()
    if delay:
        process.join(delay)
        process.kill()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), arguments
    return process.exitcode == -signal.SIGKILL


def all_of(folder: Path) -> dict[str, Any]:
    return {**ending(folder), "losses": (folder / "losses.csv").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What an uninterrupted run leaves, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    assert not killed(["--help"])  # what starts the processes has started, and torch is imported
    begun = time.monotonic()
    assert not killed(command(folder))
    seconds = time.monotonic() - begun
    assert len(all_of(folder)["states"]) >= 3  # it grew
    return all_of(folder), seconds


def test_killed_while_it_writes_a_run_ends_as_one_that_was_not(tmp_path, whole):
    for call, count in (("write", 15), ("replace", 4), ("write", 5)):  # a checkpoint, first
        assert killed(command(tmp_path, "Periodic", "--resume"), call, count)
    assert not killed(command(tmp_path, "Periodic", "--resume"))
    assert not differences(all_of(tmp_path), whole[0])


@pytest.mark.slow
def test_50_kills_at_random_moments_lose_nothing(tmp_path, whole):
    """In chains: a run is killed and resumed until it comes to its end, and another begins."""
    expected, seconds = whole
    draw, kills, inside, chains = random.Random(0), 0, 0, 0
    begun = time.monotonic()
    while kills < 50:
        folder = tmp_path / str(chains)
        arguments = command(folder, "Periodic", "--resume")
        alive = True
        while alive and kills < 50:
            how: dict[str, Any] = {"delay": draw.uniform(0, 0.8 * seconds)}
            if draw.random() < 0.5:
                how = {"call": draw.choice(CALLS), "count": draw.randint(1, 25)}
            alive = killed(arguments, **how)
            kills, inside = kills + alive, inside + (alive and "call" in how)
        assert not alive or not killed(arguments)
        assert not differences(all_of(folder), expected), (chains, how)
        chains += 1
    told = f"{kills} kills, {inside} of them inside a write, in {chains} runs"
    print(f"{told}: {time.monotonic() - begun:.0f} s")
    assert min(inside, kills - inside) > 10
