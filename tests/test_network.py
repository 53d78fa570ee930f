"""Built networks: values from (seed, name), module paths, drop masks from (seed, step, block)."""

from dataclasses import replace

import numpy
import pytest
import scipy.stats
import torch
from makers import architecture_of, normal, take_step
from torch import nn

from nets import (
    Architecture,
    Block,
    Freeze,
    Insert,
    LayerSpec,
    Network,
    SetSurvival,
    Stage,
    Widen,
    build,
    cost,
    grow,
    layer_specs,
    preset,
    seed_of,
)
from nets.modules.network import layer_of
from nets.modules.random_draws import hash_of, uniform

IMAGE = (2, 8, 8)


def small(name="resnet8", **settings):
    return seed_of(preset(name, classes=3, image=IMAGE, **settings), width=0.25, blocks=None)


def dropping(survival, blocks=1, **settings):
    """The small net with every block at this survival, `blocks` of them in the first stage."""
    architecture = small(**settings)
    for _ in range(blocks - 1):
        architecture = architecture.apply(Insert("stage1.block1", 4))
    for block in architecture.blocks:
        architecture = architecture.apply(SetSurvival(block, survival))
    return architecture


def images(count=4, seed=0, shape=IMAGE):
    return normal(count, *shape, seed=seed)


