"""A loop of one's own writes the pages that `train` writes, with any SummaryWriter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import CLIP, NETS, batch_of, network_of, sgd, take_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from analysis import Observer, Record, log_record
from analysis.observing.reading import STATISTICS, tag_of
from analysis.showing.tensorboard_writer import Board
from nets import Widen, grow

ALSO = ("max_abs", "gradient_histogram", "update_histogram", "gradient_norm_before_clipping")


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "tensors": 0})
    return events.Reload()


def scalars(events: Any) -> dict[str, tuple[int, float]]:
    tags = events.Tags()["scalars"]
    (found,) = ({tag: events.Scalars(tag) for tag in tags},)
    return {tag: (each[-1].step, each[-1].value) for tag, each in found.items()}


def text_of(events: Any, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_one_call_writes_every_number_and_histogram_of_a_window(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    with SummaryWriter(tmp_path) as writer, Observer(net, optimizer, also=ALSO) as observer:
        for step in range(4):
            take_step(net, optimizer, *batch_of(net.architecture.image, step), CLIP)
            if step % 2:
                found = observer.log(writer, 100 * step if step == 3 else None)
        histograms = observer.histograms()
        norms = observer.gradient_norm, observer.gradient_norm_before_clipping
    events = read(tmp_path)
    shown = scalars(events)
    expected = {
        tag_of(name, path): reading.value(name)
        for path, reading in found.items()
        for name in (*STATISTICS, "max_abs")
        if reading.value(name) is not None
    }
    expected |= {
        "gradient_norm/after_clipping": norms[0],
        "gradient_norm/before_clipping": norms[1],
    }
    assert shown.keys() == expected.keys()
    for tag, value in expected.items():
        assert shown[tag] == (300, pytest.approx(value, rel=1e-6)), tag
    assert [event.step for event in events.Scalars("head/response_std")] == [2, 300]
    tags = {tag_of(name, path): rows[path] for name, rows in histograms.items() for path in rows}
    assert set(events.Tags()["histograms"]) == tags.keys()
    for tag, histogram in tags.items():
        last = events.Histograms(tag)[-1]
        told = last.histogram_value
        assert (last.step, told.num) == (300, pytest.approx(sum(histogram.counts)))
        used = {b: n for b, n in zip(told.bucket_limit, told.bucket) if n}
        assert used == {b: n for b, n in zip(histogram.limits, histogram.counts) if n}


def test_nothing_is_written_twice_where_nothing_new_was_read(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    with SummaryWriter(tmp_path) as writer, Observer(net, optimizer, to_step=2) as observer:
        for step in range(4):
            take_step(net, optimizer, *batch_of(net.architecture.image, step))
            taken = observer.readings()  # by `Record.capture`, say
            assert observer.log(writer) is taken
    assert [each.step for each in read(tmp_path).Scalars("head/response_std")] == [1, 2]


def test_records_and_decisions_are_written_as_the_board_writes_them(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        take_step(net, optimizer, *batch_of(NETS["basic"].image, 0))
        record = Record.capture(net, observer, train_loss=1.5, validation_accuracy=0.5)
    action = Widen("stage1.block1", 2, reason="it is narrow")
    grown = grow(net, [action], optimizer, probe=batch_of(NETS["basic"].image, 1)[0])
    refused = ((Widen("head", 1), "no block"),)
    record = replace(record, decided=(action,), applied=(action,), refused=refused)
    with SummaryWriter(tmp_path / "theirs") as writer:
        log_record(writer, record, grown.difference)
    board = Board(tmp_path / "ours")
    board.record(record)
    board.growth(record.step, record.applied, record.refused, grown.difference)
    board.flush()
    theirs, ours = read(tmp_path / "theirs"), read(tmp_path / "ours")
    assert scalars(theirs) == scalars(ours)
    assert scalars(theirs)["loss/train"] == (1, 1.5)
    assert theirs.Tags()["tensors"] == ours.Tags()["tensors"]
    assert "it is narrow" in text_of(theirs, "growth")
    assert "no block" in text_of(theirs, "refused")


def test_the_charts_are_given_once_to_a_writer(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    for folder in ("one", "other"):
        with SummaryWriter(tmp_path / folder) as writer, Observer(net, optimizer) as observer:
            for step in range(3):
                take_step(net, optimizer, *batch_of(NETS["basic"].image, step))
                log_record(writer, Record.capture(net, observer))
        assert len(read(tmp_path / folder).Tensors("custom_scalars__config__")) == 1


def test_a_statistic_that_comes_later_gets_its_chart(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    with SummaryWriter(tmp_path) as writer:
        for extra in ({}, {"top": torch.max}, {}):
            with Observer(net, optimizer, extra=extra) as observer:
                take_step(net, optimizer, *batch_of(NETS["basic"].image, 0))
                log_record(writer, Record.capture(net, observer))
    charts = read(tmp_path).Tensors("custom_scalars__config__")
    assert len(charts) == 2
    assert b"top" in charts[-1].tensor_proto.string_val[0]


def test_a_writer_around_a_writer_takes_records(tmp_path):
    class Around:
        __slots__ = ("_inner",)
        __hash__ = None

        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

    net = network_of("basic")
    optimizer = sgd(net)
    with SummaryWriter(tmp_path) as writer, Observer(net, optimizer) as observer:
        take_step(net, optimizer, *batch_of(NETS["basic"].image, 0))
        log_record(Around(writer), Record.capture(net, observer, train_loss=1.5))
    assert scalars(read(tmp_path))["loss/train"] == (1, 1.5)


def test_what_was_decided_is_shown_where_nobody_says_what_was_done(tmp_path):
    net = network_of("basic")
    with Observer(net) as observer:
        record = Record.capture(net, observer, decided=(Widen("stage1.block1", 2, reason="why"),))
    with SummaryWriter(tmp_path) as writer:
        log_record(writer, record)
    assert "because: why" in text_of(read(tmp_path), "growth")


def test_without_anything_read_a_log_is_empty(tmp_path):
    net = network_of("basic")
    with SummaryWriter(tmp_path) as writer, Observer(net, sgd(net)) as observer:
        found = observer.log(writer)
    assert all(reading.response_std is None for reading in found.values())
    assert not scalars(read(tmp_path))
    assert torch.is_grad_enabled()
