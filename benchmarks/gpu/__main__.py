"""A step of ours on a GPU, beside the usual loop's and beside one written by hand as a CUDA graph.

    python -m benchmarks.gpu

- Images are random, of CIFAR-100's shape and number; each way has a network of its own, and all of
  one network take turns, `--steps` steps at a time. "usual" is a DataLoader over PIL images with
  torchvision's transforms, NCHW, float32, the loss read at every step. "bare" is written by hand:
  a batch gathered on the device, forward, backward and fused update, in the run's precision and
  layout. Ours does what a run does: running average, sums and losses too, no layers read unless
  the column says so ("ours, eager": in one step of ten, as by default).
- A record, and the validation that is in one; a growth (one Widen; the copy that is kept on the
  disk is a part of it) of the run whose layers are read in one step of ten. "until replay" is what
  the steps after a growth take beyond as many others: warming up and capturing.
- Whether a captured run has the same bits as an eager one, and what 200 edits leave in memory.

`--processes 1 2 4` measures instead so many runs at once on one GPU, each in a process of its own.
On a CPU, which has no graphs, `--quick` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu import tables
from benchmarks.gpu.checks import equality, growth_times, memory, record_times
from benchmarks.gpu.processes import processes_table
from benchmarks.gpu.tables import Found, Times
from benchmarks.gpu.ways import (
    CUDA,
    NETS,
    Data,
    Ours,
    Way,
    bare_of,
    graph,
    random_data,
    told,
    usual_of,
)
from nets import Architecture
from policies import Periodic
from training.comparing.jobs import cores

PARTS = ("steps", "equality", "memory")


def arguments() -> argparse.Namespace:
    """Read the command line; `problems` gathers what could not be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--nets", nargs="*", choices=NETS)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--usual", nargs="*", choices=NETS, default=["resnet20"])
    parser.add_argument("--compiled", nargs="*", choices=NETS, default=["resnet20"])
    for name, number in (("rounds", 6), ("steps", 20), ("edits", 200)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--seconds", type=int, default=110, help="after which no net is begun")
    parser.add_argument("--processes", type=int, nargs="*", help="so many runs at once")
    given = parser.parse_args()
    few = given.quick or given.processes
    given.nets = given.nets or [net for net in NETS if not (few and net.startswith("wrn"))]
    given.batch_size, given.images, given.problems = 128, (45_000, 5_000), []
    if given.quick:
        given.batch_size, given.images, given.steps = 4, (80, 20), min(4, given.steps)
        given.rounds, given.edits = 1, min(8, given.edits)
        torch.set_num_threads(1)
    return given


def head(device: str, given: Any) -> str:
    """Say with what and of what is measured."""
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if CUDA else ", which has no graphs"
    told = f"{device}{cudnn}, torch {torch.__version__}, {cores()} cores; batch {given.batch_size}"
    told += f"; {given.images[0]:,} random images of CIFAR-100's shape; "
    return told + f"{given.rounds} rounds of {given.steps} steps"


def ways_of(held: ExitStack, data: Data, net: str, given: Any, folder: str) -> dict[str, Any]:
    """Open what is timed of a network; what cannot be is left out and told."""
    ways: dict[str, Any] = {}
    size = {"batch_size": given.batch_size}

    def ours(name: str, captured: bool, **how: Any) -> None:
        with told(given.problems, f"{net}, {name}"):
            out = os.path.join(folder, name.replace(",", "").replace(" ", "-"))
            ways[name] = Ours(held, data, net, out, **size, **graph(captured), **how)

    ours(tables.EAGER, False)
    if CUDA:
        ours(tables.CAPTURED, True, observe_every=10**6)
        ours(tables.TENTH, True)
        ours(tables.EVERY, True, observe_every=1)
        if net in given.compiled:
            ours(tables.COMPILED, True, compile=True)
    run = ways[tables.EAGER].run
    for name, captured in ((tables.BARE, False), (tables.GRAPH, True)):
        if CUDA or not captured:
            with told(given.problems, f"{net}, {name}"):
                ways[name] = bare_of(run, captured)
    if net in given.usual:
        with told(given.problems, f"{net}, {tables.USUAL}"):
            ways[tables.USUAL] = usual_of(run, min(12, cores()) if CUDA else 0)
    return ways


def times_of(ways: Mapping[str, Any], net: str, given: Any) -> Times:
    """Give the milliseconds of a step by way, after a round that does not count."""
    times: Times = {name: [] for name in tables.WAYS if name in ways}
    for number in range(given.rounds + 1):
        for name in list(times):
            way: Way = ways[name].way() if isinstance(ways[name], Ours) else ways[name]
            steps, took = given.steps * (3 if name == tables.USUAL else 1), None
            with told(given.problems, f"{net}, {name}, while it was timed"):
                took = way.milliseconds(steps)
            if took is None:
                del times[name]
            elif number:
                times[name].append(took)
    return times


def measured(data: Data, net: str, given: Any, folder: str) -> tuple[Architecture, Times, Times]:
    """Give a network, the milliseconds of its steps by way, and of its record and growth."""
    with ExitStack() as held:
        ways = ways_of(held, data, net, given, folder)
        architecture = ways[tables.EAGER].run.net.architecture  # before it grows
        times, more = times_of(ways, net, given), {}
        name = tables.TENTH if tables.TENTH in times else tables.EAGER
        with told(given.problems, f"{net}, record"):
            more |= record_times(ways[name], given.rounds, given.steps)
        with told(given.problems, f"{net}, growth"):
            out = os.path.join(folder, "growing")
            may_grow = {"policy": Periodic(every=10**6), "grow_until": 1.0}
            size = {"batch_size": given.batch_size}
            growing = Ours(held, data, net, out, **size, **graph(True), **may_grow)
            more |= growth_times(growing, given.rounds // 2 or 1)
    return architecture, times, more


def print_steps(given: Any, folder: str, device: str) -> None:
    """Measure and print what is of steps, records and growths."""
    data, started, found = random_data(*given.images), perf_counter(), Found()
    for net in given.nets:
        seconds = perf_counter() - started
        if seconds > given.seconds:
            given.problems.append(f"{net}: {seconds:.0f} s had passed, --seconds {given.seconds}")
            continue
        with told(given.problems, net):
            found[net] = measured(data, net, given, os.path.join(folder, net.replace(" ", "-")))
            seconds = perf_counter() - started
            # should what follows not come to its end
            print(f"{net}, {seconds:.0f} s: {found[net][1:]}", file=sys.stderr, flush=True)
        if CUDA:
            gc.collect()
            torch.cuda.empty_cache()
    print(f"{tables.step_table(found, given.batch_size, tables.peak_of(device))}\n")
    print(f"{tables.ratio_table(found, given.images[0] // given.batch_size)}\n")
    print(f"{tables.record_table(found)}\n", flush=True)


def print_checks(given: Any, folder: str) -> None:
    """Print whether bits are equal, and what edits leave in memory."""
    size = {"batch_size": given.batch_size}
    few = random_data(20 * given.batch_size, 5 * given.batch_size)
    for precision in ("auto", "float32") if "equality" in given.only else ():
        with told(given.problems, f"equality, {precision}"):
            out = os.path.join(folder, f"equal-{precision}")
            lines = equality(few, out, precision=precision, **size)
            print("\n".join(lines), flush=True)
    if "memory" in given.only:
        with told(given.problems, "memory"):
            print(memory(few, os.path.join(folder, "memory"), given.edits, **size), flush=True)


def main() -> None:
    given = arguments()
    device = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"{head(device, given)}\n", flush=True)
    if given.processes:
        print(processes_table(given.processes, given.nets, given.quick))
        return
    with tempfile.TemporaryDirectory() as folder:
        if "steps" in given.only:
            print_steps(given, folder, device)
        print_checks(given, folder)
    for line in given.problems:
        print(f"not done: {line}")


if __name__ == "__main__":
    main()
