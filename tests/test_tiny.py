"""examples/initializers/tiny.py: the loss falls, by a slow fit too, and the cost is charged."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
from makers import CASES, batch_for, three_blocks, train, trained
from torch.nn import functional

import run
from analysis import read_history
from nets import Freeze, Insert, Widen, WidenStage, cost, grow, train_flops
from nets.growing.grow import output_difference

FOLDER = Path(__file__).parents[1] / "examples" / "initializers"
LOSS = functional.cross_entropy


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("tiny").Tiny


def started(kind="basic", order="post", seed=0):
    net = trained(three_blocks(kind, order), torch.float64, seed, steps=5, first=10 * seed)
    return net, {"probe": batch_for(net.architecture, 9 + seed, 16, torch.float64), "loss": LOSS}


@torch.no_grad()
def loss_of(net, settings):
    inputs, targets = settings["probe"]
    return float(LOSS(copy.deepcopy(net).train()(inputs), targets))


@pytest.mark.parametrize(("kind", "order"), CASES)
@pytest.mark.parametrize("action", [Widen("stage1.block1", 3), Widen("stage2.block1", 9)], ids=str)
def test_the_loss_falls_and_outputs_move(tiny, kind, order, action):
    net, settings = started(kind, order)
    grown = grow(net, action, ema=copy.deepcopy(net), initializer=tiny(), **settings)
    assert loss_of(grown.network, settings) < loss_of(net, settings)
    assert grown.difference > 1e-3
    assert output_difference(grown.network, grown.ema, settings["probe"][0]) == 0
    for name, parameter in net.named_parameters():
        old = tuple(map(slice, parameter.shape))
        assert torch.equal(grown.network.get_parameter(name)[old], parameter), name


@pytest.mark.parametrize("action", [WidenStage("stage1", 2), Insert("stage1.block2", 4)], ids=str)
def test_all_else_begins_as_by_he(tiny, action):
    net, settings = started()
    grown, he = (grow(net, action, initializer=i, **settings) for i in (tiny(), "he"))
    assert grown.difference <= 1e-12
    assert output_difference(grown.network, he.network, settings["probe"][0]) == 0


def test_rows_and_columns_are_those_of_a_slow_fit(tiny):
    net, settings = started("plain")
    inputs, targets = settings["probe"]
    first, second, third = (
        net.get_submodule(name).linear
        for name in ("stage1.block1", "stage1.block2", "stage2.block1")
    )
    b = functional.relu(first(inputs)).detach()
    a = second(b).detach().requires_grad_()
    outputs = net.head.linear(functional.relu(third(functional.relu(a))))
    (gradient,) = torch.autograd.grad(LOSS(outputs, targets), a)
    wanted = -len(inputs) * gradient
    residual = wanted - b @ torch.linalg.lstsq(b, wanted).solution
    values, vectors = torch.linalg.eigh(inputs.T @ inputs)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    u, _, _ = torch.linalg.svd(root @ inputs.T @ residual)
    rows = (root @ u[:, :2]).T
    rows = rows / rows.norm(dim=1, keepdim=True) * first.weight.norm(dim=1).mean()
    gains = [(residual.T @ functional.relu(inputs @ way.T)).norm(dim=0) for way in (rows, -rows)]
    rows = torch.where((gains[0] >= gains[1])[:, None], rows, -rows)
    responses = functional.relu(inputs @ rows.T)
    columns = torch.linalg.lstsq(responses, residual).solution.T
    grown = grow(net, Widen("stage1.block1", 2), initializer=tiny(), **settings).network
    found = grown.stage1.block1.linear.weight[3:]
    torch.testing.assert_close(found.detach(), rows.detach(), rtol=1e-3, atol=1e-4)
    outgoing = grown.stage1.block2.linear.weight[:, 3:].detach()
    share = outgoing.norm() / columns.norm()
    torch.testing.assert_close(outgoing, columns * share, rtol=1e-3, atol=1e-4)
    size = (responses @ outgoing.T).square().mean().sqrt() / a.square().mean().sqrt()
    assert float(size.detach().log2()) == pytest.approx(
        round(float(size.detach().log2())), abs=0.01
    )


def test_its_cost_is_charged(tiny):
    net, settings = started()
    action = Widen("stage1.block1", 2)
    short, long = (grow(net, action, initializer=tiny(n), **settings).flops for n in (0, 5))
    forward = 16 * cost(net.architecture.apply(action)).flops
    assert long - short == 5 * forward
    products = short - 2 * forward - 16 * train_flops(net.architecture)
    patches, places = 4 * 9, 16 * 36
    assert products > 2 * places * patches**2  # one second moment of several
    assert grow(net, WidenStage("stage1", 2), initializer=tiny(), **settings).flops == 0


def test_where_nothing_is_lacking_nothing_is_added(tiny):
    net, settings = started()
    settings["loss"] = lambda outputs, targets: (outputs * 0).sum()
    grown = grow(net, Widen("stage1.block1", 2), initializer=tiny(), **settings)
    assert grown.difference <= 1e-12
    assert not grown.network.stage1.block1.conv2.weight[:, 3:].any()


def test_it_grows_a_net_that_is_frozen_in_part_and_trains(tiny):
    net, settings = started()
    frozen = grow(net, Freeze("stage1.block1", 2)).network
    grown = grow(frozen, Widen("stage1.block1", 2), initializer=tiny(), **settings).network
    assert loss_of(grown, settings) < loss_of(frozen, settings)
    train(grown, steps=1)


def test_halvings_have_a_range(tiny):
    with pytest.raises(ValueError, match="halvings must be from 0 to 30, got -1"):
        tiny(-1)


def test_a_run_takes_it_by_its_import_path(tiny, tmp_path, capsys):
    words = "train --net resnet8 --epochs 0.3 --records 4 --batch_size 64 --device cpu --threads 1"
    words += " --policy Periodic --initializer tiny.Tiny --initializer.halvings 2"
    assert run.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    history = read_history(tmp_path / "run")
    assert any(record.applied for record in history)
    assert "outputs moved" not in capsys.readouterr().out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "initializer:\n  class_path: tiny.Tiny\n  init_args:\n    halvings: 2\n" in config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.Tiny", "initializer nowhere.Tiny cannot be loaded: No module named 'nowhere'"),
        ("tiny.Tin", "initializer tiny.Tin cannot be loaded: tiny has no Tin"),
        ("tiny.Widen", "initializer tiny.Widen cannot be loaded: it is no class of Initializer"),
        ("tiny", "initializer must be one of he, "),
        ("tiny.Tiny --initializer.halving 2", "Tiny takes halvings (did you mean 'halvings'?)"),
        ("tiny.Tiny --initializer.halvings x", "initializer.halvings must be an integer, got 'x'"),
        ("tiny.Tiny --initializer.halvings 99", "halvings must be from 0 to 30, got 99"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    tiny, refusal, tmp_path, monkeypatch, given, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    assert message in refusal(["train", *f"--initializer {given} --out x".split()])


PICKY = """from dataclasses import dataclass
from nets import Initializer
from policies import Policy

@dataclass(frozen=True)
class Picky(Policy):
    new: Initializer | str = ""

    def decide(self, history):
        return []
"""


def test_a_policys_own_initializer_is_refused_at_once(refusal, tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(PICKY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["train", "--policy", "picky.Picky", "--out", "x", "--policy.new"]
    assert "policy.new tiny.Tin cannot be loaded: tiny has no Tin" in refusal([*words, "tiny.Tin"])
    told = refusal([*words, "hee"])
    assert "policy.new must be one of he, " in told
    assert "got 'hee' (did you mean 'he'?)" in told
