"""Initializers of one's own: what they see, how what they give is taken, charged, run, resumed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import batch_for, differences, three_blocks, train, trained
from runs import quiet, script, short_run
from torch.nn import functional

import training.running.loop
from analysis import read_history
from nets import (
    Freeze,
    Initializer,
    Insert,
    SetSurvival,
    VarianceTransfer,
    Widen,
    WidenStage,
    action_to_dict,
    build,
    cost,
    grow,
    train_flops,
)
from nets.modules.frozen_parts import join_values
from nets.plan.action_dicts import name_of
from policies import Policy
from training.asking.replay import replay_table
from training.deciding.refusals import Decision
from training.deciding.user_errors import PolicyFailed
from training.running.decide_and_grow import grow_run
from training.running.loop import train as run_training
from training.running.resume import open_run
from training.settings.config_yaml import settings_to_dict

LOSS = functional.cross_entropy


@dataclass(frozen=True)
class Mine(Initializer):
    """Gives what a function makes of the edit, and keeps the edits that it saw."""

    make: Any = lambda edit: {}
    seen: list[Any] = field(default_factory=list)

    def new_values(self, edit):
        self.seen.append(edit)
        return self.make(edit)


@dataclass(frozen=True)
class Loud(Initializer):
    """Draws outgoing columns too, of a size."""

    size: float = 0.1
    told: bool = True

    def __post_init__(self):
        object.__setattr__(self, "moves_outputs", self.told)

    def new_values(self, edit):
        values = {}
        for axis in edit.grown:
            for layer in axis.outgoing:
                value = values[f"{layer.name}.weight"] = edit.value(f"{layer.name}.weight")
                new = value[:, axis.start :]
                drawn = torch.randn(new.shape, generator=edit.generator(layer.name))
                new.copy_(self.size * drawn)
        edit.tap([("head.linear", "input")])
        return values


@dataclass(frozen=True)
class Widening(Policy):
    """Widens a block at its first two records, with an initializer of its own."""

    initializer: Initializer | str = "he"

    def decide(self, history):
        widened = Widen("stage1.block1", 2, initializer=self.initializer)
        return [widened] if len(history) <= 2 else []


def given(net, count=8):
    return {"probe": batch_for(net.architecture, 9, count, torch.float64), "loss": LOSS}


@pytest.fixture(scope="module")
def net():
    return trained(three_blocks(), torch.float64, steps=3)


def test_it_sees_the_action_and_the_values_on_both_sides_of_what_is_new(net):
    mine, action = Mine(), Widen("stage1.block2", 3)
    grow(net, action, initializer=mine, **given(net))
    (edit,) = mine.seen
    assert edit.action is action
    assert (edit.before, edit.after) == (net.architecture, net.architecture.apply(action))
    (axis,) = edit.grown
    assert (axis.name, axis.start, axis.size) == ("stage1.block2:1", 4, 7)
    names = [[layer.name for layer in each] for each in (axis.incoming, axis.norms, axis.outgoing)]
    assert names == [[f"stage1.block2.{leaf}"] for leaf in ("conv1", "bn1", "conv2")]
    old = net.state_dict()
    assert all(torch.equal(edit.old[name], old[name]) for name in old)
    rows, columns = (edit.new[f"stage1.block2.conv{n}.weight"] for n in (1, 2))
    assert torch.equal(rows[:4], old["stage1.block2.conv1.weight"])
    assert rows[4:].all()
    assert not columns[:, 4:].any()
    assert edit.drawn["stage1.block2.conv2.weight"].shape == columns.shape
    assert edit.drawn["stage1.block2.conv2.weight"].all()


def test_a_streams_axis_has_all_that_gives_to_it_and_takes_from_it(net):
    mine = Mine()
    grow(net, [WidenStage("stage1", 2), Insert("stage1.block1", 3)], initializer=mine)
    (axis,) = mine.seen[0].grown
    assert [layer.name for layer in axis.incoming] == [
        "stem.conv",
        "stage1.block1.conv2",
        "stage1.block2.conv2",
    ]
    assert [layer.name for layer in axis.outgoing] == [
        "stage1.block1.conv1",
        "stage1.block2.conv1",
        "stage2.block1.conv1",
        "stage2.block1.shortcut.conv",
    ]
    assert mine.seen[1].grown == ()


def test_it_is_asked_where_something_is_new_alone(net):
    mine = Mine()
    grow(net, [Freeze("stem"), SetSurvival("stage1.block1", 0.5)], initializer=mine)
    assert not mine.seen


def test_it_measures_the_network_before_the_action_and_the_loss_after_it(net):
    found = {}

    def make(edit):
        ends = [("stage1.block2.conv2", "input"), ("stage1.block2.conv2", "output")]
        found.update(seen=edit.tap(ends), loss=edit.loss_with({}))
        louder = edit.value("head.linear.weight") * 3
        found["louder"] = edit.loss_with({"head.linear.weight": louder})
        return {}

    before = copy.deepcopy(net.state_dict())
    settings = given(net)
    grow(net, Widen("stage1.block2", 3), initializer=Mine(make), **settings)
    assert not differences(dict(before), dict(net.state_dict()))
    twin, kept = copy.deepcopy(net).train(), {}

    def keep(module, args, output):
        output.retain_grad()
        kept.update(x=args[0].detach(), y=output)

    handle = twin.stage1.block2.conv2.register_forward_hook(keep)
    inputs, targets = settings["probe"]
    loss = LOSS(twin(inputs), targets)
    loss.backward()
    handle.remove()
    x, (y, gradient) = (
        found["seen"]["stage1.block2.conv2", "input"][0],
        list(found["seen"].values())[1],
    )
    torch.testing.assert_close(x, kept["x"])
    torch.testing.assert_close(y, kept["y"].detach())
    torch.testing.assert_close(gradient, kept["y"].grad)
    assert found["loss"] == pytest.approx(float(loss.detach()))
    with torch.no_grad():
        twin.head.linear.weight *= 3
        assert found["louder"] == pytest.approx(float(LOSS(twin(inputs), targets)))


def test_the_average_is_asked_with_its_own_values_and_measures_nothing_anew(net):
    average, made = trained(three_blocks(), torch.float64, seed=1), []

    def make(edit):
        rows = edit.once("rows", lambda: made.append(1) or torch.full((2,), 7.0))
        weight = edit.value("stage1.block1.conv1.weight")
        weight[-2:] = rows.view(-1, 1, 1, 1)
        return {"stage1.block1.conv1.weight": weight}

    mine = Mine(make)
    grown = grow(net, Widen("stage1.block1", 2), ema=average, initializer=mine)
    assert len(made) == 1
    for network, old, edit in zip((grown.network, grown.ema), (net, average), mine.seen):
        weight = network.stage1.block1.conv1.weight
        assert torch.equal(weight[:-2], old.stage1.block1.conv1.weight)
        assert (weight[-2:] == 7).all()
        assert torch.equal(edit.old["head.linear.bias"], old.head.linear.bias)


def test_what_is_asked_for_the_average_alone_is_measured_on_the_network(net):
    average, seen = trained(three_blocks(), torch.float64, seed=1), []

    def make(edit):
        if torch.equal(edit.old["stem.conv.weight"], average.stem.conv.weight):
            seen.append(edit.network)
        return {}

    grow(net, Widen("stage1.block1", 2), ema=average, initializer=Mine(make))
    assert torch.equal(seen[0].stem.conv.weight, net.stem.conv.weight)


def test_a_weight_is_drawn_once_for_a_network_and_its_average(net):
    drawn = []

    def draw(shape, generator):
        drawn.append(tuple(shape))
        return torch.randn(shape, generator=generator)

    grown = grow(net, Widen("stage1.block1", 2), ema=copy.deepcopy(net), initializer=draw)
    assert drawn == [(5, 4, 3, 3), (4, 5, 3, 3)]
    first, second = (each.stage1.block1.conv1.weight for each in (grown.network, grown.ema))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_randomness_comes_from_the_seed_and_words_alone(net):
    drawn = []

    def make(edit):
        drawn.append(torch.rand(3, generator=edit.generator("here", 1)).tolist())
        return {}

    torch.manual_seed(0)
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        grow(net, Widen("stage1.block1", 2), initializer=Mine(make), seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_frozen_keeps_its_values_whatever_is_given(net):
    frozen = grow(net, [Freeze("stage1.block1", 2), Freeze("stem")]).network

    def make(edit):
        names = [name for name in edit.new if name.startswith(("stage1.block1", "stem"))]
        floating = [name for name in names if edit.new[name].is_floating_point()]
        return {name: torch.full_like(edit.new[name], 9) for name in floating}

    grown = grow(frozen, Widen("stage1.block1", 2), initializer=Mine(make)).network
    old, new = (join_values(each, each.state_dict()) for each in (frozen, grown))
    first, second = (f"stage1.block1.conv{n}.weight" for n in (1, 2))
    assert torch.equal(new["stem.conv.weight"], old["stem.conv.weight"])
    assert torch.equal(new["stem.bn.running_mean"], old["stem.bn.running_mean"])
    assert torch.equal(new["stage1.block1.bn1.bias"][:2], old["stage1.block1.bn1.bias"][:2])
    assert torch.equal(new[first][:2], old[first][:2])
    assert torch.equal(new[second][:, :2], old[second][:, :2])
    assert (new[first][2:] == 9).all()
    assert (new[second][:, 2:] == 9).all()


NAME = "stage1.block1.conv1.weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda edit: {NAME: torch.ones(3)}, rf"give a tensor of shape \(5, 4, 3, 3\) for {NAME}"),
        (lambda edit: {NAME: 3.0}, rf"give a tensor of shape .* for {NAME}, got float"),
        (
            lambda edit: {NAME: edit.new[NAME] * torch.nan},
            f"give finite values for {NAME}, got NaN",
        ),
        (lambda edit: {NAME: edit.new[NAME] / 0}, f"give finite values for {NAME}, got NaN or inf"),
        (lambda edit: {"conv": torch.ones(3)}, "give values for entries after .*, got 'conv'"),
        (lambda edit: {"draw": torch.ones(2)}, "give values for entries after .*, got 'draw'"),
        (lambda edit: None, "give a mapping of values by entry, got None"),
        (lambda edit: {}[3], "failed: KeyError: 3"),
        (lambda edit: torch.ones(2) @ torch.ones(3), "failed: RuntimeError: "),
        (
            lambda edit: edit.tap([("stem", "input")]),
            r"^probe must be \(inputs, targets\) and loss",
        ),
        (
            lambda edit: edit.assemble(edit.after, {**edit.new, NAME: torch.ones(3)}),
            rf"^{NAME} must have shape \(5, 4, 3, 3\), got \(3,\)$",
        ),
        (
            lambda edit: edit.assemble(edit.after, {**edit.new, "conv": torch.ones(3)}),
            "^values must be of entries of the network, got conv$",
        ),
        (lambda edit: edit.loss_with({}), r"^probe must be \(inputs, targets\) and loss"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_happens(net, make, message):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        grow(net, Widen("stage1.block1", 2), initializer=Mine(make))
    assert "\n" not in str(caught.value)
    assert not differences(dict(before), dict(net.state_dict()))


def test_a_class_in_place_of_an_object_is_refused(net):
    with pytest.raises(ValueError, match=r"must be an object, got the class Loud; give Loud\(\)"):
        grow(net, Widen("stage1.block1", 2), initializer=Loud)  # pyright: ignore


def test_what_is_measured_is_charged(net):
    settings, action = given(net), Widen("stage1.block1", 2)
    a_pass = 8 * train_flops(net.architecture)
    forward = 8 * cost(net.architecture.apply(action)).flops

    def flops(make, **more):
        return grow(net, action, initializer=Mine(make), **settings, **more).flops

    def passes(edit):
        for _ in range(2):  # the second is known
            edit.tap([("stem.conv", "output")])
        return {}

    def products(edit):
        with edit.counted():
            _ = torch.ones(3, 5) @ torch.ones(5, 7)
        edit.charge(11)
        return {}

    def tries(edit):
        edit.once("loss", lambda: edit.loss_with({}))
        return {}

    assert flops(lambda edit: {}) == 0
    assert flops(passes) == a_pass == flops(passes, ema=copy.deepcopy(net))
    assert flops(products) == 2 * 3 * 5 * 7 + 11
    assert flops(tries) == forward == flops(tries, ema=copy.deepcopy(net))
    gradmax = grow(net, action, initializer="gradmax", **settings).flops
    patches, outputs, places = 4 * 9, 4, 8 * 36
    vectors = 2 * min(patches, outputs)
    products = patches * outputs + vectors * (patches + outputs)
    decomposed = 6 * patches * outputs**2 + 20 * outputs**3
    assert gradmax == a_pass + 2 * places * products + decomposed
    for name in ("he", "xavier", "net2net", "variance-transfer", "xavier-outgoing"):
        assert grow(net, action, initializer=name, **settings).flops == 0


def test_outputs_may_move_and_the_difference_says_by_how_much(net):
    grown = grow(net, Widen("stage1.block1", 2), initializer=Loud(0.5), **given(net))
    assert grown.difference > 0.01
    assert grown.network.stage1.block1.conv2.weight[:, 3:].all()


def test_an_initializer_is_named_the_same_in_every_process():
    class Nameless(Initializer):
        pass

    assert name_of("he") == "he"
    assert name_of(Nameless()) == "Nameless"
    assert name_of(VarianceTransfer()) == "VarianceTransfer(rescale=True)"
    action = Widen("stage1.block1", 2, initializer=Loud(0.5))
    assert action_to_dict(action)["initializer"] == "Loud(size=0.5, told=True)"


# in a run


def small(folder: Path, policy: Policy | None = None, **changes: Any):
    given = {"epochs": 0.2, "records": 4, "batch_size": 64, "threads": 1, **changes}
    return short_run(folder, policy or Widening(Loud()), **given)


def test_a_run_grows_by_actions_that_hold_one_and_charges_it(tmp_path):
    lines = []
    run_training(small(tmp_path / "loud"), lines.append)
    history = read_history(tmp_path / "loud")
    assert [action.initializer for action in history[0].applied] == ["Loud(size=0.1, told=True)"]
    assert not any("outputs moved" in line for line in lines)
    run = open_run(small(tmp_path / "charged"))
    before, old = run.progress.flops, run.net.architecture
    action = Widen("stage1.block1", 2, initializer=Loud())
    grow_run(run, Decision(applied=(action,)))
    forwards = 2 * cost(old).flops + 3 * cost(run.net.architecture).flops
    assert run.progress.flops - before == 32 * (forwards + train_flops(old))
    config = settings_to_dict(small(tmp_path / "loud"))["policy"]["init_args"]
    assert config["initializer"]["init_args"] == {"size": 0.1, "told": True}


def test_a_run_tells_of_outputs_that_move_unsaid(tmp_path):
    lines = []
    run_training(small(tmp_path, Widening(Loud(1.0, told=False))), lines.append)
    told = [line for line in lines if "outputs moved by" in line]
    assert len(told) == 2
    assert all(line.endswith("Loud(size=1.0, told=False) should keep them") for line in told)


@pytest.mark.parametrize("name", ["gradmax", "variance-transfer", "xavier-outgoing"])
def test_a_run_says_nothing_of_outputs_that_move_as_they_should(tmp_path, name):
    lines = []
    run_training(small(tmp_path, Widening(name)), lines.append)
    assert not any("outputs moved" in line for line in lines)
    assert read_history(tmp_path)[1].applied[0].initializer == name


@pytest.mark.parametrize("in_policy", [True, False])
def test_resume_is_exact_and_replay_answers(tmp_path, monkeypatch, in_policy):
    policy = Widening(Loud()) if in_policy else Widening(None)  # pyright: ignore
    changes = {} if in_policy else {"initializer": Loud()}
    run_training(small(tmp_path / "whole", policy, **changes), quiet)

    class Crash(Exception):
        pass

    steps, plain = [], training.running.loop.take_record

    def crash(*given):
        if len(steps) == 2:
            raise Crash
        steps.append(1)
        return plain(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training.running.loop, "take_record", crash)
        with pytest.raises(Crash):
            run_training(small(tmp_path / "cut", policy, **changes), quiet)
    run_training(small(tmp_path / "cut", policy, resume=True, **changes), quiet)
    whole, cut = ((tmp_path / name / "history.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["weights"]
        for name in ("whole", "cut")
    ]
    assert not differences(*states)
    if not in_policy:
        with pytest.raises(ValueError, match=r"initializer must be .* to resume the run"):
            run_training(small(tmp_path / "cut", policy, resume=True), quiet)
    table = replay_table(Widening(Loud(0.2)), [str(tmp_path / "whole")])
    assert "Loud(size=0.2, told=True)" in table


def test_one_that_fails_stops_the_run_with_one_line_and_the_run_can_go_on(tmp_path):
    failing = Widening(Mine(lambda edit: {NAME: torch.ones(1)}))
    with pytest.raises(
        ValueError, match=r"^initializer test_initializer.Mine must have fields of numbers"
    ):
        run_training(small(tmp_path / "none", failing), quiet)
    words = "policy Failing failed at step .*: initializer Broken failed: ZeroDivisionError"
    with pytest.raises(PolicyFailed, match=words):
        run_training(small(tmp_path, Failing()), quiet)
    run_training(small(tmp_path, Failing(), resume=True, policy_errors="continue"), quiet)


class Broken(Initializer):
    def new_values(self, edit):
        return {NAME: 1 / 0}


@dataclass(frozen=True)
class Failing(Policy):
    def decide(self, history):
        return [Widen("stage1.block1", 2, initializer=Broken())]


def test_a_settings_initializer_must_be_one_that_a_file_can_hold(tmp_path):
    with pytest.raises(ValueError, match=r"^initializer .*Broken|^initializer must be a dataclass"):
        run_training(small(tmp_path, initializer=Broken()), quiet)
    with pytest.raises(ValueError, match=r"^initializer must be one of he, .*; got 3"):
        small(tmp_path, initializer=3)


def test_new_entries_train(net):
    grown = grow(net, Widen("stage1.block1", 2), initializer=Loud(), **given(net)).network
    train(grown, steps=1)
    assert (grown.stage1.block1.conv1.weight.grad[3:] != 0).all()


def test_rows_of_the_pages_example_stand_at_right_angles_to_the_old(net):
    path = Path(__file__).parents[1] / "examples" / "initializers" / "orthogonal.py"
    settings = given(net)
    grown = grow(net, Widen("stage1.block1", 2), initializer=script(path).Orthogonal(), **settings)
    rows = grown.network.stage1.block1.conv1.weight.detach().flatten(1)
    assert (rows[3:] @ rows[:3].T).abs().max() <= 1e-10
    torch.testing.assert_close(rows[3:].norm(dim=1), rows[:3].norm(dim=1).mean().expand(2))
    assert grown.difference <= 1e-12
    assert grown.flops == 2 * (2 * 36 * 3 + 2 * 3 * 36)


def test_a_first_network_is_drawn_by_it():
    @dataclass(frozen=True)
    class Named(Initializer):
        def draw(self, name, shape, generator):
            return torch.full(shape, float(len(name)))

    net = build(three_blocks(), initializer=Named())
    assert (net.head.linear.weight == len("head.linear.weight")).all()
