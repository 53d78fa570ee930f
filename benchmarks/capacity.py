"""How often statistics find a stage that was starved on purpose: the tables of docs/capacity.md.

    python -m benchmarks.capacity --seeds 3
    python -m benchmarks.capacity --data folder:PATH --augment crop-flip --passes 3 --seeds 1

Nets on streams of 8, 16 and 32 channels, a block a stage; in one of them a quarter of the inner
channels is left, or of the stream too ("thin"). Printed is how often `missing_capacity` ranks the
stage first and names it, how often it is silent on the balanced net, and how often each recorded
statistic is highest or lowest there, over the last five records.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from analysis import Record, read_history
from analysis.capacity.missing_capacity import rank
from analysis.observing.reading import STATISTICS
from analysis.showing.tables import markdown
from nets import Architecture, preset, seed_of
from training import Train
from training.data.splits import load
from training.running.loop import train
from training.settings.start_settings import Start

STAGES = ("stage1", "stage2", "stage3")
ROLES = {"residual_ratio": "stream"}
"""Roles of the layers that have a statistic, where those are not the inner ones."""
Runs = dict[str, list[list[Record]]]


def nets(limit: Architecture) -> dict[str, Architecture]:
    """Give the balanced net, and those with a starved stage, by the stage or "thin STAGE"."""
    whole = seed_of(limit, width=0.5, blocks=1, stream=0.5)
    found = {"balanced": whole}
    for stage in whole.stages:
        (block,) = stage.blocks
        inner = replace(stage, blocks=(replace(block, width=block.width // 4),))
        found[stage.name] = whole.with_stage(inner)
        thin = replace(inner, width=stage.width // 4)
        stem = thin.width if stage.name == "stage1" else whole.stem_width
        stages = tuple(thin if old.name == stage.name else old for old in whole.stages)
        found[f"thin {stage.name}"] = replace(whole, stages=stages, stem_width=stem)
    return found


def histories(given: argparse.Namespace) -> Runs:
    """Train every net with every seed."""
    splits = load(given.data, given.data_dir)
    small = preset("resnet8", classes=splits.classes, image=splits.image)
    found: Runs = defaultdict(list)
    with TemporaryDirectory() as place:
        for name, architecture in nets(small).items():
            file = Path(place) / f"{name}.json"
            file.write_text(json.dumps(architecture.to_dict()), encoding="utf-8")
            for seed in range(given.first, given.first + given.seeds):
                out = f"{place}/{name}-{seed}"
                settings = Train(
                    data=given.data,
                    data_dir=given.data_dir,
                    augment=given.augment,
                    net="wrn-16-4",
                    start=Start(architecture=str(file)),
                    epochs=given.passes,
                    budget="epochs",
                    records=12,
                    batch_size=64,
                    threads=1,
                    seed=seed,
                    out=out,
                )
                train(settings, lambda _: None)
                found[name].append(read_history(out))
    return found


def hits(runs: Runs, statistic: str, sign: int) -> list[str]:
    """Give, by stage, in how many runs the statistic of its inner layers is the most extreme."""
    cells = []
    for stage in STAGES:
        count = 0
        for history in runs[stage]:
            values = defaultdict(list)
            for record in history[-5:]:
                for path, reading in record.layers.items():
                    value = reading.value(statistic)
                    if reading.role == ROLES.get(statistic, "inner") and value is not None:
                        values[path.partition(".")[0]].append(sign * value)
            means = {name: mean(read) for name, read in values.items()}
            count += bool(means) and max(means, key=lambda name: means[name]) == stage
        cells.append(f"{count}/{len(runs[stage])}")
    return cells


def main(words: Sequence[str] | None = None) -> None:
    """Train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--augment", default="auto")
    parser.add_argument("--passes", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    runs = histories(parser.parse_args(words))
    rows = []
    for name, trained in runs.items():
        found, stage = [rank(history) for history in trained], name.rpartition(" ")[2]
        first = sum(each.places[0].name == stage for each in found)
        right = "nothing tells" if name == "balanced" else stage
        told = sum(each.verdict == right for each in found)
        ratios = ", ".join(f"{each.ratio:.2f}" for each in found)
        rows.append([name, "" if name == "balanced" else str(first), str(told), ratios])
    print(markdown(["starved", "ranked first", "verdict is right", "first over second"], rows))
    rows = []
    for statistic in STATISTICS:
        for word, sign in (("high", 1), ("low", -1)):
            rows.append([f"{statistic}, {word}", *hits(runs, statistic, sign)])
    print("\n" + markdown(["statistic", *STAGES], rows))


if __name__ == "__main__":
    main()
