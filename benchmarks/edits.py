"""What a growth step costs in training steps, how fast a grown net trains, and what edits leave.

    python -m benchmarks.edits

- A growth step is all of it: the policy decides, its wish is judged, the new network is made and
  filled, optimizer state is carried, the outputs are compared on 32 images, the observer turns to
  the new network, and the first step is taken. The initialiser is he.
- A net that grew to an architecture takes turns with one that was built with it.
- Blocks are widened and narrowed in turn, with steps after each, beside those of a net that is not
  edited; and the memory that the process holds after each quarter of the edits.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from analysis import Observer, Record
from analysis.showing.tables import markdown
from benchmarks.timing import counts, interleaved, random_batch, ratios, step_of
from nets import Architecture, Narrow, Widen, build, cost, grow, preset, seed_of
from policies import RandomSite
from training.deciding.call_policy import ask
from training.deciding.refusals import admit

PROBE = 32
Batch = tuple[torch.Tensor, torch.Tensor]


def sgd(net: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=True)


def built(architecture: Architecture) -> torch.nn.Module:
    return build(architecture).to(memory_format=torch.channels_last)  # pyright: ignore


def growth_turns(limit: Architecture, batch: Batch) -> dict[str, Callable[[], None]]:
    """Give a training step and a whole growth step of the same net, half as wide as the limit."""
    net = built(seed_of(limit, width=0.5, blocks=None))
    optimizer, policy = sgd(net), RandomSite(every=1)
    observer = Observer(net, optimizer, every=10)
    step = step_of(net, optimizer, *batch)
    with observer:
        step()
        record = Record.capture(
            net, observer, step=1, epoch=0, spent=0.1, seed=0, limit=cost(limit)
        )
    probe = batch[0][:PROBE], batch[1][:PROBE]

    def growth() -> None:
        verdict = admit(net.architecture, ask(policy, [record]), cost(limit), may_grow=True)
        assert verdict.applied, verdict
        grown = grow(net, verdict.applied, optimizer, probe=probe)
        with observer:
            observer.follow(grown)
            step_of(grown.network, grown.optimizer, *batch)()
        observer.follow(net, optimizer)

    return {"step": step, "growth": growth}


def grown_turns(limit: Architecture, batch: Batch) -> dict[str, Callable[[], None]]:
    """Give steps of the limit built at once, of another such, and of one that grew to it."""
    small = built(seed_of(limit, width=0.25, blocks=None))
    widths = {name: block.width for name, block in limit.blocks.items()}
    missing = [Widen(n, widths[n] - b.width) for n, b in small.architecture.blocks.items()]
    grown = grow(small, missing, sgd(small)).network
    assert grown.architecture == limit
    nets = {"built": built(limit), "built again": built(limit), "grown": grown}
    return {name: step_of(net, sgd(net), *batch) for name, net in nets.items()}


def resident() -> float:
    """Give the memory that the process holds, in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def alternate(
    architecture: Architecture, batch: Batch, edits: int
) -> tuple[list[float], list[float]]:
    """Widen and narrow in turn; give a step's time after each edit over that of a net without.

    Last comes the memory that the process holds after each quarter of the edits.
    """
    net, plain = built(architecture), built(architecture)
    still = step_of(plain, sgd(plain), *batch)
    optimizer, found, memory = sgd(net), [], []
    names = cycle(architecture.blocks)
    plan = [edit(name, 8) for _, name in zip(range(edits // 2), names) for edit in (Widen, Narrow)]
    for number, action in enumerate(plan, start=1):
        grown = grow(net, [action], optimizer)
        net, optimizer = grown.network, grown.optimizer
        seconds = interleaved({"edited": step_of(net, optimizer, *batch), "still": still}, 1)
        found.append(seconds["edited"][0] / seconds["still"][0])
        if number % (edits // 4) == 0:
            memory.append(resident())
    return found, memory


def main() -> None:
    chosen = counts(__doc__ or "", rounds=15, edits=200, wide_batch=128)
    rows, limit = [], preset("resnet20", classes=10)
    # first: others hold more memory
    found, memory = alternate(limit, random_batch(limit, 32), chosen.edits)
    for name, size, rounds in (
        ("resnet20", 128, chosen.rounds),
        ("wrn-28-10", chosen.wide_batch, max(3, chosen.rounds // 5)),
    ):
        net = preset(name, classes=10)
        seconds = interleaved(growth_turns(net, random_batch(net, size)), rounds)
        figures = [f"{value:.2f}" for value in ratios(seconds, "growth", "step")]
        rows.append([f"growth step of {name}, batch {size} / training step", *figures, "<= 3"])
    batch = random_batch(limit, 128)
    seconds = interleaved(grown_turns(limit, batch), chosen.rounds)
    for name, aim in (("built again", "noise"), ("grown", "1.00 within noise")):
        figures = [f"{value:.3f}" for value in ratios(seconds, name, "built")]
        rows.append([f"step of resnet20, {name} / built", *figures, aim])
    quarter = len(found) // 4
    for name, part in (("first", found[:quarter]), ("last", found[-quarter:])):
        figure = f"{median(part):.3f}"
        rows.append([f"step amid the {name} {quarter} edits / without", "", figure, "the same"])
    print(markdown(["ratio", "best", "median", "aim"], rows))
    held = ", ".join(f"{value:.0f}" for value in memory)
    print(f"\nMiB held by the process after each quarter of the {chosen.edits} edits: {held}")


if __name__ == "__main__":
    main()
