"""How often Plateau grows too early or too late, on simulated validation losses.

    python -m benchmarks.stalls

Curves fall as a + b exp(-s / 0.06), which levels soon, as a + b exp(-s / 0.3), which falls on, or
as a + b s^-0.5; under "cosine" a part that falls with the learning rate is added, and the noise
shrinks with its root. They fall by 1 to 2.6 in all. The truth is what the rule says of 200 records
of the curve without noise. False: grown more than 0.1 of the budget before it. Missed: not grown
0.1 of the budget after it.
"""

from __future__ import annotations

from math import cos, exp, pi, sqrt
from random import Random

from analysis.recording.record import Record
from nets import cost, preset, seed_of
from policies import Plateau

CURVES = {
    "levels": lambda s: 1.2 + 2.6 * exp(-s / 0.06),
    "falls": lambda s: 1.2 + 2.6 * exp(-s / 0.3),
    "power law": lambda s: 0.6 + 0.35 * s**-0.5,
}
LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST, COST = seed_of(LIMIT), cost(LIMIT)
RUNS, GROW_UNTIL, SLACK = 100, 0.6, 0.1


def losses(curve: str, schedule: str, noise: float, records: int, random: Random) -> list[float]:
    """Give the losses of a run's records up to `GROW_UNTIL`."""
    found = []
    for number in range(1, round(GROW_UNTIL * records)):
        spent = number / records
        rate = (1 + cos(pi * spent)) / 2 if schedule == "cosine" else 1.0
        part = 0.5 * rate if schedule == "cosine" else 0.0
        found.append(CURVES[curve](spent) + part + random.gauss(0, noise * sqrt(rate)))
    return found


def grown_at(policy: Plateau, values: list[float], records: int) -> float:
    """Give the fraction of the budget at which the policy grows first; 1 if it never does."""
    history: list[Record] = []
    for number, loss in enumerate(values, start=1):
        spent = number / records
        history.append(Record(number, 0.0, spent, 0, FIRST, COST, validation_loss=loss))
        if policy.decide(history):
            return spent
    return 1.0


def errors(noise: float, records: int) -> tuple[float, float]:
    """Give the shares of runs with a growth too early, and with none in time."""
    policy, counted, false, missed = Plateau(latest=None), 0, 0, 0
    for curve in CURVES:
        for schedule in ("hold", "cosine"):
            truth = grown_at(policy, losses(curve, schedule, 0.0, 200, Random(0)), 200)
            for seed in range(RUNS):
                values = losses(curve, schedule, noise, records, Random(seed))
                time = grown_at(policy, values, records)
                counted += 1
                false += time < truth - SLACK - 1e-9
                missed += time > truth + SLACK + 1e-9 and truth + SLACK < GROW_UNTIL
    return false / counted, missed / counted


def main() -> None:
    """Print the table."""
    print("| noise | records | false growths | missed growths |")
    print("|---:|---:|---:|---:|")
    for noise in (0.01, 0.03, 0.1):
        for records in (20, 40, 200):
            false, missed = errors(noise, records)
            print(f"| {noise} | {records} | {false:.0%} | {missed:.0%} |")


if __name__ == "__main__":
    main()
