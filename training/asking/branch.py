"""From the state kept before a growth: what every growth of the same cost would have brought."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import cos, pi
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.optim import Optimizer

from analysis.judging.growth_sites import KINDS
from nets import Action, CohortRates, Network, SetSurvival, cost, grow
from nets.modules.random_draws import hash_of
from training.asking.branch_candidates import candidates
from training.asking.branch_cost import Plan, seconds_a_flop, work
from training.asking.branch_points import BranchPoint, points_of
from training.asking.branch_results import Tried, report, together
from training.computing.budget import Progress
from training.computing.evaluation import evaluate
from training.computing.learning_rate import batch_factor, set_learning_rate
from training.computing.optimizer import UNSCALED, make_optimizer, make_rates
from training.computing.torch_settings import own_process, spare_threads
from training.computing.wrapped_model import to_device
from training.data.batches import Batches
from training.data.identity import check_same_data
from training.keeping.checkpoint import load_checkpoint, network_of
from training.keeping.folder_lock import alone
from training.running.decide_and_grow import growth_flops
from training.running.loop import Advance, Say
from training.running.prepare import CHECKED, Prepared, prepare
from training.running.resume import restore
from training.settings.train_settings import Train
from training.stepping.step import train_step

CPU = torch.device("cpu")
Job = tuple[Tried, int, str]
"""A branch to train: the growth step, the data order, the growth."""


def branch(
    run: Path | Sequence[Path],
    at: int | str | None = None,
    steps: int = 200,
    orders: int = 3,
    say: Say = print,
    advance: Advance | None = None,
    *,
    budget: str = "flops",
    kinds: Sequence[str] = tuple(KINDS),
    sites: int | None = None,
) -> str:
    """Train every growth of the recorded one's cost, and none; give the tables as Markdown.

    All branches of a data order see the same batches from the first on, and a learning rate that
    falls from the run's own to 0 over their steps (a cosine), so that the loss at their end is not
    the noise of a high rate. With `batch_growth` both are those of the network before the growth.
    They do what else the run did at that step (`candidates`), but not what its policy did later: a
    thaw, a rise of survival. The first order is the one that the run itself went on with; every
    further one has batches, new weights and drop masks of its own.

    By default all train for equal FLOPs, as everything here is compared: at equal steps a growth
    would get its additional FLOPs for nothing, and more of them where it costs more.

    Args:
        run: a run folder, or several; results go to branch/stepN/ of each, and what they say
            together to branch/ of the first. A finished branch is not trained again.
        at: the step of a recorded growth, several as in "61,122", or "all"; by default the first.
        steps: training steps of the branch that does what was done; see `Plan`.
        orders: data orders.
        say: takes a line on what it will take, then one per branch.
        advance: called after every branch with the finished fraction.
        budget: "flops" or "steps", what all branches have the same of.
        kinds: of sites: "widen", "insert", "streams".
        sites: of each kind at the most; a draw by the run's seed decides.

    Raises:
        ValueError: a folder, step or number cannot be used, what the run did at the step cannot be
            done again, or another process does this.
    """
    plan = Plan(steps, orders, budget, tuple(kinds), sites)
    points = points_of([run] if isinstance(run, Path) else run, at)
    tries = [Tried(point, *candidates(point, plan.kinds, plan.sites)) for point in points]
    with ExitStack() as held:
        for tried in tries:
            held.enter_context(alone(tried.point.out))
            tried.read()
        _train_missing(tries, plan, say, advance)
        told = [report(tried, plan) for tried in tries]
        texts = [text for text, _ in told]
        if len(tries) > 1:
            texts.append(together(tries, [found for _, found in told]))
    return "\n\n".join(texts)


def _train_missing(tries: Sequence[Tried], plan: Plan, say: Say, advance: Advance | None) -> None:
    """Train what is missing, and write it down as it comes."""
    jobs: list[Job] = [
        (tried, order, name)
        for tried in tries
        for order in range(plan.orders)
        for name in tried.wanted
        if (plan.budget, plan.steps, order, name) not in tried.finished
    ]
    if not jobs:
        return
    for tried in {id(tried): tried for tried, _, _ in jobs}.values():
        _restored(tried.point, tried.point.settings)  # what cannot be read is refused here
    say(_forecast(tries, jobs, plan))
    started, grounds = perf_counter(), dict[Path, Prepared]()
    for number, (tried, order, name) in enumerate(jobs, start=1):
        point = tried.point
        if point.run not in grounds:
            grounds = {point.run: prepare(point.settings)}
            check_same_data(point.run, grounds[point.run].data)
        settings, prepared = _in_order(point.settings, grounds[point.run], order)
        with own_process(settings):
            spare_threads(settings, cost(prepared.limit).flops)
            found = _train(point, settings, prepared, tried.wanted[name], plan)
        tried.keep(plan, order, name, dict(zip(("loss", "accuracy", "taken"), found)))
        left = (perf_counter() - started) / number * (len(jobs) - number)
        where = f"step {point.record.step}  " if len(tries) > 1 else ""
        line = f"{where}order {order + 1}/{plan.orders}  {name}  validation loss {found[0]:.4g}"
        say(f"{line}  ({number} of {len(jobs)}, {left:.0f} s left)")
        if advance:
            advance(number / len(jobs))


def _forecast(tries: Sequence[Tried], jobs: Sequence[Job], plan: Plan) -> str:
    """Say what it will take: by the speed of the runs themselves, on their machine."""
    works = [(each.point.run, *work(plan, each.point, each.wanted[name])) for each, _, name in jobs]
    growths = ", ".join(f"{len(each.wanted) - 1} + none" for each in tries)
    steps, flops = sum(each[1] for each in works), sum(each[2] for each in works)
    speeds = {run: seconds_a_flop(run) for run, _, _ in works}
    seconds = [own * (speeds[run] or 0) for run, _, own in works]
    about = f", about {sum(seconds):.0f} s at the run's own speed" if all(seconds) else ""
    return (
        f"growths: {growths}; data orders: {plan.orders}; {len(jobs)} branches to train, "
        f"{steps:,} steps, {flops:.2g} FLOPs{about}"
    )


def _in_order(settings: Train, prepared: Prepared, order: int) -> tuple[Train, Prepared]:
    """Give settings and data of a data order; the first is the run's own."""
    if order == 0:
        return settings, prepared
    settings = replace(settings, seed=hash_of(settings.seed, "order", order))
    device, augment = prepared.precision.device, prepared.batches.augment
    drawn = settings.batch_size, settings.seed, device, augment
    batches = Batches(prepared.splits.train, *drawn, *prepared.statistics)
    return settings, replace(prepared, batches=batches)


