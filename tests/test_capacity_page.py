"""What people see of where capacity is missing: the text, the picture, TensorBoard, inspect."""

from io import BytesIO

import numpy as np
import pytest
from histories import record_of, write_history
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from analysis.capacity.missing_capacity import channel_flops, rank
from analysis.showing.capacity_page import capacity_picture, capacity_text, log_ticks
from analysis.showing.history_pictures import draw
from analysis.showing.tensorboard_writer import FIRST_LOOK, Board
from nets import preset, seed_of

NET = seed_of(preset("resnet8", image=(1, 8, 8)))
PRICES = channel_flops(NET)


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Instead of the one for all tests: the picture is looked at here."""


def history(two=3.0, records=6):
    values = {"stage1.block1": 1.0, "stage2.block1": two, "stage3.block1": 0.5}
    found = {name: value * PRICES[name] for name, value in values.items()}
    return [record_of(step, NET, sensitivity=found) for step in range(1, records + 1)]


def test_the_text_names_the_stage_and_says_by_how_much():
    words = capacity_text(history())
    assert words.startswith("**Capacity is missing in stage2: ")
    assert "3.0 times as much (2.0 to 4.5)" in words
    lines = [line for line in words.splitlines() if line.startswith("| stage")]
    assert [line.split()[1] for line in lines] == ["stage2", "stage1", "stage3"]
    assert "| stage2 | 2.62 (2.15 to 3.20) |" in lines[0]
    assert "docs/capacity.md" in words


def test_the_text_says_that_nothing_tells():
    assert capacity_text(history(two=1.1)).startswith("**Nothing tells: ")
    assert capacity_text(history(records=3)).startswith("Nothing tells yet: ")
    assert capacity_text([record_of(1)]).startswith("Nothing tells: the records hold no")


def test_the_picture_has_a_dark_bar_where_capacity_is_missing():
    def orange(two):
        image = Image.open(BytesIO(capacity_picture(rank(history(two)))))
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
        return int(((red > 180) & (green < 130) & (blue < 60)).sum())

    assert orange(3.0) > 50
    assert orange(1.1) == 0


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0.69, 1.45, [0.8, 1, 1.2]),
        (0.4, 1.5, [0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5]),
        (0.15, 3, [0.2, 0.5, 1, 2]),
    ],
)
def test_the_picture_has_ticks_on_both_sides_of_1(least, most, expected):
    assert log_ticks(least, most) == pytest.approx(expected)


def test_it_is_among_a_historys_pictures_where_there_is_something_to_rank():
    assert "capacity" in draw(history())
    assert "capacity" not in draw(history(records=3))


def test_tensorboard_has_the_text_and_the_picture(tmp_path):
    board = Board(tmp_path)
    board.capacity(history())
    board.pictures(history())
    board.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("capacity/text_summary")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (6, capacity_text(history()))
    tags = events.Tags()["images"]
    assert {FIRST_LOOK["capacity"], FIRST_LOOK["architecture"]} <= set(tags)
    assert "pictures/capacity" not in tags


def test_inspect_says_it_first(tmp_path, capsys):
    write_history(tmp_path / "run", history())
    assert run.main(["inspect", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "Where capacity is missing\n\n**Capacity is missing in stage2" in output
    assert output.index("Where capacity is missing") < output.index("Growth and other edits")
    assert (tmp_path / "run" / "pictures" / "capacity.png").exists()
