"""The `when` and `where` functions of policies: hand-made histories, and brute force."""

import math
from dataclasses import replace

import pytest
from histories import history_in_rounds, record_of
from makers import architecture_of, plain
from scipy.stats import t as student

from analysis import LayerReading
from nets import (
    Cost,
    Insert,
    SetSurvival,
    Widen,
    WidenStage,
    cost,
    preset,
    seed_of,
)
from policies import (
    due,
    flat,
    growths,
    insert,
    largest_by,
    largest_width,
    room,
    series,
    sites,
    stalled,
    widen,
)
from policies.base import since_growth

LIMIT = preset("resnet20", image=(3, 8, 8))
FIRST = seed_of(LIMIT)


def record(number, architecture=FIRST, limit=LIMIT, **values):
    given = {"epoch": number / 2, "spent": number / 20, **values}
    return record_of(10 * number, architecture, limit, **given)


def losses_of(*losses, grown=()):
    """One record a loss; the records at the positions in `grown` end with a growth."""
    applied = {position: (Widen("stage1.block1", 1),) for position in grown}
    return [
        record(number, validation_loss=loss, applied=applied.get(number, ()))
        for number, loss in enumerate(losses)
    ]


def grown(*rounds, architecture=FIRST):
    """A history in which every record ends with the actions of its round, and the present one."""
    return history_in_rounds([*rounds, ()], record, architecture)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (3, [3, 6]), (7, [])]
)
def test_due_at_every_multiple(every, expected):
    lengths = [n for n in range(1, 7) if due([record(k) for k in range(n)], every)]
    assert lengths == expected


def test_since_growth_starts_after_the_record_that_ended_with_a_growth():
    history = grown([], [Widen("stage1.block1", 2)], [SetSurvival("stage1.block1", 0.5)], [])
    assert [r.step for r in since_growth(history)] == [20, 30, 40]
    assert list(since_growth(history[:1])) == history[:1]
    refused = [record(0, refused=((Widen("stage1.block1", 1), "no"),)), record(1)]
    assert list(since_growth(refused)) == refused


@pytest.mark.parametrize(
    ("losses", "settings", "expected"),
    [
        ((3, 2, 1), {"patience": 1}, False),
        ((3, 2, 2), {"patience": 1}, True),  # equal is no improvement
        ((3, 2, 2.5, 2.4), {"patience": 2}, True),
        ((3, 2, 2.5, 1.9), {"patience": 2}, False),
        ((3, 2, 1.9, 2.5), {"patience": 2}, False),  # the best is within patience
        ((3, 2, 1.9, 2.5, 2.5), {"patience": 2}, True),
        ((3, 3), {"patience": 2}, False),  # too early
        ((3, 3, 3), {"patience": 2}, True),
        ((1.0, 0.875), {"patience": 1, "min_delta": 0.125}, True),  # by more than min_delta
        ((1.0, 0.8125), {"patience": 1, "min_delta": 0.125}, False),
        ((3, 2, None, 2), {"patience": 1}, True),  # records without validation do not count
        ((3, None, None), {"patience": 1}, False),
        ((3, 2, math.inf), {"patience": 1}, True),
        ((), {"patience": 1}, False),
    ],
)
def test_stalled(losses, settings, expected):
    assert stalled(losses_of(*losses), **settings) is expected


def test_stalled_counts_from_the_last_growth():
    losses = [1, 1, 1, 1, 1, 1]
    found = [
        n
        for n in range(1, 7)
        if stalled(losses_of(*losses[:n], grown=[p for p in (2,) if p < n - 1]), patience=2)
    ]
    assert found == [3, 6]  # patience + 1 records from the start, and from the growth


