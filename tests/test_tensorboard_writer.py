"""What stands in the event file, read back as TensorBoard reads it."""

import math
import random
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from histories import record_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import analysis.showing.tensorboard_writer
from analysis import LayerReading, Observer, Record
from analysis.observing.reading import STATISTICS
from analysis.recording.probes import Histogram
from analysis.showing.tables import growth_table
from analysis.showing.tensorboard_writer import (
    FIRST_LOOK,
    METRICS,
    UNCHANGED,
    Board,
    pattern_of,
    tag_of,
)
from nets import Insert, SetSurvival, Widen, build, cost, preset, seed_of

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


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Instead of the one for all tests: the pictures are looked at here."""


def record(step, **values) -> Record:
    numbers = {
        "train_loss": 1.5,
        "train_accuracy": 0.25,
        "validation_loss": 2.5,
        "validation_accuracy": 0.125,
        "learning_rate": 0.0625,
        "train_flops": 2**40,
        "layers": LAYERS,
        "importance": {"stage1.block1": -0.5, "stage2.block1": 2.0},
        "sensitivity": {"stage1.block1": 0.375},
        "probes": {"gain": {"stage2.block1": 0.25}},
    }
    return record_of(step, FIRST, **{**numbers, **values})


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
    board.record(record(10), images_per_second=320.0, average=(3.5, 0.75))
    board.growth(10, [Widen("stage1.block1", 2)], [], 0.03125)
    board.flush()
    expected = {
        "loss/train": 1.5,
        "loss/validation": 2.5,
        "accuracy/train": 0.25,
        "accuracy/validation": 0.125,
        "loss/validation_of_average": 3.5,
        "accuracy/validation_of_average": 0.75,
        "learning_rate": 0.0625,
        "images_per_second": 320.0,
        "network/parameters": cost(FIRST).parameters,
        "network/flops": cost(FIRST).flops,
        "network/train_flops": 2**40,
        UNCHANGED: 0.03125,
        "stage1.importance/block1": -0.5,
        "stage2.importance/block1": 2.0,
        "stage1.sensitivity/block1": 0.375,
        "stage2.gain/block1": 0.25,
        "stage1.rank/block1.bn1": 4.0,
    }
    for place, name in enumerate(STATISTICS):
        expected[f"stage1.{name}/block1.bn1"] = 0.5 + place
        expected.update({f"stem/{name}": 1.0} if place < 4 else {})
    over_flops = {
        "loss_over_MFLOPs/train": 1.5,
        "loss_over_MFLOPs/validation": 2.5,
        "accuracy_over_MFLOPs/train": 0.25,
        "accuracy_over_MFLOPs/validation": 0.125,
    }
    at_step = {tag: [(10, value)] for tag, value in expected.items()}
    at_flops = {tag: [(2**40 // 10**6, value)] for tag, value in over_flops.items()}
    assert scalars_of(tmp_path) == {**at_step, **at_flops}


def test_what_is_always_the_same_stands_last_and_the_first_look_first(tmp_path):
    board = Board(tmp_path)
    board.record(record(10))
    board.growth(10, [Widen("stage1.block1", 2)], [], 0.0)
    board.pictures([record(10)], (), [1.0])
    board.flush()
    tags = events_of(tmp_path).Tags()
    names = sorted(tags["scalars"] + tags["images"])
    assert names[:2] == list(FIRST_LOOK.values())[:2]  # capacity is not measured here
    assert names[-1] == UNCHANGED


def test_curves_over_flops_go_on_where_a_run_is_resumed(tmp_path):
    """What the mark has hidden of what the checkpoint knows is there again, and once."""
    history = [record(step, train_flops=step * 2 * 10**6) for step in (10, 20, 30)]
    board = Board(tmp_path)
    for each in history:
        board.record(each)
    board.flush()
    board = Board(tmp_path, purge_step=21, kept=history[:2])

    def shown():
        return [step for step, _ in scalars_of(tmp_path)["loss_over_MFLOPs/train"]]

    assert shown() == [20, 40]  # whatever becomes of the run now
    board.record(record(30, train_flops=61 * 10**6))
    board.to_disk()
    assert shown() == [20, 40, 61]


@pytest.mark.parametrize("many", [False, True])
def test_layers_of_many_runs_are_not_mixed_before_they_are_asked_for(tmp_path, many):
    board = Board(tmp_path, many=many)
    board.record(record(1))
    board.flush()
    (layout,) = layouts_of(tmp_path)
    assert [category.closed for category in layout.category] == [False, many]


def test_what_is_missing_is_left_out(tmp_path):
    board = Board(tmp_path)
    names = ("train_accuracy", "validation_accuracy", "validation_loss", "learning_rate")
    empty = {
        **dict.fromkeys(names),
        "layers": {},
        "importance": {},
        "sensitivity": {},
        "probes": {},
    }
    board.record(record(3, **empty, train_loss=math.nan, train_flops=0))
    board.growth(3, [Widen("stage1.block1", 2)], [], None)
    board.growth(3, [], [], 0.5)
    board.flush()
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
    board.flush()
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
    board.flush()


@pytest.mark.parametrize("purge", [None, 21])
def test_a_resumed_board_hides_what_came_after(tmp_path, purge):
    board = Board(tmp_path)
    for step in (10, 20, 30, 40):
        board.record(record(step, train_loss=float(step)))
    board.flush()
    board = Board(tmp_path, purge_step=purge)
    board.record(record(30, train_loss=3.0))
    board.flush()
    before = [(10, 10.0), (20, 20.0), *([] if purge else [(30, 30.0), (40, 40.0)])]
    assert scalars_of(tmp_path)["loss/train"] == [*before, (30, 3.0)]


@pytest.mark.parametrize(
    ("path", "tag"),
    [
        ("stage1.block2.bn1", "stage1.response_std/block2.bn1"),
        ("stage2.block1.shortcut.bn", "stage2.response_std/block1.shortcut.bn"),
        ("stage1.block2", "stage1.response_std/block2"),
        ("head", "head/response_std"),
        ("layer1.0.bn1", "layer1.response_std/0.bn1"),
        ("", "network/response_std"),  # of a net that is one layer
    ],
)
def test_a_group_is_a_statistic_of_a_stage_and_one_pattern_fits_all(path, tag):
    assert tag_of("response_std", path) == tag
    assert re.match(pattern_of("response_std"), tag)  # as TensorBoard matches
    for other in ("response_st", "std", "response_mean", "response_std_x"):
        assert not re.match(pattern_of(other), tag)


def test_110_layers_make_few_groups(tmp_path):
    layers = dict.fromkeys(preset("resnet110").blocks, LAYERS["stage1.block1.bn1"])
    board = Board(tmp_path)
    board.record(record(1, layers=layers, importance={}, sensitivity={}, probes={}))
    board.flush()
    groups = {tag.partition("/")[0] for tag in scalars_of(tmp_path)}
    assert len(groups) == 6 + 3 * (len(STATISTICS) + 1)
    assert not [group for group in groups if group.startswith("stage") and group < "network"]


def layouts_of(folder):
    events = events_of(folder)
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    return [
        Layout.FromString(event.tensor_proto.string_val[0])
        for event in events.Tensors("custom_scalars__config__")
    ]


def test_the_layout_has_one_chart_per_statistic(tmp_path):
    board = Board(tmp_path)
    board.record(record(0, layers={}))
    board.record(record(1))
    board.record(record(2))
    board.flush()
    (layout,) = layouts_of(tmp_path)
    over_flops, category = layout.category
    for chart in over_flops.chart:
        (pattern,) = chart.multiline.tag
        assert any(re.match(pattern, tag) for tag in scalars_of(tmp_path))
    assert [chart.title for chart in category.chart] == [*STATISTICS, "rank"]
    for chart in category.chart:
        (pattern,) = chart.multiline.tag
        matched = {tag for tag in scalars_of(tmp_path) if re.match(pattern, tag)}
        read = {p for p, reading in LAYERS.items() if reading.value(chart.title) is not None}
        assert matched == {tag_of(chart.title, path) for path in read}


@pytest.mark.parametrize(("purge", "layouts"), [(None, 1), (1, 1), (2, 0)])
def test_a_resumed_board_does_not_write_the_layout_again(tmp_path, purge, layouts):
    board = Board(tmp_path, purge_step=purge)
    board.record(record(2))
    board.flush()
    assert len(layouts_of(tmp_path)) == layouts


def test_histograms_keep_their_buckets(tmp_path):
    board = Board(tmp_path)
    limits, counts = [0.0, 0.5, 2.0], [4.0, 0.0, 12.0]
    counted = Histogram(-1.0, 2.0, 16, 13.0, 19.75, limits, counts)
    board.histograms(5, {"stem": counted, "stage1.block1.bn1": counted})
    board.flush()
    events = events_of(tmp_path)
    assert set(events.Tags()["histograms"]) == {"stem/response", "stage1.response/block1.bn1"}
    (event,) = events.Histograms("stem/response")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num) == (5, -1.0, 2.0, 16)
    assert (list(value.bucket_limit), list(value.bucket)) == (limits, counts)
    assert (value.sum, value.sum_squares) == (13.0, 19.75)


def test_pictures_and_the_growth_so_far_stand_at_the_last_step(tmp_path):
    history = [record(10, applied=(Widen("stage1.block1", 2, reason="narrow"),)), record(20)]
    board = Board(tmp_path)
    board.pictures(history, reference=history[:1])
    board.flush()
    events = events_of(tmp_path)
    names = ["statistics_over_time", "response_std_by_layer", "heat_map_rank"]
    pictures = {f"pictures/{n}" for n in (*names, *(f"heat_map_{n}" for n in STATISTICS))}
    assert set(events.Tags()["images"]) == {*list(FIRST_LOOK.values())[:2], *pictures}
    (event,) = events.Images(FIRST_LOOK["architecture"])
    image = Image.open(BytesIO(event.encoded_image_string))
    assert (event.step, event.width, event.height) == (20, *image.size)
    assert texts_of(tmp_path, "growth_history") == [(20, growth_table(history))]


def test_pictures_are_due_a_minute_after_the_last(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(analysis.showing.tensorboard_writer, "perf_counter", lambda: now[0])
    board = Board(tmp_path)
    for seconds, due in ((59, False), (61, True)):
        now[0] = seconds
        assert board.pictures_due is due
    board.pictures([record(1)])
    assert not board.pictures_due
    board.flush()


def test_settings_stand_beside_the_final_metrics(tmp_path):
    board = Board(tmp_path)
    board.record(record(7))
    board.hyperparameters(7, {"policy": "Never", "lr": 0.1, "seed": 3})
    board.flush()
    events = events_of(tmp_path)
    data = {
        tag: HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
        for tag in ("_hparams_/session_start_info", "_hparams_/experiment")
    }
    given = data["_hparams_/session_start_info"].session_start_info.hparams
    assert given["policy"].string_value == "Never"
    assert (given["lr"].number_value, given["seed"].number_value) == (0.1, 3)
    shown = data["_hparams_/experiment"].experiment
    assert {info.name for info in shown.hparam_infos} == {"policy", "lr", "seed"}
    tags = {info.name.tag for info in shown.metric_infos}
    assert tags == set(METRICS)
    assert tags < set(scalars_of(tmp_path))  # what is shown is the last value of a real tag


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_scalar_takes_at_most_50_bytes_and_200_epochs_of_resnet20_50_MB(tmp_path):
    """What `train` writes: a record and histograms each epoch, pictures at 20 growths."""
    net = build(preset("resnet20"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Observer(net, optimizer) as observer:
        net(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        read = Record.capture(net, observer, train_loss=1.0, validation_loss=1.0)
    history = [replace(read, step=352 * epoch) for epoch in range(1, 201)]
    history = [replace(each, layers=noisy(each)) for each in history]
    sizes = []
    for part in ("scalars", "histograms", "pictures"):
        board = Board(tmp_path / part)
        for each in history if part == "scalars" else ():
            board.record(each, images_per_second=1.0)
        if part == "histograms":
            counts = np.random.default_rng(0).uniform(0, 1e6, 30).tolist()
            limits = np.linspace(-4, 4, 30).tolist()
            counted = Histogram(-4.0, 4.0, int(sum(counts)), 1.5, 2.5, limits, counts)
            board.histograms(1, dict.fromkeys(read.layers, counted))
        if part == "pictures":
            board.pictures(history, history)
        board.flush()
        sizes.append(size_of(tmp_path / part))
    tags = len(scalars_of(tmp_path / "scalars"))
    per_scalar = sizes[0] / len(history) / tags
    samples = 200 * 352 // 10  # of 45,000 images in batches of 128
    run, sampled = sizes[0] + 200 * sizes[1] + 20 * sizes[2], samples * tags * per_scalar
    print(f"{tags} scalars a record, {per_scalar:.1f} bytes each; a run {run / 1e6:.1f} MB, ")
    print(f"pictures {sizes[2] / 1e6:.2f} MB; a record at every sample {sampled / 1e6:.1f} MB")
    assert tags > 150
    assert per_scalar < 50
    assert run < 50e6
    assert sampled < 50e6


def noisy(read):
    """The readings with other numbers, so that pictures of them compress no better than real."""
    generator = random.Random(read.step)
    return {
        path: replace(
            reading,
            **{
                name: reading.value(name) * generator.uniform(0.5, 2)
                for name in STATISTICS
                if reading.value(name) is not None
            },
        )
        for path, reading in read.layers.items()
    }
