"""What a comparison would run and take: `compare --dry-run`. Nothing is written."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch

from analysis.showing.tables import markdown
from nets import Architecture, build, cost, train_flops
from training.comparing.comparison import check, spared
from training.comparing.job_queue import stays_here
from training.comparing.jobs import Job, jobs_of, workers_of
from training.computing.budget import Budget
from training.computing.learning_rate import batch_factor
from training.computing.optimizer import make_optimizer
from training.computing.torch_settings import own_process
from training.computing.wrapped_model import to_device
from training.running.prepare import Prepared, prepare
from training.settings.compare_settings import Compare
from training.settings.train_settings import Train
from training.stepping.step import train_step

STEPS = 5
"""Steps that are timed, after one that is not."""
Measured = dict[tuple[Architecture, int], float]
"""Seconds of a step by network and batch size."""


def forecast(settings: Compare) -> str:
    """Give the matrix as a table: networks, FLOPs, and seconds from a few measured steps.

    A growing row is between the net it starts from and the limit: its seconds are the mean of both.
    Probes and validation are not in the estimate.

    Raises:
        ValueError: settings or data cannot be used.
    """
    jobs = jobs_of(settings)
    jobs = spared(settings, jobs, check(jobs)[1])
    grounds: dict[tuple[str, str], Prepared] = {}
    measured: Measured = {}
    rows, alone = [], dict[str, float]()  # seconds of a run
    for name in settings.chosen:
        job = next(job for job in jobs if job.row == name)
        ground = settings.ground(name)
        if ground not in grounds:  # without what only exists once another row is finished
            grounds[ground] = prepare(replace(job.settings, start=None))
        row, alone[name] = _row(settings, job, grounds[ground], measured)
        rows.append(row)
    header = ["run", "data", "net", "policy", "parameters", "FLOPs an image", "budget"]
    header += ["seeds", "seconds a run"]
    total, count = sum(alone.values()) * len(settings.seeds), len(alone) * len(settings.seeds)
    told = f"{count} runs, about {total:.0f} s of work"
    if settings.engine == "pool":
        here = any(stays_here(job) for job in jobs if job.row in alone)
        workers, cells = 1 if here else min(workers_of(settings), count), settings.cells
        # No run is divided, and one of scratch or yoked waits for the run that it is made after.
        longest = max(alone[name] + alone.get(cells[name].source or "", 0) for name in alone)
        told += f", {max(total / workers, longest):.0f} s on {workers} at a time"
        told += f" with {jobs[0].settings.threads} thread(s) each"
    return f"{markdown(header, rows)}\n\n{told}; finished runs are counted too."


def _row(
    settings: Compare, job: Job, prepared: Prepared, measured: Measured
) -> tuple[list[str], float]:
    """Give a line of the table and the seconds of one run; times what is not `measured` yet."""
    cell, run = settings.cells[job.row], job.settings
    first = prepared.limit if cell.scratch else run.first(prepared.limit)
    nets = list(dict.fromkeys([first] if cell.is_static else [first, prepared.limit]))
    budget, times = Budget.of(run, prepared.limit, len(prepared.splits.train)), list[float]()
    for net in nets:
        factor = batch_factor(run, cost(prepared.limit), net, prepared.batches.per_epoch)
        key = net, factor * run.batch_size
        if key not in measured:
            prepared.batches.join(factor)
            with own_process(run):  # the threads that a worker has
                measured[key] = _seconds_a_step(run, prepared, net)
        times.append(_seconds(budget, *key, measured[key]))
    seconds = sum(times) / len(times)
    sizes = [cost(net) for net in nets]
    row = [
        job.row,
        *settings.ground(job.row),
        type(run.policy).__name__,
        " - ".join(f"{size.parameters:,}" for size in sizes),
        " - ".join(f"{size.flops:.3g}" for size in sizes),
        f"{budget.total:.3g} {budget.kind}",
        str(len(settings.seeds)),
        f"{seconds:.1f}",
    ]
    return row, seconds


def _seconds_a_step(settings: Train, prepared: Prepared, architecture: Architecture) -> float:
    """Time training steps on real batches."""
    device, batches = prepared.precision.device, prepared.batches
    net = to_device(build(architecture, settings.seed), device)
    optimizer = make_optimizer(net, settings)
    window = torch.zeros(3, dtype=torch.float64, device=device)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            window.sum().item()  # the device has finished
            started = perf_counter()
        batch = batches.batch(0, step * batches.joined % (batches.per_epoch + 1 - batches.joined))
        train_step(net, optimizer, *batch, prepared.loss, prepared.precision, window)
    window.sum().item()
    return (perf_counter() - started) / STEPS


def _seconds(budget: Budget, architecture: Architecture, images: int, a_step: float) -> float:
    """Give how long the budget lasts for a network that does not grow; a step sees `images`."""
    spends = {"flops": images * train_flops(architecture), "epochs": images, "seconds": a_step}
    return budget.total / spends[budget.kind] * a_step
