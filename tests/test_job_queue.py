"""Cells run in processes: stopped, killed or failing, a comparison ends as one left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from runs import csv_rows, wait_until

import policies
from policies import Never
from training.comparing.comparison import compare
from training.comparing.job_queue import Ended, run_jobs
from training.comparing.jobs import Job, cores, gpus_of, jobs_of, workers_of
from training.comparing.process_pool import Pool, let_go
from training.settings.compare_settings import Cell, Compare
from training.settings.train_settings import Train

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    **{"net": "resnet8", "epochs": 0.2, "records": 4, "batch_size": 32},
    **{"device": "cpu", "threads": 1, "seeds": [0, 1]},
}
POLICIES = ("Never", "Periodic", "RandomSite", "Plateau")
BROKEN = '''
"""Policies that fail."""
import os
from dataclasses import dataclass

from policies import Policy


@dataclass(frozen=True)
class Raises(Policy):
    def decide(self, history):
        raise RuntimeError("no\\nluck")


@dataclass(frozen=True)
class Dies(Policy):
    def decide(self, history):
        os._exit(7)
'''


def configure(folder: Path, rows: dict[str, Any], **changes: Any) -> list[str]:
    """Write a comparison's config file, and give the command that runs it in `folder`."""
    given = {**SMALL, "workers": 2, "cells": rows, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return [sys.executable, str(ROOT / "run.py"), "compare", "--config", "config.yaml"]


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command as a user does, in a session of its own."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        words, cwd=folder, start_new_session=True, stdout=nowhere, stderr=nowhere
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The comparison's lines, timings aside."""
    rows = csv_rows(folder / "comparison.csv")
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def session(leader: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What four policies give one after the other in one process."""
    folder = tmp_path_factory.mktemp("whole")
    cells = {name: Cell(getattr(policies, name)()) for name in POLICIES}
    given = {**SMALL, "cells": cells, "seeds": [0], "workers": 1, "out": str(folder)}
    assert not compare(Compare(**given), print).failures
    assert len(rows_of(folder)) == 4
    return rows_of(folder)


def until_two_work(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until a run is finished and another is in the middle."""
    wait_until(lambda: list(out.glob("*/*/summary.json")) and list(out.glob("R*/*/metrics.csv")))
    assert len(session(process.pid)) >= 3


PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@PROC
def test_a_comparison_that_was_killed_ends_as_one_that_was_not(tmp_path, whole):
    rows = {name: {"policy": name} for name in POLICIES}
    words = [*configure(tmp_path, rows, seeds=[0]), "--out", "c"]
    process = started(words, tmp_path)
    until_two_work(process, tmp_path / "c")
    process.kill()
    assert process.wait(30) == -9
    wait_until(lambda: not session(process.pid))  # the workers notice
    assert 0 < len(list(tmp_path.glob("c/*/*/summary.json"))) < 4
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "of 4 are finished" in done.stdout
    assert rows_of(tmp_path / "c") == whole


@PROC
def test_ctrl_c_stops_all_with_their_checkpoints_written(tmp_path):
    rows = {name: {"policy": name} for name in ("Never", "RandomSite")}
    process = started([*configure(tmp_path, rows, epochs=9), "--out", "c"], tmp_path)
    folders = [tmp_path / "c" / name / "seed0" for name in rows]
    wait_until(lambda: any((folder / "metrics.csv").exists() for folder in folders))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 130
    wait_until(lambda: not session(process.pid))
    for folder in (each for each in folders if (each / "metrics.csv").exists()):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        steps = (folder / "losses.csv").read_text().splitlines()[1:]
        assert state["progress"]["step"] == len(steps)
        recorded = (folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0]
        assert state["progress"]["step"] >= int(recorded)


def test_a_cell_that_fails_takes_no_other_with_it(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    rows = {
        "raises": {"policy": "broken.Raises"},
        "dies": {"policy": "broken.Dies"},
        "follows": {"yoked": "dies"},
        "static": {"policy": "Never"},
    }
    words = [*configure(tmp_path, rows, seeds=[0], epochs=0.1), "--out", "c"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    told = "policy Raises failed at step 4: RuntimeError: no luck (broken.py:12)"
    assert done.stderr.splitlines() == [
        f"raises  seed 0  failed: {told}",
        "dies  seed 0  failed: its process ended with exit code 7",
        "follows  seed 0  failed: waits for c/dies/seed0, which failed",
    ]
    assert 'raise RuntimeError("no' in (tmp_path / "c/raises/seed0/error.txt").read_text()
    assert [row["run"] for row in rows_of(tmp_path / "c")] == ["static"]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Job]:
    """A job that fails at once; no process that had it stays behind."""
    yield Job("fails", Train(data=f"npz:{tmp_path}/none.npz", out=str(tmp_path / "fails")))
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def test_a_process_that_has_told_its_end_does_not_keep_a_stopped_pool_waiting(failing):
    pool = Pool(1)
    pool.start(failing)
    wait_until((failing.settings.folder / "error.txt").exists)  # nobody asks how it ended
    stopping = Thread(target=pool.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("devices", "stays"), [(["cpu"], False), ([], True)])
def test_a_process_whose_cell_failed_on_its_device_gets_no_other(failing, devices, stays):
    pool = Pool(1, devices)
    (process,) = multiprocessing.active_children()
    pool.start(failing)
    while not (ended := pool.ended()):
        pass
    assert [(job.row, "must name an existing file" in str(told)) for job, told in ended] == [
        ("fails", True)
    ]
    assert process.is_alive() == stays
    assert pool.room
    pool.stop()
    assert not multiprocessing.active_children()


def test_a_gpus_memory_is_given_back_with_what_only_circles_held(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append("memory"))
    given_back, graphs = [], Slots(0)
    graphs.jobs.append(graphs)  # pyright: ignore[reportArgumentType]
    weakref.finalize(graphs, given_back.append, "graphs")
    del graphs
    let_go()
    assert given_back == ["graphs", "memory"]


class Slots:
    """An engine that runs nothing: jobs end in the order in which they were started."""

    def __init__(self, slots: int, fails: tuple[str, ...] = ()) -> None:
        self.slots, self.fails = slots, fails
        self.jobs: list[Job] = []
        self.most, self.stopped = 0, False

    @property
    def room(self) -> bool:
        return len(self.jobs) < self.slots

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        self.most = max(self.most, len(self.jobs))

    def ended(self) -> Ended:
        job = self.jobs.pop(0)
        return [(job, "broken" if job.row in self.fails else None)]

    def stop(self) -> None:
        self.stopped = True


def jobs(**after: str | None) -> list[Job]:
    """Jobs by row; each waits for the row that is named."""
    return [
        Job(row, Train(out=f"c/{row}"), Path(f"c/{needed}") if needed else None)
        for row, needed in after.items()
    ]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_job_starts_after_the_one_it_waits_for(slots):
    engine = Slots(slots)
    ended = [job.row for job, _ in run_jobs(jobs(b="a", a=None, c="b", d=None), engine)]
    assert sorted(ended) == ["a", "b", "c", "d"]
    assert ended.index("a") < ended.index("b") < ended.index("c")
    assert engine.most <= slots
    assert engine.stopped


def test_what_waits_for_a_failure_fails_too_and_a_finished_one_is_not_waited_for():
    found = {
        job.row: failure
        for job, failure in run_jobs(jobs(b="a", a=None, c="b", d="old"), Slots(2, ("a",)))
    }
    assert found == {
        "a": "broken",
        "b": "waits for c/a, which failed",
        "c": "waits for c/b, which failed",
        "d": None,
    }


def test_threads_are_the_cores_over_the_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("training.comparing.jobs.cores", lambda: 8)
    cells = {name: Cell(Never()) for name in "abc"}
    given: dict[str, Any] = {"cells": cells, "seeds": [0, 1], "device": "cpu"}
    for changes, workers, threads in (
        ({}, 6, 1),
        ({"workers": 3}, 3, 2),
        ({"workers": 1}, 1, 8),
        ({"threads": 4}, 2, 4),
        ({"threads": 99}, 1, 99),
        ({"seeds": list(range(9))}, 8, 1),
    ):
        settings = Compare(**{**given, **changes})
        assert workers_of(settings) == workers
        assert {job.settings.threads for job in jobs_of(settings)} == {threads}


def test_gpus_are_dealt_unless_a_device_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cells = {name: Cell(Never()) for name in "abcdefgh"}
    assert workers_of(Compare(cells=cells)) == 2
    assert workers_of(Compare(cells=cells, per_gpu=3)) == 6
    assert gpus_of(Compare(cells=cells, device="cuda")) == ["cuda:0", "cuda:1"]
    assert gpus_of(Compare(cells=cells, device="cuda:1")) == ["cuda:1"]
    assert workers_of(Compare(cells=cells, device="cuda:1", per_gpu=2)) == 2
    assert workers_of(Compare(cells=cells, device="cpu", threads=1)) == min(24, cores())
