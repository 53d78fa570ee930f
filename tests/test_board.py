"""What stands in the event file, read back as TensorBoard reads it."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis import LayerReading, Record
from analysis.board import Board
from analysis.record import STATISTICS
from nets import Insert, SetSurvival, Widen, cost, preset, seed_of

LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST = seed_of(LIMIT)
LAYERS = {
    "stem": LayerReading(None, "stem", **dict.fromkeys(STATISTICS[:4], 1.0)),
    "stage1.block1.bn1": LayerReading(
        "stage1.block1",
        "inner",
        **{name: 0.5 + place for place, name in enumerate(STATISTICS)},
        extra={"rank": 4.0},
    ),
    "stage1.block1": LayerReading("stage1.block1", "stream"),
}


def record(step, **values):
    numbers = {
        "train_loss": 1.5,
        "train_accuracy": 0.25,
        "validation_loss": 2.5,
        "validation_accuracy": 0.125,
        "learning_rate": 0.0625,
        "train_flops": 2**40,
        "layers": LAYERS,
        "importance": {"stage1.block1": -0.5, "stage2.block1": 2.0},
    }
    given = {"step": step, "epoch": 1.0, "spent": 0.5, "seed": 0}
    given = {**given, "architecture": FIRST, "limit": cost(LIMIT)}
    return Record(**{**given, **numbers, **values})


def events_of(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars_of(folder):
    """Tag -> [(step, value), ...]."""
    events = events_of(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def texts_of(folder, tag):
    events = events_of(folder).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_a_record_gives_every_promised_tag(tmp_path):
    board = Board(tmp_path)
    board.record(record(10), images_per_second=320.0)
    board.growth(10, [Widen("stage1.block1", 2)], [], 0.03125)
    board.close()
    expected = {
        "loss/train": 1.5,
        "loss/validation": 2.5,
        "accuracy/train": 0.25,
        "accuracy/validation": 0.125,
        "learning_rate": 0.0625,
        "images_per_second": 320.0,
        "network/parameters": cost(FIRST).parameters,
        "network/flops": cost(FIRST).flops,
        "network/train_flops": 2**40,
        "growth/difference": 0.03125,
        "importance/stage1.block1": -0.5,
        "importance/stage2.block1": 2.0,
        "rank/stage1.block1.bn1": 4.0,
    }
    for place, name in enumerate(STATISTICS):
        expected[f"{name}/stage1.block1.bn1"] = 0.5 + place
        expected.update({f"{name}/stem": 1.0} if place < 4 else {})
    assert scalars_of(tmp_path) == {tag: [(10, value)] for tag, value in expected.items()}


def test_what_is_missing_is_left_out(tmp_path):
    board = Board(tmp_path)
    names = ("train_accuracy", "validation_accuracy", "validation_loss", "learning_rate")
    empty = dict.fromkeys(names)
    board.record(record(3, **empty, layers={}, importance={}, train_loss=math.nan))
    board.growth(3, [Widen("stage1.block1", 2)], [], None)
    board.growth(3, [], [], 0.5)
    board.close()
    scalars = scalars_of(tmp_path)
    assert set(scalars) == {
        "loss/train",
        *(f"network/{n}" for n in ("flops", "parameters", "train_flops")),
    }
    assert math.isnan(scalars["loss/train"][0][1])


def test_growth_and_refusals_say_why(tmp_path):
    board = Board(tmp_path)
    applied = [
        Widen("stage1.block1", 2, reason="residual ratio 0.4"),
        SetSurvival("stage1.block1", 0.5),
    ]
    refused = [(Insert("stage2.block1", 8, reason="turn 2"), "the limit is 3")]
    board.growth(7, applied, refused, 1e-7)
    board.growth(9, [Insert("stage3.block1", 16)], [], 0.0)
    board.close()
    assert texts_of(tmp_path, "growth") == [
        (
            7,
            "- Widen(block='stage1.block1', by=2), because: residual ratio 0.4\n"
            "- SetSurvival(block='stage1.block1', probability=0.5)\n\n"
            "outputs moved by 1e-07 (relative)",
        ),
        (
            9,
            "- Insert(after='stage3.block1', width=16, survival=1.0)\n\n"
            "outputs moved by 0 (relative)",
        ),
    ]
    insert = "- Insert(after='stage2.block1', width=8, survival=1.0)"
    assert texts_of(tmp_path, "refused") == [(7, f"{insert}, because: turn 2: the limit is 3")]


def test_flush_writes_what_is_waiting(tmp_path):
    board = Board(tmp_path)
    board.record(record(1))
    board.flush()
    assert scalars_of(tmp_path)["loss/train"] == [(1, 1.5)]
    board.close()


@pytest.mark.parametrize("purge", [None, 21])
def test_a_resumed_board_hides_what_came_after(tmp_path, purge):
    board = Board(tmp_path)
    for step in (10, 20, 30, 40):
        board.record(record(step, train_loss=float(step)))
    board.close()
    board = Board(tmp_path, purge_step=purge)
    board.record(record(30, train_loss=3.0))
    board.close()
    before = [(10, 10.0), (20, 20.0), *([] if purge else [(30, 30.0), (40, 40.0)])]
    assert scalars_of(tmp_path)["loss/train"] == [*before, (30, 3.0)]
