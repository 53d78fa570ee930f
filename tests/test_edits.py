"""Properties over random sequences of edits on random architectures, in float64."""

from copy import deepcopy
from random import Random

import pytest
import torch
from torch.nn import functional

from nets import (
    Architecture,
    Block,
    Freeze,
    Insert,
    Narrow,
    Remove,
    SetSurvival,
    Stage,
    Unfreeze,
    Widen,
    WidenStage,
    build,
    grow,
)
from nets.growth import probe_outputs
from nets.held import held_entries, join_values

SEQUENCES = 30
EDITS = 8
BOTH, EVAL, NEITHER = (False, True), (False,), ()


def random_architecture(random: Random) -> Architecture:
    block = random.choice(["basic", "basic", "bottleneck", "bottleneck", "dense", "plain"])
    convolutional = block in ("basic", "bottleneck")
    order = "post" if block == "plain" else random.choice(["post", "pre"])
    stem = {"dense": "dense", "plain": "none"}.get(block) or random.choice(["cifar", "imagenet"])
    stem_width = 0 if stem == "none" else random.randint(1, 5)
    stages, incoming = [], stem_width
    for number in range(1, random.randint(2, 3) + 1):
        depth = random.randint(1, 3)
        blocks = tuple(
            Block(f"stage{number}.block{k}", random.randint(1, 5), random.choice([1.0, 0.7]))
            for k in range(1, depth + 1)
        )
        stride = random.choice([1, 2]) if convolutional else 1
        width = 0 if block == "plain" else random.choice([incoming, random.randint(2, 6)])
        projection = block != "plain" and (stride > 1 or width != incoming or random.random() < 0.2)
        stages.append(Stage(f"stage{number}", width, blocks, stride, projection, depth))
        incoming = width
    return Architecture(
        tuple(stages),
        classes=3,
        image=(2, 8, 8) if convolutional else (5,),
        stem_width=stem_width,
        order=order,
        stem=stem,
        block=block,
        activation=random.choice(["relu", "relu", "gelu", "tanh"]),
        dropout=random.choice([0.0, 0.3]),
    )


def random_action(random: Random, architecture: Architecture):
    """Give an action, in which modes it must keep the outputs, and how it starts new values."""
    block = random.choice(list(architecture.blocks))
    width, stage = architecture.blocks[block].width, architecture.stage_of(block).name
    initializer = random.choice(["he", "xavier", "net2net", "gradmax"])
    parts = [block, stage, "stem", "head"]
    choices = [
        (Widen(block, random.randint(1, 4), initializer=initializer), BOTH),
        (WidenStage(stage, random.randint(1, 4), initializer=initializer), BOTH),
        (Insert(block, width + random.randint(0, 2), initializer=initializer), BOTH),
        (SetSurvival(block, random.choice([0.3, 1.0]), random.choice(["batch", "row"])), EVAL),
        (Freeze(random.choice(parts)), EVAL),
        (Freeze(block, random.randint(1, width)), EVAL),
        (Unfreeze(random.choice(parts)), EVAL),
        (Remove(block, random.randint(1, 3)), EVAL),
        (Narrow(block, random.randint(1, 2), random.choice(["magnitude", "obd"])), NEITHER),
    ]
    while True:
        action, modes = random.choice(choices)
        try:
            architecture.apply(action)
        except ValueError:
            continue
        return action, modes


def moved(old, new, inputs, modes) -> float:
    """Give the largest change of an output, relative to the largest output."""
    worst = 0.0
    for training in modes:
        before, after = (probe_outputs(net, inputs, training) for net in (old, new))
        worst = max(worst, float((after - before).abs().max() / before.abs().max()))
    return worst


def train(net, optimizer, probe, steps=1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net.train()(probe[0]), probe[1])
        if loss.requires_grad:  # unless all of it is frozen
            loss.backward()
            optimizer.step()


def run_sequence(seed: int) -> float:
    """Edit and train in turn; give the largest change of an output that should not move."""
    random, worst = Random(seed), 0.0
    architecture = random_architecture(random)
    torch.manual_seed(seed)
    net = build(architecture, seed).double()
    kind = random.choice([torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
    optimizer = kind(
        net.parameters(), 0.01, **({"momentum": 0.9} if kind.__name__ == "SGD" else {})
    )
    probe = torch.randn(6, *architecture.image).double(), torch.randint(3, (6,))
    for _ in range(EDITS):
        train(net, optimizer, probe)
        action, modes = random_action(random, net.architecture)
        settings = {"seed": seed, "probe": probe, "loss": functional.cross_entropy}
        grown = grow(net, [action], optimizer, **settings)
        assert_groups_are_whole(grown)
        worst = max(worst, moved(net, grown.network, probe[0], modes))
        if not isinstance(action, Unfreeze | Narrow):
            assert_held_values_stay(net, grown.network)
            before = deepcopy(grown.network)
            train(grown.network, grown.optimizer, probe)
            assert_held_values_stay(before, grown.network)
        if isinstance(action, Remove):
            train(grown.network, grown.optimizer, probe, action.steps)
            faded = grown
            grown = grow(faded.network, [Remove(action.block)], faded.optimizer, **settings)
            worst = max(worst, moved(faded.network, grown.network, probe[0], BOTH))
        net, optimizer = grown.network, grown.optimizer
    return worst


def assert_held_values_stay(before, after) -> None:
    """Weights, biases and BatchNorm's statistics of what is frozen are bit-equal."""
    held = held_entries(before)
    values, now = (join_values(net, net.state_dict()) for net in (before, after))
    for name, rows in held_statistics(before).items():
        assert torch.equal(now[name][:rows], values[name][:rows]), name
    for name, mask in held.items():
        if name.rsplit(".", 1)[-1] in ("weight", "bias") and mask.any():
            same = now[name][tuple(map(slice, values[name].shape))] == values[name]
            same = same.flatten(2).all(2) if same.dim() > 2 else same
            assert same[mask].all(), name


def held_statistics(net):
    return {
        f"{path}.{leaf}": module.held
        for path, module in net.named_modules()
        if hasattr(module, "held")
        for leaf in ("running_mean", "running_var")
    }


def assert_groups_are_whole(grown) -> None:
    members = [p for group in grown.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in members} == {id(p) for p in grown.network.parameters()}
    assert len(members) == len({id(p) for p in members})


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_random_sequences_of_edits_keep_the_outputs(seed):
    assert run_sequence(seed) <= 1e-10


@pytest.mark.slow
def test_two_thousand_sequences_of_edits_keep_the_outputs():
    worst = max(run_sequence(seed) for seed in range(2000))
    print(f"largest relative change of an output: {worst:.3g}")
    assert worst <= 1e-10
