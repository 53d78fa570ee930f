"""What freezing does to the time of a training step, against the same net with nothing frozen.

python -m benchmarks.freezing --rounds 25
"""

from __future__ import annotations

import torch

from benchmarks.timing import counts, interleaved, random_batch, ratios, step_of
from nets import Architecture, Freeze, build, grow, preset, train_flops


def plans_of(architecture: Architecture) -> dict[str, list[Freeze]]:
    """Give what is frozen in every row of the table; the first two rows freeze nothing."""
    blocks = architecture.blocks
    half = list(blocks)[: len(blocks) // 2]
    return {
        "nothing": [],
        "nothing, again (noise)": [],
        f"stem and {len(half)} of {len(blocks)} blocks": [
            Freeze("stem"),
            *(Freeze(name) for name in half),
        ],
        "half of the channels of every block": [
            Freeze(name, max(1, block.width // 2)) for name, block in blocks.items()
        ],
    }


def main() -> None:
    """Print the table."""
    chosen, architecture = counts(__doc__ or "", batch=128, rounds=25), preset("resnet20")
    batch = random_batch(architecture, chosen.batch)
    steps, flops = {}, {}
    for name, plan in plans_of(architecture).items():
        net = grow(build(architecture).to(memory_format=torch.channels_last), plan).network
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        steps[name], flops[name] = step_of(net, optimizer, *batch), train_flops(net.architecture)
    seconds = interleaved(steps, chosen.rounds)
    base = next(iter(steps))
    print(f"{'frozen':40} {'best ms':>9} {'best':>6} {'median':>7} {'FLOPs':>6}")
    for name in steps:
        best, middle = ratios(seconds, name, base)
        share = flops[name] / flops[base]
        milliseconds = 1000 * min(seconds[name])
        print(f"{name:40} {milliseconds:9.1f} {best:6.3f} {middle:7.3f} {share:6.3f}")


if __name__ == "__main__":
    main()
