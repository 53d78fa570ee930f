"""A record is taken: losses and accuracies, the layers' readings, and the probes of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.utils.flop_counter import FlopCounterMode

from analysis import Record, block_importance, effective_rank
from nets import Network, cost
from training.computing import distributed
from training.computing.evaluation import means_of, sums_over
from training.computing.learning_rate import learning_rate
from training.keeping.nonfinite import check_state, check_validation, finite, finite_readings
from training.keeping.run_state import Run
from training.running.write_down import write_losses

Means = tuple[float | None, float | None]


def take_record(run: Run) -> tuple[Record, Means]:
    """Give the record, nothing decided yet, and validation loss and accuracy of the average.

    The sums of the training loss begin anew, losses.csv gains what it lacks.

    Raises:
        NonFinite: a loss, weight or optimizer state is NaN or infinite.
    """
    run.progress.boundary = int(run.spent * run.settings.record_count)
    classification = run.splits.task == "classification"
    trained = means_of(distributed.total(run.window), classification)
    write_losses(run)
    run.window.zero_()
    run.trace[0].zero_()
    distributed.share_buffers(run.net, run.ema)
    validated = validate(run, run.net)
    check_validation(run, validated[0])
    check_state(run)
    measured = measure_probes(run)
    loss, accuracy = (None, None) if run.ema is None else validate(run, run.ema)
    averaged = finite(loss), accuracy
    return with_probes(_capture(run, trained, validated, averaged), measured), averaged


def _capture(run: Run, trained: Means, validated: Means, averaged: Means) -> Record:
    record = Record.capture(
        run.net,
        run.observer,
        step=run.progress.step,
        epoch=run.progress.images / len(run.splits.train),
        spent=run.spent,
        seed=run.settings.seed,
        limit=run.limit,
        grow_until=run.settings.grow_until,
        train_flops=run.progress.flops,
        train_loss=trained[0],
        train_accuracy=trained[1],
        validation_loss=validated[0],
        validation_accuracy=validated[1],
        ema_validation_loss=averaged[0],
        learning_rate=learning_rate(run.settings, run.spent),
    )
    return replace(record, layers=finite_readings(record.layers))


def validate(run: Run, net: Network) -> Means:
    """Give loss and accuracy of a network on what records look at."""
    how = run.judged, *run.statistics, run.loss, run.precision
    name = "network judged" if net is run.net else "average judged"
    with run.precision.searching(run.settled):
        sums = run.repeated(name, lambda: sums_over(net, *how))
    return means_of(distributed.total(sums), run.splits.task == "classification")


def measure_probes(run: Run) -> Mapping[str, Mapping[str, float]]:
    """Measure the probes that the run's policy needs, by name; no policy is asked at the end."""
    needs = run.settings.policy.needs
    found: dict[str, Mapping[str, float]] = {}
    if run.spent >= 1:
        return found
    images, forward = len(run.probe[0]), cost(run.net.architecture).flops
    if "importance" in needs:
        found["importance"] = block_importance(run.net, *run.probe, run.loss)
        run.progress.flops += (1 + len(found["importance"])) * images * forward
    if "effective_rank" in needs:
        with FlopCounterMode(display=False) as counter:  # the forward, and products of responses
            found["effective_rank"] = effective_rank(run.net, run.probe[0])
        run.progress.flops += counter.get_total_flops()
    return found


def with_probes(record: Record, measured: Mapping[str, Mapping[str, float]]) -> Record:
    """Give the record with what was measured: by block, or by layer into its reading's `extra`."""
    ranks = measured.get("effective_rank", {})
    layers = {
        path: replace(reading, extra={**reading.extra, "effective_rank": ranks[path]})
        if path in ranks
        else reading
        for path, reading in record.layers.items()
    }
    return replace(record, layers=layers, importance=measured.get("importance", {}))
