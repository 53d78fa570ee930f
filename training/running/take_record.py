"""A record is taken: losses and accuracies, the layers' readings, and the probes of the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from analysis import Record
from analysis.capacity.sensitivity import finite_means, mean_sensitivities
from analysis.recording.probed import with_probes
from nets import Network
from training.computing import distributed
from training.computing.evaluation import means_of, sums_over
from training.computing.learning_rate import learning_rate
from training.deciding.call_policy import Answer
from training.keeping.nonfinite import (
    check_state,
    check_validation,
    check_window,
    finite,
    finite_readings,
)
from training.keeping.run_state import Run
from training.running.measure_probes import measure_probes
from training.running.write_down import write_losses

Means = tuple[float | None, float | None]


def take_record(run: Run) -> tuple[Record, Means, Answer | None]:
    """Give the record, nothing decided yet, and validation loss and accuracy of the average.

    Last comes how a probe has failed, if one has: the policy cannot be asked then.

    The sums of the training loss begin anew, losses.csv gains what it lacks.

    Raises:
        NonFinite: a loss, weight or optimizer state is NaN or infinite.
    """
    run.progress.boundary = int(run.spent * run.settings.record_count)
    classification = run.splits.task == "classification"
    trained = means_of(distributed.total(run.window), classification)
    check_window(run, trained[0])
    write_losses(run)
    run.window.zero_()
    run.trace[0].zero_()
    distributed.share_buffers(run.net, run.ema)
    validated = validate(run, run.net)
    check_validation(run, validated[0])
    check_state(run)
    loss, accuracy = (None, None) if run.ema is None else validate(run, run.ema)
    averaged = finite(loss), accuracy
    record = _capture(run, trained, validated, averaged)
    measured = measure_probes(run, record)
    run.progress.flops += measured.flops
    record = with_probes(replace(record, **_spent(run)), measured.numbers)
    return record, averaged, measured.failure


def _capture(run: Run, trained: Means, validated: Means, averaged: Means) -> Record:
    record = Record.capture(
        run.net,
        run.observer,
        step=run.progress.step,
        epoch=run.progress.images / len(run.splits.train),
        seed=run.settings.seed,
        limit=run.limit,
        grow_until=run.settings.grow_until,
        train_loss=trained[0],
        train_accuracy=trained[1],
        validation_loss=validated[0],
        validation_accuracy=validated[1],
        ema_validation_loss=averaged[0],
        sensitivity=distributed.from_first(lambda: _sensitivity(run)),
        **_spent(run),
    )
    return replace(record, layers=finite_readings(record.layers))


def _sensitivity(run: Run) -> dict[str, float]:
    """Give how much the loss on the probe batch hangs on each block; see `block_sensitivity`."""
    found = run.repeated("sensitivity", lambda: mean_sensitivities(run.net, *run.probe, run.loss))
    return finite_means(*found)


def _spent(run: Run) -> dict[str, Any]:
    """Give what a probe changes of a record: it is charged."""
    rate = learning_rate(run.settings, run.spent, run.factor)
    return {"spent": run.spent, "train_flops": run.progress.flops, "learning_rate": rate}


def validate(run: Run, net: Network) -> Means:
    """Give loss and accuracy of a network on what records look at."""
    how = run.judged, *run.statistics, run.loss, run.precision
    name = "network judged" if net is run.net else "average judged"
    with run.precision.searching(run.settled):
        sums = run.repeated(name, lambda: sums_over(net, *how))
    return means_of(distributed.total(sums), run.splits.task == "classification")
