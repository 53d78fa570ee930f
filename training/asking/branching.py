"""From the state kept before a growth: what every growth of the same cost would have brought."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import torch

from analysis.judging.branches import (
    NONE,
    Site,
    agreement,
    correlation_table,
    correlations,
    gain_table,
    site_of,
    spread,
    to_csv,
)
from analysis.recording.files import write_whole
from nets import Action, grow
from nets.checks import check_count
from nets.modules.draws import hash_of
from training.asking.forks import Candidates, Fork, candidates, fork_of
from training.data.identity import check_same_data
from training.keeping.locks import alone
from training.keeping.process import own_process
from training.running.checkpoint import load_checkpoint, network_of
from training.running.run import CHECKED, Ground, ground_of, probe_of, restore
from training.running.step import LOSSES, evaluate, make_optimizer, train_step
from training.settings.train import Train


def branch(
    run: Path,
    at: int | None = None,
    steps: int = 200,
    orders: int = 3,
    say: Callable[[str], None] = print,
    advance: Callable[[float], None] | None = None,
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
    fork = fork_of(run, at)
    with alone(fork.out):
        return _branch(fork, steps, orders, say, advance)


def _branch(
    fork: Fork,
    steps: int,
    orders: int,
    say: Callable[[str], None],
    advance: Callable[[float], None] | None,
) -> str:
    """Train what is missing, write it down as it comes, and report."""
    wanted, left_out = candidates(fork)
    path = fork.out / "branches.csv"
    done = _read(path)
    for order in range(orders):
        missing = {name: acts for name, acts in wanted.items() if (steps, order, name) not in done}
        settings = fork.settings
        if order:
            settings = replace(settings, seed=hash_of(settings.seed, "order", order))
        ground = ground_of(settings) if missing else None
        if ground is not None:
            check_same_data(fork.run, ground.data)
        for name, actions in missing.items():
            assert ground is not None
            with own_process(settings):
                loss, accuracy = _train(fork, settings, ground, actions, steps)
            done[steps, order, name] = {"loss": loss, "accuracy": accuracy}
            write_whole(path, _write(done))
            say(f"order {order + 1}/{orders}  {name}  validation loss {loss:.4g}")
            if advance:
                count = sum((steps, o, n) in done for o in range(orders) for n in wanted)
                advance(count / (orders * len(wanted)))
    losses = {n: [done[steps, o, n]["loss"] for o in range(orders)] for n in wanted}
    return _report(fork, wanted, losses, left_out, steps)


def _train(
    fork: Fork, settings: Train, ground: Ground, actions: Sequence[Action], steps: int
) -> tuple[float, float | None]:
    """Train one branch and give its validation loss and accuracy."""
    state = load_checkpoint(fork.state, fork.identity)  # anew: training changes its tensors
    device, loss = ground.precision.device, LOSSES[ground.splits.task]
    net = network_of(state, fork.state).to(device, memory_format=torch.channels_last)  # pyright: ignore
    optimizer, scaler = make_optimizer(net, settings), ground.precision.scaler()
    progress = restore(state, fork.state, net, optimizer, scaler)
    if actions:
        probe = tuple(part[:CHECKED] for part in probe_of(ground.splits, ground.statistics, device))
        how: Any = {"initializer": settings.initializer, "seed": settings.seed}
        grown = grow(net, actions, optimizer, probe=probe, loss=loss, **how)  # pyright: ignore
        assert grown.optimizer is not None
        net, optimizer = grown.network, grown.optimizer
    epoch, position = progress.epoch, progress.position
    window = torch.zeros(3, dtype=torch.float64, device=device)
    step = partial(train_step, net, optimizer, loss=loss, precision=ground.precision)
    step = partial(step, skip=settings.nonfinite == "skip")
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (fork.record.learning_rate or 0.0) * (1 + cos(pi * number / steps)) / 2
        batch = ground.batches.batch(epoch, position)
        step(*batch, window=window, accumulate=settings.accumulate, scaler=scaler)
        position += 1
        if position == ground.batches.per_epoch:
            epoch, position = epoch + 1, 0
    images, statistics = ground.splits.validation, ground.statistics
    value, accuracy = evaluate(net, images, *statistics, loss, ground.precision)
    assert value is not None
    return value, accuracy


def _report(
    fork: Fork,
    wanted: Candidates,
    losses: Mapping[str, Sequence[float]],
    left_out: Sequence[str],
    steps: int,
) -> str:
    """Write gains.csv, correlations.csv and branch.md, and give the last."""
    base, record = losses[NONE], fork.record
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
    write_whole(fork.out / "gains.csv", to_csv(rows))
    plain = [{**asdict(each), "orders": " ".join(map(repr, each.orders))} for each in found]
    write_whole(fork.out / "correlations.csv", to_csv(plain))
    flops = site_of(record, fork.grown, ()).flops
    lines = [
        f"# {fork.run}, the growth at step {record.step} ({record.spent:.0%} of the budget)",
        f"{len(sites)} growths of about {flops:,} FLOPs, {steps} steps, {len(base)} data orders "
        f"(mean ± sample std over them). Without growth the validation loss is {spread(base)}.",
        gain_table(sites, fork.grown),
        "Rank correlation (Spearman) of the statistics at that step with the gain:",
        correlation_table(found, agreement(sites)),
    ]
    if left_out:
        lines.append("\n".join(["Left out:", *(f"- {line}" for line in left_out)]))
    text = "\n\n".join(lines)
    write_whole(fork.out / "branch.md", text + "\n")
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
