"""The pictures: what is drawn where, and that odd histories can be drawn at all."""

import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import LayerReading, Record
from analysis.observing.reading import STATISTICS
from analysis.showing import history_pictures
from analysis.showing.architecture_pictures import architecture_over_time
from analysis.showing.colours import shade_of
from analysis.showing.history_pictures import _colours, draw
from analysis.showing.matplotlib_figures import HEIGHT, WIDTH
from nets import Insert, Widen, WidenStage, cost, preset, seed_of

LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST = seed_of(LIMIT)


def record(step, architecture=FIRST, value=1.0, **values):
    layers = {
        path: LayerReading(None, role, **dict.fromkeys(STATISTICS, value))
        for path, role in (("stem", "stem"), ("stage1.block1.bn1", "inner"))
    }
    given = {"step": step, "epoch": 1.0, "spent": 0.5, "seed": 0, "limit": cost(LIMIT)}
    return Record(**{**given, "architecture": architecture, "layers": layers, **values})


def pixels(png):
    image = Image.open(BytesIO(png))
    assert image.size == (WIDTH, HEIGHT)
    return np.asarray(image.convert("RGB")).astype(int)


def coloured(png, colour):
    """Columns, as fractions of the width, with at least 6 pixels of a colour below the title."""
    hits = (np.abs(pixels(png)[40:] - colour).sum(axis=2) < 60).sum(axis=0)
    return np.flatnonzero(hits >= 6) / WIDTH


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-30, 1e30, math.nan, math.inf, None])
def test_any_numbers_can_be_drawn(value):
    drawn = draw([record(1, value=value), record(2, value=1.0)], [record(9)])
    names = {"architecture", "response_std_by_layer", *(f"heat_map_{n}" for n in STATISTICS)}
    assert drawn.keys() == {*names, "statistics_over_time"}
    for png in drawn.values():
        assert pixels(png).std() > 1


def test_what_nobody_read_is_not_drawn():
    assert draw([record(1, layers={})]).keys() == {"architecture"}
    only = {"stem": LayerReading(None, "stem", weight_norm=2.0)}
    assert draw([record(1, layers=only)]).keys() == {"architecture", "heat_map_weight_norm"}
    assert draw([record(0)])  # no step yet
    head = {"head": LayerReading(None, "head", response_std=2.0)}
    names = {"architecture", "statistics_over_time", "heat_map_response_std"}
    assert draw([record(1, layers=head)]).keys() == names
    scored = [record(1, layers={}, validation_accuracy=0.5), record(2, layers={})]
    assert draw(scored).keys() == {"architecture", "how_well"}
    assert draw(scored)["how_well"] != draw(scored, seconds=[1.0, 2.0])["how_well"]


def test_growth_is_marked_where_it_happened():
    still = architecture_over_time([record(100)])
    vermilion, black = (213, 94, 0), (0, 0, 0)
    assert not coloured(still, vermilion).size
    left, right, legend = 0.1, 0.76, 0.255  # of the axes, and the end of the legend in them
    for action, colour in (
        (Widen("stage3.block1", 40), vermilion),
        (Insert("stage3.block1", 40), black),
    ):
        grown = FIRST.apply(action)
        for step in (40, 75):  # right of the legend
            png = architecture_over_time([record(step, applied=(action,)), record(100, grown)])
            place = left + (right - left) * step / 100
            columns = coloured(png, colour)
            frame = coloured(still, colour)
            new = [
                x for x in columns if legend < x < right and np.abs(frame - x).min(initial=1) > 1e-3
            ]
            assert new == pytest.approx([place] * len(new), abs=0.01)
            assert new


def test_a_wider_stream_and_many_blocks_can_be_drawn():
    history = [record(10, applied=(WidenStage("stage1", 4),))]
    history.append(record(20, FIRST.apply(WidenStage("stage1", 4))))
    assert pixels(architecture_over_time(history)).std() > 1
    deep = architecture_over_time([record(10, preset("resnet110"))])
    for stage in range(3):  # a hue each: the first block's
        first = [255 * part for part in shade_of(stage)]
        assert coloured(deep, first).size > WIDTH / 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], {"norm": "linear", "vmin": 1.01, "vmax": 1.99}),
        ([0.0, 100.0], {"norm": "linear", "vmin": 1.0, "vmax": 99.0}),
        ([1.0] * 99 + [1000.0] * 99, {"norm": "log", "vmin": 1.0, "vmax": 1000.0}),
        ([-1.0] * 99 + [3.0] * 99, {"cmap": "coolwarm", "vmin": -3.0, "vmax": 3.0}),
        ([math.nan, math.inf, 5.0], {"vmin": 5.0, "vmax": 5.0}),
        ([], {"vmin": 0.0, "vmax": 0.0}),
    ],
)
def test_colours_fit_the_values(values, expected):
    colours = _colours(np.array(values))
    assert {name: colours[name] for name in expected} == pytest.approx(expected)


def test_the_curves_differ_and_the_reference_is_one_of_them():
    first, last = record(1, value=1.0), record(2, value=2.0)
    alone = draw([first, last])["response_std_by_layer"]
    beside = draw([first, last], [record(3, value=3.0)])["response_std_by_layer"]
    assert (pixels(alone) != pixels(beside)).any()
    unread = replace(first, layers={})
    assert draw([unread, last])["response_std_by_layer"]


def test_drawing_leaves_pyplot_alone():
    """Which takes long to import and keeps every figure."""
    analysis = Path(history_pictures.__file__).parents[1]
    for path in [*(analysis / "showing").glob("*.py"), *(analysis / "reporting").glob("*.py")]:
        code = path.read_text()
        assert "import pyplot" not in code
        assert "matplotlib.pyplot" not in code
