"""Jobs run in processes of their own on this machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from training.commandline.process_memory import keep_memory
from training.comparing.job_queue import PATIENCE, Ended
from training.comparing.jobs import Job, on_device, run_job
from training.computing.signals import Interrupted
from training.deciding.user_errors import told


@dataclass
class _Worker:
    """A process, the pipe to it, the device it is dealt, and the job it has."""

    process: SpawnProcess
    pipe: Connection
    device: str | None
    job: Job | None = None


class Pool:
    """Runs cells in processes of their own, each one cell after another.

    A process that dies fails the cell it had; another takes its place. So it is with one whose cell
    failed on a device that it was dealt: after most of CUDA's errors all else fails there too (CUDA
    Runtime API, `cudaErrorIllegalAddress`: "the process must be terminated and relaunched").

    Args:
        workers: processes at a time.
        devices: dealt to them in turn; empty leaves each its own choice.
    """

    def __init__(self, workers: int, devices: Sequence[str] = ()) -> None:
        dealt = [devices[place % len(devices)] if devices else None for place in range(workers)]
        self._unused: list[str | None] = []
        self._workers: list[_Worker] = []
        for device in dealt:  # at once: they import torch while the settings are checked
            self._new(device)

    @property
    def room(self) -> bool:
        return bool(self._unused) or any(worker.job is None for worker in self._workers)

    def start(self, job: Job) -> None:
        idle = [worker for worker in self._workers if worker.job is None]
        worker = idle[0] if idle else self._new(self._unused.pop(0))
        worker.job = job
        worker.pipe.send_bytes(pickle.dumps(on_device(job, worker.device)))

    def ended(self) -> Ended:
        busy = [worker for worker in self._workers if worker.job is not None]
        ready = wait([worker.pipe for worker in busy], PATIENCE)
        found: Ended = []
        for worker in [worker for worker in busy if worker.pipe in ready]:
            job, worker.job = worker.job, None
            assert job is not None
            try:
                failure = worker.pipe.recv()
                lost = failure is not None and worker.device is not None
            except (EOFError, ConnectionResetError):
                worker.process.join()
                failure = f"its process ended with exit code {worker.process.exitcode}"
                lost = True
            found.append((job, failure))
            if lost:
                _end(worker.process)
                self._workers.remove(worker)
                self._unused.append(worker.device)
        return found

    def stop(self) -> None:
        """Ask the processes until they have ended; if that is interrupted, end them."""
        try:
            while alive := [worker for worker in self._workers if worker.process.is_alive()]:
                for worker in alive:
                    if worker.job is None or worker.pipe.poll():  # it has told how its cell ended
                        worker.process.kill()  # an idle one has nothing to lose
                    else:
                        worker.process.terminate()  # again: outside of the loop nobody listens
                alive[0].process.join(PATIENCE)
        finally:
            for worker in self._workers:
                _end(worker.process)
            self._workers.clear()

    def _new(self, device: str | None) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads' locks
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,))
        # Or a user's random.py would be imported before it is told where modules come from.
        kept = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            process.start()
        finally:
            os.environ.pop("PYTHONSAFEPATH")
            os.environ.update({} if kept is None else {"PYTHONSAFEPATH": kept})
        theirs.close()  # the child's alone: when it dies, ours ends
        self._workers.append(_Worker(process, ours, device))
        return self._workers[-1]


def _end(process: SpawnProcess) -> None:
    process.kill()
    process.join()


def _work(pipe: Connection) -> None:
    """Run the cells that come through the pipe, and send back how each ended."""
    # The parent says when to stop, and may say it twice; a terminal's Ctrl-C is for the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the loop listens, and nothing before it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    import training.running.loop  # noqa: F401  (before the first cell comes)

    while True:
        try:
            sent = pipe.recv_bytes()
        except EOFError:
            return
        try:
            job = pickle.loads(sent)
        except Exception as error:
            pipe.send(f"a worker cannot make its policy: {told(error)}; workers=1 needs none")
            continue
        try:
            failure = run_job(job)
        except Interrupted as stop:
            sys.exit(stop.code)
        pipe.send(failure)
        if failure is None:
            let_go()


def let_go() -> None:
    """Give back the GPU memory of a run that is over, which else nobody but this process could use.

    Its graphs lie in a pool of their own, which torch keeps until memory runs out in this process,
    and which the next run's graphs cannot use.
    """
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _end_with_parent() -> None:
    """Interrupt this process when its parent is gone, even by kill -9."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
