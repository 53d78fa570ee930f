"""Histories as arrays: order, gaps and steps, by hand."""

import numpy as np
import pytest
from histories import FIRST, reading, record_of

from analysis.recording.timeline import (
    architectures,
    bands,
    layer_values,
    layers_over_time,
    merged,
    response_curve,
    statistics_of,
)
from nets import Insert, SetSurvival, Widen, WidenStage


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([], []),
        (["abc", "abc"], "abc"),
        (["abc", "axbc", "axbcy"], "axbcy"),
        (["ac", "xac", "xayc"], "xayc"),
        (["abc", "ac", "adc"], "adbc"),
    ],
)
def test_newborns_stand_between_their_neighbours_and_the_removed_stay(sequences, expected):
    assert merged(map(list, sequences)) == list(expected)


def test_layers_of_a_role_stand_together_and_gaps_are_nan():
    history = [
        record_of(1, layers={"a": reading(response_std=1.0), "a.end": reading("branch")}),
        record_of(
            2,
            layers={
                "stem": reading("stem", response_std=9.0),
                "a": reading(response_std=2.0),
                "a.end": reading("branch", response_std=3.0),
                "b": reading(response_std=4.0, extra={"rank": 7.0}),
                "c": reading(),
            },
        ),
    ]
    layers, roles, values = layers_over_time(history, "response_std")
    assert layers == ["a", "b", "a.end", "stem"]
    assert roles == ["inner", "inner", "branch", "stem"]
    expected = [[1, 2], [np.nan, 4], [np.nan, 3], [np.nan, 9]]
    np.testing.assert_array_equal(values, expected)
    assert layers_over_time(history, "rank")[0] == ["b"]
    assert statistics_of(history) == ["response_std", "rank"]
    assert statistics_of(history[:1]) == ["response_std"]


def test_tidy_rows_have_every_number_and_only_numbers():
    layers = {"a": reading(response_std=1.0, dead_fraction=0.0, extra={"rank": 7.0})}
    history = [
        record_of(3, layers=layers),
        record_of(
            5,
            importance={"stage1.block1": -0.5},
            sensitivity={"stage1.block1": 0.25},
            probes={"gain": {"stage1.block1": 1.5}},
        ),
    ]
    assert list(layer_values(history)) == [
        (3, "a", "response_std", 1.0),
        (3, "a", "dead_fraction", 0.0),
        (3, "a", "rank", 7.0),
        (5, "stage1.block1", "importance", -0.5),
        (5, "stage1.block1", "sensitivity", 0.25),
        (5, "stage1.block1", "gain", 1.5),
    ]


def test_architectures_come_where_they_were_applied_or_first_seen():
    wide = FIRST.apply(Widen("stage1.block1", 2))
    deep = wide.apply(Insert("stage1.block1", 8))
    history = [
        record_of(10, applied=(Widen("stage1.block1", 2), SetSurvival("stage2.block1", 1.0))),
        record_of(20, wide),
        record_of(30, deep),  # as in a loop of one's own, which tells of no actions
    ]
    assert architectures(history) == [(0, FIRST), (10, wide), (30, deep)]
    assert architectures([record_of(10)]) == [(0, FIRST)]


def test_bands_tell_widths_from_each_step_on():
    actions = (Insert("stage1.block1", 6), Widen("stage3.block1", 5))
    history = [record_of(10, applied=actions)]
    grown = FIRST
    for action in actions:
        grown = grown.apply(action)
    history += [record_of(25, grown, applied=(WidenStage("stage2", 3),)), record_of(40)]
    history[2] = record_of(40, grown.apply(WidenStage("stage2", 3)))
    over = bands(history)
    assert over.steps == [0, 10, 25, 40]
    assert over.blocks == ["stage1.block1", "stage1.block2", "stage2.block1", "stage3.block1"]
    np.testing.assert_array_equal(
        over.widths, [[4, 4, 4, 4], [0, 6, 6, 6], [8, 8, 8, 8], [16, 21, 21, 21]]
    )
    assert over.streams == [(25, "stage2: stream 32 to 35")]


def test_the_curve_has_the_weighted_layers_by_stage():
    layers = {
        "stem": reading("stem", response_std=1.0),
        "stage1.block1.bn1": reading(response_std=2.0),
        "stage1.block1.bn2": reading("branch", response_std=3.0),
        "stage1.block1": reading("stream", response_std=9.0),
        "stage2.block1.bn1": reading(response_std=4.0),
        "stage2.block1.bn2": reading("branch"),
        "head": reading("head", response_std=9.0),
    }
    curve = response_curve(record_of(1, layers=layers))
    assert curve == {"stem": [1.0], "stage1": [2.0, 3.0], "stage2": [4.0]}
