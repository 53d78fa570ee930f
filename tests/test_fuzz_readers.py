"""Readers of files, fed with what was changed or made up: they read it, or raise a ValueError."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from analysis import LayerReading, Record, read_history
from nets import (
    Architecture,
    Freeze,
    Insert,
    Narrow,
    Remove,
    SetSurvival,
    Unfreeze,
    Widen,
    WidenStage,
    action_from_dict,
    action_to_dict,
    cost,
    preset,
    seed_of,
)
from policies import Periodic, Plateau
from training.commandline.options import make_parser
from training.commandline.parser import Exit
from training.settings.config_yaml import settings_to_dict
from training.settings.start_settings import Start
from training.settings.train_settings import Train

HEALTH = list(HealthCheck)
LIMIT = preset("resnet8", image=(1, 8, 8))
ACTIONS = (
    Widen("stage1.block1", 2),
    WidenStage("stage1", 2, initializer="he"),
    Insert("stage1.block1", 8, 0.5, reason="why"),
    Remove("stage1.block2", 3),
    Narrow("stage1.block1", 1),
    Freeze("stage2", None),
    Freeze("stage3.block1", 2),
    Unfreeze("stage2"),
    SetSurvival("stage1.block1", 0.5, "row"),
)
GROWN = reduce(Architecture.apply, ACTIONS[:3], seed_of(LIMIT))
READING = LayerReading("stage1.block1", "inner", 0.1, 0.2, 0.3, edited=4, extra={"rank": 2.0})
RECORD = Record(
    step=12,
    epoch=0.5,
    spent=0.25,
    seed=3,
    architecture=GROWN,
    limit=cost(LIMIT),
    train_loss=1.5,
    layers={"stem": LayerReading(None, "stem"), "stage1.block1.bn1": READING},
    importance={"stage1.block1": 0.5},
    probes={"gain": {"stage1.block1": 0.5}},
    decided=ACTIONS,
    applied=(Widen("stage1.block1", 3),),
    refused=((Insert("stage2.block1", 8), "the limit"),),
)
SETTINGS = settings_to_dict(Train(policy=Plateau(), start=Start(0.5, None), lr=0.1, out="x"))

NUMBERS = st.sampled_from([0, -1, 1, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320])
NUMBERS |= st.sampled_from([float("nan"), float("inf"), -float("inf"), True, False])
LEAVES = st.none() | NUMBERS | st.integers() | st.floats() | st.text(max_size=6)
LEAVES |= st.sampled_from(
    ["stage1", "stage1.block1", "stem", "Widen", "a\nb", "\x00", "\ud800", ""]
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the paths to all that lies in nested data."""
    found = []
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """The data with a few places deleted, renamed, or given other values."""
    data = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        found = places(data)
        assume(found)
        *way, last = draw(st.sampled_from(found))
        holder = reduce(lambda part, key: part[key], way, data)
        kind = draw(st.sampled_from(["delete", "rename", "twice", "value", "value", "value"]))
        if kind == "value":
            holder[last] = draw(ANYTHING)
        elif isinstance(holder, dict):
            value = holder.pop(last)
            if kind != "delete":
                holder[draw(st.text(max_size=4))] = value
        elif kind == "twice":
            holder.append(holder[last])
        else:
            del holder[last]
    return data


def reads(read: Callable[[Any], Any], data: Any) -> Any:
    """Give what a reader makes of the data, None where it refuses with one line."""
    try:
        return read(data)
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, said
    return None


def modest(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=HEALTH,
        database=None,
    )


@modest(150)
@given(changed(json.loads(json.dumps(RECORD.to_dict()))))
def test_a_changed_record_is_read_or_refused(data):
    record = reads(Record.from_dict, data)
    if record is not None:
        assert json.dumps(record.to_dict())
        assert record.cost.flops > 0


@modest(150)
@given(changed(GROWN.to_dict()))
def test_a_changed_architecture_is_read_or_refused(data):
    architecture = reads(Architecture.from_dict, data)
    if architecture is not None:
        assert Architecture.from_dict(architecture.to_dict()) == architecture
        assert cost(architecture).parameters > 0


@modest(100)
@given(st.sampled_from(ACTIONS).flatmap(lambda action: changed(action_to_dict(action))))
def test_a_changed_action_is_read_or_refused_and_so_is_what_it_does(data):
    action = reads(action_from_dict, data)
    if action is not None:
        reads(GROWN.apply, action)
        assert action_to_dict(action)["action"] == data["action"]


@pytest.mark.parametrize("read", [Record.from_dict, Architecture.from_dict, action_from_dict])
@modest(60)
@given(ANYTHING)
def test_made_up_data_is_refused(read, data):
    assert reads(read, data) is None


@modest(100)
@given(st.data())
def test_a_history_with_damaged_bytes_is_read_or_refused(tmp_path_factory, data):
    whole = (json.dumps(RECORD.to_dict()) + "\n").encode() * 2
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    path = tmp_path_factory.getbasetemp() / "history.jsonl"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=9)) + whole[end:])
    reads(read_history, path)


@modest(100)
@given(changed({name: value for name, value in SETTINGS.items() if name != "policy"}))
def test_changed_settings_are_made_or_refused(data):
    start = data.get("start")
    assume(start is None or (isinstance(start, dict) and start.keys() <= vars(Start()).keys()))
    assume(data.keys() <= SETTINGS.keys())
    data = {**data, "start": None if start is None else reads(lambda d: Start(**d), start)}
    made = reads(lambda d: Train(**d, policy=Periodic()), data)
    if made is not None:
        assert yaml.safe_load(yaml.safe_dump(settings_to_dict(made)))


PARSER = make_parser()


@modest(60)
@given(changed(SETTINGS))
def test_a_changed_config_file_is_accepted_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8", errors="surrogatepass")
    with suppress(Exit):
        reads(PARSER.parse_args, ["train", "--config", str(path)])
