"""Policies x seeds into one comparison; what is finished is not run again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing import current_process
from typing import Any

from analysis.recording.atomic_files import Unwritten
from analysis.recording.phrases import result_of
from nets import cost
from training.comparing.comparison_files import write_csv, write_judged
from training.comparing.gpu_share import runs_a_gpu
from training.comparing.job_queue import Engine, Here, Progress, run_jobs, stays_here
from training.comparing.jobs import Job, gpus_of, jobs_of, workers_of
from training.comparing.process_pool import Pool
from training.computing.optimizer import Precision, slow_settings
from training.computing.torch_settings import is_small
from training.data.identity import check_same_data, settle
from training.deciding.call_policy import is_frozen, told_of_state
from training.deciding.check_probes import check_needs
from training.keeping.folder_lock import alone
from training.keeping.result_files import read_summary
from training.keeping.run_folder import check_same_settings, claim_comparison
from training.running.prepare import prepare
from training.settings.compare_settings import Compare
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.train_settings import Train


@dataclass(frozen=True)
class Outcome:
    """A comparison's text, and a line for each cell that failed."""

    text: str
    failures: tuple[str, ...]


def compare(
    settings: Compare,
    say: Callable[[str], None] = print,
    advance: Callable[[float], None] | None = None,
    running: Callable[[Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Run every row with every seed, and judge them.

    OUT/comparison.csv is written anew after each run; at the end it gains the judged columns, and
    comparison.md and report.html are written.

    Args:
        settings: what to compare; a run that is finished in its folder is taken as it is.
        say: takes a line on what training images go through, then one per run that ends.
        advance: called with the fraction of all runs' budgets that is spent, within runs too.
        running: called before it with the fractions spent of the runs that go on, by their names.

    Raises:
        ValueError: settings, data or folder cannot be used, or another process uses the folder.
        Interrupted: SIGINT or SIGTERM came; run again to go on.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports a user's script
        sys.exit(
            "compare must stand below if __name__ == '__main__': in a script, or take workers=1"
        )
    jobs = jobs_of(settings)
    summaries = {job.name: summary for job in jobs if (summary := _finished(job.settings))}
    missing = [job for job in jobs if job.name not in summaries]
    here = settings.engine == "pool" and any(map(stays_here, missing))
    progress = Progress(len(jobs), len(summaries), advance, running)
    engine = Here(progress) if here else _engine(settings, len(missing), progress)
    with ExitStack() as held:
        try:
            data, flops = check(jobs)
            before, missing = missing, spared(settings, missing, flops)
            for line in _notes(settings, jobs, here, before != missing):
                say(line)
            held.enter_context(alone(settings.folder))
            told = settings_to_dict(settings), settings_to_yaml(settings)
            claim_comparison(settings.folder, *told)
            for job in missing:  # now, that a run which begins later sees the same
                settle(job.settings.folder, data[job.settings.data, job.settings.net])
        except BaseException:
            engine.stop()
            raise
        say(_augmentations(settings, data))
        if summaries:
            say(f"{len(summaries)} of {len(jobs)} are finished")
        if missing and not gpus_of(settings):
            for line in slow_settings(settings, Precision.of(settings)):
                say(line)
        failures = _run_missing(settings, jobs, summaries, missing, engine, say, progress)
        return Outcome(write_judged(settings, jobs, summaries), failures)


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
    jobs: Sequence[Job],
    summaries: dict[str, Mapping[str, Any]],
    missing: Sequence[Job],
    engine: Engine,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[str, ...]:
    """Run what is missing, add its summaries, and give a line for each cell that failed."""
    failures: dict[str, str] = {}
    for job, failure in run_jobs(missing, engine, progress):
        told = f"failed: {failure}"
        if failure is None:
            summary = summaries[job.name] = _finished(job.settings) or {}
            told = f"{result_of(summary)}  {summary['seconds']:.1f} s"
        else:
            failures[job.name] = f"{job.name}  {told}"
        progress.done = len(summaries) + len(failures)
        say(f"{progress.done}/{len(jobs)}  {job.name}  {told}")
        with suppress(Unwritten):  # the other cells go on; at the end it is written anew
            write_csv(settings.folder, jobs, summaries)
    return tuple(failures[job.name] for job in jobs if job.name in failures)


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
    for run in (job.settings for job in jobs):
        check_needs(run.policy)
        place = run.data, run.net
        if place not in limits:
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


def _finished(run: Train) -> Mapping[str, Any] | None:
    """Give the summary of a finished run; None if it must run, or must read the test set."""
    try:
        summary = read_summary(run.folder)
    except ValueError:
        return None  # if the file is damaged, the run says so
    if run.final and not summary["test_readings"]:
        return None
    return {**summary, "data": run.data}  # where the images lie now; `check` says they are the same
