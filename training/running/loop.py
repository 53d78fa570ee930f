"""The training loop: step, read the layers, ask the policy, grow, write it down, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from analysis import Record
from training.computing import distributed
from training.computing.optimizer import slow_settings
from training.computing.signals import Interrupted, Interrupts
from training.keeping.run_state import Run
from training.running.decide_and_grow import decide_and_grow
from training.running.finished import finish, finished
from training.running.resume import open_run
from training.running.take_record import take_record
from training.running.write_down import (
    line_of,
    save,
    told_of_batch,
    write_losses,
    write_record,
)
from training.settings.train_settings import Train
from training.stepping.step import take_step

Say = Callable[[str], None]
Advance = Callable[[float], None]


def train(settings: Train, say: Say = print, advance: Advance | None = None) -> Mapping[str, Any]:
    """Run a training run to the end of its budget, or resume it, and give its summary.

    On several processes (`training.computing.distributed`) each of them calls it and gets the same.

    Args:
        settings: what to do; `settings.folder` holds the result.
        say: takes a line on what training images go through, one on what makes the run slow, if
            anything does, and one on a batch that may grow, then one per record.
        advance: called after every step with the fraction of the budget spent.

    Raises:
        ValueError: settings, data or folder cannot be used, or another process uses the folder.
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
        PolicyFailed: the policy failed; the last checkpoint is as it was.
        NonFinite: a loss or a weight is NaN or infinite; the last checkpoint is as it was.
        Unwritten: the disk is full, say; the last checkpoint is as it was.
    """
    done = finished(settings)
    if done is not None:
        return done
    run = open_run(settings)
    with run.held:
        say(f"augmentation: {run.batches.augment} (--augment {settings.augment})")
        for line in slow_settings(settings, run.precision):
            say(line)
        if settings.batch_growth > 1:
            say(told_of_batch(run))
        _train(run, say, advance)
        return finish(run)


def _train(run: Run, say: Say, advance: Advance | None) -> None:
    """Step to the end of the budget."""
    started = perf_counter() - run.progress.seconds
    since = perf_counter(), run.progress.images
    with run.observer, Interrupts() as interrupts:
        while not run.ended:
            take_step(run)
            if run.budget.kind == "seconds" or run.record_due:
                run.precision.wait()  # else the host is ahead of the device, and time too short
            run.progress.seconds = distributed.greatest(perf_counter() - started)
            if run.untold == len(run.trace) - 1:
                write_losses(run)
            if run.record_due:
                speed = (run.progress.images - since[1]) / (perf_counter() - since[0])
                say(record_and_grow(run, speed))
                since = perf_counter(), run.progress.images
            if advance:
                advance(run.spent)
            _stop_if_asked(run, interrupts)


def record_and_grow(run: Run, speed: float) -> str:
    """Make a record, ask the policy, grow, and write all of it; give the line that says so."""
    record, averaged, unmeasured = take_record(run)
    factor = run.factor
    decision, difference, notes = decide_and_grow(run, record, unmeasured)
    record = replace(record, **vars(decision))
    run.history.append(record)
    run.progress.records += 1
    notes += write_record(run, record, averaged, difference, speed)
    _save_if_due(run, record)
    if run.spared:
        notes.append("1 thread: more would slow so small a net (--threads)")
        run.spared = False
    if run.factor != factor:
        notes.append(told_of_batch(run))
    if run.progress.skipped:
        notes.append(f"{run.progress.skipped} steps skipped")
    return "  ".join([line_of(record, speed), *notes])


def _save_if_due(run: Run, record: Record) -> None:
    """Write a checkpoint if the run has grown or ended, or `save_every` seconds have passed.

    The time is that of the last step, which all processes have agreed on: they decide alike.
    """
    waited = run.progress.seconds - run.saved
    if record.applied or run.ended or waited >= run.settings.save_every:
        save(run)
        run.saved = run.progress.seconds


def _stop_if_asked(run: Run, interrupts: Interrupts) -> None:
    """Raise Interrupted, the checkpoint written, if a signal came to any of the processes."""
    signal = distributed.greatest(interrupts.number or 0)
    if signal:
        write_losses(run)
        save(run)
        raise Interrupted(int(signal), f"stopped at step {run.progress.step}; --resume goes on")
