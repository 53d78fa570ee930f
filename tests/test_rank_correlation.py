"""Tables of branches: gains, rank correlations, the agreement of data orders."""

from __future__ import annotations

import random

import pytest

from analysis import LayerReading, Record
from analysis.judging.growth_sites import block_statistics, site_of
from analysis.judging.rank_correlation import (
    DRAWS,
    Correlation,
    adjusted,
    agreement,
    chances,
    correlations,
    pooled,
    spearman,
)
from analysis.showing.tables import correlation_table, gain_table, pooled_table, to_csv
from nets import Insert, Widen, WidenStage, cost, preset, seed_of

FIRST = seed_of(preset("resnet20", image=(3, 8, 8)), blocks=2)
BLOCKS = list(FIRST.blocks)  # two a stage
EDITS = [Widen(block, 1) for block in BLOCKS]


def record_of(layers=None, **values):
    given = {"step": 7, "epoch": 1.0, "spent": 0.5, "seed": 0, "limit": cost(FIRST)}
    return Record(**given, architecture=FIRST, layers=layers or {}, **values)


def readings(values, role="inner", statistic="response_std", path="{}.bn1"):
    return {
        path.format(block): LayerReading(block, role, **{statistic: value})
        for block, value in zip(BLOCKS, values)
        if value is not None
    }


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ((1, 2, 3, 4), (10, 20, 30, 31), 1),
        ((1, 2, 3, 4), (4, 3, 2, 1), -1),
        ((1, 2, 3, 4), (2, 1, 4, 3), 0.6),  # 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)
        ((1, 1, 2), (1, 2, 3), 0.866),  # ties share their mean rank: cov 0.75 / sqrt(0.75 * 1)
        ((1, 2), (1, 2), None),
        ((1, 1, 1), (1, 2, 3), None),
        ((1, 2, 3), (5, 5, 5), None),
        ((1, 2, 3), (1, 2, float("nan")), None),
    ],
)
def test_the_rank_correlation_against_cases_by_hand(first, second, rho):
    assert spearman(first, second) == (rho if rho is None else pytest.approx(rho, abs=1e-3))


def sites_of(gains, edits=EDITS):
    return [site_of(FIRST, [edit], each) for edit, each in zip(edits, gains)]


def test_the_value_is_the_mean_over_orders_and_lies_between_its_lowest_and_highest():
    record = record_of(readings((1, 2, 3, 4, 5, 6)))
    gains = [(0.1, 0.3), (0.2, 0.6), (0.3, 0.1), (0.4, 0.5), (0.5, 0.2), (1.0, 0.4)]
    sites = sites_of(gains)
    (std, place) = correlations(record, sites)
    assert (std.statistic, std.kind, std.sites) == ("response_std, inner", "widen", 6)
    assert std.orders == pytest.approx((1, 1 - 6 * 38 / 210))  # ranks 3 6 1 5 2 4
    assert std.rho == pytest.approx(1 - 3 * 38 / 210)
    assert (place.statistic, place.rho) == ("place in the network", std.rho)
    assert agreement(sites) == pytest.approx(std.orders[1])
    table = correlation_table([std, place], chances(sites))
    assert "widen (6 sites)" in table
    assert "| +0.46 [-0.09, +1.00], p 0." in table
    assert table.endswith("Rank agreement between data orders: -0.08571.")


