"""Ray as the engine: killed, or with a node killed, a comparison ends as one left alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import wait_until
from test_job_queue import POLICIES, configure, rows_of

import run
from training.comparing.ray_cluster import Cluster

HAS_RAY = shutil.which("ray", path=str(Path(sys.executable).parent)) is not None


def marked(mark: str) -> list[int]:
    """The processes that have the variable MARK in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def environment(home: Path, mark: str) -> dict[str, str]:
    """Variables of a user at home in `home`; what is started with them can be found again."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    (home / ".matplotlib").mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(home), "MPLCONFIGDIR": str(home / ".matplotlib"), "MARK": mark}
    return {**kept, **own, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """A mark for processes; those that bear it are ended with the test."""
    mark = f"{tmp_path.name}-{os.getpid()}"
    yield mark
    for name in (mark, f"{mark}-second"):
        for number in marked(name):
            os.kill(number, signal.SIGKILL)


def whole(folder: Path) -> list[dict[str, str]]:
    """What the pool gives for the same comparison."""
    words = [*configure(folder, {name: {"policy": name} for name in POLICIES}), "--out", "whole"]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return rows_of(folder / "whole")


def ray_words(folder: Path) -> list[str]:
    words = configure(folder, {name: {"policy": name} for name in POLICIES})
    return [*words, "--out", "c", "--engine", "ray"]


def in_the_middle(out: Path) -> bool:
    """Whether a run is finished and another is in the middle."""
    return bool(list(out.glob("*/*/summary.json")) and list(out.glob("R*/*/metrics.csv")))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra [sweep]")
def test_a_ray_comparison_that_was_killed_ends_as_one_that_was_not(tmp_path, mark):
    own = environment(tmp_path / "home", mark)
    kept = {"cwd": tmp_path, "env": own}
    process = subprocess.Popen(ray_words(tmp_path), **kept, stdout=subprocess.DEVNULL)
    wait_until(lambda: in_the_middle(tmp_path / "c"), 240)
    process.kill()
    assert process.wait(30) == -9
    done = subprocess.run(ray_words(tmp_path), **kept, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of 8 are finished" in done.stdout
    assert rows_of(tmp_path / "c") == whole(tmp_path)
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".matplotlib"]
    wait_until(lambda: not marked(mark), 60)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra [sweep]")
def test_a_ray_comparison_survives_the_death_of_a_node(tmp_path, mark):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1"]
    head = [*ray, "--head", f"--port={port}", "--node-ip-address=127.0.0.1"]
    head += ["--include-dashboard=false"]
    quick = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_failure_threshold": "2"}
    first = environment(tmp_path / "home", mark) | quick
    subprocess.run(head, env=first, check=True, capture_output=True)
    second = environment(tmp_path / "home", f"{mark}-second") | quick
    joined = [*ray, f"--address={address}"]
    subprocess.run(joined, env=second, check=True, capture_output=True)
    words = [*ray_words(tmp_path), "--address", address]
    process = subprocess.Popen(words, cwd=tmp_path, env=first, stdout=subprocess.PIPE, text=True)

    def workers(name: str) -> list[int]:
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(name)}
        return [pid for pid, command in commands.items() if command.startswith(b"ray::")]

    wait_until(lambda: in_the_middle(tmp_path / "c"), 240)
    wait_until(lambda: workers(mark) and workers(f"{mark}-second"), 240)  # both take part
    for number in marked(f"{mark}-second"):
        os.kill(number, signal.SIGKILL)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    assert "8/8" in output
    assert rows_of(tmp_path / "c") == whole(tmp_path)


def test_without_ray_the_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"growthrings\[sweep\]"):
        Cluster(None, False, 1)


def test_an_address_needs_ray(capsys):
    assert run.main(["compare", "--address", "auto"]) == 2
    assert "address must be left out without --engine ray, got 'auto'" in capsys.readouterr().err
