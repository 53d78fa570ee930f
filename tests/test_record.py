"""Records as lines of JSON, and made in a loop of one's own."""

import json
import math
import random
import re
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch
from histories import write_history
from makers import take_step

from analysis import LayerReading, Observer, Record, read_history
from analysis.observing.reading import STATISTICS
from analysis.recording.record import UNBOUNDED
from nets import Cost, Insert, SetSurvival, Widen, build, cost, grow, preset, seed_of

LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST = seed_of(LIMIT)

READING = LayerReading(
    "stage1.block1",
    "inner",
    response_mean=-0.25,
    response_std=0.1 + 0.2,
    gradient_norm=1e-30,
    weight_norm=3.0,
    update_ratio=1 / 3,
    dead_fraction=0.0,
    residual_ratio=math.inf,
    edited=0,
    extra={"rank": 2.5, "of mine": -1.0},
)
FULL = Record(
    step=120,
    epoch=1 / 3,
    spent=0.1,
    seed=7,
    architecture=FIRST.apply(Insert("stage2.block1", 8, 0.5)),
    limit=cost(LIMIT),
    train_flops=10**17 + 1,
    train_loss=0.1 + 0.2,
    train_accuracy=1.0,
    validation_loss=2.5,
    validation_accuracy=0.0,
    ema_validation_loss=1.5,
    learning_rate=1e-8,
    layers={"stage1.block1.bn1": READING, "stem": LayerReading(None, "stem")},
    importance={"stage1.block1": -0.125},
    grow_until=0.75,
    probes={"gain": {"stage1.block1": 0.1 + 0.2}},
    decided=(
        Widen("stage1.block1", 3, reason="wide – or ‘narrow’\u2028"),
        Insert("stage2.block1", 8, 0.5, initializer="xavier"),
        SetSurvival("stage3.block1", 0.5),
    ),
    applied=(Widen("stage1.block1", 3),),
    refused=((Insert("stage2.block1", 8, 0.5), "the limit is small\nand so on"),),
)
BARE = Record(step=0, epoch=0.0, spent=0.0, seed=0, architecture=FIRST, limit=cost(LIMIT))


def test_records_survive_the_file(tmp_path):
    read = read_history(write_history(tmp_path, [BARE, BARE, FULL]))
    assert read == [BARE, BARE, FULL]
    assert read_history(tmp_path) == read  # the folder of a run
    assert read[2].decided[0].reason == FULL.decided[0].reason
    assert read[2].decided[1].initializer == "xavier"
    assert read[2].cost == FULL.cost
    assert [record.to_dict() for record in read] == [r.to_dict() for r in (BARE, BARE, FULL)]


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    data = FULL.to_dict()
    del data["ema_validation_loss"], data["grow_until"]
    (tmp_path / "history.jsonl").write_text(json.dumps(data) + "\n")
    assert read_history(tmp_path) == [replace(FULL, ema_validation_loss=None, grow_until=0.6)]


@pytest.mark.parametrize("value", [-0.1, 1.1, "0.5", None, True])
def test_grow_until_is_a_fraction(tmp_path, value):
    line = json.dumps({**FULL.to_dict(), "grow_until": value})
    (tmp_path / "history.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1: grow_until must be"):
        read_history(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_survives_the_file(tmp_path, value):
    reading = replace(READING, response_std=value, extra={"mine": value})
    names = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
    given = replace(FULL, **dict.fromkeys(names, value), layers={"a": reading})
    (read,) = read_history(write_history(tmp_path, [given]))
    found = [getattr(read, name) for name in names]
    found += [read.layers["a"].value("response_std"), read.layers["a"].value("mine")]
    assert all(type(number) is float for number in found)
    assert [str(number) for number in found] == [str(value)] * 6


def test_a_function_as_initializer_is_kept_by_its_name(tmp_path):
    def orthogonal(shape, generator):
        return torch.zeros(shape)

    given = replace(BARE, applied=(Widen("stage1.block1", 1, initializer=orthogonal),))
    (read,) = read_history(write_history(tmp_path, [given]))
    assert read.applied[0].initializer == "orthogonal"


def test_empty_fields_of_readings_are_left_out():
    data = FULL.to_dict()["layers"]
    assert data["stem"] == {"block": None, "role": "stem"}
    assert data["stage1.block1.bn1"]["dead_fraction"] == 0.0
    assert data["stage1.block1.bn1"]["edited"] == 0


def test_a_reading_gives_statistics_by_name():
    for name in STATISTICS:
        assert READING.value(name) == getattr(READING, name)
    assert READING.value("rank") == 2.5
    assert READING.value("block") is None
    assert READING.value("unknown") is None


@pytest.mark.parametrize("value", [FULL, READING])
def test_records_and_readings_are_frozen(value):
    with pytest.raises(FrozenInstanceError):
        value.step = 3


def without(name):
    return {key: value for key, value in FULL.to_dict().items() if key != name}


BROKEN = {
    "cut short": json.dumps(FULL.to_dict())[:100],
    "empty line": "",
    "no object": "[1, 2]",
    "a number": "7",
    "null": "null",
    "a text": '"record"',
    "empty object": "{}",
    "no architecture": json.dumps(without("architecture")),
    "no step": json.dumps(without("step")),
    "no layers": json.dumps(without("layers")),
    "unknown field": json.dumps({**FULL.to_dict(), "colour": 1}),
    "layers no object": json.dumps({**FULL.to_dict(), "layers": [1]}),
    "reading no object": json.dumps({**FULL.to_dict(), "layers": {"a": 1}}),
    "unknown statistic": json.dumps({**FULL.to_dict(), "layers": {"a": {"colour": 1}}}),
    "unknown action": json.dumps({**FULL.to_dict(), "applied": [{"action": "Cut"}]}),
    "action no object": json.dumps({**FULL.to_dict(), "decided": ["Widen"]}),
    "refused no pair": json.dumps({**FULL.to_dict(), "refused": [[{"action": "Widen"}]]}),
    "limit no object": json.dumps({**FULL.to_dict(), "limit": 3}),
    "unknown limit": json.dumps({**FULL.to_dict(), "limit": {"seconds": 3}}),
    "bad architecture": json.dumps({**FULL.to_dict(), "architecture": {"stages": [{}]}}),
    "not text": b"\xff\xfe\x00garbage",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named(tmp_path, name):
    path, broken = write_history(tmp_path, [BARE, FULL]), BROKEN[name]
    data = broken if isinstance(broken, bytes) else broken.encode()
    good = path.read_bytes()
    path.write_bytes(good + data + b"\n" + good)
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: ")) as caught:
        read_history(path)
    assert "\n" not in str(caught.value)


def mangled(data, draw):
    """The same data with one value, somewhere, replaced by garbage or left out."""
    if isinstance(data, dict) and data and draw.random() < 0.85:
        key = draw.choice(list(data))
        if draw.random() < 0.1:
            return {name: value for name, value in data.items() if name != key}
        return {**data, key: mangled(data[key], draw)}
    if isinstance(data, list) and data and draw.random() < 0.85:
        place = draw.randrange(len(data))
        return [*data[:place], mangled(data[place], draw), *data[place + 1 :]]
    garbage = [None, True, -1, 0, 1.5, "", "x", [], {}, [[]], {"x": 1}, [None], math.nan, 10**400]
    return draw.choice(garbage)


def test_garbage_is_refused_with_a_value_error_or_read():
    draw, said = random.Random(0), []
    for _ in range(3000):
        data = mangled(FULL.to_dict(), draw)
        try:
            Record.from_dict(data)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 900
    assert not any("\n" in message for message in said)


def test_a_missing_history_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"history must be a history\.jsonl file or a run folder"):
        read_history(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "none"))):
        read_history(tmp_path / "none")


