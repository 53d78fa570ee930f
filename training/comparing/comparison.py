"""Policies x seeds into one comparison; what is finished is not run again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from math import ceil
from multiprocessing import current_process
from typing import Any

from analysis.judging.comparable_runs import Finished
from analysis.recording.atomic_files import Unwritten
from analysis.recording.phrases import result_of
from nets import cost
from training.comparing.comparison_files import Matrix, write_csv, write_judged
from training.comparing.gpu_share import runs_a_gpu
from training.comparing.job_queue import Engine, Here, Progress, run_jobs, stays_here
from training.comparing.jobs import Job, gpus_of, jobs_of, workers_of
from training.comparing.process_pool import Pool
from training.computing.optimizer import Precision, slow_settings
from training.computing.torch_settings import is_small
from training.data.identity import check_same_data, settle
from training.deciding.call_policy import is_frozen, told_of_state
from training.deciding.check_probes import check_needs
from training.keeping.asked import (
    Asked,
    Provenance,
    asked_before,
    finished_in,
    note_asked,
    settings_of,
    told_of,
)
from training.keeping.folder_lock import alone
from training.keeping.result_files import read_summary
from training.keeping.run_folder import check_same_settings, claim_comparison
from training.running.prepare import prepare
from training.settings.checks import of_row
from training.settings.compare_settings import Compare
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.named_runs import check_same_runs


@dataclass(frozen=True)
class Outcome:
    """A comparison's text, and a line for each cell that failed."""

    text: str
    failures: tuple[str, ...]