def one_sided_slope(x, y):
    """The p-value that the true slope is below 0, from the t statistic of a least-squares line."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    sxx = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sxx
    rest = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y)]
    error = math.sqrt(sum(r * r for r in rest) / (n - 2) / sxx)
    return student.cdf(slope / error, n - 2)


def test_flat_is_the_one_sided_slope_test():
    losses = [2.0, 1.7, 1.75, 1.5, 1.6, 1.62, 1.55, 1.58, 1.57]
    for window in (3, 4, 6, 9):
        for end in range(window, len(losses) + 1):
            p = one_sided_slope(range(window), losses[end - window : end])
            for level in (p * 0.99, p * 1.01):
                assert flat(losses_of(*losses[:end]), window, level) is bool(p > level)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((4, 3, 2, 1), False),
        ((1, 1, 1, 1), True),
        ((1, 2, 3, 4), True),
        ((9, 5, 1.0, 1.01, 0.99, 1.0), True),  # only the window counts
        ((4, 3, 2), False),  # too early
        ((4, 3, None, 2, 1), False),
        ((1, 1, None, 1), False),  # three losses are too few
        ((5, 4, math.nan, 3, 2), False),
    ],
)
def test_flat_over_four(losses, expected):
    assert flat(losses_of(*losses), window=4) is expected


def test_flat_counts_from_the_last_growth_and_does_not_need_spent():
    history = losses_of(9, 1, 1, 1, 1, 1, grown=[1])
    assert not flat(history[:5], window=4)
    assert flat(history, window=4)
    assert flat([replace(r, spent=0.0) for r in history], window=4)  # a loop of one's own


def reading(value=None, edited=None, **extra):
    return LayerReading("stage1.block1", "inner", response_std=value, edited=edited, extra=extra)


def test_series_is_broken_at_an_edit_and_leaves_gaps_out():
    table = [
        ([reading(1.0), reading(2.0), reading(3.0)], [1.0, 2.0, 3.0]),
        ([reading(1.0), reading(2.0, 10), reading(3.0, 10)], [2.0, 3.0]),
        ([reading(1.0, 5), reading(2.0, 10)], [2.0]),
        ([reading(1.0), reading(None), reading(3.0)], [1.0, 3.0]),
        ([reading(1.0), reading(math.nan), reading(3.0)], [1.0, 3.0]),
        ([reading(1.0), reading(math.inf)], [1.0]),
        ([reading(1.0), None, reading(3.0)], [1.0, 3.0]),  # a record without this layer
        ([reading(1.0, 5), None, reading(3.0, 10)], [3.0]),
        ([reading(1.0), reading(None)], [1.0]),
        ([reading(1.0), None], []),  # the layer is not there now
        ([None, reading(2.0, 10)], [2.0]),
    ]
    for readings, expected in table:
        history = [record(n, layers={"a": r} if r else {}) for n, r in enumerate(readings)]
        assert series(history, "a", "response_std") == expected
        assert series(history, "other", "response_std") == []


def test_series_of_a_statistic_of_ones_own():
    history = [record(n, layers={"a": reading(mine=float(n))}) for n in range(3)]
    assert series(history, "a", "mine") == [0.0, 1.0, 2.0]
    assert series(history, "a", "unknown") == []


def test_growths_are_what_was_applied_in_order():
    first, second = Widen("stage1.block1", 1), Insert("stage2.block1", 8)
    history = [
        record(0, decided=(first, second), applied=(first,), refused=((second, "too much"),)),
        record(1, applied=(SetSurvival("stage1.block1", 0.5), second)),
        record(2),
    ]
    assert growths(history) == [first, second]


@pytest.mark.parametrize(
    ("action", "resting"),
    [
        (Widen("stage2.block1", 1), {"stage2.block1"}),
        (WidenStage("stage2", 1), {"stage2.block1"}),
        (Insert("stage2.block1", 8), {"stage2.block1", "stage2.block2"}),
        (SetSurvival("stage2.block1", 0.5), set()),
    ],
)
def test_sites_rest_for_the_cooldown(action, resting):
    for cooldown in (0, 1, 2, 3):
        for age in (1, 2, 3, 4):
            history = grown([], [action], *[[]] * (age - 1))
            blocks = history[-1].architecture.blocks
            expected = [b for b in blocks if age > cooldown or b not in resting]
            assert sites(history, cooldown) == expected


def test_all_sites_are_free_at_first():
    assert sites([record(0)], cooldown=5) == list(FIRST.blocks)


def test_an_insertion_at_the_end_of_the_net_and_of_a_stage_rests_too():
    for after in ("stage1.block1", "stage3.block1"):
        history = grown([Insert(after, 4)])
        assert set(history[-1].architecture.blocks) - set(sites(history)) == {
            after,
            after.replace("block1", "block2"),
        }


NETS = {
    "basic": seed_of(preset("resnet8", image=(1, 8, 8))),
    "pre": seed_of(preset("resnet14", image=(1, 8, 8), order="pre"), 0.25, None),
    "bottleneck": seed_of(preset("resnet8", image=(1, 8, 8), block="bottleneck")),
    "dense": architecture_of("dense", "pre", streams=(6, 8), classes=3),
    "plain": plain(4, 3, 6),
}


def brute_force(architecture, kind, block, flops, parameters, amounts):
    """The largest amount that fits, every one tried in turn."""
    before, best = cost(architecture), 0
    for amount in amounts:
        after = cost(architecture.apply(kind(block, amount)))
        fits = after.flops - before.flops <= flops
        if fits and after.parameters - before.parameters <= parameters:
            best = amount
    return best


@pytest.mark.parametrize("name", NETS)
def test_the_largest_edit_is_what_trying_all_finds(name):
    architecture = NETS[name]
    for block in architecture.blocks:
        least = architecture.blocks[block].width if name == "plain" else 1
        one = cost(architecture.apply(Widen(block, 1))).flops - cost(architecture).flops
        born = cost(architecture.apply(Insert(block, least))).flops - cost(architecture).flops
        for parameters in (math.inf, 700, 40, 0):
            for flops in (0, one - 1, one, 5 * one, 5.5 * one, 17 * one):
                args = flops, parameters
                found = largest_by(architecture, block, *args)
                tried = range(1, 20)
                assert found == brute_force(architecture, Widen, block, *args, tried)
            for flops in (0, born - 1, born, 3.3 * born):
                args = flops, parameters
                found = largest_width(architecture, block, *args)
                tried = range(least, least + 40)
                assert found == brute_force(architecture, Insert, block, *args, tried)


def test_the_largest_edit_may_be_bounded_by_parameters_alone():
    by = largest_by(FIRST, "stage1.block1", math.inf, 1000)
    assert by == brute_force(FIRST, Widen, "stage1.block1", math.inf, 1000, range(1, 99))


@pytest.mark.parametrize("largest", [largest_by, largest_width])
@pytest.mark.parametrize("architecture", [FIRST, plain(3, 4)])
def test_the_largest_edit_refuses_what_has_no_answer(largest, architecture):
    with pytest.raises(ValueError, match="flops must be finite"):
        largest(architecture, "stage1.block1", math.inf)
    with pytest.raises(ValueError, match=r"block must be one of stage1\.block1, .*; got 'here'"):
        largest(architecture, "here", 1e6)


def test_room_is_a_share_of_the_limit_and_never_more_than_is_left():
    limit, now = cost(LIMIT), cost(FIRST)
    present = record(0)
    assert room(present, 0.1) == (0.1 * limit.flops, limit.parameters - now.parameters)
    assert room(present) == (limit.flops - now.flops, limit.parameters - now.parameters)
    assert room(present, 1.0) == room(present)
    assert room(record(0, LIMIT)) == (0, 0)


def test_room_needs_a_limit():
    present = replace(record(0), limit=Cost(2**62, 2**62))  # what Record.capture gives without one
    with pytest.raises(ValueError, match="limit must be given"):
        room(present, 0.1)


@pytest.mark.parametrize("name", NETS)
def test_widen_uses_up_its_share(name):
    architecture = NETS[name]
    limit = Cost(10**7, 10 * cost(architecture).flops)
    history = [record(0, architecture, limit=architecture)]
    history = [replace(history[0], limit=limit)]
    for block in architecture.blocks:
        (action,) = widen(history, block, 0.1, "why")
        assert (action.block, action.reason) == (block, "why")
        added = cost(architecture.apply(action)).flops - cost(architecture).flops
        more = (
            cost(architecture.apply(Widen(block, action.by + 1))).flops - cost(architecture).flops
        )
        assert added <= 0.1 * limit.flops < more


def test_widen_gives_nothing_when_nothing_fits():
    assert widen([record(0, LIMIT)], "stage1.block1", 0.5) == []
    assert widen([record(0)], "stage1.block1", 1e-6) == []


def one_block(width, by, **values):
    """A history whose limit leaves room for an insertion of `by` channels exactly."""
    architecture = seed_of(preset("resnet8", image=(1, 8, 8)), width)
    after = cost(architecture.apply(Insert("stage1.block1", by)))
    return [replace(record(0, architecture), limit=after)]


@pytest.mark.parametrize(
    ("fitting", "expected"), [(40, 16), (16, 16), (9, 9), (4, 4), (3, None), (1, None)]
)
def test_insert_is_between_a_quarter_and_the_whole_of_its_stream(fitting, expected):
    found = insert(one_block(0.25, fitting), "stage1.block1", 1.0, "why", survival=0.5)
    assert found == ([Insert("stage1.block1", expected, 0.5)] if expected else [])
    assert all(action.reason == "why" for action in found)


def test_insert_into_a_plain_net_is_as_wide_as_its_share_allows():
    architecture = plain(4, 3)
    for width in (4, 5, 30):
        limit = cost(architecture.apply(Insert("stage1.block1", width)))
        history = [replace(record(0, architecture), limit=limit)]
        assert insert(history, "stage1.block1", 1.0) == [Insert("stage1.block1", width)]
    limit = cost(architecture.apply(Insert("stage1.block1", 4)))
    history = [replace(record(0, architecture), limit=replace(limit, flops=limit.flops - 1))]
    assert insert(history, "stage1.block1", 1.0) == []
