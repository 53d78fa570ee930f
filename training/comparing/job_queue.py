"""Jobs go to an engine as it has room, each after the job that it waits for.

An engine has `room` (whether another job may start), `start(job)`, `ended()` (the jobs that have
ended since, each with None or why it failed, after a moment's wait) and `stop()`.
"""

from __future__ import annotations

import csv
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


@dataclass
class Progress:
    """Tells how far a comparison is while its runs go on: `done` of `total` runs have ended.

    Args:
        advance: takes the fraction of all runs' budgets that is spent.
        running: takes, by the names of the runs that go on, the fractions of theirs.
    """

    total: int
    done: int = 0
    advance: Callable[[float], None] | None = None
    running: Callable[[Mapping[str, float]], None] | None = None

    def tell(self, spent: Mapping[str, float]) -> None:
        """Tell what the runs that go on have spent, from 0 to 1 each."""
        if self.running:
            self.running(spent)
        if self.advance:
            self.advance((self.done + sum(spent.values())) / self.total)

    def tell_of(self, jobs: Iterable[Job]) -> None:
        """Tell what runs in other processes have spent, as their folders say."""
        if self.running or self.advance:
            self.tell({job.name: spent_in(job.settings.folder) for job in jobs})


def spent_in(folder: Path) -> float:
    """Give the fraction of its budget that a run had spent at its last record; 0 before one.

    It reads metrics.csv, which another process may be writing: what is no number yet counts as 0.
    """
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            *_, last = csv.DictReader(file)
        return min(1.0, max(0.0, float(last["spent"])))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return 0.0


def run_jobs(
    jobs: Sequence[Job], engine: Engine, progress: Progress | None = None
) -> Iterator[tuple[Job, str | None]]:
    """Run all jobs, each after the one it waits for, and give each as it ends.

    Raises:
        Interrupted: SIGINT or SIGTERM came; all have been stopped, their checkpoints written.
    """
    waiting, running = list(jobs), dict[str, Job]()
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
                        running[job.name] = job
                        engine.start(job)
                for job, failure in engine.ended() if running else []:
                    del running[job.name]
                    (unfinished.remove if failure is None else failed.add)(job.settings.out)
                    yield job, failure
                if progress:
                    progress.tell_of(running.values())
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
    """Runs one cell at a time in this process, and tells after every step how far it is."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._job: Job | None = None
        self._progress = progress

    @property
    def room(self) -> bool:
        return self._job is None

    def start(self, job: Job) -> None:
        self._job = job

    def ended(self) -> Ended:
        job, progress = self._job, self._progress
        assert job is not None
        advance = (lambda spent: progress.tell({job.name: min(1.0, spent)})) if progress else None
        ended: Ended = [(job, run_job(job, advance))]
        self._job = None
        return ended

    def stop(self) -> None:
        """Do nothing: what runs here has had the signal itself."""
