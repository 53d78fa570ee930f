"""The training loop: step, read the layers, ask the policy, grow, write it down, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import reduce
from time import perf_counter
from typing import Any

from analysis import Record, response_histograms
from analysis.showing.board import Board
from analysis.showing.drawing import Undrawn
from analysis.showing.tables import phrase
from nets import (
    Action,
    Architecture,
    Narrow,
    Network,
    Remove,
    Widen,
    cost,
    grow,
    train_flops,
)
from nets.plan.actions import adds_capacity
from training.keeping import ranks
from training.keeping.budget import learning_rate
from training.keeping.failures import PolicyFailed, told
from training.keeping.folder import append_metrics, append_record
from training.keeping.interrupts import Interrupted, Interrupts
from training.running.finite import (
    check_growth,
    check_state,
    check_validation,
    finite,
    finite_readings,
)
from training.running.judgement import (
    Verdict,
    attempt,
    failure_of,
    first_refusals,
    judge,
    state_of,
    told_of_state,
)
from training.running.measuring import measure_probes, with_probes
from training.running.model import model_of
from training.running.pictures import reference_of
from training.running.run import CHECKED, Run, open_run
from training.running.step import average, evaluate, means_of, slow_settings, train_step
from training.running.summary import finish, finished, hyperparameters
from training.settings.train import Train

Say = Callable[[str], None]


def train(
    settings: Train, say: Say = print, advance: Callable[[float], None] | None = None
) -> Mapping[str, Any]:
    """Run a training run to the end of its budget, or resume it, and give its summary.

    On several processes (`training.keeping.ranks`) each of them calls it and gets the same.

    Args:
        settings: what to do; `settings.folder` holds the result.
        say: takes a line on what training images go through and one on what makes the run slow, if
            anything does, then one per record.
        advance: called after every step with the fraction of the budget spent.

    Raises:
        ValueError: settings, data or folder cannot be used, or another process uses the folder.
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
        PolicyFailed: the policy failed; the checkpoint is that of the record before.
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
        _run(run, say, advance)
        return finish(run)


def _run(run: Run, say: Say, advance: Callable[[float], None] | None) -> None:
    """Step to the end of the budget."""
    started = perf_counter() - run.progress.seconds
    since = perf_counter(), run.progress.images
    with run.observer, Interrupts() as interrupts:
        # A probe or a growth may use up what was left for the last record.
        while run.spent < 1 or run.record_due:
            _step(run)
            run.progress.seconds = ranks.greatest(perf_counter() - started)
            if run.record_due:
                speed = (run.progress.images - since[1]) / (perf_counter() - since[0])
                say(_record_and_grow(run, speed))
                since = perf_counter(), run.progress.images
            if advance:
                advance(run.spent)
            stop = ranks.greatest(interrupts.number or 0)
            if stop:
                run.write_losses()
                run.save()
                message = f"stopped at step {run.progress.step}; --resume goes on"
                raise Interrupted(int(stop), message)


def _step(run: Run) -> None:
    progress, settings = run.progress, run.settings
    inputs, targets = run.batches.batch(progress.epoch, progress.position)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(settings, run.spent)
    skipped = train_step(
        run.model,
        run.optimizer,
        inputs,
        targets,
        run.loss,
        run.precision,
        run.window,
        settings.accumulate,
        run.scaler,
        settings.nonfinite == "skip",
    )
    run.trace.append(run.window.clone())
    progress.step += 1
    if run.observer.step < progress.step:  # the update was left out, by us or by the scaler
        run.observer.skip()
    if skipped:
        progress.skipped += 1
    elif run.ema is not None:
        average(run.ema, run.net, settings.ema, progress.step)
    progress.position += 1
    if progress.position == run.batches.per_epoch:
        progress.epoch, progress.position = progress.epoch + 1, 0
    progress.images += run.batches.batch_size
    progress.flops += run.batches.batch_size * train_flops(run.net.architecture)


def _record_and_grow(run: Run, speed: float) -> str:
    """Make a record, ask the policy, grow, and write all of it; give the line that says so."""
    record = _measure(run)
    loss, accuracy = _validate(run, run.ema)
    averaged = finite(loss), accuracy
    state = state_of(run.settings.policy)
    verdict, difference, failure = _decide_and_grow(run, record)
    record = replace(record, **vars(verdict))
    notes = first_refusals(run.history, record.refused)
    notes += [failure] if failure else []
    if not run.stateful and state_of(run.settings.policy) != state:
        run.stateful = True
        notes.append(told_of_state(run.settings.policy))
    run.history.append(record)
    run.progress.records += 1
    if run.board is not None:
        append_record(run.folder, record)
        append_metrics(run.folder, _metrics(record, averaged, run.progress.seconds, speed))
        run.board.record(record, speed, averaged)
        notes += _write(run, run.board, record, difference)
    run.save()
    notes += [f"{run.progress.skipped} steps skipped"] if run.progress.skipped else []
    return "  ".join([line_of(record, speed), *notes])


