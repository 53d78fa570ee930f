"""Jobs go to an engine as it has room, each after the job that it waits for.

An engine has `room` (whether another job may start), `start(job)`, `ended()` (the jobs that have
ended since, each with None or why it failed, after a moment's wait) and `stop()`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from training.comparing.jobs import Job, run_job
from training.computing.signals import Interrupted, Interrupts

Ended = list[tuple[Job, str | None]]
PATIENCE = 0.2
"""Seconds between questions whether a signal came."""


class Engine(Protocol):
    """What `run_jobs` needs to run cells."""

    @property
    def room(self) -> bool: ...
    def start(self, job: Job) -> None: ...
    def ended(self) -> Ended: ...
    def stop(self) -> None: ...


def run_jobs(jobs: Sequence[Job], engine: Engine) -> Iterator[tuple[Job, str | None]]:
    """Run all jobs, each after the one it waits for, and give each as it ends.

    Raises:
        Interrupted: SIGINT or SIGTERM came; all have been stopped, their checkpoints written.
    """
    waiting, running = list(jobs), set[str]()
    unfinished = {job.settings.out for job in jobs}
    failed = set[str | None]()
    with Interrupts() as interrupts:
        try:
            while waiting or running:
                for job in list(waiting):
                    needed = None if job.after is None else str(job.after)
                    if needed in failed:
                        waiting.remove(job)
                        failed.add(job.settings.out)
                        yield job, f"waits for {needed}, which failed"
                    elif engine.room and needed not in unfinished:
                        waiting.remove(job)
                        running.add(job.name)
                        engine.start(job)
                for job, failure in engine.ended() if running else []:
                    running.remove(job.name)
                    (unfinished.remove if failure is None else failed.add)(job.settings.out)
                    yield job, failure
                if interrupts.number:
                    raise Interrupted(interrupts.number, "the runs have written checkpoints")
        finally:
            engine.stop()


def stays_here(job: Job) -> bool:
    """Say whether no other process could make the job's policy: a notebook's, or a function's.

    A worker imports the script that was started, and finds there what is written in it.
    """
    main = sys.modules["__main__"]
    in_main = type(job.settings.policy).__module__ == "__main__"
    if in_main and getattr(main, "__spec__", None) is None and not hasattr(main, "__file__"):
        return True
    try:
        pickle.dumps(job)
    except Exception:
        return True
    return False


class Here:
    """Runs one cell at a time in this process."""

    def __init__(self) -> None:
        self._job: Job | None = None

    @property
    def room(self) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self._job = job

    def ended(self) -> Ended:
        assert self._job is not None
        ended: Ended = [(self._job, run_job(self._job))]
        self._job = None
        return ended

    def stop(self) -> None:
        """Do nothing: what runs here has had the signal itself."""