def test_the_same_seed_gives_the_same_values():
    first, second, other = (build(small(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        if name.endswith(("conv1.weight", "conv.weight", "linear.weight")):
            assert not torch.equal(value, other[name])


def test_every_weight_has_values_of_its_own():
    weights = [value for value in build(small()).state_dict().values() if value.dim() > 1]
    leading = {tuple(weight.flatten()[:3].tolist()) for weight in weights}
    assert len(leading) == len(weights)


def test_a_weight_does_not_depend_on_the_other_layers():
    wide = build(preset("resnet14", classes=3, image=IMAGE), seed=5).state_dict()
    narrow = build(preset("resnet8", classes=3, image=IMAGE), seed=5).state_dict()
    for name, value in narrow.items():
        assert torch.equal(value, wide[name])


def test_weights_start_from_he():
    net = build(preset("resnet20", image=(3, 8, 8)), seed=0)
    for name, value in net.named_parameters():
        if value.dim() > 1:
            fan_in = value[0].numel()
            assert float(value.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
        else:
            assert torch.all(value == (1.0 if name.endswith("weight") else 0.0))


def test_building_and_running_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    net = build(dropping(0.5), seed=1)
    net(images()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_architecture_may_be_written_with_lists():
    """JSON and YAML have no tuples."""
    stage = Stage("stage1", 4, [Block("stage1.block1", 3)], births=1)  # pyright: ignore
    listed = build(Architecture([stage], 3, [1, 4, 4], 4))  # pyright: ignore
    stage = replace(stage, blocks=(Block("stage1.block1", 3),))
    net = build(Architecture((stage,), 3, (1, 4, 4), 4))
    assert all(map(torch.equal, listed.state_dict().values(), net.state_dict().values()))


def test_a_built_net_knows_its_architecture_and_starts_in_train_mode():
    net = build(small())
    assert isinstance(net, Network)
    assert net.architecture == small()
    assert net.training
    assert all(
        parameter.requires_grad and parameter.dtype == torch.float32
        for parameter in net.parameters()
    )
    assert net(images()).shape == (4, 3)


def test_networks_of_one_architecture_share_nothing():
    first, second = build(small()), build(small())
    values = {name: value.clone() for name, value in second.state_dict().items()}
    first.double()
    first.draw += 1
    for module in first.modules():
        module.register_forward_hook(print)
        module.eval()
        for leaf in ("layers", "norms"):
            getattr(module, leaf, []).clear()
    for net in (second, build(small())):
        for name, value in net.state_dict().items():
            assert value.dtype == values[name].dtype
            assert torch.equal(value, values[name]), name
        for module in net.modules():
            assert module.training
            assert not module._forward_hooks
        assert len(net.stage1.block1.layers) == 2


def test_the_first_weights_are_drawn_as_asked():
    architecture = preset("resnet8", image=(1, 8, 8))
    weights = build(architecture, initializer="xavier").get_submodule("stage3.block1.conv1").weight
    outputs, inputs, *kernel = weights.shape
    bound = (6 / ((outputs + inputs) * kernel[0] * kernel[1])) ** 0.5
    assert 0.99 * bound < weights.abs().max() <= bound
    ones = build(architecture, initializer=lambda shape, generator: torch.ones(shape))
    assert (ones.stem.conv.weight == 1).all()
    normal = build(architecture).state_dict()
    for name in ("he", "net2net", "gradmax"):
        other = build(architecture, initializer=name).state_dict()
        assert all(torch.equal(other[key], value) for key, value in normal.items())
    with pytest.raises(ValueError, match="initializer must be one of he, xavier, "):
        build(architecture, initializer="zero")


@pytest.mark.parametrize("use", [build, seed_of, cost, layer_specs])
def test_what_is_no_architecture_is_refused(use):
    with pytest.raises(
        ValueError, match=r"^architecture must be an Architecture, as preset .* got a Net"
    ):
        use(build(small()))


def test_building_obeys_the_default_device():
    with torch.device("meta"):
        assert {value.device.type for value in build(small()).state_dict().values()} == {"meta"}


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_module_paths_are_those_that_statistics_and_checkpoints_name(order, block):
    paths = set(dict(build(small("resnet14", order=order, block=block)).named_modules()))
    last = 3 if block == "bottleneck" else 2
    expected = {"stem", "stem.conv", "head", "head.linear"}
    for stage in ("stage1", "stage2", "stage3"):
        expected |= {stage, f"{stage}.block1", f"{stage}.block2"}
        for number in range(1, last + 1):
            expected |= {f"{stage}.block2.conv{number}", f"{stage}.block1.bn{number}"}
    expected.add("stage2.block1.shortcut.conv")
    expected |= {"stem.bn", "stage2.block1.shortcut.bn"} if order == "post" else {"head.bn"}
    assert expected <= paths
    assert "stage2.block2.shortcut.conv" not in paths
    assert ("stage1.block1.shortcut.conv" in paths) == (block == "bottleneck")
    assert "stage2.block1.bn1" in paths


def test_a_block_of_an_edited_stage_keeps_its_path():
    net = build(small().apply(Insert("stage2.block1", 4)).apply(Insert("stage2.block1", 5)))
    assert [name for name, _ in net.stage2.named_children()] == ["block1", "block3", "block2"]
    assert net.get_submodule("stage2.block3.conv1").out_channels == 5


def test_the_post_activation_block_is_the_published_one():
    net = build(small(), seed=2).eval()
    block, x = net.get_submodule("stage2.block1"), images(shape=(16, 8, 8))
    y = torch.relu(block.bn1(block.conv1(x)))
    expected = torch.relu(block.bn2(block.conv2(y)) + block.shortcut.bn(block.shortcut.conv(x)))
    assert torch.equal(block(x, net.draw), expected)


def test_the_pre_activation_block_is_the_published_one():
    net = build(small(order="pre"), seed=2).eval()
    block, x = net.get_submodule("stage2.block1"), images(shape=(16, 8, 8))
    active = torch.relu(block.bn1(x))
    branch = block.conv2(torch.relu(block.bn2(block.conv1(active))))
    expected = block.shortcut.conv(active) + branch
    assert torch.equal(block(x, net.draw), expected)


def test_resnet18_has_the_shapes_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
        ours = Network(preset("resnet18", classes=1000, image=(3, 224, 224)))

    def shapes(net):
        return sorted(tuple(value.shape) for value in net.parameters())

    assert shapes(ours) == shapes(theirs)


# stochastic depth


def draws(seed, salt, steps):
    """The numbers of one block over many steps, by the function that the network calls."""
    counts = torch.arange(1, steps + 1)
    return uniform(torch.stack([torch.full_like(counts, seed), counts]), salt).numpy()


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("block", ["stage1.block1", "stage3.block17"])
def test_draws_look_uniform(seed, block):
    values = draws(seed, hash_of(block), 20_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 5 * (1 / 12 / len(values)) ** 0.5
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3
    neighbours = numpy.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 5 / len(values) ** 0.5


def test_draws_of_blocks_and_seeds_are_independent():
    blocks = [f"stage{stage}.block{number}" for stage in (1, 2, 3) for number in (1, 2, 3)]
    rows = [draws(0, hash_of(block), 20_000) for block in blocks]
    rows += [draws(seed, hash_of(blocks[0]), 20_000) for seed in (1, 2, 3)]
    correlations = numpy.corrcoef(rows) - numpy.eye(len(rows))
    assert numpy.abs(correlations).max() < 5 / 20_000**0.5
    # the events that matter: two blocks kept in the same step
    together = numpy.mean((rows[0] < 0.5) & (rows[1] < 0.5))
    assert together == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 20_000) ** 0.5)


def test_equal_seed_step_and_block_give_an_equal_draw():
    draw = torch.tensor([7, 3])
    assert uniform(draw, 11) == uniform(draw.clone(), 11)
    others = [uniform(torch.tensor(pair), 11) for pair in ((7, 4), (8, 3), (3, 7))] + [
        uniform(draw, 12)
    ]
    assert len({float(value) for value in [uniform(draw, 11), *others]}) == 5


def branches(net, block, steps):
    """What a block adds to its stream in some train steps, and the same with nothing dropped."""
    module = net.get_submodule(block)
    x = images(shape=(16, 8, 8))
    added = []
    with torch.no_grad():
        for step in range(1, steps + 1):
            added.append(module(x, torch.tensor([int(net.draw[0]), step])) - x)
        module.survival = 1.0
        full = module(x, net.draw) - x
    return torch.stack(added), full


@pytest.mark.parametrize("survival", [0.25, 0.5, 0.9])
def test_a_branch_is_kept_with_its_probability_and_scaled_by_it(survival):
    net = build(dropping(survival, order="pre"), seed=3)
    added, full = branches(net, "stage1.block1", steps=800)
    kept = added.abs().amax((1, 2, 3, 4)) > 0
    spread = (survival * (1 - survival) / len(kept)) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(survival, abs=4 * spread)
    torch.testing.assert_close(
        added[kept], (full / survival).expand_as(added[kept]), rtol=1e-5, atol=1e-5
    )


def kept_branches(net, x, steps):
    """Which blocks are kept in each of some train steps, seen from outside by hooks."""
    seen = {name: [] for name in net.architecture.blocks}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen[name].append(
                bool((output != inputs[0]).any())
            )
        )
        for name in seen
        if isinstance(net.get_submodule(name).shortcut, nn.Identity)
    ]
    with torch.no_grad():
        for _ in range(steps):
            net(x)
    for hook in hooks:
        hook.remove()
    return {name: kept for name, kept in seen.items() if kept}


def test_masks_of_a_run_depend_on_its_seed_and_not_on_the_other_blocks():
    architecture = dropping(0.5, blocks=3, order="pre")
    larger = architecture.apply(Insert("stage1.block1", 4, 0.5))
    masks, again, other, grown = (
        kept_branches(build(plan, seed), images(), steps=40)
        for plan, seed in ((architecture, 0), (architecture, 0), (architecture, 1), (larger, 0))
    )
    assert len(masks) == 3
    assert masks == again
    assert masks != other
    assert {name: grown[name] for name in masks} == masks
    assert len({tuple(kept) for kept in grown.values()}) == 4


def test_evaluation_drops_nothing_and_counts_no_step():
    certain = build(small(), seed=4).eval()
    risky = build(dropping(0.1), seed=4).eval()
    draw = risky.draw.clone()
    for _ in range(5):
        assert torch.equal(risky(images()), certain(images()))
    assert torch.equal(risky.draw, draw)


def test_training_counts_its_steps():
    net = build(small(), seed=4)
    for _ in range(3):
        net(images())
    assert net.draw.tolist() == [4, 3]
    assert build(small(), seed=9).draw.tolist() == [9, 0]


def dense_net(order):
    shape = {"widths": ((5, 3),), "streams": (6,), "classes": 3, "image": (7,)}
    return architecture_of("dense", order, **shape, survivals=(0.5,))


@pytest.mark.parametrize(
    "architecture",
    [
        dropping(0.5, blocks=2),
        dropping(0.5, order="pre", block="bottleneck"),
        dropping(0.9, stem="imagenet"),
        dense_net("post"),
        dense_net("pre"),
        preset("mlp-6", image=(7,), classes=3),
    ],
)
def test_a_train_step_never_asks_the_host(architecture):
    net = build(architecture).to("meta")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.empty(4, *architecture.image, device="meta")
    for _ in range(2):
        take_step(net, optimizer, x, torch.empty(4, dtype=torch.int64, device="meta"))
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_dropped_branch_gets_no_gradient_and_the_rest_does():
    net = build(dropping(0.5, order="pre"), seed=0)
    names = list(net.architecture.blocks)
    outcomes = set()
    for _ in range(20):
        net.zero_grad()
        net(images()).square().sum().backward()
        alive = [bool(net.get_submodule(f"{name}.conv2").weight.grad.any()) for name in names]
        outcomes.add(tuple(alive))
        assert net.stem.conv.weight.grad.any()
    assert len(outcomes) > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_strided_convolutions_have_the_right_gradients(dtype, layout):
    """Where oneDNN's own are wrong: 1x1 on few channels with AVX2, outputs of one pixel in bf16."""
    cases = [(1, width, size) for width in (1, 3, 4, 7, 8) for size in (4, 8)]
    cases += [(3, width, size) for width in (3, 8, 16) for size in (1, 2, 3)]
    for kernel, width, size in cases:
        spec = LayerSpec("conv", "conv", (8, width, kernel, kernel), ("out", "in"), stride=2)
        layer = layer_of(spec)
        layer.to(dtype, memory_format=layout)
        torch.manual_seed(0)
        x = torch.randn(12, width, size, size).to(dtype).contiguous(memory_format=layout)
        exact = torch.nn.Conv2d(width, 8, kernel, 2, kernel // 2, bias=False).double()
        exact.weight.data.copy_(layer.weight)
        want = exact(x.double())
        wanted = torch.autograd.grad(want.square().sum(), exact.weight)[0]
        for attempt in range(4):
            junk = torch.full((1000 * attempt + 7,), float("nan"))  # for memory that is read fresh
            del junk
            got = layer(x)
            gradient = torch.autograd.grad(got.square().sum(), layer.weight)[0]
            tolerance = 1e-5 if dtype == torch.float32 else 0.03
            for one, other in ((got, want), (gradient, wanted)):
                error = (one.double() - other).norm() / other.norm()
                assert error < tolerance, (kernel, width, size)


def test_strided_convolutions_are_held_in_part_and_keep_their_names():
    architecture = preset("resnet8", image=(1, 8, 8))
    net = build(seed_of(architecture), seed=1)
    held = grow(net, [Freeze("stage2.block1", 2)]).network
    x = torch.randn(4, 1, 8, 8)
    for each in (net, held):
        each.eval()
        assert type(each.get_submodule("stage2.block1.conv1")).__name__.endswith("StridedConv2d")
    assert isinstance(held.get_submodule("stage2.block1.conv1"), torch.nn.Conv2d)
    assert "stage2.block1.shortcut.conv.weight" in net.state_dict()
    assert torch.allclose(net(x), held(x), atol=1e-6)


def test_chances_of_survival_are_taken_over_in_place_and_nothing_else_is():
    drops = seed_of(preset("resnet20"), blocks=2).apply(SetSurvival("stage2.block2", 0.5, "row"))
    net = build(drops)
    inputs = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net(inputs)
    held = net.stage2.block2.chance(torch.device("cpu"))
    other = drops.apply(SetSurvival("stage2.block2", 0.25, "row"))
    assert net.survive(other)
    assert net.architecture == other
    assert net.stage2.block2.chance(torch.device("cpu")) is held
    assert held == 0.25
    fresh = build(other)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(inputs), fresh(inputs))
    for action in (
        SetSurvival("stage2.block2", 1.0, "row"),
        SetSurvival("stage2.block2", 0.5),
        SetSurvival("stage1.block1", 0.5),
        Widen("stage2.block2", 1),
    ):
        assert not net.survive(other.apply(action))
        assert net.architecture == other
        assert held == 0.25
