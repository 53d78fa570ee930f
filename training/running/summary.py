"""The end of a run: summary.json, its finished marker, and the one reading of the test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nets import action_to_dict, cost
from nets.checks import in_one_line
from nets.plan.actions import adds_capacity
from training.data.augmenting import augment_of
from training.data.identity import check_same_data, identity_of
from training.data.normalisation import channel_statistics
from training.data.splits import load
from training.keeping import ranks
from training.keeping.folder import check_same_settings, read_summary, write_json
from training.keeping.locks import alone
from training.keeping.process import own_process
from training.running.checkpoint import load_checkpoint, network_of
from training.running.finite import finite
from training.running.run import Run
from training.running.step import LOSSES, Precision, evaluate
from training.settings.config_yaml import settings_to_dict
from training.settings.train import Train

_MOST = 2000
"""Characters of a setting that TensorBoard shows."""


def finish(run: Run) -> Mapping[str, Any]:
    """Give the summary of a run that has spent its budget; rank 0 writes it."""
    last, progress = run.history[-1], run.progress
    architecture = run.net.architecture  # not the record's if a block had faded by then
    size = cost(architecture)
    summary = {
        "policy": type(run.settings.policy).__name__,
        "seed": run.settings.seed,
        "data": run.settings.data,
        "net": run.settings.net,
        "parameters": size.parameters,
        "flops": size.flops,
        "limit": {"parameters": run.limit.parameters, "flops": run.limit.flops},
        "train_flops": progress.flops,
        "steps": progress.step,
        "epochs": progress.images / len(run.splits.train),
        "skipped_steps": progress.skipped,
        "seconds": progress.seconds,
        "train_loss": last.train_loss,
        "train_accuracy": last.train_accuracy,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
        "test_loss": None,
        "test_accuracy": None,
        "test_readings": 0,
        "growth": [
            {"step": record.step, "spent": record.spent, "action": action_to_dict(action)}
            for record in run.history
            for action in filter(adds_capacity, record.applied)
        ],
    }
    how = (*run.statistics, run.loss, run.precision)
    if len(run.judged) < len(run.splits.validation) or architecture != last.architecture:
        loss, accuracy = evaluate(run.net, run.splits.validation, *how)
        summary.update(validation_loss=finite(loss), validation_accuracy=accuracy)
    if run.ema is not None:
        read = evaluate(run.ema, run.splits.validation, *how)
        summary.update(ema_validation_loss=finite(read[0]), ema_validation_accuracy=read[1])
    if run.settings.final:
        summary.update(_test(evaluate(run.net, run.splits.test, *how)))

    def write() -> dict[str, Any]:
        write_json(run.folder / "architecture.json", architecture.to_dict())
        write_json(run.folder / "summary.json", summary)
        return summary

    return ranks.from_first(write)


def _test(read: tuple[float | None, float | None]) -> dict[str, Any]:
    return {"test_loss": finite(read[0]), "test_accuracy": read[1], "test_readings": 1}


def hyperparameters(run: Run) -> dict[str, str | float]:
    """Give what sets a run apart from others, with the same keys and types for every run.

    TensorBoard sorts the names and shows five at first: these are what a comparison varies.
    """
    settings = run.settings
    names = ("epochs", "budget", "grow_until", "schedule", "batch_size", "optimizer", "momentum")
    names += ("weight_decay", "initializer", "precision")
    return {
        "data": in_one_line(settings.data, _MOST),
        "lr": settings.learning_rate,
        "net": settings.net,
        "policy": type(settings.policy).__name__,
        "seed": settings.seed,
        "settings_of_policy": in_one_line(repr(settings.policy), _MOST),
        "start_parameters": run.history[0].cost.parameters,
        **{f"training.{name}": getattr(settings, name) for name in names},
    }


def finished(settings: Train) -> Mapping[str, Any] | None:
    """Give the summary of a finished run that is resumed, the test set read if asked; else None.

    Raises:
        ValueError: the folder's run has other settings, its test set is asked for and the data are
            not the run's, or its files cannot be read.
    """
    folder = settings.folder
    path = folder / "summary.json"
    if not settings.resume or not path.exists():
        return None
    check_same_settings(folder, settings_to_dict(settings))
    summary = read_summary(folder)
    if settings.final and not summary["test_readings"]:
        checkpoint = folder / "checkpoint.pt"
        splits, precision = load(settings.data, settings.data_dir), Precision.of(settings)
        augment = augment_of(settings.data, settings.augment, splits.image)
        check_same_data(folder, identity_of(splits, augment))
        net = network_of(load_checkpoint(checkpoint, {}), checkpoint).to(precision.device)
        statistics = channel_statistics(splits.train)
        with own_process(settings), ranks.on_first(alone(folder)):
            read = evaluate(net, splits.test, *statistics, LOSSES[splits.task], precision)
            summary.update(_test(read))
            ranks.from_first(lambda: write_json(path, summary))
    return summary
