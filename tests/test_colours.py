"""Colours that can be told apart, and labels that do not lie over one another."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.showing.colours import GREY, HUES, MARKERS, STAGES, apart, shade_of, styles_of

DEUTERANOPIA = np.array(  # Machado et al. 2009, severity 1
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def seen(colour: str) -> np.ndarray:
    """As without the cones for green, and as bright as sRGB writes it."""
    light = np.clip(DEUTERANOPIA @ linear(colour), 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("palette", [HUES, STAGES])
def test_no_two_hues_look_the_same_without_green_cones(palette):
    for place, first in enumerate(palette):
        for second in palette[place + 1 :]:
            assert np.abs(seen(first) - seen(second)).max() > 0.1, (first, second)


@pytest.mark.parametrize("colour", [*HUES, GREY])
def test_every_colour_is_seen_on_white_and_on_a_dark_page(colour):
    light = luminance(colour)
    assert (1 + 0.05) / (light + 0.05) > 2
    assert (light + 0.05) / (0.0085 + 0.05) > 3


def test_42_rows_differ_in_hue_or_marker_and_static_ones_are_grey():
    rows = [f"row{number}" for number in range(42)]
    styles = styles_of([*rows, "a", "b"], ["a", "b"])
    assert len({(styles[row].color, styles[row].marker) for row in rows}) == 42
    assert len(MARKERS) * len(HUES) == 42
    assert {styles[name].color for name in "ab"} == {GREY}
    assert styles["a"].line != styles["b"].line


def test_blocks_of_a_stage_grow_paler_and_stages_differ():
    shades = [sum(shade_of(1, place, 5)) for place in range(5)]
    assert shades == sorted(set(shades))
    assert shade_of(0) != shade_of(1)
    assert all(0 <= part <= 1 for part in shade_of(7, 3, 4))


@pytest.mark.parametrize(
    ("heights", "moved"),
    [
        ([], []),
        ([3.0], [3.0]),
        ([0.0, 5.0, 9.0], [0.0, 5.0, 9.0]),  # nothing lies over another
        ([1.0, 1.0], [0.5, 1.5]),
        ([2.0, 1.0, 1.5], [2.5, 0.5, 1.5]),
        ([0.0, 0.0, 0.9, 10.0], [-0.7, 0.3, 1.3, 10.0]),
    ],
)
def test_labels_are_moved_no_more_than_they_must(heights, moved):
    assert apart(heights, 1.0) == pytest.approx(moved)
