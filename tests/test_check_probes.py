"""What may stand in `needs`, and what a probe may give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from histories import FIRST, LIMIT, record_of

from policies import Gain, Policy, StochasticDepth, probed
from training.asking.replay import replay
from training.deciding.check_probes import check_needs, missing, wrong_numbers

BLOCKS = tuple(FIRST.blocks)
LAYERS = ("stem", "head")


def energy(network, batch, loss):
    return {}


def other(network):
    return {}


def response_std(network, batch, loss):
    return {}


def importance(network, batch, loss):
    return {}


@dataclass(frozen=True)
class Named:
    name: Any

    def __call__(self, network, batch, loss):
        return {}


@dataclass(frozen=True)
class Needy(Policy):
    probes: Any = ()

    @property
    def needs(self):
        return self.probes

    def decide(self, history):
        return []


def test_names_functions_and_objects_are_probes():
    check_needs(Needy(()))
    check_needs(Needy(["importance", energy, Gain(), Gain("insert"), Named("mine")]))
    check_needs(Needy(("effective_rank", "gradient_signal_to_noise", "gain", "importance")))
    check_needs(StochasticDepth())


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (5, "got 5"),
        ("gain", "got 'gain'"),
        (("weather",), "got 'weather'"),
        ((energy, 5), "got 5"),
        ((Gain,), r"got the class Gain where an object must stand: Gain\(\)"),
        (
            (lambda network, batch, loss: {},),
            "with a name of letters, digits and _, got '<lambda>'",
        ),
        ((Named("two words"),), "with a name of letters, digits and _, got 'two words'"),
        ((Named(5),), "with a name of letters, digits and _, got 5"),
        ((response_std,), "under names of their own, got one of yours called 'response_std'"),
        ((importance,), "under names of their own, got one of yours called 'importance'"),
        ((other,), "got other, which takes others: too many positional arguments"),
        (("gain", Gain()), "each under a name of its own, got 'gain' twice"),
        ((Gain(), Gain(steps=2)), "each under a name of its own, got 'gain' twice"),
        ((energy, Named("energy")), "each under a name of its own, got 'energy' twice"),
    ],
)
def test_what_is_no_probe_is_refused_before_a_run(needs, message):
    told = rf"policy Needy must need probes of importance, .*, {message}$"
    with pytest.raises(ValueError, match=told):
        check_needs(Needy(needs))


@pytest.mark.parametrize(
    "found",
    [
        {},
        {BLOCKS[0]: 1},
        {BLOCKS[0]: 1.5, "stem": True},
        {"head": np.float32(2)},
        {"head": np.array(2.0)},
        {"head": torch.tensor(2)},
    ],
)
def test_numbers_by_block_or_layer(found):
    assert wrong_numbers(found, BLOCKS, LAYERS) == ""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "must give a mapping of blocks or layers to numbers, got None"),
        ([1.0], "must give a mapping of blocks or layers to numbers, got [1.0]"),
        (
            {BLOCKS[0]: 1.0, "stage9": 1.0},
            f"must give numbers by block ({', '.join(BLOCKS)}, ...) or by layer, got 'stage9'",
        ),
        (
            {3: 1.0},
            f"must give numbers by block ({', '.join(BLOCKS)}, ...) or by layer, got 3",
        ),
        ({"stem": "much"}, "must give finite numbers, got 'much' for stem"),
        ({"stem": None}, "must give finite numbers, got None for stem"),
        ({"stem": 1j}, "must give finite numbers, got 1j for stem"),
        ({"stem": float("nan")}, "must give finite numbers, got nan for stem"),
        ({"stem": -float("inf")}, "must give finite numbers, got -inf for stem"),
        ({"stem": 10**400}, f"must give finite numbers, got {10**199} for stem"),
        ({"stem": torch.tensor(torch.nan)}, "must give finite numbers, got tensor(nan) for stem"),
        ({"stem": torch.ones(2)}, "must give finite numbers, got tensor([1., 1.]) for stem"),
    ],
)
def test_what_is_no_number_by_block_or_layer_is_told(found, message):
    assert wrong_numbers(found, BLOCKS, LAYERS) == message


def test_a_record_without_what_a_policy_needs_is_told():
    policy = Needy(("importance", energy))
    record = record_of(4, importance={BLOCKS[0]: 1.0})
    told = "Needy needs the probe 'energy', got a record without it, of step 4"
    assert missing(policy, [record]) == told
    assert missing(policy, [record_of(4, importance={BLOCKS[0]: 1.0}, probes={"energy": {}})]) == ""
    assert missing(Needy(), [record]) == ""


@dataclass(frozen=True)
class Follows(Policy):
    needs = (energy,)

    def decide(self, history):
        assert probed(history[-1], energy)[BLOCKS[0]] == len(history)
        return []


def test_a_replay_takes_the_recorded_numbers():
    history = [
        record_of(step, FIRST, LIMIT, probes={"energy": {BLOCKS[0]: float(step)}})
        for step in (1, 2, 3)
    ]
    assert [record for record, _ in replay(Follows(), history)] == history
    with pytest.raises(ValueError, match="Follows needs the probe 'energy', got a record without"):
        list(replay(Follows(), [*history, record_of(4)]))
