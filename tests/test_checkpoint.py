"""Checkpoints: all comes back bit for bit, and what is no checkpoint of the run is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from makers import batch_for, differences, take_step

from analysis import Observer
from nets import Freeze, Insert, Network, Widen, build, grow, preset, seed_of
from training.computing.budget import Progress
from training.computing.optimizer import make_optimizer
from training.keeping.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    network_of,
    optimizer_state,
    save_checkpoint,
    set_generators,
)
from training.settings.train_settings import Train

IDENTITY = {
    "data": "digits",
    "seed": 0,
    "epochs": 0.5,
    "policy": {"class_path": "a.B", "init_args": {}},
}
SMALL = seed_of(preset("resnet8", image=(1, 8, 8)))


def step_of(net: Network, optimizer: torch.optim.Optimizer, step: int) -> None:
    take_step(net, optimizer, *batch_for(SMALL, step, 8))


def trained(kind: str = "sgd") -> tuple[Network, torch.optim.Optimizer, Observer]:
    """A net that has taken steps, grown and taken more, its observer in the middle of a window."""
    net = build(SMALL, seed=1).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, Train(optimizer=kind))
    with Observer(net, optimizer) as observer:
        for step in range(2):
            step_of(net, optimizer, step)
        grown = grow(net, [Widen("stage1.block1", 2), Insert("stage2.block1", 4, 0.5)], optimizer)
        net, optimizer = grown.network, grown.optimizer
        observer.follow(grown)
        for step in range(2, 5):
            step_of(net, optimizer, step)
    return net, optimizer, observer


def save(path: Path, kind: str = "sgd") -> tuple[Network, torch.optim.Optimizer, Observer]:
    net, optimizer, observer = trained(kind)
    window = torch.tensor([1.5, 2.0, 8.0], dtype=torch.float64)
    progress = Progress(step=5, epoch=1, position=2, images=40, flops=2**70, records=3, boundary=4)
    save_checkpoint(path, net, optimizer, progress, observer, window, IDENTITY)
    return net, optimizer, observer


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    net, optimizer, observer = save(path, kind)
    state = load_checkpoint(path, IDENTITY)
    assert state["architecture"] == net.architecture
    again = network_of(state, path)
    other = make_optimizer(again, Train(optimizer=kind, lr=123))
    load_optimizer_state(again, other, state["optimizer"])
    assert not differences(dict(again.state_dict()), dict(net.state_dict()))
    assert not differences(optimizer_state(again, other), optimizer_state(net, optimizer))
    watch = Observer(again, other)
    watch.load_state_dict(state["observer"])
    with observer, watch:
        for step in range(5, 8):
            step_of(net, optimizer, step)
            step_of(again, other, step)
    assert not differences(dict(again.state_dict()), dict(net.state_dict()))
    assert not differences(optimizer_state(again, other), optimizer_state(net, optimizer))
    assert watch.readings() == observer.readings()
    assert watch.step == observer.step == 8
    assert state["progress"]["flops"] == 2**70
    assert not differences(state["window"], torch.tensor([1.5, 2.0, 8.0], dtype=torch.float64))


def test_loading_shares_nothing_with_the_file_and_the_old_optimizer(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    state = load_checkpoint(path, IDENTITY)
    before = load_checkpoint(path, IDENTITY)
    net = network_of(state, path)
    optimizer = make_optimizer(net, Train())
    load_optimizer_state(net, optimizer, state["optimizer"])
    step_of(net, optimizer, 0)
    assert not differences(load_checkpoint(path, IDENTITY)["weights"], before["weights"])


def test_the_file_is_plain_data_that_begins_with_the_architecture(tmp_path):
    path = tmp_path / "checkpoint.pt"
    net, *_ = save(path)
    state = torch.load(path, weights_only=True)
    assert next(iter(state)) == "architecture"
    assert state["architecture"] == net.architecture.to_dict()
    assert state["optimizer"]["state"].keys() == dict(net.named_parameters()).keys()
    assert [set(group["params"]) for group in state["optimizer"]["groups"]] == [
        {name for name, value in net.named_parameters() if value.dim() > 1},
        {name for name, value in net.named_parameters() if value.dim() <= 1},
    ]
    assert state["identity"] == IDENTITY
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_cut_short_anywhere_is_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    whole = path.read_bytes()
    for length in (
        0,
        1,
        3,
        4,
        100,
        1000,
        len(whole) // 3,
        len(whole) // 2,
        *range(len(whole) - 30, len(whole)),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"^checkpoint .*checkpoint\.pt cannot be read: .+$"
        ) as caught:
            load_checkpoint(path, IDENTITY)
        assert "\n" not in str(caught.value)


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        b"no checkpoint at all" * 100,
        b"PK\x03\x04" + bytes(5000),
        {"weights": {}},
        {"identity": IDENTITY},
        {"identity": IDENTITY, "architecture": {"stages": []}},
        {"identity": None, "architecture": SMALL.to_dict()},
        [1, 2],
        7,
    ],
    ids=["text", "zip", "weights", "identity", "no stages", "no identity", "list", "number"],
)
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"^checkpoint .* (cannot be read: .+|is of another run.*)$"
    ):
        load_checkpoint(path, IDENTITY)


def test_a_checkpoint_cannot_run_code(tmp_path):
    trap = tmp_path / "trap"
    for name in ("pickle", "torch"):
        path = tmp_path / f"{name}.pt"
        state = {"identity": IDENTITY, "architecture": SMALL.to_dict(), "weights": Intruder(trap)}
        if name == "pickle":
            path.write_bytes(pickle.dumps(state))
        else:
            torch.save(state, path)
        with pytest.raises(ValueError, match="cannot be read"):
            load_checkpoint(path, IDENTITY)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "mnist"),
        ("seed", 1),
        ("epochs", 1.0),
        ("policy", {"class_path": "a.C"}),
        ("new", 1),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_the_setting_named(tmp_path, name, value):
    path = tmp_path / "checkpoint.pt"
    save(path)
    with pytest.raises(ValueError, match=f"is of another run: {name} is .*, not "):
        load_checkpoint(path, {**IDENTITY, name: value})


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    state = load_checkpoint(path, IDENTITY)
    with pytest.raises(ValueError, match="its weights are not those of its architecture"):
        network_of({**state, "architecture": SMALL}, path)


KINDS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
}
HOWS = {"foreach": "cpu", "fused": "meta", "capturable": "meta", "differentiable": "cpu"}
"""Where an optimizer that works that way wants its `step`, for parameters on the meta device."""


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_where_the_optimizer_wants_it(kind, how):
    if (kind, how) in {("rmsprop", "fused"), ("sgd", "capturable")}:
        pytest.skip("there is no such optimizer")
    made, options = KINDS[kind]
    net = build(SMALL, seed=1)
    optimizer = made(net.parameters(), lr=0.01, **options)
    step_of(net, optimizer, 0)
    saved = optimizer_state(net, optimizer)
    for group in saved["groups"]:
        group.update({"foreach": False, how: True})
    with torch.device("meta"):
        other = Network(SMALL)
    again = made(other.parameters(), lr=0.01, **options)
    load_optimizer_state(other, again, saved)
    assert [group["params"] for group in optimizer_state(other, again)["groups"]] == [
        group["params"] for group in saved["groups"]
    ]
    for name, parameter in other.named_parameters():
        for key, value in again.state[parameter].items():
            assert value.device.type == (HOWS[how] if key == "step" else "meta"), (name, key)
            assert value.dtype == saved["state"][name][key].dtype


def test_a_step_that_lies_on_the_device_stays_there_through_growth():
    net = build(SMALL, seed=1)
    optimizer = torch.optim.Adam(net.parameters())
    step_of(net, optimizer, 0)
    for state in optimizer.state.values():
        state["step"] = state["step"].to("meta")  # which nothing can read
    grown = grow(net, [Widen("stage1.block1", 2), Freeze("stem")], optimizer)
    assert grown.optimizer is not None
    assert len(grown.optimizer.state) > 10
    for state in grown.optimizer.state.values():
        assert (state["step"].device.type, state["exp_avg"].device.type) == ("meta", "cpu")


def test_a_checkpoint_goes_on_without_the_generator_of_another_device(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    state = load_checkpoint(path, IDENTITY)
    assert state["cuda_generator"] is None
    expected = state["generator"]
    for other in (None, torch.zeros(16, dtype=torch.uint8)):  # one of a GPU, say
        torch.manual_seed(5)
        set_generators({**state, "cuda_generator": other}, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), expected)
    del state["cuda_generator"]  # one of an earlier version
    torch.manual_seed(5)
    set_generators(state, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), expected)
