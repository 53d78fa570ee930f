"""variance-transfer: pairs cancel exactly, and outputs move by the rescaling alone."""

import copy
from itertools import pairwise

import pytest
import torch
from makers import CASES, architecture_of, batch_for, three_blocks, train, trained

from nets import Freeze, Insert, VarianceTransfer, Widen, WidenStage, build, grow, preset
from nets.growing.grow import output_difference
from nets.modules.frozen_parts import join_values
from nets.plan.layers import layer_specs

PLAIN = VarianceTransfer(rescale=False)
WIDER, STREAM, INSERTED = (
    Widen("stage1.block2", 4),
    WidenStage("stage1", 3),
    Insert("stage1.block1", 5),
)
EDITS = [
    pytest.param(kind, order, action, id=f"{kind}-{order}-{type(action).__name__}")
    for kind, order in CASES
    for action in (WIDER, STREAM, INSERTED)
    if kind != "plain" or action is not STREAM
]


def started(kind, order, seed=0):
    net = trained(three_blocks(kind, order), torch.float64, seed, steps=5, first=10 * seed)
    return net, batch_for(net.architecture, 99 + seed, dtype=torch.float64)


@torch.no_grad()
def rescaled(net, after):
    """The old network, whose layers that will see more channels have their weights scaled."""
    net = copy.deepcopy(net)
    specs, wider = layer_specs(net.architecture), {s.name: s for s in layer_specs(after)}
    for spec, following in pairwise((*specs, specs[-1])):
        if spec.kind == "norm" or wider[spec.name].shape[1] == spec.shape[1]:
            continue
        factor = spec.shape[1] / wider[spec.name].shape[1]
        factor = factor if spec.name == "head.linear" else factor**0.5
        net.get_submodule(spec.name).weight.mul_(factor)
        if net.architecture.order == "post":
            norm = spec.name.replace("conv", "bn").replace("linear", "bn")
        else:
            norm = following.name if following.home == spec.home else ""
        modules = dict(net.named_modules())
        if isinstance(modules.get(norm), torch.nn.modules.batchnorm._BatchNorm):
            modules[norm].running_mean.mul_(factor)
            modules[norm].running_var.mul_(factor**2)
    return net


@pytest.mark.parametrize(("kind", "order", "action"), EDITS)
def test_without_rescaling_outputs_stay_and_with_it_they_move_by_it_alone(kind, order, action):
    for seed in range(3):
        net, probe = started(kind, order, seed)
        grown = grow(net, action, initializer=PLAIN, seed=seed, probe=probe)
        assert output_difference(net, grown.network, probe[0]) <= 1e-12
        assert grown.difference <= 1e-12
        grown = grow(net, action, initializer="variance-transfer", seed=seed, probe=probe)
        scaled = net if action is INSERTED else rescaled(net, grown.network.architecture)
        assert output_difference(scaled, grown.network, probe[0]) <= 1e-12
        alone = output_difference(net, scaled, probe[0])
        assert grown.difference == pytest.approx(alone, rel=1e-6, abs=1e-12)
        assert (alone == 0) == (action is INSERTED)


def test_behind_batchnorm_only_its_epsilon_shows_and_a_stream_scales_the_head():
    net, probe = started("basic", "post")
    moved = grow(net, WIDER, initializer="variance-transfer", probe=probe).difference
    assert 0 < moved < 1e-3
    grown = grow(net, STREAM, initializer="variance-transfer", probe=probe)
    assert grown.difference < 1e-3
    grown = grow(net, WidenStage("stage2", 3), initializer="variance-transfer", probe=probe)
    assert grown.difference > 0.01
    old, new = (n.head.linear.weight for n in (net, grown.network))
    torch.testing.assert_close(new[:, :5], old * 5 / 8)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_pair_has_one_row_and_two_columns_of_opposite_sign(rescale):
    net, _ = started("basic", "post")
    action = Widen("stage1.block2", 5)
    block = grow(net, action, initializer=VarianceTransfer(rescale)).network.stage1.block2
    rows, columns = block.conv1.weight, block.conv2.weight
    assert torch.equal(rows[4:6], rows[6:8])
    assert not torch.equal(rows[4], rows[5])
    assert torch.equal(columns[:, 4:6], -columns[:, 6:8])
    assert columns[:, 4:8].all()
    assert not columns[:, 8].any()  # without a partner
    old = net.stage1.block2.conv2.weight * ((4 / 9) ** 0.5 if rescale else 1)
    torch.testing.assert_close(columns[:, :4], old)
    expected = net.stage1.block2.bn2.running_var * (4 / 9 if rescale else 1)
    torch.testing.assert_close(block.bn2.running_var, expected)


