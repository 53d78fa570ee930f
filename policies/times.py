"""When: times as fractions of the budget or counts of records, and what a history tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, isnan, sqrt
from statistics import mean

from analysis import Record
from nets.checks import check_count
from nets.plan.actions import adds_capacity

History = Sequence[Record]
Time = int | float
"""A whole number counts records; a number between 0 and 1 is a fraction of the budget."""
UNKNOWN = 1 / 20
"""The part of the budget between two records where `spent` stays 0: the most that `train` takes."""


def check_time(name: str, value: object, least: int = 1) -> None:
    """Raise a ValueError unless `value` counts at least so many records or is below 1, above 0."""
    if isinstance(value, int) and not isinstance(value, bool):
        check_count(name, value, least)
    elif not isinstance(value, float) or not 0 < value < 1:
        raise ValueError(
            f"{name} must be an integer of at least {least} (records), or above 0 and below 1 (of "
            f"the budget), got {value!r}"
        )


def spacing(history: History) -> float:
    """Give the fraction of the budget between two records, which lie at equal parts of it."""
    between = len(history) - 1  # all of them are a little late: of the first alone nothing is sure
    found = (history[-1].spent - history[0].spent) / between if between else 0.0
    return found if found > 0 else history[-1].spent / len(history) or UNKNOWN


def in_records(history: History, time: Time, least: int = 1) -> int:
    """Give a time as a count of records, at least `least` where it is a fraction of the budget."""
    if time >= 1 or time == 0:
        return int(time)
    return max(least, round(time / spacing(history)))


def due(history: History, every: Time) -> bool:
    """Say whether the present record is a multiple of `every` from the start.

    Of a fraction of the budget that is the first record at or past each multiple of it.
    """
    if every >= 1:
        return len(history) % every == 0
    step, now = spacing(history), history[-1].spent or len(history) * UNKNOWN
    before = (history[-2].spent if len(history) > 1 else 0.0) or now - step
    return _passes(before, now, every)


def _passes(before: float, now: float, every: float) -> bool:
    return floor(now / every + 1e-6) > floor(before / every + 1e-6)


def growths_to_come(history: History, every: Time) -> int:
    """Give how often it is `due` from the present record on, itself included, while growth may be.

    A record that is to fall on `grow_until` itself does not count: a run's is a step late.
    """
    record, step = history[-1], spacing(history)
    records = max(0, ceil((record.grow_until - record.spent) / step - 0.25))
    if every >= 1:
        return max(1, records and 1 + (records - 1) // int(every))
    times = [record.spent + step * ahead for ahead in range(records)]
    return 1 + sum(_passes(before, now, every) for before, now in pairwise(times))


def growths_planned(history: History, every: Time) -> int:
    """Give how often growth fits into the part of the budget in which it may be, each `every`."""
    records = in_records(history, every)
    parts = history[-1].grow_until / (records * spacing(history))
    return max(1, ceil(parts - 0.25 / records) - 1)


def since_growth(history: History) -> History:
    """Give the records made since the last growth, the present one included."""
    grown = [i for i, record in enumerate(history) if any(map(adds_capacity, record.applied))]
    return history[grown[-1] + 1 :] if grown else history


def losses_of(history: History) -> list[float]:
    """Give the validation losses, NaN left out: the running average's where all records have it."""
    averaged = [record.ema_validation_loss for record in history]
    found = averaged if None not in averaged else [record.validation_loss for record in history]
    return [loss for loss in found if loss is not None and not isnan(loss)]


def stalled(history: History, patience: Time, min_delta: float = 0.0) -> bool:
    """Say whether the last `patience` records have not beaten the best validation loss before.

    Only records since the last growth count, so the earliest answer comes `patience + 1` records
    after it. To beat means by more than `min_delta`. It takes every loss at its word: over many
    records the luckiest one is hard to beat, over few a lucky one passes for an improvement. See
    `levelled`.
    """
    losses, last = losses_of(since_growth(history)), in_records(history, patience)
    return len(losses) > last and min(losses[-last:]) >= min(losses[:-last]) - min_delta


def levelled(history: History, patience: Time, min_delta: float = 0.1, level: float = 0.3) -> bool:
    """Say whether the validation loss no longer falls by a part of itself, beyond its own noise.

    The mean of the last `patience` records is compared with that of as many before them, or half
    as many where growth is not longer ago. The noise is read off the second differences of these
    losses, which a smooth fall hardly touches: sigma^2 is the mean of (a - 2 b + c)^2 / 6 (Gasser,
    Sroka and Jennen-Steinmetz 1986, Biometrika 73, pages 625-633). The loss falls if what is gained
    beyond the part `min_delta` of it is significant in a one-sided t test at `level`. The earliest
    answer comes after `records_to_level` records from the start or a growth.
    """
    from scipy.stats import t as student  # imported late: it takes most of a second

    last = in_records(history, patience)
    losses = losses_of(since_growth(history))[-2 * last - 2 :]
    if len(losses) < records_to_level(last):
        return False
    after, before = losses[-last:], losses[-2 * last : -last]
    bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:])]
    noise = sqrt(mean(bend**2 for bend in bends) / 6)
    error = noise * sqrt(1 / len(before) + 1 / len(after))
    gain = mean(before) - mean(after) - min_delta * abs(mean(before))
    return gain <= float(student.ppf(1 - level, len(bends))) * error


def records_to_level(patience: int) -> int:
    """Give after how many records from a growth on `levelled` can say yes."""
    return max(3, patience + ceil(patience / 2))


def flat(history: History, window: Time, level: float = 0.05) -> bool:
    """Say whether the validation loss no longer falls, by a one-sided slope test.

    True when a straight line through the last `window` losses since the last growth does not fall
    at significance `level` (scipy.stats.linregress).
    """
    from scipy.stats import linregress  # imported late: it takes most of a second

    length = in_records(history, window, least=3)
    losses = losses_of(since_growth(history))[-length:]
    if len(losses) < length:
        return False
    test = linregress(range(length), losses, alternative="less")
    # not `>`: losses that are all the same have no p-value (nan), and do not fall
    return not test.pvalue <= level  # pyright: ignore[reportAttributeAccessIssue]
