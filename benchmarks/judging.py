"""How often the judgement errs: simulated comparisons, judged by what judges real ones.

    python -m benchmarks.judging

Three static rows and five that grow, in points of accuracy. A seed moves all rows alike (std 0.5),
each run has its row's spread on top. The best static row is the reference. Of comparisons without
a true difference: how often some growing row is called better than it, and how often the primary
comparison of two growing rows has p < 0.05. Then the same with one row truly better by a point: how
often it is found. What the report calls exploratory counts as not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.judging.comparable_runs import best_static
from analysis.judging.significance import Scores, each_against, holm, paired, shared_seeds
from analysis.showing.comparison_tables import EXPLORATORY
from analysis.showing.tables import markdown

TRIES = 2000
STATIC, GROWING = ("s1", "s2", "s3"), ("g1", "g2", "g3", "g4", "g5")
ROWS = (*STATIC, *GROWING)


@dataclass(frozen=True)
class Setting:
    """How scores are drawn.

    Args:
        name: what is special.
        spreads: of each row's runs, in points.
        seeds: of every row.
        better: by how many points the first growing row truly is.
        step: to which scores are rounded: 100 / images; 0 for none.
        missing: the share of runs that are not there.
        shifts: whether each row lies a step above, at or below the others in all seeds.
    """

    name: str
    spreads: tuple[float, ...] = (1.0,) * 8
    seeds: int = 5
    better: float = 0.0
    step: float = 0.0
    missing: float = 0.0
    shifts: bool = False


SETTINGS = (
    Setting("equal spreads of 1"),
    Setting("spreads from 0.3 to 3", (*[0.3] * 5, 3, 2, 1)),
    Setting("static rows 0.3, growing rows 3", (*[0.3] * 3, *[3.0] * 5)),
    Setting("ties: spread half an image of 200", (0.25,) * 8, step=0.5),
    Setting("equal differences of an image", (0.0,) * 8, step=0.5, shifts=True),
    Setting("a fifth of the runs missing", seeds=10, missing=0.2),
    Setting("the same, spreads from 0.3 to 3", (*[0.3] * 5, 3, 2, 1), seeds=10, missing=0.2),
    Setting("1 point better at a spread of 0.5", (0.5,) * 8, better=1),
    Setting("the same, counted on 200 images", (0.5,) * 8, better=1, step=0.5),
    Setting("the same, the others' spreads 1.5", (*[0.5] * 4, *[1.5] * 4), better=1),
    Setting("1 point better, 10 seeds", (0.5,) * 8, seeds=10, better=1),
    Setting("the same, a fifth of the runs missing", (0.5,) * 8, 10, 1, missing=0.2),
)


def drawn(setting: Setting, draws: np.random.Generator) -> Scores:
    """Draw the scores of one comparison."""
    size = (len(ROWS), setting.seeds)
    table = draws.normal(0, 0.5, (1, setting.seeds))
    table = table + draws.normal(0, 1, size) * np.array(setting.spreads)[:, None]
    table[len(STATIC)] += setting.better
    if setting.step:
        table = np.round(table / setting.step) * setting.step
    if setting.shifts:
        table += draws.integers(-1, 2, (len(ROWS), 1)) * setting.step
    there = draws.random(size) >= setting.missing
    return {
        name: {seed: float(x) for seed, x in enumerate(row) if is_there[seed]}
        for name, row, is_there in zip(ROWS, table, there, strict=True)
    }


def shares(setting: Setting, tries: int = TRIES) -> tuple[float, float]:
    """Give how often a growing row is called better, and the primary comparison's two differ.

    With a true difference: how often that row is, and lies above the other.
    """
    draws, others, primary = np.random.default_rng(0), 0, 0
    for _ in range(tries):
        scores = drawn(setting, draws)
        reference = best_static(scores, STATIC)
        assert reference is not None
        found = each_against(scores, reference, GROWING, setting.step)
        adjusted = holm({name: each.p for name, each in found.items()})
        better = [n for n, p in adjusted.items() if p < 0.05 and found[n].seeds >= EXPLORATORY]
        others += GROWING[0] in better if setting.better else bool(better)
        seeds = shared_seeds(scores, GROWING[:2])
        if len(seeds) >= EXPLORATORY:
            first, second = ([scores[name][seed] for seed in seeds] for name in GROWING[:2])
            claim = paired(first, second, setting.step)
            primary += claim.p < 0.05 and (claim.mean > 0 or not setting.better)
    return others / tries, primary / tries


def main() -> None:
    """Print the table."""
    rows = []
    for setting in SETTINGS:
        told = [f"{100 * share:.1f}" for share in shares(setting)]
        kind = "found" if setting.better else "false"
        rows.append([setting.name, str(setting.seeds), kind, *told])
    header = ["scores", "seeds", "what is counted", "against the reference %", "primary %"]
    print(f"{markdown(header, rows)}\n\n{TRIES} simulated comparisons a row.")


if __name__ == "__main__":
    main()
