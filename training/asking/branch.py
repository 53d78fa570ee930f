"""From the state kept before a growth: what every growth of the same cost would have brought."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import cos, pi
from pathlib import Path
from typing import Any

import torch

from analysis.judging.rank_correlation import NONE, Site, agreement, correlations, site_of
from analysis.recording.atomic_files import write_whole
from analysis.recording.phrases import spread
from analysis.showing.tables import correlation_table, gain_table, to_csv
from nets import Action, cost, grow
from nets.checks import check_count
from nets.modules.random_draws import hash_of
from training.asking.branch_points import BranchPoint, Candidates, branch_point_of, candidates
from training.computing.evaluation import evaluate
from training.computing.learning_rate import set_learning_rate
from training.computing.optimizer import make_optimizer, make_rates
from training.computing.torch_settings import own_process, spare_threads
from training.computing.wrapped_model import to_device
from training.data.identity import check_same_data
from training.keeping.checkpoint import load_checkpoint, network_of
from training.keeping.folder_lock import alone
from training.running.loop import Advance, Say
from training.running.prepare import CHECKED, Prepared, prepare
from training.running.resume import restore
from training.settings.train_settings import Train
from training.stepping.step import train_step


def branch(
    run: Path,
    at: int | None = None,
    steps: int = 200,
    orders: int = 3,
    say: Say = print,
    advance: Advance | None = None,
) -> str:
    """Train every growth of the recorded one's cost, and none; give the tables as Markdown.

    All branches of a data order see the same batches at the same learning rate, which falls from
    the run's own to 0 over the steps (a cosine), so that the loss at their end is not the noise of
    a high rate. The first order is the one that the run itself went on with; every further one
    has batches and new weights of its own.

    Args:
        run: a run folder; results go to its branch/stepN/, a finished branch is not trained again.
        at: the step of a recorded growth; by default the first.
        steps: training steps of a branch.
        orders: data orders.
        say: takes one line per branch.
        advance: called after every branch with the finished fraction.

    Raises:
        ValueError: the folder, the step or a number cannot be used, or another process does this.
    """
    check_count("steps", steps)
    check_count("orders", orders)
    point = branch_point_of(run, at)
    with alone(point.out):
        return _branch(point, steps, orders, say, advance)


def _branch(point: BranchPoint, steps: int, orders: int, say: Say, advance: Advance | None) -> str:
    """Train what is missing, write it down as it comes, and report."""
    wanted, left_out = candidates(point)
    path = point.out / "branches.csv"
    done = _read(path)
    for order in range(orders):
        missing = {name: acts for name, acts in wanted.items() if (steps, order, name) not in done}
        if not missing:
            continue
        settings = point.settings
        if order:
            settings = replace(settings, seed=hash_of(settings.seed, "order", order))
        prepared = prepare(settings)
        check_same_data(point.run, prepared.data)
        for name, actions in missing.items():
            with own_process(settings):
                spare_threads(settings, cost(prepared.limit).flops)
                loss, accuracy = _train(point, settings, prepared, actions, steps)
            done[steps, order, name] = {"loss": loss, "accuracy": accuracy}
            write_whole(path, _write(done))
            say(f"order {order + 1}/{orders}  {name}  validation loss {loss:.4g}")
            if advance:
                count = sum((steps, o, n) in done for o in range(orders) for n in wanted)
                advance(count / (orders * len(wanted)))
    losses = {n: [done[steps, o, n]["loss"] for o in range(orders)] for n in wanted}
    return _report(point, wanted, losses, left_out, steps)


def _train(
    point: BranchPoint, settings: Train, prepared: Prepared, actions: Sequence[Action], steps: int
) -> tuple[float, float | None]:
    """Train one branch and give its validation loss and accuracy."""
    state = load_checkpoint(point.state, point.identity)  # anew: training changes its tensors
    device, loss, batches = prepared.precision.device, prepared.loss, prepared.batches
    net = to_device(network_of(state, point.state), device)
    optimizer, scaler = make_optimizer(net, settings), prepared.precision.scaler()
    rates = make_rates(net, optimizer, settings)
    progress = restore(state, point.state, net, optimizer, scaler, rates)
    if actions:
        probe = tuple(part[:CHECKED] for part in prepared.probe())
        how: Any = {"initializer": settings.initializer, "seed": settings.seed}
        grown = grow(net, actions, optimizer, probe=probe, loss=loss, **how)  # pyright: ignore
        assert grown.optimizer is not None
        net, optimizer = grown.network, grown.optimizer
        if rates is not None:
            rates.follow(grown)
    window = torch.zeros(3, dtype=torch.float64, device=device)
    skip = settings.nonfinite == "skip"
    how = loss, prepared.precision, window, settings.accumulate, scaler, skip
    for number in range(steps):
        rate = (point.record.learning_rate or 0.0) * (1 + cos(pi * number / steps)) / 2
        set_learning_rate(optimizer, rate)
        train_step(net, optimizer, *batches.batch(progress.epoch, progress.position), *how)
        progress.next_batch(batches.per_epoch)
    images, statistics = prepared.splits.validation, prepared.statistics
    value, accuracy = evaluate(net, images, *statistics, loss, prepared.precision)
    assert value is not None
    return value, accuracy


def _report(
    point: BranchPoint,
    wanted: Candidates,
    losses: Mapping[str, Sequence[float]],
    left_out: Sequence[str],
    steps: int,
) -> str:
    """Write gains.csv, correlations.csv and branch.md, and give the last."""
    base, record = losses[NONE], point.record
    sites: list[Site] = []
    for name, actions in wanted.items():
        if actions:
            gains = [before - after for before, after in zip(base, losses[name])]
            sites.append(site_of(record, actions, gains, name))
    found = correlations(record, sites)
    rows = [
        {"growth": site.name, "order": order, "gain": gain}
        for site in sites
        for order, gain in enumerate(site.gains)
    ]
    write_whole(point.out / "gains.csv", to_csv(rows))
    plain = [{**asdict(each), "orders": " ".join(map(repr, each.orders))} for each in found]
    write_whole(point.out / "correlations.csv", to_csv(plain))
    flops = site_of(record, point.grown, ()).flops
    lines = [
        f"# {point.run}, the growth at step {record.step} ({record.spent:.0%} of the budget)",
        f"{len(sites)} growths of about {flops:,} FLOPs, {steps} steps, {len(base)} data orders "
        f"(mean ± sample std over them). Without growth the validation loss is {spread(base)}.",
        gain_table(sites, point.grown),
        "Rank correlation (Spearman) of the statistics at that step with the gain:",
        correlation_table(found, agreement(sites)),
    ]
    if left_out:
        lines.append("\n".join(["Left out:", *(f"- {line}" for line in left_out)]))
    text = "\n\n".join(lines)
    write_whole(point.out / "branch.md", text + "\n")
    return text


def _read(path: Path) -> dict[tuple[int, int, str], dict[str, Any]]:
    """Read what is finished: (steps, order, growth) -> loss and accuracy."""
    if not path.exists():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {
            (int(row["steps"]), int(row["order"]), row["growth"]): {
                "loss": float(row["loss"]),
                "accuracy": float(row["accuracy"]) if row["accuracy"] else None,
            }
            for row in rows
        }
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path} cannot be read; remove it to train its branches anew") from None


def _write(done: Mapping[tuple[int, int, str], Mapping[str, Any]]) -> str:
    names = ("steps", "order", "growth")
    return to_csv([{**dict(zip(names, key)), **values} for key, values in done.items()])
