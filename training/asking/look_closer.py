"""Steps of a recorded run taken again from a checkpoint, with every layer read at every step."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isclose, isfinite, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from analysis import LayerReading, Observer, Record
from analysis.examining.requests import ALSO, HISTOGRAMS
from analysis.observing.reading import STATISTICS
from analysis.recording.atomic_files import path_of, write_whole
from analysis.recording.phrases import number
from analysis.showing.tables import markdown, to_csv
from nets.checks import check_count
from training.asking.inspect_run import history_of
from training.asking.recorded_settings import told_of
from training.computing.torch_settings import own_process
from training.data.identity import check_same_data
from training.deciding.refusals import Decision
from training.keeping.checkpoint import load_checkpoint
from training.keeping.run_state import Run
from training.running.decide_and_grow import grow_run
from training.running.prepare import prepare
from training.running.resume import revived
from training.stepping.step import take_step

READ = tuple(name for name in ALSO if name not in HISTOGRAMS)
_HEADER = ("step", "training loss", "gradient norm", "largest response", "of", "update ratio", "of")
Kept = tuple[Path, dict[str, Any] | None]
"""A checkpoint's path and state; no state for the run's first step."""


def look_closer(run: str, after: int, steps: int = 50) -> str:
    """Take a run's steps after one again, and give what each of them did, as Markdown.

    It goes on from the latest state that the run kept (growth/, checkpoint.pt), or from its first
    step, with the run's own batches, learning rates and growths: on the same machine the steps are
    the run's, and the last line says whether losses.csv agrees. With a budget in seconds the rates
    are near the run's own: only the times of records are known. Nothing of the run is changed.

    Args:
        run: its folder; every number of every layer goes to its closer/stepN.csv.
        after: the first step that is read is the one after this.
        steps: how many are read, at most to the run's last record.

    Raises:
        ValueError: the folder or a number cannot be used.
    """
    check_count("after", after, 0)
    check_count("steps", steps)
    history, folder = history_of(run), path_of("run", run)
    if after >= history[-1].step:
        raise ValueError(f"after must be below {history[-1].step}, the last step, got {after}")
    until = min(after + steps, history[-1].step)
    recorded = told_of(folder)
    settings, kept = recorded.settings, _latest(folder, after, recorded.identity)
    with own_process(settings):
        prepared = replace(prepare(settings), first=history[0].architecture)  # as its policy began
        check_same_data(folder, prepared.data)
        again = revived(settings, prepared, kept[1], kept[0])
        begun = again.progress.step
        how: Any = {"step": begun, "from_step": after, "to_step": until, "also": READ}
        again.observer = Observer(again.net, again.optimizer, **how)
        path = folder / "closer" / f"step{after:07d}.csv"
        done = {
            record.step: replace(record, applied=recorded.done(record, folder))
            for record in history
            if begun <= record.step < until
        }
        with _writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        seconds = _seconds(folder, again) if settings.budget == "seconds" else {}
        rows, numbers = _taken(again, done, until, kept[0].parent.name == "growth", seconds)
    with _writing(path):
        write_whole(path, to_csv(numbers))
    agreed = _agreement(folder, {row["step"]: row["loss"] for row in rows}, settings.budget)
    told = f"steps {after + 1} to {until}, taken again from step {begun}; all numbers in {path}"
    return f"{told}\n\n{markdown(_HEADER, map(_cells, rows))}\n\n{agreed}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise a ValueError for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"run: {path} cannot be written: {error.strerror}") from None


def _latest(folder: Path, after: int, identity: dict[str, Any]) -> Kept:
    """Give the latest state that was kept at a step or before it."""
    found: Kept = folder / "checkpoint.pt", None
    for path in [*sorted(folder.glob("growth/step*.pt")), folder / "checkpoint.pt"]:
        if path.exists() and (state := load_checkpoint(path, identity)):
            steps = state["progress"]["step"]
            if steps <= after and (found[1] is None or steps >= found[1]["progress"]["step"]):
                found = path, state
    return found


def _taken(
    run: Run,
    records: Mapping[int, Record],
    until: int,
    grows: bool,
    seconds: Mapping[int, float],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Take the steps up to one; give what those that are read did, in short and in full.

    `records` are those before the last step; `grows` says that the state is that before a recorded
    growth; `seconds` are those after steps, if the rate hangs on them.
    """
    rows, numbers = [], []
    with run.observer:
        if grows:
            grow_run(run, Decision(applied=tuple(records[run.progress.step].applied)))
        while run.progress.step < until:
            due, before = run.observer.due, run.window.clone()
            take_step(run)
            run.untold = 0  # no losses are written
            step = run.progress.step
            run.progress.seconds = seconds.get(step, run.progress.seconds)
            if due:
                readings = run.observer.readings()
                total, _, count = (run.window - before).tolist()
                rows.append(_row(run, total / count if count else None, readings))
                numbers += _numbers(step, readings)
            if step in records:
                run.progress.flops = records[step].train_flops  # probes included
                run.window.zero_()
                grow_run(run, Decision(applied=tuple(records[step].applied)))
    return rows, numbers


