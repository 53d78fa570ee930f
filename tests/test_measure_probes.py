"""What policies need of the network: measured on copies, charged, into the record by name."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from runs import quiet, short_run

import training.running.loop
from analysis import Observer, Record, effective_rank, gradient_signal_to_noise, read_history
from analysis.recording.probed import probe_name, with_probes
from nets import Widen, cost, preset
from policies import Gain, Policy, probed
from training.deciding.check_probes import PROBES
from training.deciding.user_errors import PolicyFailed
from training.keeping.run_state import Run
from training.running.loop import train
from training.running.measure_probes import BOX, measure_probes
from training.running.resume import open_run
from training.settings.train_settings import Train

OWN: dict[str, Any] = {}
"""Probes of one's own, by name: the fields of a policy are plain data."""


@dataclass(frozen=True)
class Needy(Policy):
    probes: tuple[str, ...] = ()

    @property
    def needs(self):
        return tuple(OWN.get(name, name) for name in self.probes)

    def decide(self, history):
        return [Widen("stage1.block1", 2, initializer="gradmax")] if len(history) == 1 else []


def small(folder, *probes, **changes) -> Train:
    given = {"epochs": 0.1, "records": 3, "threads": 1, **changes}
    names = [probe if isinstance(probe, str) else probe_name(probe) for probe in probes]
    OWN.clear()
    OWN.update(zip(names, probes))
    return short_run(folder, Needy(tuple(names)), **given)


def record_now(run: Run) -> Record:
    """A record of the run's network after a forward and backward pass that trains nothing."""
    with Observer(run.net) as observer:
        run.net(run.probe[0]).sum().backward()
    return Record.capture(run.net, observer)


def test_effective_rank_stands_in_the_readings_and_its_products_are_charged(tmp_path):
    run = open_run(small(tmp_path, "effective_rank"))
    record = record_now(run)
    measured = measure_probes(run, record)
    found, images = measured.numbers["effective_rank"], len(run.probe[0])
    assert found == pytest.approx(effective_rank(run.net, run.probe[0]))
    # the forward, and a covariance of the channels of stage 1 over every position
    forward = images * cost(run.net.architecture).flops
    assert forward + 3 * 2 * images * 64 * 16 * 16 < measured.flops < 2 * forward
    layers = with_probes(record, measured.numbers).layers
    assert layers.keys() == record.layers.keys()
    for path, rank in found.items():
        assert layers[path].value("effective_rank") == rank > 0
        assert layers[path] == replace(
            record.layers[path], extra={**record.layers[path].extra, "effective_rank": rank}
        )


def test_a_run_measures_what_its_policy_needs_until_the_budget_is_spent(tmp_path):
    train(small(tmp_path / "one", *PROBES), quiet)
    history = read_history(tmp_path / "one")
    for record in history[:-1]:
        blocks = record.architecture.blocks.keys()
        assert record.importance.keys() == record.probes["gain"].keys() == blocks
        assert all(r.value("effective_rank") for r in record.layers.values())
        assert all(r.value("gradient_signal_to_noise") for r in record.layers.values())
    last = history[-1]
    assert not last.importance
    assert not last.probes
    assert not any("effective_rank" in reading.extra for reading in last.layers.values())
    train(small(tmp_path / "two"), quiet)
    bare = read_history(tmp_path / "two")
    assert not bare[0].importance
    assert bare[0].layers["stem"].value("effective_rank") is None
    assert bare[0].train_flops < history[0].train_flops


def test_every_name_in_the_box_has_a_probe():
    assert tuple(BOX) == PROBES


def test_signal_to_noise_leaves_out_what_has_no_finite_ratio(tmp_path):
    run = open_run(small(tmp_path, "gradient_signal_to_noise"))
    with torch.no_grad():
        run.net.get_submodule("head.linear").weight.zero_()  # no gradient comes through
    record = record_now(run)
    found = gradient_signal_to_noise(run.net, *run.probe, run.loss)
    assert not found["stage1.block1"] >= 0
    assert found["head"] > 0
    measured = measure_probes(run, record)
    assert measured.failure is None
    assert measured.numbers["gradient_signal_to_noise"] == {"head": found["head"]}


def test_an_unknown_probe_is_refused_by_name(tmp_path):
    names = "importance, effective_rank, gradient_signal_to_noise, gain"
    message = rf"policy Needy must need probes of {names}, or functions of \(.*\), got 'weather'"
    with pytest.raises(ValueError, match=message):
        train(small(tmp_path, "weather"), quiet)
    assert not (tmp_path / "config.yaml").exists()


