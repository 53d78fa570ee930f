"""The jobs of a comparison: its cells as runs, what each waits for, and running one of them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.recording.atomic_files import Unwritten, write_whole
from policies import Yoked
from training.comparing.gpu_share import runs_a_gpu
from training.computing.signals import Interrupted
from training.deciding.user_errors import PolicyFailed
from training.keeping.folder_lock import wait_for
from training.keeping.nonfinite import NonFinite
from training.settings.compare_settings import Compare
from training.settings.start_settings import Start
from training.settings.train_settings import Train


@dataclass(frozen=True)
class Job:
    """One cell: a run of a comparison. `after` is the folder of the run that it needs finished."""

    row: str
    settings: Train
    after: Path | None = None

    @property
    def name(self) -> str:
        """The cell as people read it."""
        return f"{self.row}  seed {self.settings.seed}"

    @property
    def cell(self) -> tuple[str, int]:
        """Its row and seed."""
        return self.row, self.settings.seed


def jobs_of(settings: Compare) -> list[Job]:
    """Give all cells of a comparison, row by row."""
    return [job_of(settings, name, seed) for name in settings.cells for seed in settings.seeds]


def job_of(settings: Compare, name: str, seed: int) -> Job:
    """Give one cell: its folder is OUT/ROW/seedN, its threads are the cores over the workers."""
    cell, common = settings.cells[name], settings.common(name)
    common["threads"] = told_threads(settings) or max(1, cores() // workers_of(settings))
    policy, start, after = cell.policy, cell.start, None
    if cell.source:
        after = settings.folder / cell.source / f"seed{seed}"
    if cell.scratch:
        start = Start(architecture=str(after and after / "architecture.json"))
    if cell.yoked:
        policy, start = Yoked(str(after)), start or settings.cells[cell.yoked].start
    out = str(settings.folder / name / f"seed{seed}")
    run = Train(**common, policy=policy, start=start, seed=seed, out=out, resume=True)
    return Job(name, run, after)


def cores() -> int:
    """Give the CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def told_threads(settings: Compare) -> int | None:
    """Give the threads that a run is to have if someone said so, by OMP_NUM_THREADS too."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return settings.threads or (int(told) if told.isdecimal() else None) or None


def workers_of(settings: Compare) -> int:
    """Give how many runs go on at a time on this machine.

    Counted from the whole matrix, not from what is missing: a restarted comparison must have the
    threads it had, or its sums round otherwise.
    """
    if settings.workers is not None:
        return settings.workers
    cells = len(settings.cells) * len(settings.seeds)
    slots = len(gpus_of(settings)) * runs_a_gpu(settings)
    return max(1, min(cells, slots or cores() // (told_threads(settings) or 1)))


def gpus_of(settings: Compare) -> list[str]:
    """Give the GPUs that the runs are dealt to: all there are, unless the settings name one."""
    if settings.device not in ("auto", "cuda"):
        return [settings.device] if settings.device != "cpu" else []
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def run_job(job: Job, advance: Callable[[float], None] | None = None) -> str | None:
    """Run a cell to its end; give None, or in one line why it failed.

    `advance` is called after every step with the fraction of the budget spent.

    The whole traceback is then in error.txt of its folder. If another process holds the folder,
    such as a worker that outlived its killed parent, it waits.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
    """
    from training.running.loop import train

    folder = job.settings.folder
    wait_for(folder)
    try:
        train(job.settings, lambda line: None, advance)
    except Interrupted:
        raise
    except Exception as error:
        with suppress(OSError):  # the disk may be full
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "error.txt", traceback.format_exc())
        return one_line_of(error)
    (folder / "error.txt").unlink(missing_ok=True)
    return None


def one_line_of(error: BaseException) -> str:
    """Give an error as one line."""
    plain = isinstance(error, ValueError | PolicyFailed | Unwritten | NonFinite)
    kind = "" if plain else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split()) or type(error).__name__


def on_device(job: Job, device: str | None) -> Job:
    """Give the job with its device, if it is dealt one."""
    return job if device is None else replace(job, settings=replace(job.settings, device=device))