def _restored(
    point: BranchPoint,
    settings: Train,
    device: torch.device = CPU,
    scaler: torch.amp.GradScaler = UNSCALED,  # pyright: ignore[reportPrivateImportUsage]
) -> tuple[Network, Optimizer, CohortRates | None, Progress]:
    """Give the run as it was, read anew: training changes its tensors."""
    state = load_checkpoint(point.state, point.identity)
    net = to_device(network_of(state, point.state), device)
    optimizer = make_optimizer(net, settings)
    rates = make_rates(net, optimizer, settings)
    return net, optimizer, rates, restore(state, point.state, net, optimizer, scaler, rates)


def _train(
    point: BranchPoint, settings: Train, prepared: Prepared, actions: Sequence[Action], plan: Plan
) -> tuple[float, float | None, int]:
    """Train one branch and give its validation loss and accuracy, and the steps that it took."""
    device, loss, batches = prepared.precision.device, prepared.loss, prepared.batches
    scaler, spent = prepared.precision.scaler(), 0
    net, optimizer, rates, progress = _restored(point, settings, device, scaler)
    net.draw[0] = settings.seed  # of stochastic depth
    if actions:
        probe = tuple(part[:CHECKED] for part in prepared.probe())
        how: Any = {"initializer": settings.initializer, "seed": settings.seed}
        grown = grow(net, actions, optimizer, probe=probe, loss=loss, **how)  # pyright: ignore
        assert grown.optimizer is not None
        if not all(isinstance(action, SetSurvival) for action in actions):  # free in a run too
            spent = growth_flops(net, grown)
        net, optimizer = grown.network, grown.optimizer
        if rates is not None:
            rates.follow(grown)
    record = point.record
    batches.join(batch_factor(settings, record.limit, record.architecture, batches.per_epoch))
    window = torch.zeros(3, dtype=torch.float64, device=device)
    skip = settings.nonfinite == "skip"
    how = loss, prepared.precision, window, settings.accumulate, scaler, skip
    taken = plan.steps_of(point, net.architecture, spent)
    for number in range(taken):
        rate = (record.learning_rate or 0.0) * (1 + cos(pi * number / taken)) / 2
        set_learning_rate(optimizer, rate)
        progress.make_room(batches.per_epoch, batches.joined)
        train_step(net, optimizer, *batches.batch(progress.epoch, progress.position), *how)
        progress.next_batch(batches.per_epoch, batches.joined)
    images, statistics = prepared.splits.validation, prepared.statistics
    value, accuracy = evaluate(net, images, *statistics, loss, prepared.precision)
    assert value is not None
    return value, accuracy, taken
