"""The end of a run: summary.json, its finished marker, and the one reading of the test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nets import action_to_dict, cost
from nets.plan.actions import adds_capacity
from training.computing import distributed
from training.computing.evaluation import LOSSES, evaluate
from training.computing.optimizer import Precision
from training.computing.torch_settings import own_process, spare_threads
from training.data.augmenting import augment_of
from training.data.identity import check_same_data, identity_of
from training.data.splits import channel_statistics, load
from training.keeping.checkpoint import load_checkpoint, network_of
from training.keeping.folder_lock import alone
from training.keeping.nonfinite import finite
from training.keeping.result_files import read_summary, write_json
from training.keeping.run_folder import check_same_settings
from training.keeping.run_state import Run
from training.running.write_down import hyperparameters
from training.settings.config_yaml import settings_to_dict
from training.settings.train_settings import Train

_FINAL = ("validation_accuracy", "validation_loss", "train_loss")
_FINAL += ("parameters", "flops", "train_flops")
"""What of the summary TensorBoard shows beside a run's settings."""


def finish(run: Run) -> Mapping[str, Any]:
    """Give the summary of a run that has spent its budget; rank 0 writes it."""
    summary, architecture = _summary(run), run.net.architecture
    how = (*run.statistics, run.loss, run.precision)
    recorded = run.history[-1].architecture  # another one if a block has faded since
    if len(run.judged) < len(run.splits.validation) or architecture != recorded:
        loss, accuracy = evaluate(run.net, run.splits.validation, *how)
        summary.update(validation_loss=finite(loss), validation_accuracy=accuracy)
    if run.ema is not None:
        read = evaluate(run.ema, run.splits.validation, *how)
        summary.update(ema_validation_loss=finite(read[0]), ema_validation_accuracy=read[1])
    if run.settings.final:
        summary.update(_test(evaluate(run.net, run.splits.test, *how)))

    def write() -> dict[str, Any]:
        if run.board is not None:
            final = {name: summary[name] for name in _FINAL}
            run.board.hyperparameters(run.progress.step, hyperparameters(run), final)
            run.board.flush()
        write_json(run.folder / "architecture.json", architecture.to_dict())
        write_json(run.folder / "summary.json", summary)
        return summary

    return distributed.from_first(write)


def _summary(run: Run) -> dict[str, Any]:
    """Give what is known of the run without another look at the data."""
    last, progress, size = run.history[-1], run.progress, cost(run.net.architecture)
    return {
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


def _test(read: tuple[float | None, float | None]) -> dict[str, Any]:
    return {"test_loss": finite(read[0]), "test_accuracy": read[1], "test_readings": 1}


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
        limit = settings.limit(splits.classes, splits.image)
        with own_process(settings), distributed.on_first(alone(folder)):
            spare_threads(settings, cost(limit).flops)
            read = evaluate(net, splits.test, *statistics, LOSSES[splits.task], precision)
            summary.update(_test(read))
            distributed.from_first(lambda: write_json(path, summary))
    return summary
