"""What a comparison would run and take: `compare --dry-run`. Nothing is written."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch

from analysis.showing.tables import markdown
from nets import Architecture, build, cost, train_flops
from training.comparing.cells import Job, jobs_of, workers_of
from training.comparing.comparison import check
from training.keeping.budget import Budget
from training.keeping.process import own_process
from training.running.run import Ground, ground_of
from training.running.step import LOSSES, make_optimizer, train_step
from training.settings.compare import Compare
from training.settings.train import Train

STEPS = 5
"""Steps that are timed, after one that is not."""


def forecast(settings: Compare) -> str:
    """Give the matrix as a table: networks, FLOPs, and seconds from a few measured steps.

    A growing row is between the net it starts from and the limit: its seconds are the mean of both.
    Probes and validation are not in the estimate.

    Raises:
        ValueError: settings or data cannot be used.
    """
    jobs = jobs_of(settings)
    check(jobs)
    grounds: dict[tuple[str, str], Ground] = {}
    measured: dict[tuple[Architecture, int], float] = {}
    rows, total = [], 0.0
    for name in settings.cells:
        job = next(job for job in jobs if job.row == name)
        ground = grounds.setdefault(settings.ground(name), ground_of(_plain(job)))
        cell = settings.cells[name]
        first = ground.limit if cell.scratch else job.settings.first(ground.limit)
        nets = list(dict.fromkeys([first] if cell.is_static else [first, ground.limit]))
        for net in nets:
            key = net, job.settings.batch_size
            if key not in measured:
                with own_process(job.settings):  # the threads that a worker has
                    measured[key] = _seconds_a_step(job.settings, ground, net)
        times = [_seconds(job.settings, ground, net, measured) for net in nets]
        seconds = sum(times) / len(times)
        total += seconds * len(settings.seeds)
        budget = Budget.of(job.settings, ground.limit, len(ground.splits.train))
        sizes = [cost(net) for net in nets]
        rows.append(
            [
                name,
                *settings.ground(name),
                type(job.settings.policy).__name__,
                " - ".join(f"{size.parameters:,}" for size in sizes),
                " - ".join(f"{size.flops:.3g}" for size in sizes),
                f"{budget.total:.3g} {budget.kind}",
                str(len(settings.seeds)),
                f"{seconds:.1f}",
            ]
        )
    header = ["run", "data", "net", "policy", "parameters", "FLOPs an image", "budget"]
    header += ["seeds", "seconds a run"]
    workers = workers_of(settings)
    told = f"{len(jobs)} runs, about {total:.0f} s of work"
    if settings.engine == "pool":
        told += f", {total / workers:.0f} s on {workers} at a time"
        told += f" with {jobs[0].settings.threads} thread(s) each"
    return f"{markdown(header, rows)}\n\n{told}; finished runs are counted too."


def _plain(job: Job) -> Train:
    """Give the run's settings without what only exists once another row is finished."""
    return replace(job.settings, start=None)


def _seconds_a_step(settings: Train, ground: Ground, architecture: Architecture) -> float:
    """Time training steps on real batches."""
    device = ground.precision.device
    net = build(architecture, settings.seed).to(device, memory_format=torch.channels_last)  # pyright: ignore
    optimizer = make_optimizer(net, settings)
    window = torch.zeros(3, dtype=torch.float64, device=device)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            window.sum().item()  # the device has finished
            started = perf_counter()
        inputs, targets = ground.batches.batch(0, step % ground.batches.per_epoch)
        loss = LOSSES[ground.splits.task]
        train_step(net, optimizer, inputs, targets, loss, ground.precision, window)
    window.sum().item()
    return (perf_counter() - started) / STEPS


def _seconds(
    settings: Train,
    ground: Ground,
    architecture: Architecture,
    measured: dict[tuple[Architecture, int], float],
) -> float:
    """Give how long the budget lasts for a network that does not grow."""
    budget = Budget.of(settings, ground.limit, len(ground.splits.train))
    a_step = {
        "flops": settings.batch_size * train_flops(architecture),
        "epochs": settings.batch_size,
        "seconds": measured[architecture, settings.batch_size],
    }
    return budget.total / a_step[budget.kind] * measured[architecture, settings.batch_size]
