"""What `grow` was given: carried or refused by name, and nothing dropped without a word."""

import copy
import math

import pytest
import torch
from makers import architecture_of, differences, normal
from torch import nn
from torch.nn.utils import parametrizations, prune

from nets import (
    Freeze,
    Insert,
    Network,
    Remove,
    SetSurvival,
    Unfreeze,
    Widen,
    build,
    grow,
)

ACTIONS = [Widen("stage1.block1", 2), Insert("stage1.block1", 3)]
ARCHITECTURE = architecture_of(classes=5, image=(2, 8, 8), dropout=0.1)
IMAGES = normal(6, 2, 8, 8)


def tie(net):
    net.stage1.block2.bn1.weight = net.stage1.block2.bn1.bias


def tie_data(net):
    net.stage1.block2.bn1.weight.data = net.stage1.block2.bn1.bias.data


def replace(path, module):
    def do(net):
        parent, _, name = path.rpartition(".")
        net.get_submodule(parent).add_module(name, module)

    return do


def assign(path, name, value):
    return lambda net: setattr(net.get_submodule(path), name, value)


class Own(Network):
    """A network with a forward of its own."""


REFUSED = {
    "head": (replace("head.linear", nn.Linear(6, 7)), r"head.linear.weight has shape \(7, 6\)"),
    "headless": (replace("head.linear", nn.Identity()), "head.linear is Identity instead of Lin"),
    "submodule": (replace("projector", nn.Linear(5, 3)), "module of its own, projector"),
    "lost": (lambda net: delattr(net.stage1, "block2"), "it lacks stage1.block2"),
    "norm": (replace("stage1.block1.bn1", nn.GroupNorm(1, 3)), "bn1 is GroupNorm instead of"),
    "weight_norm": (
        lambda net: parametrizations.weight_norm(net.stage1.block1.conv1),
        "stage1.block1.conv1",
    ),
    "spectral_norm": (
        lambda net: nn.utils.spectral_norm(net.stage1.block1.conv1),
        "stage1.block1.conv1.weight",
    ),
    "prune": (
        lambda net: prune.l1_unstructured(net.stage1.block1.conv1, "weight", 0.5),
        "stage1.block1.conv1.weight",
    ),
    "tied": (tie, "stage1.block2.bn1.bias is shared with stage1.block2.bn1.weight"),
    "tied by data": (tie_data, "block2.bn1.bias is shared with stage1.block2.bn1.weight"),
    "affine": (
        replace("stage1.block1.bn1", nn.BatchNorm2d(3, affine=False)),
        "it lacks stage1.block1.bn1.weight",
    ),
    "untracked": (
        replace("stage1.block1.bn1", nn.BatchNorm2d(3, track_running_stats=False)),
        "it lacks stage1.block1.bn1.running_mean",
    ),
    "buffer": (lambda net: net.register_buffer("mean", torch.zeros(3)), "its own, mean"),
    "parameter": (
        lambda net: net.head.register_parameter("scale", nn.Parameter(torch.ones(1))),
        "a tensor of its own, head.scale",
    ),
    "dropout": (assign("stage1.block1.dropout", "p", 0.5), "dropout.p is 0.5 instead of 0.1"),
    "survival": (assign("stage1.block1", "survival", 0.5), "survival is 0.5 instead of 1.0"),
    "stride": (assign("stage1.block1.conv1", "stride", (2, 2)), "conv1.stride is"),
    "forward": (assign("head", "forward", lambda x: x), "attribute of its own, head.forward"),
    "object": (assign("", "loss", [nn.MSELoss()]), "attribute of its own, loss"),
    "tensor": (assign("", "mean", torch.zeros(2)), "attribute of its own, mean"),
    "subclass": (lambda net: setattr(net, "__class__", Own), "its class Own is not Network"),
    "gradient hook": (
        lambda net: net.head.linear.weight.register_hook(lambda g: g.clamp(-1, 1)),
        "head.linear.weight has a hook of its own",
    ),
    "update in backward": (
        lambda net: net.stem.conv.weight.register_post_accumulate_grad_hook(lambda p: None),
        "stem.conv.weight has a hook of its own",
    ),
    "architecture": (
        lambda net: setattr(net, "architecture", net.architecture.apply(ACTIONS[0])),
        "stage1.block1",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:.*spectral_norm.*")
@pytest.mark.parametrize("which", REFUSED)
def test_a_net_that_is_not_its_architecture_is_refused_by_name(which):
    net = build(ARCHITECTURE)
    change, told = REFUSED[which]
    change(net)
    state = copy.deepcopy(net.state_dict())
    start = "net must be as its architecture says, for growth carries that: "
    with pytest.raises(ValueError, match=f"^{start}.*{told}"):
        grow(net, ACTIONS, probe=IMAGES)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_average_is_looked_at_too():
    net = build(ARCHITECTURE)
    ema = copy.deepcopy(net)
    ema.projector = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"^ema must be as its architecture says, .*projector$"):
        grow(net, ACTIONS, ema=ema)


# what is carried


def test_settings_of_batchnorm_are_carried_and_newborns_take_their_siblings():
    net = build(ARCHITECTURE)
    for norm in (net.stage1.block1.bn1, net.stem.bn):
        norm.eps, norm.momentum = 1e-3, None
    grown = grow(net, [*ACTIONS, Freeze("stage1.block1", 2)], probe=IMAGES).network
    for path in ("stage1.block1.bn1", "stage1.block3.bn1", "stem.bn"):
        norm = grown.get_submodule(path)
        assert (norm.eps, norm.momentum) == (1e-3, None)
    assert (grown.stage1.block3.bn2.eps, grown.stage2.block1.bn1.momentum) == (1e-5, 0.1)
    again = grow(grown, [Unfreeze("stage1.block1")], probe=IMAGES)
    assert again.network.stage1.block1.bn1.eps == 1e-3
    assert again.difference < 1  # both modes run


def test_synchronised_batchnorm_stays_synchronised():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(build(ARCHITECTURE))
    grown = grow(net, ACTIONS, torch.optim.SGD(net.parameters(), 0.1), probe=IMAGES)
    norms = [m for m in grown.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    assert grown.difference < 1e-5
    again = grow(grown.network, ACTIONS, probe=IMAGES)
    assert again.difference < 1e-5
    with pytest.raises(ValueError, match="is a SyncBatchNorm, which cannot be held fixed"):
        grow(net, [Freeze("stage1.block1")])


def test_a_partly_frozen_net_is_not_synchronised_by_name():
    held = grow(build(ARCHITECTURE), [Freeze("stage1.block1")]).network
    with pytest.raises(ValueError, match=r"^net must have no held BatchNorm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(held)


def test_norms_in_eval_mode_stay_so_and_newborns_join_them():
    net = build(ARCHITECTURE)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    grown = grow(net, ACTIONS, probe=IMAGES).network
    modes = {m.training for m in grown.modules() if isinstance(m, nn.BatchNorm2d)}
    assert modes == {False}
    assert grown.training
    assert grown.stage1.block3.training


def test_hooks_of_modules_and_optimizer_go_along_and_do_not_see_the_probe():
    net, seen = build(ARCHITECTURE), []

    def note(name):
        return lambda *_: seen.append(name)

    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.head.register_forward_hook(note("forward"))
    net.stage1.register_forward_hook(lambda *a, **_: seen.append("kwargs"), with_kwargs=True)
    net.stage1.block1.register_forward_pre_hook(note("pre"))
    net.stage1.block1.register_full_backward_hook(note("backward"))
    net.register_state_dict_post_hook(note("state"))
    optimizer.register_step_pre_hook(note("before"))
    optimizer.register_step_post_hook(note("after"))
    grown = grow(net, ACTIONS, optimizer, probe=IMAGES)
    seen.clear()
    grown.network(IMAGES).sum().backward()
    grown.optimizer.step()
    grown.network.state_dict()
    wanted = ["pre", "kwargs", "forward", "backward", "before", "after", "state"]
    assert seen == wanted
    handle = grown.network.head.register_forward_hook(note("new"))
    seen.clear()
    net(IMAGES)
    assert "new" not in seen
    handle.remove()
    grow(net, ACTIONS, probe=IMAGES)
    assert seen.count("forward") == 1


def test_attributes_of_plain_data_go_along_as_copies():
    net = build(ARCHITECTURE)
    net.names, net.stage1.block1.note = {"a": [1, 2]}, "mine"
    net.head.linear.weight.no_decay = True
    grown = grow(net, ACTIONS).network
    assert (grown.names, grown.stage1.block1.note) == ({"a": [1, 2]}, "mine")
    assert grown.names["a"] is not net.names["a"]
    assert grown.head.linear.weight.no_decay
    thawed = grow(grow(net, [Freeze("stage1.block1", 2)]).network, [Unfreeze("stage1.block1")])
    assert not hasattr(thawed.network.stage1.block1.conv1, "pieces")


def test_requires_grad_of_single_parameters_is_carried():
    net = grow(build(ARCHITECTURE), [Freeze("stage1.block1", 2)]).network
    net.stage1.block1.conv1.weight_free.requires_grad_(False)
    net.stage1.block1.bn1.bias_free.requires_grad_(False)
    grown = grow(net, ACTIONS).network
    for name, parameter in net.named_parameters():
        assert grown.get_parameter(name).requires_grad == parameter.requires_grad


@pytest.mark.parametrize("change", ["step", "loss"])
def test_an_optimizer_with_something_of_its_own_is_refused(change):
    net = build(ARCHITECTURE)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    setattr(optimizer, change, lambda *_: None)
    with pytest.raises(ValueError, match=f"attribute of its own, {change}$"):
        grow(net, ACTIONS, optimizer)


def test_an_optimizer_is_known_by_its_class_and_not_by_its_name():
    class Adam(torch.optim.SGD):
        pass

    net = build(ARCHITECTURE)
    with pytest.raises(ValueError, match=f"got Adam of {__name__}"):
        grow(net, ACTIONS, Adam(net.parameters(), 0.1))


def test_lists_in_groups_are_not_shared():
    net = build(ARCHITECTURE)
    optimizer = torch.optim.SGD([{"params": net.parameters(), "marks": [1]}], 0.1)
    grown = grow(net, ACTIONS, optimizer).optimizer
    grown.param_groups[0]["marks"].append(2)
    assert optimizer.param_groups[0]["marks"] == [1]


# differences, actions, probes


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_difference_of_outputs_that_are_not_finite_is_not_finite(value):
    net = build(ARCHITECTURE)
    spoilt = Widen("stage1.block1", 2, initializer=lambda shape, _: torch.full(shape, value))
    assert not math.isfinite(grow(net, [spoilt], probe=IMAGES).difference)
    with torch.no_grad():
        net.head.linear.bias[0] = value
    assert not math.isfinite(grow(net, ACTIONS, probe=IMAGES).difference)


def test_actions_are_one_or_several_of_any_order():
    net = build(ARCHITECTURE)
    one = grow(net, ACTIONS[0]).network.state_dict()
    for actions in ([ACTIONS[0]], (ACTIONS[0],), iter([ACTIONS[0]])):
        other = grow(net, actions).network.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    for actions in (set(ACTIONS), None, "Widen", {"widen": 2}, 3):
        with pytest.raises(ValueError, match=r"^actions must be an Action or a sequence of them"):
            grow(net, actions)


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (torch.randn(4, 3, 8, 8), r"shape \(N, 2, 8, 8\) with N at least 1, got \(4, 3, 8, 8\)"),
        (IMAGES[0], r"got \(2, 8, 8\)"),
        (IMAGES[:0], r"got \(0, 2, 8, 8\)"),
        (IMAGES.double(), "of torch.float32, as net is, got torch.float64"),
        (IMAGES.to(torch.uint8), "got torch.uint8"),
        (IMAGES.to("meta"), "on cpu, as net is, got meta"),
        (IMAGES.numpy(), "got a ndarray"),
        ({"x": IMAGES}, "got a dict"),
        ([], "got a list"),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(probe, told):
    with pytest.raises(ValueError, match=f"^probe must be .*{told}|^probe must have .*{told}"):
        grow(build(ARCHITECTURE), ACTIONS, probe=probe)


def test_probes_that_loaders_give_are_taken():
    net, targets = build(ARCHITECTURE), torch.zeros(6, dtype=torch.int64)
    for probe in (IMAGES, [IMAGES], [IMAGES, targets], (IMAGES, targets), IMAGES[:1]):
        assert grow(net, ACTIONS, probe=probe).difference < 1e-5


def test_a_block_may_come_and_go_in_one_call():
    net = build(ARCHITECTURE)
    optimizer = torch.optim.Adam(net.parameters())
    net(IMAGES).square().sum().backward()
    optimizer.step()
    actions = [
        Insert("stage1.block1", 4),
        Widen("stage1.block3", 2),
        Freeze("stage1.block3", 1),
        Remove("stage1.block3"),
        Freeze("stage1.block2"),
        Widen("stage1.block2", 2),
        Unfreeze("stage1.block2"),
    ]
    grown = grow(net, actions, optimizer, probe=IMAGES)
    assert list(grown.network.architecture.blocks) == list(net.architecture.blocks)
    assert grown.difference < 1e-5
    for name, value in net.state_dict().items():
        corner = tuple(slice(size) for size in value.shape)
        assert torch.equal(grown.network.state_dict()[name][corner], value), name


def test_a_forward_that_fails_on_the_probe_leaves_the_networks_as_they_were():
    architecture = architecture_of("dense", survivals=(0.5, 0.7))
    net = build(architecture)
    net.stage1.block1.eval()
    net.stage1.block1.register_forward_hook(print)
    average = copy.deepcopy(net).eval()
    one = torch.ones(1, *architecture.image)  # on which BatchNorm has no batch statistics

    def state(net):
        modules = [
            (m.training, getattr(m, "survival", 1), len(m._forward_hooks)) for m in net.modules()
        ]
        return modules, [id(buffer) for buffer in net.buffers()]

    before = [(state(each), copy.deepcopy(each.state_dict())) for each in (net, average)]
    for action in (Widen("stage1.block1", 1), SetSurvival("stage1.block1", 0.6)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            grow(net, action, ema=average, probe=one)
        for each, (known, values) in zip((net, average), before):
            assert state(each) == known
            assert not differences(values, each.state_dict())
