"""Tables of branches: gains, rank correlations, the agreement of data orders."""

from __future__ import annotations

import pytest

from analysis import LayerReading, Record
from analysis.judging.rank_correlation import (
    agreement,
    block_statistics,
    correlations,
    site_of,
    spearman,
)
from analysis.showing.tables import correlation_table, gain_table, to_csv
from nets import Insert, Widen, cost, preset, seed_of

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


def test_a_statistic_is_correlated_with_the_mean_gain_and_with_every_order():
    record = record_of(readings((1, 2, 3, 4, 5, 6)))
    gains = [(0.1, 0.6), (0.2, 0.5), (0.3, 0.4), (0.4, 0.3), (0.5, 0.2), (1.0, 0.1)]
    sites = [site_of(record, [edit], gain) for edit, gain in zip(EDITS, gains)]
    (std, place) = correlations(record, sites)
    assert (std.statistic, std.kind, std.sites) == ("response_std, inner", "widen", 6)
    assert std.orders == pytest.approx((1, -1))
    assert std.rho == pytest.approx(spearman(range(6), [sum(gain) for gain in gains]))
    assert (place.statistic, place.rho) == ("place in the network", std.rho)
    assert agreement(sites) == pytest.approx(-1)
    table = correlation_table([std, place], -1.0)
    assert "widen (6 sites)" in table
    assert f"{std.rho:+.2f} ± 1.41" in table
    assert table.endswith("between data orders: -1")


def test_widening_and_inserting_are_correlated_apart_and_growth_at_many_places_is_not():
    record = record_of(readings((3, 2, 1, None, None, None)))
    edits = [*EDITS[:3], *(Insert(block, 4) for block in BLOCKS[:3])]
    gains = [0.3, 0.2, 0.1, 0.1, 0.2, 0.3]
    sites = [site_of(record, [edit], (gain,)) for edit, gain in zip(edits, gains)]
    sites.append(site_of(record, EDITS[:2], (9.0,), "both"))
    found = {each.kind: each for each in correlations(record, sites) if "std" in each.statistic}
    assert {kind: (each.rho, each.sites) for kind, each in found.items()} == {
        "widen": (pytest.approx(1), 3),
        "insert": (pytest.approx(-1), 3),
    }
    assert agreement(sites) is None  # of one order there is none
    assert "too few sites" in correlation_table([], None)


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
    record = record_of()
    sites = [
        site_of(record, [EDITS[0]], (0.1, -0.2)),
        site_of(record, [EDITS[1]], (0.5, 0.3)),
        site_of(record, EDITS[:2], (-1.0, -1.0), "what was done"),
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
    assert [row[3:] for row in cells] == [
        ["0.4 ± 0.14", "2 of 2", "yes"],
        ["-0.05 ± 0.21", "1 of 2", ""],
        ["-1 ± 0", "0 of 2", "yes"],
    ]
    # a channel of stage 1 costs 2 * 64 * 9 * (16 + 16) FLOPs, and as many weights, and its norm
    assert cells[0][1:3] == ["36,864", str(9 * (16 + 16) + 2)]


def test_csv_has_a_header_and_nothing_for_no_rows():
    assert to_csv([]) == ""
    assert to_csv([{"a": 1, "b": "x, y"}]) == 'a,b\n1,"x, y"\n'
