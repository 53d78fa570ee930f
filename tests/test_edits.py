"""Properties over random sequences of edits on random architectures, in float64."""

from copy import deepcopy
from random import Random

import pytest
import torch
from makers import architecture_of, held_entries
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
    VarianceTransfer,
    Widen,
    WidenStage,
    build,
    grow,
)
from nets.growing.grow import probe_outputs
from nets.modules.frozen_parts import join_values

SEQUENCES = 15
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
    keeping = ["he", "xavier", "net2net", "gradmax", VarianceTransfer(rescale=False)]
    initializer = random.choice([*keeping, "variance-transfer"])
    added = BOTH if initializer in keeping else NEITHER
    parts = [block, stage, "stem", "head"]
    choices = [
        (Widen(block, random.randint(1, 4), initializer=initializer), added),
        (WidenStage(stage, random.randint(1, 4), initializer=initializer), added),
        (Insert(block, width + random.randint(0, 2), initializer=initializer), added),
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


# removing and narrowing


def small(block="basic", order="post", **settings):
    """One stage of three blocks on a stream of 4, then one block."""
    image = (5,) if block == "dense" else (2, 8, 8)
    shape = {"widths": ((3, 3, 3), (4,)), "classes": 3, "image": image}
    torch.manual_seed(0)
    net = build(architecture_of(block, order, **shape, **settings)).double()
    probe = torch.randn(16, *image).double(), torch.randint(3, (16,))
    train(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), probe, steps=5)
    return net, probe


@pytest.mark.parametrize("block", ["basic", "bottleneck", "dense"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_faded_block_goes_without_a_trace(block, order):
    net, probe = small(block, order)
    fading = grow(net, [Remove("stage1.block2", 4)]).network
    assert moved(net, fading, probe[0], EVAL) == 0
    seen = []
    for step in range(4):
        counted = fading.state_dict()["stage1.block2.fade"]
        assert int(counted) == step
        branch = fading.stage1.block2._kept(torch.ones(1, 1), fading.draw)  # counts a step itself
        seen.append(float(branch))
        fading.stage1.block2.fade -= 1
        train(fading, torch.optim.SGD(fading.parameters(), 0.01), probe)
    assert seen == [0.75, 0.5, 0.25, 0.0]
    gone = grow(fading, [Remove("stage1.block2")], probe=probe)
    assert list(gone.network.architecture.blocks) == [
        "stage1.block1",
        "stage1.block3",
        "stage2.block1",
    ]
    assert moved(fading, gone.network, probe[0], BOTH) <= 1e-12
    assert gone.difference <= 1e-12
    for name, value in gone.network.state_dict().items():  # BatchNorm's statistics too
        assert torch.equal(value, fading.state_dict()[name]), name


def test_a_fade_goes_on_where_a_checkpoint_left_it():
    net, probe = small()
    fading = grow(net, [Remove("stage1.block2", 5)]).network
    train(fading, torch.optim.SGD(fading.parameters(), 0.01), probe, steps=2)
    other = build(fading.architecture, seed=3).double()
    other.load_state_dict(fading.state_dict())
    assert moved(fading, other, probe[0], BOTH) == 0
    assert int(other.stage1.block2.fade) == 2
    grown = grow(other, [Widen("stage1.block2", 2), Widen("stage2.block1", 1)], probe=probe)
    assert int(grown.network.stage1.block2.fade) == 2
    assert grown.difference <= 1e-12


@pytest.mark.parametrize(
    ("action", "settings", "message"),
    [
        (Remove("stage1.block9"), {}, "block must be one of stage1.block1, .*; got"),
        (Remove("stage2.block1"), {}, "block stage2.block1 is the only one of stage2"),
        (Remove("stage1.block1", -1), {}, "steps must be at least 0, got -1"),
        (Remove("stage1.block2"), {"activation": "gelu"}, "order must be pre, or activation relu"),
        (Narrow("stage1.block1", 3), {}, "by must be at most 2 for stage1.block1, which has 3"),
        (Narrow("stage1.block1", 0), {}, "by must be at least 1, got 0"),
        (Freeze("stage9"), {}, "target must be one of stem, stage1, "),
        (Freeze("stage1", 2), {}, "channels can be given for a block only"),
        (Freeze("stage1.block1", 4), {}, "channels must be at most 3, the width of stage1.block1"),
        (Freeze("stage1.block1", 0), {}, "channels must be at least 1, got 0"),
    ],
    ids=repr,
)
def test_what_cannot_be_done_is_refused_in_one_line(action, settings, message):
    net, _ = small(**settings)
    with pytest.raises(ValueError, match=f"^{message}"):
        grow(net, [action])


def test_a_fading_block_does_not_start_to_fade_again():
    net, _ = small()
    with pytest.raises(ValueError, match=r"block stage1.block2 is fading already, over 3 steps"):
        grow(net, [Remove("stage1.block2", 3), Remove("stage1.block2", 2)])


def test_the_block_that_leads_into_a_stream_stays():
    net, _ = small()
    grown = grow(net, [Insert("stage2.block1", 2)]).network
    with pytest.raises(ValueError, match=r"block stage2.block1 must stay: it leads into"):
        grow(grown, [Remove("stage2.block1")])
    assert "stage2.block2" not in grow(grown, [Remove("stage2.block2")]).network.architecture.blocks


@pytest.mark.parametrize("order", ["post", "pre"])
def test_behind_a_block_that_went_at_once_statistics_are_those_of_the_probe(order):
    net, probe = small(order=order)
    without = grow(net, [Remove("stage1.block2")]).network
    grown = grow(net, [Remove("stage1.block2")], probe=probe)
    assert grown.difference > 1e-3
    # what BatchNorm sees on the probe batch, by a training forward at momentum 1
    slow = deepcopy(without).train()
    for module in slow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    slow(probe[0])
    behind = ("stage1.block3", "stage2", "head")
    for name, value in grown.network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            expected = slow if name.startswith(behind) else net
            torch.testing.assert_close(value, expected.state_dict()[name])
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, net.state_dict()[name])
    assert moved(without, grown.network, probe[0], EVAL) > 1e-3


@pytest.mark.parametrize("block", ["basic", "bottleneck", "dense"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_channels_with_zero_columns_go_without_a_trace(block, order):
    net, probe = small(block, order)
    grown = grow(net, [Widen("stage1.block2", 3)], probe=probe).network
    back = grow(grown, [Narrow("stage1.block2", 3)], probe=probe)
    assert moved(grown, back.network, probe[0], BOTH) <= 1e-12
    if block != "bottleneck":  # whose middle layer has no zero columns, so others may go there
        for name, value in back.network.state_dict().items():
            assert torch.equal(value, net.state_dict()[name]), name