def test_an_empty_history_has_no_records(tmp_path):
    assert read_history(write_history(tmp_path, [])) == []


def test_capture_in_a_loop_of_ones_own(tmp_path):
    torch.manual_seed(0)
    net = build(FIRST)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    history = []
    with Observer(net, optimizer) as observer:
        for _ in range(2):
            for _ in range(3):
                take_step(net, optimizer, torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
            history.append(Record.capture(net, observer, validation_loss=1.5, seed=3))
        readings = observer.readings()
    assert [record.step for record in history] == [3, 6]
    for record in history:
        assert (record.epoch, record.spent, record.seed) == (0.0, 0.0, 3)
        assert record.limit == UNBOUNDED
        assert record.validation_loss == 1.5
        assert record.architecture == FIRST
        assert list(record.layers) == list(readings)
        assert (record.decided, record.applied, record.refused) == ((), (), ())
    assert history[1].layers == readings != history[0].layers
    limit = cost(LIMIT)
    numbers = {"step": 9, "spent": 0.5, "epoch": 2.0, "limit": limit, "layers": {}}
    given = Record.capture(net, observer, **numbers, applied=[Widen("stage1.block1", 1)])
    assert asdict(given)["limit"] == asdict(limit)
    assert (given.step, given.spent, given.epoch, given.layers) == (9, 0.5, 2.0, {})
    assert read_history(write_history(tmp_path, history)) == history
    with pytest.raises(TypeError, match="colour"):
        Record.capture(net, observer, colour=1)
    with pytest.raises(ValueError, match=r"^net must be a network from nets\.build, got a Linear$"):
        Record.capture(torch.nn.Linear(2, 2), observer)


def test_capture_takes_the_numbers_of_tensors_and_arrays(tmp_path):
    net = build(FIRST)
    loss = torch.tensor(1.5, requires_grad=True)
    numbers = {"train_loss": loss, "validation_loss": np.float32(0.5), "seed": np.int64(3)}
    record = Record.capture(net, Observer(net), spent=np.array(0.25), **numbers)
    assert (record.train_loss, record.validation_loss, record.spent) == (1.5, 0.5, 0.25)
    assert read_history(write_history(tmp_path, [record])) == [record]


def test_cost_is_that_of_the_architecture_in_force():
    assert FULL.cost == cost(FULL.architecture) != cost(FIRST)
    assert isinstance(FULL.cost, Cost)


def test_capture_refuses_another_network_than_the_one_that_was_read():
    """A notebook's loop that forgets one of the two after a growth would get the old readings."""
    net = build(seed_of(preset("resnet8", image=(1, 8, 8)), blocks=1))
    with Observer(net) as observer:
        net(torch.randn(2, 1, 8, 8)).sum().backward()
        grown = grow(net, Widen("stage1.block1", 1)).network
        with pytest.raises(ValueError, match=r"^net must be the network that observer reads"):
            Record.capture(grown, observer)
        observer.follow(grown)
        with pytest.raises(ValueError, match=r"^net must be the network that observer reads"):
            Record.capture(net, observer)
        assert Record.capture(grown, observer).architecture == grown.architecture
    compiled = torch.compile(grown)
    for reader in (Observer(torch.nn.Sequential(torch.nn.Identity(), compiled)), Observer(grown)):
        for net in (grown, compiled):
            assert Record.capture(net, reader).architecture == grown.architecture
