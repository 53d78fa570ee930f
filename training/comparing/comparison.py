"""Policies x seeds into one judgement; what is finished is not run again."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing import current_process
from typing import Any

from analysis.judging.claims import Finished, Judgement, judge, judgement_text
from analysis.recording.files import Unwritten, write_whole
from analysis.showing.report import write_report
from analysis.showing.tables import result_of
from training.comparing.cells import Job, gpus_of, jobs_of, workers_of
from training.comparing.engines import Engine, Here, Pool, run_jobs, stays_here
from training.data.identity import check_same_data, settle
from training.keeping.folder import check_same_settings, claim_comparison, read_summary
from training.keeping.locks import alone
from training.running.step import Precision, slow_settings
from training.settings.compare import Compare
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.train import Train

_COLUMNS = ("data", "net", "policy", "parameters", "flops", "train_flops", "seconds", "steps")
_COLUMNS += ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_COLUMNS += ("test_accuracy",)
_JUDGED = ("regret", "flops_to_reference", "transient")


@dataclass(frozen=True)
class Outcome:
    """A comparison's text, and a line for each cell that failed."""

    text: str
    failures: tuple[str, ...]


def compare(
    settings: Compare,
    say: Callable[[str], None] = print,
    advance: Callable[[float], None] | None = None,
) -> Outcome:
    """Run every row with every seed, and judge them.

    OUT/comparison.csv is written anew after each run; at the end it gains the judged columns, and
    comparison.md and report.html are written.

    Args:
        settings: what to compare; a run that is finished in its folder is taken as it is.
        say: takes a line on what training images go through, then one per run that ends.
        advance: called with the ended fraction of the comparison.

    Raises:
        ValueError: settings, data or folder cannot be used, or another process uses the folder.
        Interrupted: SIGINT or SIGTERM came; run again to go on.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports a user's script
        sys.exit(
            "compare must stand below if __name__ == '__main__': in a script, or take workers=1"
        )
    jobs = jobs_of(settings)
    summaries = {job.name: summary for job in jobs if (summary := _summary(job.settings))}
    missing = [job for job in jobs if job.name not in summaries]
    here = settings.engine == "pool" and any(map(stays_here, missing))
    engine = Here() if here else _engine(settings, len(missing))
    with ExitStack() as held:
        try:
            data = check(jobs)
            for line in _notes(settings, jobs, here):
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
        failures = _run_missing(settings, jobs, summaries, missing, engine, say, advance)
        return Outcome(_judge(settings, jobs, summaries), failures)


def _notes(settings: Compare, jobs: Sequence[Job], here: bool) -> list[str]:
    """Say what comes of policies that keep a state, and of those that no worker can make."""
    from training.running.judgement import is_frozen, told_of_state

    policies = {type(job.settings.policy): job.settings.policy for job in jobs}
    notes = [told_of_state(policy) for policy in policies.values() if not is_frozen(policy)]
    if here and workers_of(settings) > 1:
        names = {type(job.settings.policy).__name__: None for job in jobs if stays_here(job)}
        notes.append(
            f"policy {', '.join(names)} is in no file that another process could import: the runs "
            "follow one another in this one"
        )
    return notes


def _run_missing(
    settings: Compare,
    jobs: Sequence[Job],
    summaries: dict[str, Mapping[str, Any]],
    missing: Sequence[Job],
    engine: Engine,
    say: Callable[[str], None],
    advance: Callable[[float], None] | None,
) -> tuple[str, ...]:
    """Run what is missing, add its summaries, and give a line for each cell that failed."""
    failures: dict[str, str] = {}
    for job, failure in run_jobs(missing, engine):
        told = f"failed: {failure}"
        if failure is None:
            summary = summaries[job.name] = _summary(job.settings) or {}
            told = f"{result_of(summary)}  {summary['seconds']:.1f} s"
        else:
            failures[job.name] = f"{job.name}  {told}"
        count = len(summaries) + len(failures)
        say(f"{count}/{len(jobs)}  {job.name}  {told}")
        if advance:
            advance(count / len(jobs))
        with suppress(Unwritten):  # the other cells go on; at the end it is written anew
            write_whole(settings.folder / "comparison.csv", _csv(jobs, summaries, {}))
    return tuple(failures[job.name] for job in jobs if job.name in failures)


def _engine(settings: Compare, cells: int) -> Engine:
    if cells == 0:
        return Here()
    if settings.engine == "ray":
        from training.comparing.cluster import Cluster

        return Cluster(settings.address, bool(gpus_of(settings)), settings.per_gpu)
    workers = workers_of(settings)
    return Pool(min(workers, cells), gpus_of(settings)) if workers > 1 else Here()


def _augmentations(settings: Compare, data: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Give in one line what the training images of each data set go through."""
    found = {name: identity["augmentation"] for (name, _), identity in data.items()}
    told = [f"{name} {words}" if len(found) > 1 else words for name, words in found.items()]
    return f"augmentation: {'; '.join(told)} (--augment {settings.augment})"