def test_gradmax_grows_in_a_run(tmp_path):
    train(small(tmp_path), quiet)
    history = read_history(tmp_path)
    assert history[0].applied == (Widen("stage1.block1", 2),)
    assert history[0].applied[0].initializer == "gradmax"
    assert history[-1].architecture == history[0].architecture.apply(history[0].applied[0])


# Of one's own -----------------------------------------------------------------------------------


def loss_by_block(network, batch, loss):
    """By block: the loss on the batch, and its place."""
    with torch.no_grad():
        value = loss(network(batch[0]), batch[1])
    return {name: value + place for place, name in enumerate(network.architecture.blocks)}


def width_by_layer(network, batch, loss):
    """By layer: the size of its weight, of those that have one in the stem and the head."""
    return {"stem": np.float32(7.5), "head": network.get_submodule("head.linear").weight.numel()}


def test_a_function_is_measured_by_block_or_by_layer_and_charged(tmp_path):
    run = open_run(small(tmp_path, loss_by_block, width_by_layer))
    record = record_now(run)
    measured = measure_probes(run, record)
    assert measured.flops == len(run.probe[0]) * cost(run.net.architecture).flops
    record = with_probes(record, measured.numbers)
    with torch.no_grad():
        value = float(run.loss(run.net.eval()(run.probe[0]), run.probe[1]))
    blocks = list(record.architecture.blocks)
    expected = {name: value + place for place, name in enumerate(blocks)}
    assert record.probes == {"loss_by_block": pytest.approx(expected)}
    assert probed(record, loss_by_block) == record.probes["loss_by_block"]
    assert record.layers["stem"].value("width_by_layer") == 7.5
    assert probed(record, "width_by_layer") == {"stem": 7.5, "head": 64 * 10}
    assert all(type(number) is float for number in probed(record, width_by_layer).values())


def test_a_backward_pass_is_charged(tmp_path):
    def gradients(network, batch, loss):
        loss(network(batch[0]), batch[1]).backward()
        return {"head": network.get_submodule("head.linear").weight.grad.norm()}

    measured = measure_probes(run := open_run(small(tmp_path, gradients)), record_now(run))
    forward = len(run.probe[0]) * cost(run.net.architecture).flops
    assert 2.5 * forward < measured.flops < 3 * forward  # the images get no gradient


def test_what_a_run_spends_on_probes_is_in_its_records_and_its_budget(tmp_path):
    train(small(tmp_path / "one", loss_by_block), quiet)
    train(small(tmp_path / "two"), quiet)
    one, two = (read_history(tmp_path / name)[0] for name in ("one", "two"))
    assert one.step == two.step
    assert one.train_flops - two.train_flops == 128 * cost(one.architecture).flops
    # of the record: what is spent after its probes
    assert one.spent > two.spent
    assert one.learning_rate < two.learning_rate


def ruin(network, batch, loss):
    """Do to everything in reach what a probe had better not do."""
    batch[0].zero_()
    batch[1].zero_()
    network.train()
    network(batch[0] + 1)
    for module in network.modules():
        module.register_forward_hook(lambda module, args, output: output * 0)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.zero_()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(False)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    torch.set_grad_enabled(False)
    return dict.fromkeys(network.architecture.blocks, 1.0)


def test_a_probe_changes_nothing_of_the_run(tmp_path):
    for name, probes in (("with", (ruin, "gain")), ("without", ())):
        random.seed(0)
        np.random.seed(0)
        train(small(tmp_path / name, *probes, budget="epochs"), quiet)
        drawn = random.random(), np.random.rand()
        if name == "with":
            expected = drawn
    assert drawn == expected
    first, second = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("with", "without")
    )
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(first["weights"][key], v) for key, v in second["weights"].items())
    assert torch.equal(first["generator"], second["generator"])
    histories = [read_history(tmp_path / name) for name in ("with", "without")]
    for one, two in zip(*histories):
        assert replace(one, probes={}, train_flops=0) == replace(two, train_flops=0)
    assert histories[0][0].probes["ruin"]
    assert torch.is_grad_enabled()


def drawn(network, batch, loss):
    """By block: numbers of the global generators."""
    names = list(network.architecture.blocks)
    return dict(zip(names, (torch.rand(()), random.random(), np.random.rand())))