def _row(run: Run, loss: float | None, readings: Mapping[str, LayerReading]) -> dict[str, Any]:
    row = {"step": run.progress.step, "loss": loss, "norm": run.observer.gradient_norm}
    for name in ("max_abs", "update_ratio"):
        values = {path: reading.value(name) for path, reading in readings.items()}
        sound = {path: v for path, v in values.items() if v is not None and isfinite(v)}
        row[name] = max(sound.items(), key=lambda item: item[1], default=("-", None))
    return row


def _cells(row: Mapping[str, Any]) -> list[str]:
    largest = [word for name in ("max_abs", "update_ratio") for word in row[name][::-1]]
    values = [row["loss"], row["norm"], *largest]
    return [str(row["step"]), *(v if isinstance(v, str) else number(v) for v in values)]


def _numbers(step: int, readings: Mapping[str, LayerReading]) -> list[dict[str, Any]]:
    """Give every number in a row of its own, as `inspect --csv` does."""
    return [
        {"step": step, "layer": path, "statistic": name, "value": value}
        for path, reading in readings.items()
        for name in (*STATISTICS, *reading.extra)
        if (value := reading.value(name)) is not None
    ]


def _seconds(folder: Path, run: Run) -> dict[int, float]:
    """Give the seconds after each step: known at records and in the state, between them a line."""
    known = [(run.progress.step, run.progress.seconds)]
    with suppress(OSError, LookupError, TypeError, ValueError):
        with (folder / "metrics.csv").open(encoding="utf-8") as lines:
            told = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(lines)]
        known += [at for at in told if at[0] > known[0][0]]
    steps, seconds = zip(*known)
    every = range(steps[0], steps[-1] + 1)
    return dict(zip(every, np.interp(every, steps, seconds).tolist()))


def _agreement(folder: Path, losses: Mapping[int, float | None], budget: str) -> str:
    """Say whether the losses are those that the run wrote down."""
    path = folder / "losses.csv"
    if not path.exists():
        return "losses.csv is missing: whether these are the run's own steps is not known"
    with path.open(encoding="utf-8") as lines:
        told = {int(row["step"]): float(row["train_loss"]) for row in csv.DictReader(lines)}
    both = [(step, loss, told[step]) for step, loss in losses.items() if step in told]
    for step, loss, wanted in both:
        if not _same(nan if loss is None else loss, wanted):  # None: the step was skipped
            why = "another machine, version or precision rounds else"
            if budget == "seconds":
                why = "the budget was in seconds: the rate of a step hung on its time, and only "
                why += "those of records are known"
            return (
                f"losses.csv has {wanted:.6g} at step {step}, not {number(loss)}: from there on "
                f"these are not the run's own steps ({why})"
            )
    if len(both) < len(losses):
        return "losses.csv lacks some of these steps: whether they are the run's own is not known"
    return "the losses are those of losses.csv: these are the run's own steps"


def _same(loss: float, wanted: float) -> bool:
    return isclose(loss, wanted, rel_tol=1e-9, abs_tol=0) or (isnan(loss) and isnan(wanted))