def compare(
    settings: Compare,
    say: Callable[[str], None] = print,
    advance: Callable[[float], None] | None = None,
    planned: Sequence[int] = (),
    running: Callable[[Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Run every row with every seed, or the rows that are chosen, and judge all that is finished.

    OUT/comparison.csv is written anew after each run; at the end it gains the judged columns, and
    comparison.md and report.html are written. OUT/provenance.json keeps what was asked, and when.

    Args:
        settings: what to compare; a run that is finished in its folder is taken as it is.
        say: takes a line on what training images go through, then one per run that ends.
        advance: called with the fraction of all runs' budgets that is spent, within runs too.
        planned: the seeds of the whole comparison where this call runs a part of them; then a later
            call with the others adds nothing to what was asked.
        running: called before `advance` with the fractions spent of the runs that go on, by name.

    Raises:
        ValueError: settings, data or folder cannot be used, or another process uses the folder.
        Interrupted: SIGINT or SIGTERM came; run again to go on.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports a user's script
        sys.exit(
            "compare must stand below if __name__ == '__main__': in a script, or take workers=1"
        )
    jobs, matrix = jobs_of(settings), Matrix.of(settings)
    runs = {job.cell: run for job in jobs if (run := _finished(settings, job))}
    missing = [job for job in jobs if job.row in settings.chosen and job.cell not in runs]
    _check_sources(jobs, missing)
    here = settings.engine == "pool" and any(map(stays_here, missing))
    progress = Progress(len(runs) + len(missing), len(runs), advance, running)
    engine = Here(progress) if here else _engine(settings, len(missing), progress)
    with ExitStack() as held:
        try:
            data, flops = check(jobs)
            asked_for, missing = missing, spared(settings, missing, flops)
            for line in _notes(settings, jobs, here, asked_for != missing):
                say(line)
            held.enter_context(alone(settings.folder))
            asked = _claimed(settings, planned, missing, here)
            for job in missing:  # now, that a run which begins later sees the same
                settle(job.settings.folder, data[job.settings.data, job.settings.net])
        except BaseException:
            engine.stop()
            raise
        say(_augmentations(settings, data))
        if runs:
            say(f"{len(runs)} of {len(jobs)} are finished")
        if missing and not gpus_of(settings):
            for line in slow_settings(settings, Precision.of(settings)):
                say(line)
        failures = _run_missing(settings, runs, missing, engine, say, progress)
        failures += _overtaken(jobs, runs)
        return Outcome(_judged(settings, matrix, runs, asked), failures)


def _claimed(
    settings: Compare, planned: Sequence[int], missing: Sequence[Job], here: bool
) -> Provenance:
    """Make the folder the comparison's own, and note what is asked; give all that ever was."""
    before = asked_before(settings.folder)
    whole = replace(settings, only=None)  # the comparison keeps all of its rows
    claim_comparison(settings.folder, settings_to_dict(whole), settings_to_yaml(whole))
    now = _asked(settings, planned)
    return note_asked(settings.folder, before, now, _at_a_time(settings, missing, here))


def _judged(
    settings: Compare, matrix: Matrix, runs: Mapping[tuple[str, int], Finished], asked: Provenance
) -> str:
    """Judge what is finished, with what a reader has to know of how it was asked for."""
    runs = {cell: replace(run, at_a_time=asked.beside(run.folder)) for cell, run in runs.items()}
    notes = {}
    for ground in dict.fromkeys(matrix.grounds.values()):
        rows = [name for name, of in matrix.grounds.items() if of == ground]
        notes[ground] = told_of(asked, rows, matrix.seeds)
    return write_judged(settings.folder, matrix, runs, notes)


def _asked(settings: Compare, planned: Sequence[int]) -> Asked:
    """Give what a call asks for: with the whole plan, if its seeds are a part of that."""
    part = set(settings.seeds) <= set(planned)
    seeds = tuple(planned if part else settings.seeds)
    rows = settings_of(settings_to_dict(settings))
    static = tuple(name for name, cell in settings.cells.items() if cell.is_static)
    done = finished_in(settings.folder)
    return Asked(tuple(settings.cells), seeds, settings.pair, done, rows, static)


def _check_sources(jobs: Sequence[Job], missing: Sequence[Job]) -> None:
    """Raise a ValueError for a run whose source is neither finished nor about to run."""
    running = {job.settings.folder for job in missing}
    rows = {job.settings.folder: job.row for job in jobs}
    for job in missing:
        needed = job.after
        if needed and needed not in running and not (needed / "summary.json").exists():
            raise ValueError(
                f"only must hold {rows[needed]} beside {job.row}, which waits for it, until seed "
                f"{job.settings.seed} of it is finished"
            )


def _at_a_time(settings: Compare, missing: Sequence[Job], here: bool) -> dict[str, int]:
    """Give by run folder (ROW/seedN) how many runs go on at a time, on each GPU if there are any.

    Ray tells nobody; then there is nothing to give.
    """
    if settings.engine == "ray":
        return {}
    number = 1 if here else min(workers_of(settings), len(missing))
    number = ceil(number / max(1, len(gpus_of(settings))))
    return {f"{job.row}/seed{job.settings.seed}": number for job in missing}


def _notes(settings: Compare, jobs: Sequence[Job], here: bool, fewer: bool) -> list[str]:
    """Say what comes of policies that keep a state or no worker can make, and of fewer threads."""
    policies = {type(job.settings.policy): job.settings.policy for job in jobs}
    notes = [told_of_state(policy) for policy in policies.values() if not is_frozen(policy)]
    if here and workers_of(settings) > 1:
        names = {type(job.settings.policy).__name__: None for job in jobs if stays_here(job)}
        notes.append(
            f"policy {', '.join(names)} is in no file that another process could import: the runs "
            "follow one another in this one"
        )
    if fewer:
        notes.append("1 thread a run: more would slow so small a net (--threads)")
    return notes


def _run_missing(
    settings: Compare,
    runs: dict[tuple[str, int], Finished],
    missing: Sequence[Job],
    engine: Engine,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[str, ...]:
    """Run what is missing, add it to the finished runs, and give a line for each that failed."""
    failures: dict[str, str] = {}
    for job, failure in run_jobs(missing, engine, progress):
        told = f"failed: {failure}"
        if failure is None:
            run = runs[job.cell] = _finished(settings, job) or Finished(job.settings.folder, {})
            told = f"{result_of(run.summary)}  {run.summary['seconds']:.1f} s"
        else:
            failures[job.name] = f"{job.name}  {told}"
        progress.done = len(runs) + len(failures)
        say(f"{progress.done}/{progress.total}  {job.name}  {told}")
        with suppress(Unwritten):  # the other cells go on; at the end it is written anew
            write_csv(settings.folder, Matrix.of(settings), runs)
    return tuple(failures[job.name] for job in missing if job.name in failures)


def _overtaken(jobs: Sequence[Job], runs: dict[tuple[str, int], Finished]) -> tuple[str, ...]:
    """Take out the runs that were made after others than are there now; give a line for each."""
    told = list[str]()
    for job in jobs:
        if job.after and job.cell in runs:
            try:
                check_same_runs(job.settings.folder, settings_to_dict(job.settings))
            except ValueError as error:
                del runs[job.cell]
                told.append(f"{job.name}  failed: {error}")
    return tuple(told)


def _engine(settings: Compare, cells: int, progress: Progress) -> Engine:
    if cells == 0:
        return Here(progress)
    if settings.engine == "ray":
        from training.comparing.ray_cluster import Cluster

        return Cluster(settings.address, bool(gpus_of(settings)), runs_a_gpu(settings))
    workers = workers_of(settings)
    return Pool(min(workers, cells), gpus_of(settings)) if workers > 1 else Here(progress)


def _augmentations(settings: Compare, data: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Give in one line what the training images of each data set go through."""
    found = {name: identity["augmentation"] for (name, _), identity in data.items()}
    told = [f"{name} {words}" if len(found) > 1 else words for name, words in found.items()]
    return f"augmentation: {'; '.join(told)} (--augment {settings.augment})"


def check(
    jobs: Sequence[Job],
) -> tuple[dict[tuple[str, str], Mapping[str, Any]], dict[tuple[str, str], int]]:
    """Raise a ValueError for whatever any of the runs would refuse, before anything is written.

    Gives, by data set and net, the identity of the data, which all runs on it must see the same,
    and the FLOPs an image of the limit.
    """
    limits, data = {}, dict[tuple[str, str], Mapping[str, Any]]()
    several = len({(job.settings.data, job.settings.net) for job in jobs}) > 1
    for job in jobs:
        run = job.settings
        check_needs(run.policy)
        place = run.data, run.net
        if place not in limits:
            with of_row(job.row) if several else nullcontext():
                prepared = prepare(replace(run, start=None))
            limits[place], data[place] = prepared.limit, prepared.data
        if run.start is None or run.start.architecture is None:
            run.first(limits[place])
        if (run.folder / "config.yaml").exists():
            check_same_settings(run.folder, settings_to_dict(run))
        check_same_data(run.folder, data[place])
    return data, {place: cost(limit).flops for place, limit in limits.items()}


def spared(
    settings: Compare, jobs: Sequence[Job], flops: Mapping[tuple[str, str], int]
) -> list[Job]:
    """Give the jobs, those of small nets with one thread unless the settings say how many."""
    return [
        replace(job, settings=replace(job.settings, threads=1))
        if is_small(settings, flops[job.settings.data, job.settings.net])
        else job
        for job in jobs
    ]


def _finished(settings: Compare, job: Job) -> Finished | None:
    """Give a finished run; None if it must run, or is chosen and must read the test set."""
    run = job.settings
    try:
        summary = read_summary(run.folder)
    except ValueError:
        return None  # if the file is damaged, the run says so
    if run.final and job.row in settings.chosen and not summary["test_readings"]:
        return None
    # where the images lie now; `check` says they are the same
    return Finished(run.folder, {**summary, "data": run.data})
