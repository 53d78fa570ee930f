"""Ray as the engine: cells on one machine or on a cluster whose nodes share a file system.

Results go straight into the run folders, so a cell that loses its node goes on elsewhere from its
checkpoint. Sending results back at the end would lose all that a killed node had done.
"""

from __future__ import annotations

import os
import pickle
import secrets
import sys
from logging import ERROR
from pathlib import Path
from typing import Any

from training.commandline.process_memory import keep_memory
from training.comparing.job_queue import PATIENCE, Ended
from training.comparing.jobs import Job, cores, one_line_of, run_job

RETRIES = 3
"""Times that a cell is started again because its node or process died."""


class Cluster:
    """Runs cells as Ray tasks, each with its threads' cores and its share of a GPU.

    Args:
        address: of a cluster to join; None starts Ray here, for this comparison alone.
        gpus: whether cells want a GPU.
        per_gpu: cells at a time on each GPU.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str | None, gpus: bool, per_gpu: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what 2.60 warns of
        if address is None:  # or Ray makes a token of its own and keeps it in the home folder
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "engine ray needs the extra: pip install growthrings[sweep]; or take --engine pool"
            ) from None
        here: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False}
        kept: dict[str, Any] = {} if address else here
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=ERROR, **kept)
        except (ConnectionError, RuntimeError, ValueError) as error:
            told = one_line_of(error)[:300]
            raise ValueError(f"address must be of a running Ray cluster: {told}") from None
        self._ray: Any = ray
        self._gpus = 1 / per_gpu if gpus else 0
        self._jobs: dict[Any, Job] = {}

    @property
    def room(self) -> bool:
        return True  # Ray keeps the queue

    def start(self, job: Job) -> None:
        threads = job.settings.threads or 1
        options = {"num_cpus": threads, "num_gpus": self._gpus, "max_retries": RETRIES}
        work = self._ray.remote(**options)(_work)
        comparison = str(job.settings.folder.parents[1])
        answer = work.remote(
            self._ray.cloudpickle.dumps(job), comparison, os.getcwd(), list(sys.path)
        )
        self._jobs[answer] = job

    def ended(self) -> Ended:
        ready, _ = self._ray.wait(list(self._jobs), timeout=PATIENCE)
        found: Ended = []
        for answer in ready:
            job = self._jobs.pop(answer)
            try:
                found.append((job, self._ray.get(answer)))
            except Exception as error:  # its process died more often than is retried
                found.append((job, one_line_of(error)[:300]))
        return found

    def stop(self) -> None:
        """Cancel what runs, which writes its checkpoints, and leave Ray."""
        for answer in self._jobs:
            self._ray.cancel(answer)
        if self._jobs:
            self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=60)
        self._ray.shutdown()


def _work(cell: bytes, comparison: str, folder: str, path: list[str]) -> str | None:
    """Run a cell in a worker of the cluster, from the folder in which the command was given.

    The cell comes pickled, so that it is read after `path` is set: it may hold a user's own policy.
    """
    if not Path(folder, comparison, "config.yaml").exists():
        return f"out: a node does not see {comparison} in {folder}; nodes must share a file system"
    keep_memory()
    os.chdir(folder)
    sys.path[:] = path + [each for each in sys.path if each not in path]
    return run_job(pickle.loads(cell))