def test_orders_that_cancel_out_tell_nothing():
    record = record_of(readings((1, 2, 3, 4, 5, 6)))
    sites = sites_of([(k, -k) for k in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
    found = correlations(record, sites)
    assert (found[0].rho, found[0].p, found[0].telling) == (0, 1, False)
    text = correlation_table(found, chances(sites))
    assert "widen: 6 sites, data orders: 2. The orders disagree too much: by chance p = 1" in text


@pytest.mark.parametrize("seed", range(3))
def test_no_value_or_spread_leaves_the_possible_range(seed):
    """Gains of noise alone: of single orders' correlations mean ± std often does."""
    draw = random.Random(seed)
    record = record_of(readings([draw.random() for _ in BLOCKS]))
    gains = [[draw.gauss(0, 1) for _ in range(2)] for _ in BLOCKS]
    for each in correlations(record, sites_of(gains)):
        assert -1 <= min(each.orders) <= each.rho <= max(each.orders) <= 1
        assert each.rho == pytest.approx(sum(each.orders) / 2)
        assert 0 < each.least_p <= each.p <= 1


def test_p_is_the_share_of_orders_of_the_sites_that_give_as_much():
    """By hand: of 5! orders two are perfect, and 2 * 4 more have a single neighbouring swap."""
    record = record_of(readings((1, 2, 3, 4, 5, None)))
    perfect, swapped = (
        correlations(record, sites_of([(gain,) for gain in gains]))[0]
        for gains in ((1, 2, 3, 4, 5), (2, 1, 3, 4, 5))
    )
    assert (perfect.rho, perfect.p) == (1, 2 / 120)
    assert (swapped.rho, swapped.p) == (pytest.approx(0.9), pytest.approx(10 / 120))
    assert perfect.least_p == swapped.least_p == 2 / 120
    assert perfect.telling
    (chance,) = chances(sites_of([(gain,) for gain in (1, 2, 3, 4, 5)]))
    assert (chance.sites, chance.orders, chance.least_p) == (5, 1, 2 / 120)
    assert chance.bound == pytest.approx(0.9)  # 10 of 120 are as much, and 2 of 120 more


def test_of_many_sites_permutations_are_drawn_and_p_is_near_the_exact_one():
    blocks = list(preset("resnet32", image=(3, 8, 8)).blocks)[:9]
    whole = preset("resnet32", image=(3, 8, 8))
    layers = {
        f"{b}.bn1": LayerReading(b, "inner", response_std=float(k)) for k, b in enumerate(blocks)
    }
    given = {"step": 7, "epoch": 1.0, "spent": 0.5, "seed": 0, "limit": cost(whole)}
    record = Record(**given, architecture=whole, layers=layers)
    gains = (3, 1, 2, 5, 4, 6, 9, 7, 8)
    sites = [site_of(whole, [Widen(b, 1)], (float(g),)) for b, g in zip(blocks, gains)]
    found = correlations(record, sites)[0]
    assert found.rho == pytest.approx(0.883, abs=1e-3)
    assert found.p == pytest.approx(0.0031, abs=0.0015)  # scipy.stats.permutation_test, exact
    assert found.least_p >= 1 / DRAWS
    assert found == correlations(record, sites)[0]  # always the same draws


def test_too_few_sites_are_said_to_tell_nothing():
    record = record_of(readings((1, 2, 3, 4, None, None)))
    sites = sites_of([(1.0,), (2.0,), (3.0,), (4.0,)])
    (std, place) = correlations(record, sites)
    assert (std.rho, std.p) == (1, pytest.approx(2 / 24))
    assert not std.telling
    assert not adjusted([std, place])
    table = correlation_table([std, place], chances(sites))
    assert table.startswith("no rank correlation could be told from chance")
    assert "+1.00" not in table
    assert "widen: 4 sites, data orders: 1. Too few sites to tell: by chance p = 0.083" in table
    # of six sites with two values a perfect split is one of twenty, with either sign
    record = record_of(readings((1, 1, 1, 2, 2, 2)))
    (std, _) = correlations(record, sites_of([(k,) for k in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]))
    assert (std.p, std.telling) == (pytest.approx(0.1), False)


def test_chance_alone_gives_significant_values_as_often_as_it_says():
    """200 statistics of noise: about 5 % have p <= 0.05, about 5 % lie beyond the bound."""
    draw = random.Random(0)
    sites = sites_of([[draw.gauss(0, 1) for _ in range(3)] for _ in BLOCKS])
    found = []
    for _ in range(200):
        found.append(correlations(record_of(readings([draw.random() for _ in BLOCKS])), sites)[0])
    (chance,) = chances(sites)
    assert 2 <= sum(each.p <= 0.05 for each in found) <= 20
    assert sum(abs(each.rho) > chance.bound + 1e-9 for each in found) <= 20


def test_kinds_are_correlated_apart_and_growth_at_many_places_is_not():
    record = record_of(readings((3, 2, 1, None, None, None)))
    edits = [*EDITS[:3], *(Insert(block, 4) for block in BLOCKS[:3])]
    sites = sites_of([(gain,) for gain in (0.3, 0.2, 0.1, 0.1, 0.2, 0.3)], edits)
    sites.append(site_of(FIRST, EDITS[:2], (9.0,), "both"))
    found = {each.kind: each for each in correlations(record, sites) if "std" in each.statistic}
    assert {kind: (each.rho, each.sites) for kind, each in found.items()} == {
        "widen": (pytest.approx(1), 3),
        "insert": (pytest.approx(-1), 3),
    }
    assert agreement(sites) is None  # of one order there is none
    assert "no rank correlation" in correlation_table([], [])


def test_a_stream_has_the_mean_of_its_blocks():
    record = record_of(readings((1, 3, 10, 20, 0, 1)))  # means 2, 15, 0.5
    edits = [WidenStage(f"stage{number}", 1) for number in (1, 2, 3)]
    sites = sites_of([(2.0,), (3.0,), (1.0,)], edits)
    assert [site.kind for site in sites] == ["streams"] * 3
    std, place = correlations(record, sites)
    assert (std.kind, std.sites, std.rho) == ("streams", 3, pytest.approx(1))
    assert place.rho == pytest.approx(-0.5)


def test_a_branch_that_diverged_is_left_out_of_the_ranks_and_told():
    record = record_of(readings((1, 2, 3, 4, 5, 6)))
    sites = sites_of([(1.0,), (2.0,), (float("nan"),), (3.0,), (4.0,), (5.0,)])
    std = correlations(record, sites)[0]
    assert (std.sites, std.rho) == (5, pytest.approx(1))
    assert [site.sites for site in chances(sites)] == [5]
    last = gain_table(sites, []).splitlines()[-1]
    assert f"| {sites[2].name} " in last
    assert "not finite" in last


def test_steps_are_read_together_as_mean_lowest_and_highest():
    def one(rho, statistic="a", kind="widen", least=0.01):
        return Correlation(statistic, kind, 6, rho, (rho,), 0.5, least)

    found = pooled([[one(0.5), one(0.1, "b")], [one(-0.1), one(0.9, least=0.2)], [one(0.2)]])
    assert [(each.statistic, each.points) for each in found] == [
        ("a", (0.5, -0.1, 0.2)),
        ("b", (0.1,)),
    ]
    assert found[0].rho == pytest.approx(0.2)
    table = pooled_table(found, 3)
    assert "widen (3 of 3 steps)" in table
    assert "+0.20 [-0.10, +0.50]" in table
    assert pooled_table([], 2) == "too few sites at every step"


def test_holm_counts_all_that_could_tell():
    each = [
        Correlation(name, "widen", 6, 0.9, (0.9,), 0.02, least)
        for name, least in (("a", 0.01), ("b", 0.01), ("c", 0.2))
    ]
    assert adjusted(each) == {("a", "widen"): 0.04, ("b", "widen"): 0.04}


def test_statistics_of_a_block_are_the_mean_of_its_layers_and_its_own_output():
    layers = readings((1.0, 2.0))
    layers |= readings((3.0, 4.0), path="{}.bn2")
    layers |= readings((5.0, 6.0), "stream", path="{}")
    layers |= readings((9.0, 9.0), "stream", path="{}.shortcut.bn")
    layers["stem"] = LayerReading(None, "stem", response_std=1.0)
    layers["x"] = LayerReading(BLOCKS[0], "branch", extra={"own": 7.0})
    probes = {"gain": {BLOCKS[1]: 0.25}}
    record = record_of(layers, importance={BLOCKS[0]: 0.5}, probes=probes)
    one, two = BLOCKS[:2]
    assert block_statistics(record) == {
        "response_std, inner": {one: 2.0, two: 3.0},
        "response_std, stream": {one: 5.0, two: 6.0},
        "own, branch": {one: 7.0},
        "importance": {one: 0.5},
        "gain": {two: 0.25},
        "place in the network": {block: float(index) for index, block in enumerate(BLOCKS)},
    }


def test_gains_stand_the_most_useful_first_with_what_was_done_marked():
    sites = [
        site_of(FIRST, [EDITS[0]], (0.1, -0.2)),
        site_of(FIRST, [EDITS[1]], (0.5, 0.3)),
        site_of(FIRST, EDITS[:2], (-1.0, -1.0), "what was done"),
    ]
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in gain_table(sites, [EDITS[1]]).splitlines()[2:]
    ]
    assert [row[0] for row in cells] == [
        "Widen(block='stage1.block2', by=1)",
        "Widen(block='stage1.block1', by=1)",
        "what was done",
    ]
    assert [row[4:] for row in cells] == [
        ["0.4 ± 0.14", "2 of 2", "yes"],
        ["-0.05 ± 0.21", "1 of 2", ""],
        ["-1 ± 0", "0 of 2", "yes"],
    ]
    # a channel of stage 1 costs 2 * 64 * 9 * (16 + 16) FLOPs, and as many weights, and its norm
    assert cells[0][1:3] == ["36,864", str(9 * (16 + 16) + 2)]


def test_csv_has_a_header_and_nothing_for_no_rows():
    assert to_csv([]) == ""
    assert to_csv([{"a": 1, "b": "x, y"}]) == 'a,b\n1,"x, y"\n'
