"""The probe "gain" against training by hand, and what it leaves as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from makers import CASES, CLASSES, architecture_of, plain
from torch.nn import functional

from nets import Freeze, Insert, Remove, SetSurvival, Widen, build, cost, grow, preset, seed_of
from policies import Gain

LOSS = functional.cross_entropy
FIRST = seed_of(preset("resnet8", image=(1, 8, 8)))


def batch_of(architecture, images=40):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, *architecture.image, generator=generator)
    return inputs, torch.randint(architecture.classes, (images,), generator=generator)


def by_hand(net, actions, batch, steps, rate):
    """The loss after so many steps of torch's SGD on a copy that has grown."""
    twin = grow(copy.deepcopy(net), actions, seed=5, probe=batch, loss=LOSS).network.train()
    optimizer = torch.optim.SGD(twin.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(twin(batch[0]), batch[1]).backward()
        optimizer.step()
    return LOSS(twin(batch[0]), batch[1]).item()


@pytest.mark.parametrize(("kind", "action"), [("widen", Widen), ("insert", Insert)])
def test_the_gain_is_the_difference_of_losses_after_training_by_hand(kind, action):
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    found = Gain(kind, share=0.2, steps=3, rate=0.05)(net, batch, LOSS)
    without = by_hand(net, (), batch, 3, 0.05)
    assert list(found) == list(FIRST.blocks)
    for block, gain in found.items():
        amounts = [n for n in range(1, 40) if added(action(block, n)) <= 0.2]
        expected = without - by_hand(net, action(block, max(amounts)), batch, 3, 0.05)
        assert gain == pytest.approx(expected, abs=2e-6)
        assert abs(gain) > 1e-4
    assert len(set(found.values())) == 3


def added(action):
    """The part of the network's FLOPs that an action adds."""
    return cost(FIRST.apply(action)).flops / cost(FIRST).flops - 1


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_it_leaves_the_network_as_it_was_and_gives_the_same_again(kind, order):
    if kind == "plain":
        architecture = plain(6, 5, image=(7,), classes=CLASSES)
    else:
        image = (7,) if kind == "dense" else (2, 6, 6)
        architecture = architecture_of(
            kind, order, "cifar", ((5, 3), (4,)), (6, 8), CLASSES, image, survivals=(0.7, 0.6)
        )
    torch.manual_seed(0)
    net, batch = build(architecture), batch_of(architecture)
    net.get_submodule("stage1.block1").eval()
    LOSS(net(batch[0]), batch[1]).backward()
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(1))
    values = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in net.parameters()]  # pyright: ignore
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    with torch.no_grad():  # wherever it is called from
        found = Gain(steps=2)(net, batch, LOSS)
    assert set(found) == set(architecture.blocks)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(net.parameters(), gradients))  # pyright: ignore
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not seen
    assert Gain(steps=2)(net, batch, LOSS) == found


def test_frozen_entries_stay_and_what_fades_is_left_out():
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    frozen = grow(net, [Freeze(name) for name in ("stem", "head", *FIRST.blocks)]).network
    assert not list(frozen.parameters())
    found = Gain(steps=3)(frozen, batch, LOSS)  # without growth nothing trains
    with torch.no_grad():
        without = LOSS(copy.deepcopy(frozen).train()(batch[0]), batch[1]).item()
    for block, gain in found.items():
        (action,) = Gain().candidate(FIRST, block)
        assert gain == pytest.approx(without - by_hand(frozen, action, batch, 3, 0.1), abs=2e-6)
        assert gain > 0
    deeper = grow(net, [Insert("stage2.block1", 4), Remove("stage2.block2", 5)]).network
    assert list(Gain(steps=1)(deeper, batch, LOSS)) == [
        name for name in deeper.architecture.blocks if name != "stage2.block2"
    ]


def test_nothing_is_dropped_whatever_mode_the_network_is_in():
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    chancy = grow(net, [SetSurvival(name, 0.5) for name in FIRST.blocks]).network
    expected = Gain(steps=2)(net, batch, LOSS)
    assert Gain(steps=2)(chancy, batch, LOSS) == pytest.approx(expected, abs=1e-6)
    assert Gain(steps=2)(net.eval(), batch, LOSS) == expected


def test_a_widening_adds_a_channel_at_least_and_what_does_not_fit_is_not_inserted():
    tiny = replace(Gain(), share=1e-6)
    assert tiny.candidate(FIRST, "stage1.block1") == (Widen("stage1.block1", 1),)
    assert replace(tiny, kind="insert").candidate(FIRST, "stage1.block1") == ()
    net = build(FIRST)
    assert replace(tiny, kind="insert", steps=1)(net, batch_of(FIRST), LOSS) == {}


def test_an_initializer_sees_the_batch():
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    steep = Gain(initializer="gradmax", steps=2)(net, batch, LOSS)
    drawn = Gain(steps=2)(net, batch, LOSS)
    assert all(steep[block] > drawn[block] for block in FIRST.blocks)


@dataclass(frozen=True)
class Twice(Gain):
    """Two channels in the first block, and nothing elsewhere."""

    name = "twice"  # pyright: ignore

    def candidate(self, architecture, block):
        return (Widen(block, 1), Widen(block, 1)) if block == "stage1.block1" else ()


def test_candidates_of_ones_own():
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    found = Twice(steps=2)(net, batch, LOSS)
    actions = [Widen("stage1.block1", 1)] * 2
    expected = by_hand(net, (), batch, 2, 0.1) - by_hand(net, actions, batch, 2, 0.1)
    assert found == {"stage1.block1": pytest.approx(expected, abs=2e-6)}
    assert Twice().name == "twice"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "narrow"}, "kind must be one of widen, insert; got 'narrow'"),
        ({"share": 0}, "share must be above 0 and at most 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be greater than 0 and finite, got 0.0"),
        ({"rate": float("inf")}, "rate must be greater than 0 and finite, got inf"),
        ({"rate": float("nan")}, "rate must be greater than 0 and finite, got nan"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Gain(**settings)


def test_a_rate_that_is_too_high_is_told():
    net, batch = build(FIRST, seed=5), batch_of(FIRST)
    with pytest.raises(ValueError, match=r"losses stay finite, got 1e\+30 and .* with no growth"):
        Gain(rate=1e30)(net, batch, LOSS)
