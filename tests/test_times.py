"""Times as fractions of the budget and as counts of records, and what is read off the losses."""

from dataclasses import replace
from math import exp
from random import Random

import pytest
from histories import record_of

from nets import Widen
from policies import due, levelled, stalled
from policies.times import (
    check_time,
    growths_planned,
    growths_to_come,
    in_records,
    losses_of,
    records_to_level,
    spacing,
)


def run_of(count, records=20, late=0.0, **values):
    """The first records of a run that makes so many; each a part `late` of the spacing late."""
    spent = [min(1.0, (n + late) / records) for n in range(1, count + 1)]
    return [record_of(n, spent=part, **values) for n, part in enumerate(spent, start=1)]


@pytest.mark.parametrize("value", [1, 7, 0.5, 1e-3, 0.999])
def test_records_and_fractions_are_times(value):
    check_time("every", value)
    check_time("cooldown", 0, least=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5, -0.1, True, "1", None, float("nan")])
def test_other_values_are_no_times(value):
    with pytest.raises(ValueError, match=r"every must be an integer of at least 1 \(records\), or"):
        check_time("every", value)


@pytest.mark.parametrize("records", [20, 40, 200])
@pytest.mark.parametrize("late", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("every", [0.05, 0.1, 0.15, 0.25, 1 / 3])
def test_a_fraction_is_due_once_at_each_multiple(records, late, every):
    history = run_of(records, records, late)
    asked = [now.spent for n, now in enumerate(history, start=1) if due(history[:n], every)]
    multiples = [every * number for number in range(1, int((1 + 1e-9) / every) + 1)]
    assert len(asked) == len(multiples)
    assert all(-1e-6 <= time - each < 1 / records for time, each in zip(asked, multiples))


def test_a_fraction_below_the_spacing_is_due_at_every_record():
    assert all(due(run_of(n), 0.01) for n in range(1, 20))


def test_without_a_budget_records_are_taken_for_twentieths():
    history = [replace(record, spent=0.0) for record in run_of(12)]
    assert [n for n in range(1, 13) if due(history[:n], 0.15)] == [3, 6, 9, 12]
    assert in_records(history, 0.1) == 2
    assert growths_to_come(history, 0.1) == growths_to_come(history[:1], 0.1) == 6


@pytest.mark.parametrize(
    ("records", "time", "expected"),
    [
        (20, 0.1, 2),
        (40, 0.1, 4),
        (200, 0.1, 20),
        (20, 0.01, 1),
        (20, 3, 3),
        (200, 3, 3),
        (20, 0, 0),
    ],
)
def test_a_time_in_records(records, time, expected):
    for late in (0.0, 0.4):
        history = run_of(records // 2, records, late)
        assert spacing(history) == pytest.approx(1 / records, rel=0.1)
        assert in_records(history, time) == expected
    assert in_records(run_of(2), 0.01, least=3) == 3


@pytest.mark.parametrize("records", [20, 40, 200])
@pytest.mark.parametrize("late", [0.0, 0.3])
@pytest.mark.parametrize("every", [0.05, 0.1, 0.25, 1, 4])
@pytest.mark.parametrize("grow_until", [0.6, 0.35, 1.0])
def test_growths_to_come_are_those_that_come(records, late, every, grow_until):
    asked = [
        n
        for n in range(1, records)
        if n / records < grow_until - 1e-9
        and due(run_of(n, records, late, grow_until=grow_until), every)
    ]
    for number, n in enumerate(asked):
        history = run_of(n, records, late, grow_until=grow_until)
        if n == 1:  # how late the first record is cannot be told
            continue
        assert growths_to_come(history, every) == len(asked) - number


def test_past_the_end_there_is_one_growth_to_come():
    assert growths_to_come(run_of(15), 0.05) == 1
    assert growths_to_come(run_of(15), 3) == 1


@pytest.mark.parametrize(
    ("records", "every", "expected"), [(20, 3, 3), (200, 30, 3), (20, 0.15, 3), (20, 12, 1)]
)
def test_growths_planned_are_those_that_there_is_time_for(records, every, expected):
    for count in (records // 20, records // 4):
        assert growths_planned(run_of(count, records), every) == expected


def test_losses_are_those_of_the_average_where_all_have_them():
    plain = run_of(3, validation_loss=2.0)
    assert losses_of(plain) == [2.0] * 3
    averaged = [replace(record, ema_validation_loss=1.0) for record in plain]
    assert losses_of(averaged) == [1.0] * 3
    assert losses_of([plain[0], *averaged]) == [2.0] * 4
    assert losses_of([*run_of(1), *plain]) == [2.0] * 3


def losses(values, records=20, grown=None):
    history = [
        replace(record, validation_loss=value)
        for record, value in zip(run_of(len(values), records), values)
    ]
    if grown is not None:
        history[grown] = replace(history[grown], applied=(Widen("stage1.block1", 1),))
    return history


@pytest.mark.parametrize("patience", [1, 2, 3, 4, 7])
def test_levelled_answers_after_so_many_records_from_a_growth(patience):
    needed = records_to_level(patience)
    flat = losses([1.0] * 20)
    assert [n for n in range(1, 21) if levelled(flat[:n], patience)] == list(range(needed, 21))
    again = losses([1.0] * 20, grown=4)
    found = [n for n in range(6, 21) if levelled(again[:n], patience)]
    assert found == list(range(5 + needed, 21))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 0.9, 0.8, 0.7), False),  # a line has no noise
        ((1.0, 0.97, 0.95, 0.92), True),  # less than a tenth of it
        ((0.7, 0.8, 0.9, 1.0), True),
        ((1.0, 0.6, 1.0, 0.55), True),  # the noise is larger than the gain
        ((1.0, float("inf"), 1.0, 1.0), False),
    ],
)
def test_levelled(values, expected):
    assert levelled(losses(values), 2) is expected


def test_levelled_does_not_grow_by_one_lucky_loss_nor_miss_a_level_for_one():
    random = Random(0)
    level = [1.0 + random.gauss(0, 0.02) for _ in range(200)]
    level[100] = 0.5  # nothing beats it for 99 records, which `stalled` takes for a stall
    history = losses(level, 200)
    found = [levelled(history[:n], 0.1) for n in range(130, 200)]
    assert all(found)
    falling = [2 * exp(-n / 100) + random.gauss(0, 0.05) for n in range(200)]
    history = losses(falling, 200)
    assert not any(levelled(history[:n], 0.1) for n in range(40, 110))
    assert any(stalled(history[:n], 2) for n in range(40, 110))


@pytest.mark.parametrize("records", [20, 40, 200])
def test_levelled_comes_at_the_same_part_of_the_budget(records):
    values = [1.2 + 2.6 * exp(-(n / records) / 0.06) for n in range(1, records)]
    history = losses(values, records)
    first = next(n for n in range(1, records) if levelled(history[:n], 0.1))
    assert 0.28 <= first / records <= 0.34