def test_new_weights_have_the_variances_of_the_papers_table():
    net = build(preset("resnet8", image=(3, 8, 8)), initializer="variance-transfer")
    convolution, head = (
        weight.detach() for weight in (net.stage3.block1.conv2.weight, net.head.linear.weight)
    )
    assert float(convolution.std()) == pytest.approx((64 * 9) ** -0.5, rel=0.05)
    assert float(head.std()) == pytest.approx(1 / 64, rel=0.1)
    actions = [Widen("stage3.block1", 64), WidenStage("stage3", 64)]
    grown = grow(net, actions, initializer="variance-transfer").network
    columns = grown.stage3.block1.conv2.weight[:64, 64:].detach()
    assert float(columns.std()) == pytest.approx((128 * 9) ** -0.5, rel=0.05)
    assert float(grown.head.linear.weight[:, 64:].detach().std()) == pytest.approx(1 / 128, rel=0.1)


@pytest.mark.parametrize("initializer", [PLAIN, "variance-transfer"])
@pytest.mark.parametrize(("kind", "order", "action"), [e for e in EDITS if "plain" not in e.id])
def test_everything_new_is_alive_within_two_steps_and_pairs_part(kind, order, action, initializer):
    net, probe = started(kind, order)
    grown = grow(net, action, initializer=initializer, probe=probe).network
    shapes = {name: tuple(value.shape) for name, value in net.named_parameters()}
    moved = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in grown.named_parameters()}
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.05)
    for step in range(2):
        train(grown, optimizer, steps=1, first=step, count=128)
        for name, parameter in grown.named_parameters():
            moved[name] |= parameter.grad != 0
    for name, where in moved.items():
        where[tuple(map(slice, shapes.get(name, (0,))))] = True
        assert where.all(), name
    if action is WIDER:
        path = "stage1.block2.linear1" if kind == "dense" else "stage1.block2.conv1"
        rows = grown.get_submodule(path).weight
        assert not torch.isclose(rows[4:6], rows[6:8], rtol=1e-9, atol=0).any()


def test_state_of_old_entries_is_carried_and_the_average_is_scaled_as_well():
    net, ema = trained(three_blocks()), trained(three_blocks(), seed=1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    train(net, optimizer)
    grown = grow(net, WIDER, optimizer, ema=ema, initializer="variance-transfer")
    path = "stage1.block2.conv2"
    old, new = (
        o.state[n.get_submodule(path).weight]
        for o, n in ((optimizer, net), (grown.optimizer, grown.network))
    )
    assert torch.equal(new["exp_avg"][:, :4], old["exp_avg"])
    assert not new["exp_avg"][:, 4:].any()
    assert int(new["step"]) == int(old["step"])
    mean, before = grown.ema.get_submodule(path).weight, ema.get_submodule(path).weight
    torch.testing.assert_close(mean[:, :4], before * 0.5**0.5)
    assert torch.equal(mean[:, 4:], grown.network.get_submodule(path).weight[:, 4:])


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_layer_of_which_something_is_held_is_not_rescaled(order):
    net = trained(architecture_of("basic", order), torch.float64, steps=3)
    frozen = grow(net, [Freeze("stage1.block1", 2), Freeze("stage2")]).network
    # new channels of what is held train; the norm behind them stays held
    frozen = grow(frozen, Widen("stage2.block1", 1)).network
    actions = [Widen("stage1.block1", 2), Widen("stage2.block1", 2)]
    probe = torch.randn(4, *net.architecture.image, dtype=torch.float64)
    made = grow(frozen, actions, initializer="variance-transfer", probe=probe)
    assert made.difference < 1e-12
    grown = made.network
    old, new = (join_values(n, n.state_dict()) for n in (frozen, grown))
    first, second = (f"{block}.block1.conv2.weight" for block in ("stage1", "stage2"))
    assert torch.equal(new[first][:, :3], old[first])
    assert torch.equal(new[second][:, :5], old[second])
    for name in ("running_mean", "running_var"):
        before = old[f"stage2.block1.bn2.{name}"]
        assert torch.equal(new[f"stage2.block1.bn2.{name}"][: len(before)], before)
