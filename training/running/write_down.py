"""What a run writes: at a record history, metrics and TensorBoard; losses; its checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from analysis import Record
from analysis.recording.atomic_files import writing
from analysis.recording.phrases import phrase
from analysis.recording.probes import histograms_of, response_counts
from analysis.showing.matplotlib_figures import Undrawn
from nets import cost
from nets.checks import in_one_line
from nets.plan.action_dicts import name_of
from nets.plan.actions import adds_capacity
from training.computing import distributed
from training.computing.learning_rate import learning_rate
from training.keeping.checkpoint import save_checkpoint
from training.keeping.nonfinite import check_losses, check_state
from training.keeping.picture_files import reference_of, seconds_of
from training.keeping.result_files import (
    append_losses,
    append_metrics,
    append_record,
    results_to_disk,
)
from training.keeping.run_folder import binding
from training.keeping.run_state import Run
from training.running.prepare import CHECKED
from training.settings.config_yaml import settings_to_dict

_MOST = 2000
"""Characters of a setting that TensorBoard shows."""


def save(run: Run, name: str = "checkpoint.pt") -> None:
    """Write the state to a file of the run folder; all processes call it, rank 0 writes.

    What the run has told of itself is flushed to the disk first: whoever resumes can cut back what
    a checkpoint does not know, but not bring back what it does.

    Raises:
        NonFinite: a part of the state is NaN or infinite; nothing is written then.
    """
    check_state(run)
    window, read = distributed.total(run.window), distributed.gathered(run.observer.state_dict())
    if run.board is None:  # not rank 0
        return
    results_to_disk(run.folder)
    run.board.to_disk()
    path = run.folder / name
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    identity, net, optimizer = binding(settings_to_dict(run.settings)), run.net, run.optimizer
    state = run.progress, run.observer, window, identity, run.ema, run.scaler, run.rates
    save_checkpoint(path, net, optimizer, *state, read)


def write_losses(run: Run) -> None:
    """Add the latest steps to losses.csv; all processes call it, rank 0 writes.

    Steps that were left out are counted here, where the device is asked.

    Raises:
        NonFinite: a loss is NaN or infinite; nothing is written then.
    """
    sums = distributed.total(run.trace[: run.untold + 1]).diff(dim=0)  # (steps, 3)
    losses = [total / count if count else None for total, _, count in sums.tolist()]
    check_losses(run, losses)
    run.progress.skipped += losses.count(None)
    if distributed.rank() == 0:
        append_losses(run.folder, run.progress.step - len(losses), losses)
    run.untold = 0
    run.trace[0] = run.window


def write_record(
    run: Run,
    record: Record,
    averaged: tuple[float | None, float | None],
    difference: float | None,
    speed: float,
) -> list[str]:
    """Write a record where people read it; rank 0 does. Gives what could not be drawn.

    Pictures are drawn after growth and at the end; one that cannot be drawn ends no run.

    Args:
        run: after what the record applied.
        record: with what was decided.
        averaged: validation loss and accuracy of the running average.
        difference: of the outputs after growth.
        speed: images a second.
    """
    board, notes = run.board, list[str]()
    if board is None:
        return notes
    append_record(run.folder, record)
    row = _metrics(record, averaged, run.progress.seconds, speed)
    if run.settings.batch_growth > 1:  # else there is none in the folders of earlier versions
        row["batch_size"] = run.settings.batch_size * run.factor_of(record.architecture)
    append_metrics(run.folder, row)
    board.record(record, speed, averaged)
    board.capacity(run.history)
    board.growth(record.step, record.applied, record.refused, difference)
    counts = run.repeated("histograms", lambda: response_counts(run.net, run.probe[0][:CHECKED]))
    board.histograms(record.step, histograms_of(counts))
    if run.ended or (any(map(adds_capacity, record.applied)) and board.pictures_due):
        try:
            board.pictures(run.history, reference_of(run.folder), seconds_of(run.folder))
        except Undrawn as failure:
            notes.append(str(failure))
    if run.ended and (size := cost(run.net.architecture)) != record.cost:  # a block has faded
        board.size(record.step, size)
    board.flush()
    return notes


def hyperparameters(run: Run) -> dict[str, str | float]:
    """Give what sets a run apart from others, with the same keys and types for every run.

    TensorBoard sorts the names and shows five at first: these are what a comparison varies.
    """
    settings = run.settings
    names = ("epochs", "budget", "grow_until", "schedule", "batch_size", "optimizer", "momentum")
    names += ("batch_growth", "weight_decay", "precision", "rates")
    return {
        "data": in_one_line(settings.data, _MOST),
        "lr": settings.learning_rate,
        "net": settings.net,
        "policy": type(settings.policy).__name__,
        "seed": settings.seed,
        "settings_of_policy": in_one_line(repr(settings.policy), _MOST),
        "start_parameters": run.history[0].cost.parameters,
        **{f"training.{name}": getattr(settings, name) for name in names},
        "training.initializer": name_of(settings.initializer),
    }


def _metrics(
    record: Record, averaged: tuple[float | None, float | None], seconds: float, speed: float
) -> dict[str, Any]:
    names = ("step", "epoch", "spent", "train_flops", "train_loss", "train_accuracy")
    names += ("validation_loss", "validation_accuracy", "learning_rate")
    row = {name: getattr(record, name) for name in names}
    row["ema_validation_loss"], row["ema_validation_accuracy"] = averaged
    return {**row, **asdict(record.cost), "seconds": seconds, "images_per_second": speed}


def told_of_batch(run: Run) -> str:
    """Say how many images a step takes from now on, and at what rate."""
    settings, factor = run.settings, run.factor
    rate = learning_rate(settings, 0, factor) / settings.learning_rate
    told = f"batch {factor * settings.batch_size}"
    return f"{told} ({factor} x {settings.batch_size}) at {rate:.3g} times the learning rate"


def line_of(record: Record, speed: float) -> str:
    """Give a record as one line of text."""
    parts = [f"step {record.step}", f"{record.spent:4.0%}"]
    for name, loss, accuracy in (
        ("train", record.train_loss, record.train_accuracy),
        ("validation", record.validation_loss, record.validation_accuracy),
    ):
        share = "" if accuracy is None else f" {accuracy:.1%}"
        parts.append("" if loss is None else f"{name} {loss:.4g}{share}")
    parts.append(f"{record.cost.parameters:,} parameters")
    parts.append(f"{speed:,.0f} images/s")
    for action in filter(adds_capacity, record.applied):
        parts.append(f"{phrase(action)}: {getattr(action, 'reason', '')}")
    return "  ".join(part for part in parts if part)
