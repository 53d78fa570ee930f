"""Runs at once on one GPU, each in a process of its own: how many images a second in all."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import torch

from analysis.showing.tables import markdown
from benchmarks.gpu.ways import Ours, graph, random_data, synchronize
from training.comparing.gpu_share import mps_runs

SECONDS = 3.0
"""So long do the runs go on side by side."""
CHUNK = 50
"""Steps between looks at the clock, each of which waits for the device."""


def processes_table(numbers: Sequence[int], nets: Sequence[str], quick: bool) -> str:
    """Measure the networks with so many runs at once; all processes stay from first to last."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    workers: list[Any] = []
    try:
        for _ in range(max(numbers)):
            ours, theirs = context.Pipe()
            workers.append(context.Process(target=_work, args=(theirs, list(nets), quick)))
            workers[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()  # it is ready
        rows = [
            [net, *(f"{_together(pipes[:number], net):,.0f}" for number in numbers)] for net in nets
        ]
        for pipe in pipes:
            pipe.send(None)
    finally:
        for worker in workers:
            worker.join(20)
            worker.kill()
    mps = "MPS runs" if mps_runs() else "without MPS, so that they take turns"
    header = ["images/s in all", *(f"{n} process{'es' * (n > 1)}" for n in numbers)]
    return f"{mps}; a record an epoch\n\n{markdown(header, rows)}"


def _together(pipes: Sequence[Connection], net: str) -> float:
    """Give the images a second of runs that go on at the same time."""
    for pipe in pipes:
        pipe.send(net)
    return sum(pipe.recv() for pipe in pipes)


def _work(pipe: Connection, nets: Sequence[str], quick: bool) -> None:
    """Open a run of each network, and step the one that the pipe names for some seconds."""
    torch.set_num_threads(1)
    size = {"batch_size": 4 if quick else 128}
    data = random_data(*((80, 20) if quick else (45_000, 5_000)))
    chunk, seconds = (4, 0.1) if quick else (CHUNK, SECONDS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        runs = {
            net: Ours(held, data, net, os.path.join(folder, net), **size, **graph(True))
            for net in nets
        }
        for run in runs.values():
            run.ready(chunk)
            run.steps(chunk)
        synchronize()
        pipe.send("ready")
        while net := pipe.recv():
            run, steps, started = runs[net], 0, perf_counter()
            while (passed := perf_counter() - started) < seconds:
                run.ready(chunk)
                run.steps(chunk)
                synchronize()
                steps += chunk
            pipe.send(steps * size["batch_size"] / passed)