def test_what_a_probe_draws_is_the_same_in_a_run_that_is_resumed(tmp_path, monkeypatch):
    settings = small(tmp_path / "whole", drawn, records=6)
    train(settings, quiet)
    take_record, calls = training.running.loop.take_record, []

    def crash(run: Run) -> Any:
        calls.append(run.progress.step)
        if len(calls) == 3:
            raise RuntimeError("a crash")
        random.random(), np.random.rand(), torch.rand(())  # of somebody else
        return take_record(run)

    broken = replace(settings, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patch.setattr(training.running.loop, "take_record", crash)
        with pytest.raises(RuntimeError, match="a crash"):
            train(broken, quiet)
    train(replace(broken, resume=True), quiet)
    whole, resumed = (tmp_path / name / "history.jsonl" for name in ("whole", "broken"))
    assert whole.read_bytes() == resumed.read_bytes()
    seen = [
        tuple(record.probes["drawn"].values()) for record in read_history(tmp_path / "whole")[:-1]
    ]
    assert len(set(seen)) == len(seen) > 3  # another at every step


def nan(network, batch, loss):
    return {"stage1.block1": float("nan")}


def raising(network, batch, loss):
    return {"stage1.block1": 1 / 0}


def stray(network, batch, loss):
    return {"stage1.block1": 1.0, "stage9": 2.0}


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (nan, "probe nan must give finite numbers, got nan for stage1.block1"),
        (raising, r"probe raising: ZeroDivisionError: division by zero \(test_measure_probes.py:"),
        (stray, r"probe stray must give numbers by block \(stage1.block1, stage2.block1, "),
        (Gain(rate=1e30), "probe gain: ValueError: rate must be so small that losses stay finite"),
    ],
)
def test_a_probe_that_fails_ends_the_run_in_one_line_or_is_told(tmp_path, probe, message):
    with pytest.raises(PolicyFailed, match=rf"^policy Needy failed at step \d+: {message}"):
        train(small(tmp_path / "stop", "importance", probe), quiet)
    lines: list[str] = []
    changes = {"policy_errors": "continue", "budget": "epochs"}
    train(small(tmp_path / "go", "importance", probe, **changes), lines.append)
    history = read_history(tmp_path / "go")
    assert sum("policy Needy failed at step" in line for line in lines) == len(history) - 1
    assert not any(record.applied for record in history)  # it was not asked
    assert history[0].importance


@dataclass(frozen=True)
class Sparing(Policy):
    """Grows at the second record, and needs what it decides by there alone."""

    other: str = ""
    needs = (loss_by_block, "importance")

    def needs_at(self, history):
        assert history[-1].architecture  # the present is there
        return [self.other or loss_by_block] if len(history) == 2 else []

    def decide(self, history):
        if len(history) != 2:
            return []
        found = probed(history[-1], loss_by_block)
        return [Widen(max(found, key=found.__getitem__), 1)]


def test_a_policy_says_at_which_records_it_needs_a_probe(tmp_path):
    train(
        short_run(tmp_path, Sparing(), epochs=0.2, records=4, budget="epochs", grow_until=1), quiet
    )
    history = read_history(tmp_path)
    assert [bool(record.probes) for record in history] == [False, True, False, False]
    assert not any(record.importance for record in history)
    assert [action for record in history for action in record.applied] == [
        Widen("stage3.block1", 1)
    ]


def test_a_policy_may_not_need_now_what_it_never_named(tmp_path):
    policy = Sparing("gain")
    with pytest.raises(PolicyFailed, match="needs_at must give what is in needs, got 'gain'"):
        train(short_run(tmp_path, policy, epochs=0.1, records=4), quiet)


def test_functions_go_to_the_workers_of_a_comparison(tmp_path):
    settings = short_run(tmp_path, Sparing())
    assert pickle.loads(pickle.dumps(settings)).policy.needs == (loss_by_block, "importance")


def test_plain_nets_have_no_importance_to_record(tmp_path):
    run = open_run(small(tmp_path, "importance", "gain", net="mlp-8", data="sine"))
    assert run.net.architecture.block == preset("mlp-8").block == "plain"
    record = record_now(run)
    measured = measure_probes(run, record)
    assert measured.failure is None
    record = with_probes(record, measured.numbers)
    assert probed(record, "importance") == {}
    assert set(probed(record, "gain")) == set(record.architecture.blocks)