def _decide_and_grow(run: Run, record: Record) -> tuple[Verdict, float | None, str]:
    """Take away what has faded, ask the policy and do what it may; last comes how it failed.

    A policy that fails has asked for nothing, or ends the run: see `policy_errors`.
    """
    gone = tuple(
        Remove(name, reason="its branch has faded")
        for name, block in run.net.architecture.blocks.items()
        if block.fade and int(run.net.get_submodule(name).fade) >= block.fade  # pyright: ignore
    )
    faded, settings = Verdict(applied=gone), run.settings
    if run.spent >= 1:
        return faded, _grow(run, faded), ""
    answer = ranks.from_first(lambda: attempt(settings.policy, (*run.history, record)))
    failure = answer.failure
    if not failure:
        architecture = reduce(Architecture.apply, gone, run.net.architecture)
        may_grow = run.spent <= settings.grow_until
        verdict = judge(architecture, answer.actions, run.limit, may_grow)
        verdict = replace(verdict, applied=(*gone, *verdict.applied))
        try:
            return verdict, _grow(run, verdict), ""
        except ValueError as error:  # what only the weights can tell
            failure = failure_of(settings.policy, record, told(error))
    if settings.policy_errors == "stop":
        failed = PolicyFailed(failure)
        failed.add_note(answer.trace)  # for a comparison's error.txt
        raise failed
    return faded, _grow(run, faded), failure


def _write(run: Run, board: Board, record: Record, difference: float | None) -> list[str]:
    """Write to TensorBoard what comes with a record; pictures after growth and at the end.

    Gives what could not be drawn, which ends no run.
    """
    notes: list[str] = []
    board.growth(record.step, record.applied, record.refused, difference)
    board.histograms(record.step, response_histograms(run.net, run.probe[0][:CHECKED]))
    at_end = run.spent >= 1 and not run.record_due
    if at_end or (any(map(adds_capacity, record.applied)) and board.pictures_due):
        try:
            board.pictures(run.history, reference_of(run.folder))
        except Undrawn as failure:
            notes.append(str(failure))
    if at_end:
        if (size := cost(run.net.architecture)) != record.cost:  # a block has faded
            board.size(record.step, size)
        board.hyperparameters(record.step, hyperparameters(run))
    board.flush()
    return notes


def _measure(run: Run) -> Record:
    progress, settings = run.progress, run.settings
    progress.boundary = int(run.spent * settings.record_count)
    classification = run.splits.task == "classification"
    train_loss, train_accuracy = means_of(ranks.total(run.window), classification)
    run.write_losses()
    run.window.zero_()
    run.trace = [run.window.clone()]
    ranks.share_buffers(run.net, run.ema)
    validation = _validate(run, run.net)
    check_validation(run, validation[0])
    check_state(run)
    measured = measure_probes(run)
    record = Record.capture(
        run.net,
        run.observer,
        step=progress.step,
        epoch=progress.images / len(run.splits.train),
        spent=run.spent,
        seed=settings.seed,
        limit=run.limit,
        train_flops=progress.flops,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        validation_loss=validation[0],
        validation_accuracy=validation[1],
        learning_rate=learning_rate(settings, run.spent),
    )
    record = replace(record, layers=finite_readings(record.layers))
    return with_probes(record, measured)


def _validate(run: Run, net: Network | None) -> tuple[float | None, float | None]:
    if net is None:
        return None, None
    return evaluate(net, run.judged, *run.statistics, run.loss, run.precision)


def _grow(run: Run, verdict: Verdict) -> float | None:
    """Grow the run's network and give the output difference; the state before it is kept."""
    if not verdict.applied:
        return None
    settings = run.settings
    probe = run.probe[0][:CHECKED], run.probe[1][:CHECKED]
    grown = grow(
        run.net,
        verdict.applied,
        run.optimizer,
        ema=run.ema,
        initializer=settings.initializer,
        seed=settings.seed,
        probe=probe,
        loss=run.loss,
    )
    check_growth(run, grown.difference)
    if any(map(adds_capacity, verdict.applied)):  # only now: it could not have been done
        run.save(f"growth/step{run.progress.step:07d}.pt")
    before, after = (cost(net.architecture).flops for net in (run.net, grown.network))
    # The forwards that `grow` makes; the average's is free, as all that only judges.
    run.progress.flops += CHECKED * (2 * before + 3 * after)
    measured = sum(_measures(action, settings.initializer) for action in verdict.applied)
    run.progress.flops += measured * CHECKED * train_flops(run.net.architecture.thawed())
    assert grown.optimizer is not None
    run.net, run.ema, run.optimizer = grown.network, grown.ema, grown.optimizer
    run.model = model_of(run.net, settings)
    run.observer.follow(grown)
    return grown.difference


def _measures(action: Action, initializer: str) -> bool:
    """Say whether an edit looks at gradients of the probe batch first."""
    if isinstance(action, Narrow):
        return action.saliency != "magnitude"
    return isinstance(action, Widen) and (action.initializer or initializer) == "gradmax"


def _metrics(
    record: Record, averaged: tuple[float | None, ...], seconds: float, speed: float
) -> dict[str, Any]:
    names = ("step", "epoch", "spent", "train_flops", "train_loss", "train_accuracy")
    names += ("validation_loss", "validation_accuracy", "learning_rate")
    row = {name: getattr(record, name) for name in names}
    row["ema_validation_loss"], row["ema_validation_accuracy"] = averaged
    return {**row, **asdict(record.cost), "seconds": seconds, "images_per_second": speed}


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