def check(jobs: Sequence[Job]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Raise a ValueError for whatever any of the runs would refuse, before anything is written.

    Gives the identity of the data, by data set and net: all runs on it must see the same.
    """
    from training.running.judgement import check_needs
    from training.running.run import (
        ground_of,  # imports torch: late, so that the processes start first
    )

    limits, data = {}, dict[tuple[str, str], Mapping[str, Any]]()
    for run in (job.settings for job in jobs):
        check_needs(run.policy)
        place = run.data, run.net
        if place not in limits:
            ground = ground_of(replace(run, start=None))
            limits[place], data[place] = ground.limit, ground.data
        if run.start is None or run.start.architecture is None:
            run.first(limits[place])
        if (run.folder / "config.yaml").exists():
            check_same_settings(run.folder, settings_to_dict(run))
        check_same_data(run.folder, data[place])
    return data


def _summary(run: Train) -> Mapping[str, Any] | None:
    """Give the summary of a finished run; None if it must run, or must read the test set."""
    try:
        summary = read_summary(run.folder)
    except ValueError:
        return None  # if the file is damaged, the run says so
    if run.final and not summary["test_readings"]:
        return None
    return {**summary, "data": run.data}  # where the images lie now; `check` says they are the same


def _judge(
    settings: Compare, jobs: Sequence[Job], summaries: Mapping[str, Mapping[str, Any]]
) -> str:
    """Judge the rows of each data set and net, write all files, and give the text."""
    folder, judged, texts = settings.folder, dict[str, Mapping[str, Any]](), []
    grounds = dict.fromkeys(settings.ground(name) for name in settings.cells)
    groups: list[tuple[str, Judgement]] = []
    for ground in grounds:
        names = [name for name in settings.cells if settings.ground(name) == ground]
        rows = {
            name: {
                job.settings.seed: Finished(job.settings.folder, summaries[job.name])
                for job in jobs
                if job.row == name and job.name in summaries
            }
            for name in names
        }
        rows = {name: runs for name, runs in rows.items() if runs}
        if not rows:
            continue
        static = [name for name in rows if settings.cells[name].is_static]
        pair = settings.pair if settings.pair and set(settings.pair) <= set(rows) else None
        judgement = judge(rows, static, pair, settings.budget)
        groups.append((f"{ground[0]}, {ground[1]}", judgement))
        title = f"## {ground[0]}, {ground[1]}\n\n" if len(grounds) > 1 else ""
        texts.append(title + judgement_text(judgement))
        for name, runs in judgement.figures.items():
            judged |= {f"{name}  seed {seed}": vars(figures) for seed, figures in runs.items()}
    text = "\n\n".join(texts)
    write_whole(folder / "comparison.csv", _csv(jobs, summaries, judged))
    write_whole(folder / "comparison.md", text + "\n")
    if groups:
        missing = write_report(folder, groups)
        text += f"\n\n{missing}" if missing else ""
    return text


def _csv(
    jobs: Sequence[Job],
    summaries: Mapping[str, Mapping[str, Any]],
    judged: Mapping[str, Mapping[str, Any]],
) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "seed", *_COLUMNS, *_JUDGED])
    for job in jobs:
        if job.name in summaries:
            values = [summaries[job.name][column] for column in _COLUMNS]
            more = [judged.get(job.name, {}).get(column) for column in _JUDGED]
            writer.writerow([job.row, job.settings.seed, *values, *more])
    return text.getvalue()
