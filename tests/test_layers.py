"""Which layers of a network that is not ours are read, and where, against hooks set by hand."""

import gc
import math
import warnings
import weakref
from dataclasses import dataclass

import pytest
import torch
from makers import Doubled, hooks_of, normal, sgd
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.modules.module import register_module_full_backward_hook
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from analysis import Observer
from analysis.observing.watched_layers import parameters_of
from analysis.recording.probes import effective_rank, gradient_signal_to_noise, response_histograms
from analysis.tracing.autograd_graph import LOOKED_AGAIN


class Net(nn.Module):
    """Does what a function says with the modules and parameters that it is given by name."""

    def __init__(self, does, **members):
        super().__init__()
        self.does = does
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *inputs):
        return self.does(self, *inputs)


def images(step=0, channels=8, side=6):
    return normal(8, channels, side, side, seed=step)


def rows(step=0, features=8):
    return normal(8, features, seed=step)


def read(net, inputs_of, steps=2, known=True, loss=None):
    """Readings, the layers' modules by path, and the gradients of the first step by name."""
    loss = loss or (lambda output: output.square().mean())
    optimizer, gradients = sgd(net), {}
    hooks = hooks_of(net, optimizer)
    with Observer(net, optimizer if known else None) as observer:
        for step in range(steps):
            optimizer.zero_grad()
            loss(net(inputs_of(step))).backward()
            for name, parameter in net.named_parameters():
                if step == 0 and parameter.grad is not None:
                    gradients[name] = parameter.grad.double().clone()
            optimizer.step()
        found = observer.readings()
    assert hooks_of(net, optimizer) == hooks
    assert _get_current_function_mode_stack() == []
    assert list(found) == [layer.path for layer in observer.layers]
    return found, {layer.path: layer.modules for layer in observer.layers}, gradients


def owned_once(net):
    layers = Observer(net).layers
    owned = [id(p) for layer in layers for p in parameters_of(net, layer)]
    return sorted(owned) == sorted(map(id, net.parameters()))


# Which norm belongs to which layer ----------------------------------------------------------------


def convolutions_first(make):
    def does(net, x):
        x = functional.relu(net.bn1(net.conv1(x)))
        return net.fc(functional.relu(net.bn2(net.conv2(x))).mean((2, 3)))

    return Net(
        does,
        conv1=nn.Conv2d(8, 8, 3, padding=1),
        conv2=nn.Conv2d(8, 8, 3, padding=1),
        bn1=make(),
        bn2=make(),
        fc=nn.Linear(8, 4),
    )


NORMS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "bare": lambda: nn.InstanceNorm2d(8),
    "layer": lambda: nn.LayerNorm([8, 6, 6]),
    "frozen": lambda: FrozenBatchNorm2d(8),
    "lazy": lambda: nn.LazyBatchNorm2d(),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_belongs_to_the_layer_whose_output_it_takes(name, known):
    torch.manual_seed(0)
    net = convolutions_first(NORMS[name])
    if name == "lazy":
        net(images())
    found, modules, gradients = read(net, images, 1, known)
    expected = {"bn1": ("conv1", "bn1"), "bn2": ("conv2", "bn2"), "fc": ("fc",)}
    assert modules == expected
    for path, owners in modules.items():
        owned = [g.flatten() for n, g in gradients.items() if n.rpartition(".")[0] in owners]
        norm = torch.cat(owned).square().mean().sqrt().item()
        assert found[path].gradient_norm == pytest.approx(norm, rel=1e-5)


def test_what_no_forward_showed_is_paired_only_where_it_is_certain():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert [layer.modules for layer in Observer(net).layers] == [("0", "1"), ("3",)]
    net = convolutions_first(NORMS["batch"])
    assert {layer.path for layer in Observer(net).layers} == {"conv1", "conv2", "bn1", "bn2", "fc"}
    shared = nn.Linear(8, 8)  # fed to another norm in each
    parts = [nn.Sequential(shared, nn.LayerNorm(8)) for _ in range(2)]
    assert all(len(layer.modules) == 1 for layer in Observer(nn.Sequential(*parts)).layers)


def changing(net, x):
    net.calls = getattr(net, "calls", 0) + 1
    return net.norm((net.a if net.calls % 2 else net.b)(x))


LONE = {
    "a sum": lambda net, x: net.norm(net.a(x) + net.b(x)),
    "a concatenation": lambda net, x: net.norm(torch.cat([net.a(x)[:, :4], net.b(x)[:, :4]], 1)),
    "of several layers": lambda net, x: net.norm(net.b(net.norm(net.a(x)))),
    "changed in place": lambda net, x: net.norm(net.a(net.b(x)).relu_()),
    "of a layer that also runs without": lambda net, x: net.a(net.norm(net.a(net.b(x)))),
    "of other layers in other steps": changing,
    "before the layer": lambda net, x: net.b(net.a(net.norm(x))),
}


@pytest.mark.parametrize("name", LONE)
def test_a_norm_that_takes_no_one_layers_output_is_read_by_itself(name):
    torch.manual_seed(0)
    net = Net(LONE[name], a=nn.Linear(8, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 8))
    found, modules, _ = read(net, rows, 3)
    assert modules == {"a": ("a",), "norm": ("norm",), "b": ("b",)}
    assert all(reading.response_std is not None for reading in found.values())


def preactivated(net, x):
    x = net.stem(x)
    return net.fc((x + net.conv(functional.relu(net.bn(x)))).mean((2, 3)))


def prenormed(net, x):
    x = net.stem(x)
    return net.fc(net.conv(net.bn(x)).add_(x))


def given_too(net, x):
    x = net.stem(x)
    return net.fc(net.conv(functional.relu(net.bn(x))).mean((2, 3))), x


SHARED = {
    "convolution": (preactivated, lambda: nn.Conv2d(8, 8, 3, padding=1), lambda: nn.BatchNorm2d(8)),
    "group": (preactivated, lambda: nn.Conv2d(8, 8, 1), lambda: nn.GroupNorm(2, 8)),
    "carried": (preactivated, lambda: nn.Conv2d(8, 8, 1), lambda: ByFunction(8)),
    "written out": (preactivated, lambda: nn.Conv2d(8, 8, 1), lambda: OwnRMSNorm(8)),
    "linear": (prenormed, lambda: nn.Linear(8, 8), lambda: nn.LayerNorm(8)),
    "given too": (given_too, lambda: nn.Conv2d(8, 8, 1), lambda: nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", SHARED)
def test_a_layer_that_feeds_more_than_a_norm_is_read_by_itself(name, frozen):
    torch.manual_seed(0)
    does, layer, norm = SHARED[name]
    net = Net(does, stem=layer(), bn=norm(), conv=layer(), fc=nn.Linear(8, 4))
    inputs_of = rows if name == "linear" else images
    expected = {path: (path,) for path in ("stem", "bn", "conv", "fc")}
    if frozen:  # nothing is seen until it trains
        net.stem.requires_grad_(False)
    optimizer, given = sgd(net), []
    net.stem.register_forward_hook(lambda module, args, output: given.append(output.detach()))
    with Observer(net, optimizer) as observer:
        for step in range(4):
            if step == 2:
                net.requires_grad_(True)
            output = net(inputs_of(step))
            output = output[0] if isinstance(output, tuple) else output
            size = net.stem.weight.norm().item(), net.stem.bias.norm().item()
            output.square().mean().backward()
            optimizer.step()
            found = observer.readings()
    assert {layer.path: layer.modules for layer in observer.layers} == expected
    assert found["stem"].weight_norm == pytest.approx(math.hypot(*size), rel=1e-5)
    std = given[-1].double().std(correction=0).item()
    assert found["stem"].response_std == pytest.approx(std, rel=1e-4)
    # without a graph, as probes run, only the norm is seen to take it
    assert list(response_histograms(net, inputs_of())) == ["bn", "conv", "fc"]


def test_a_pair_that_runs_only_later_and_one_after_a_forward_that_failed():
    torch.manual_seed(0)

    def does(net, x):
        net.calls = getattr(net, "calls", 0) + 1
        y = net.norm(net.a(x)) if net.calls > 1 else x
        if net.calls == 2:
            raise KeyError("stop")
        return net.b(y)

    net = Net(does, a=nn.Linear(8, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 8))
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        net(rows()).sum().backward()
        optimizer.step()
        with pytest.raises(KeyError, match="stop"):
            net(rows())
        optimizer.zero_grad()
        net(rows()).square().sum().backward()
        gradients = [p.grad.flatten() for m in (net.a, net.norm) for p in m.parameters()]
        norm = torch.cat(gradients).square().mean().sqrt().item()
        optimizer.step()
        found = observer.readings()
    assert list(found) == ["norm", "b"]
    assert found["norm"].gradient_norm == pytest.approx(norm, rel=1e-5)


def test_a_resumed_observer_knows_the_pairs():
    torch.manual_seed(0)
    net = convolutions_first(NORMS["batch"])
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        net(images()).square().mean().backward()
        optimizer.step()
        state = observer.state_dict()
        expected = observer.readings()
    resumed = Observer(net, optimizer)
    with resumed:
        resumed.load_state_dict(state)
        assert resumed.readings() == expected
        assert [layer.path for layer in resumed.layers] == ["bn1", "bn2", "fc"]
    assert hooks_of(net, optimizer) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing(reentrant):
    torch.manual_seed(0)
    net = convolutions_first(NORMS["batch"])
    inner = net.does
    net.does = lambda net, x: checkpoint(inner, net, x, use_reentrant=reentrant)
    found, modules, _ = read(net, lambda step: images(step).requires_grad_())
    assert modules["bn1"] == ("conv1", "bn1")
    assert found["bn1"].response_std == pytest.approx(1, abs=1e-3)


# Norms that carry their activation ----------------------------------------------------------------


class ByFunction(nn.BatchNorm2d):
    def forward(self, x):
        return functional.relu(super().forward(x), inplace=True)


class ByChild(nn.GroupNorm):
    def __init__(self, *args):
        super().__init__(*args)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class ByProduct(nn.LayerNorm):
    """Swish written out, on channels that are moved to the end and back."""

    def forward(self, x):
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y * torch.sigmoid(y)


class OwnRMSNorm(nn.Module):
    """Nothing of torch's normalises here."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(channels, 1, 1)), nn.GELU()

    def forward(self, x):
        return self.act(self.weight * x / x.square().mean(1, keepdim=True).sqrt())


CARRIED = {
    "by function": (lambda: ByFunction(8), 1.0, True),
    "by child": (lambda: ByChild(2, 8), 1.0, None),
    "by product": (lambda: ByProduct(8), 1.0, None),
    "of its own": (lambda: OwnRMSNorm(8), 1.0, None),
    "without": (lambda: Doubled(8), 2.0, None),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_norm_that_carries_its_activation_is_read_before_it(name):
    torch.manual_seed(0)
    make, std, dead = CARRIED[name]
    net = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), make(), nn.Conv2d(8, 2, 1))
    found, modules, _ = read(net, images, 1)
    assert modules["1"] == ("0", "1")
    assert found["1"].response_std == pytest.approx(std, abs=0.03)
    assert abs(found["1"].response_mean) < 0.05
    assert (found["1"].dead_fraction is not None) is (dead is True)
    histogram = response_histograms(net, images())["1"]
    assert histogram.sum / histogram.num == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_forward_that_fails_inside_a_norm_leaves_no_trace(error):
    class Failing(nn.BatchNorm2d):
        def forward(self, x):
            super().forward(x)
            raise error("stop")

    net = nn.Sequential(nn.Conv2d(8, 8, 3), Failing(8))
    optimizer = sgd(net)
    with Observer(net, optimizer), pytest.raises(error, match="stop"):
        net(images())
    assert _get_current_function_mode_stack() == []
    assert hooks_of(net, optimizer) == []


def test_a_mode_of_the_users_own_is_left_alone():
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), ByFunction(8))
    with Mode() as mode:
        optimizer = sgd(net)
        with Observer(net, optimizer) as observer:
            net(images()).sum().backward()
            optimizer.step()
            assert observer.readings()["1"].response_std == pytest.approx(1, abs=1e-3)
        assert _get_current_function_mode_stack() == [mode]


OURS = (
    "analysis.tracing.autograd_graph",
    "analysis.tracing.pairing",
    "analysis.measuring.responses",
    "analysis.measuring.batchnorm_std",
    "analysis.measuring.mean_and_std",
)


@pytest.mark.parametrize("updates", [True, False])
def test_nothing_grows_with_the_steps(updates):
    def objects():
        gc.collect()
        kinds = [type(one) for one in gc.get_objects()]
        return sum(issubclass(k, torch.Tensor) or str(k.__module__) in OURS for k in kinds)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), ByFunction(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    optimizer, counts = sgd(net), []
    with Observer(net, optimizer):
        for step in range(40):
            net(images()).sum().backward()
            if updates:
                optimizer.step()
            if step in (19, 39):  # what waits to be worked out together is dealt with by then
                counts.append(objects())
    assert counts[1] <= counts[0] + 5


# Parameters of any module -------------------------------------------------------------------------


def language(net, i):
    return net.head(net.rnn(net.embed(i))[0])


def packed(net, x):
    whole = nn.utils.rnn.pack_padded_sequence(x[:3, None].expand(3, 4, 8), [4, 3, 2], True)
    return net.head(net.rnn(whole)[1][-1])


def ids(step=0):
    return torch.randint(10, (8, 5), generator=torch.Generator().manual_seed(step))


OTHERS = {
    "attention": (
        lambda: Net(
            lambda net, x: net.head(net.attention(x[None], x[None], x[None])[0]),
            attention=nn.MultiheadAttention(8, 2, kdim=8, vdim=8),
            head=nn.Linear(8, 2),
        ),
        rows,
        {"attention": ("attention", "attention.out_proj"), "head": ("head",)},
    ),
    "language": (
        lambda: Net(language, embed=nn.Embedding(10, 8), rnn=nn.LSTM(8, 8), head=nn.Linear(8, 10)),
        ids,
        {"embed": ("embed",), "rnn": ("rnn",), "head": ("head",)},
    ),
    "packed": (
        lambda: Net(packed, rnn=nn.GRU(8, 8, batch_first=True), head=nn.Linear(8, 2)),
        rows,
        {"rnn": ("rnn",), "head": ("head",)},
    ),
    "one layer": (lambda: nn.Linear(8, 4), rows, {"": ("",)}),
    "bag and bilinear": (
        lambda: Net(
            lambda net, i: net.b(net.e(i), net.e(i)),
            e=nn.EmbeddingBag(10, 8),
            b=nn.Bilinear(8, 8, 2),
        ),
        ids,
        {"e": ("e",), "b": ("b",)},
    ),
    "parameters of a block": (
        lambda: Net(
            lambda net, x: net.part(x + net.token),
            token=nn.Parameter(torch.ones(8)),
            part=Net(
                lambda net, x: x * net.scale + net.list[0],
                scale=nn.Parameter(torch.ones(8)),
                list=nn.ParameterList([torch.ones(8)]),
            ),
        ),
        rows,
        {"": ("",), "part": ("part", "part.list")},
    ),
    "lists": (
        lambda: Net(
            lambda net, x: net.parts[1](x + net.parts[0]["a"]),
            parts=nn.ModuleList([nn.ParameterDict({"a": torch.ones(8)}), nn.Linear(8, 2)]),
        ),
        rows,
        {"": ("parts.0",), "parts.1": ("parts.1",)},
    ),
    "parametrized": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(8, 8)), nn.RMSNorm(8), nn.ReLU(), nn.Linear(8, 2)
        ),
        rows,
        {"1": ("0", "0.parametrizations.weight", "1"), "3": ("3",)},
    ),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_every_parameter_has_a_layer_and_every_layer_a_response(name, known):
    torch.manual_seed(0)
    make, inputs_of, expected = OTHERS[name]
    net = make()
    assert owned_once(net)
    found, modules, gradients = read(net, inputs_of, 1, known)
    assert modules == expected
    for path, owners in modules.items():
        owned = [g.flatten() for n, g in gradients.items() if n.rpartition(".")[0] in owners]
        norm = torch.cat(owned).square().mean().sqrt().item()
        assert found[path].gradient_norm == pytest.approx(norm, rel=1e-5)
        assert found[path].response_std is not None


def test_what_has_no_response_is_named_once():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(functional.linear(x, net.a.weight, net.a.bias)),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 2),
        unused=nn.Linear(8, 2),
    )
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            net(rows(step)).square().mean().backward()
            optimizer.step()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = observer.readings()
            texts = [str(warning.message) for warning in caught]
            assert [text for text in texts if "no response of 'a' was read" in text] == texts
            assert len(texts) == (step == 0)
            assert found["a"].response_std is None
            assert found["a"].gradient_norm > 0
            assert found["unused"].gradient_norm is None


def test_parameters_that_two_layers_hold_are_read_in_both():
    torch.manual_seed(0)
    net = Net(
        lambda net, i: net.head(net.embed(i)),
        embed=nn.Embedding(10, 8),
        head=nn.Linear(8, 10, bias=False),
    )
    net.head.weight = net.embed.weight
    found, modules, gradients = read(net, ids, 1)
    norm = gradients["embed.weight"].square().mean().sqrt().item()
    assert [found[path].gradient_norm for path in modules] == pytest.approx([norm, norm], rel=1e-5)


def test_probes_have_the_layers_that_the_forward_shows():
    torch.manual_seed(0)
    net = convolutions_first(NORMS["batch"])
    targets = torch.zeros(8, dtype=torch.long)
    assert list(effective_rank(net, images())) == ["bn1", "bn2", "fc"]
    assert list(response_histograms(net, images())) == ["bn1", "bn2", "fc"]
    noise = gradient_signal_to_noise(net, images(), targets, functional.cross_entropy, 4)
    assert list(noise) == ["bn1", "bn2", "fc"]
    make, inputs_of, expected = OTHERS["attention"]
    assert list(response_histograms(make(), inputs_of())) == list(expected)
    assert hooks_of(net) == []


# Dead channels ------------------------------------------------------------------------------------

RELUS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "function": functional.relu,
    "torch's": torch.relu,
    "method": lambda x: x.relu_(),
    "clamped": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("name", RELUS)
def test_dead_channels_are_found_where_a_relu_follows(name):
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.fc(net.last(RELUS[name](net.bn(net.conv(x))) + x).mean((2, 3))),
        conv=nn.Conv2d(8, 8, 3, padding=1),
        bn=nn.BatchNorm2d(8),
        last=nn.Conv2d(8, 8, 1),
        fc=nn.Linear(8, 2),
    )
    with torch.no_grad():
        net.bn.bias[:3] = -50
    found, _, _ = read(net, images)
    assert {path: reading.dead_fraction for path, reading in found.items()} == {
        "bn": 3 / 8,
        "last": None,
        "fc": None,
    }


def leaves(net):
    return [module for module in net.modules() if not list(module.children())]


def nothing(*_):
    return None


HOOKED = {
    "all": lambda net: [m.register_full_backward_hook(nothing) for m in net.modules()],
    "before": lambda net: [m.register_full_backward_pre_hook(nothing) for m in leaves(net)],
    "norms": lambda net: [
        m.register_full_backward_hook(nothing)
        for path, m in net.named_modules()
        if path.startswith(("bn", "1"))
    ],
    "feeders": lambda net: [
        m.register_full_backward_hook(nothing)
        for m in leaves(net)
        if isinstance(m, nn.Linear | nn.Conv2d)
    ],
    "global": lambda net: [register_module_full_backward_hook(nothing)],
}


def tokens(step=0):
    return normal(4, 3, 8, seed=step)


def in_a_row():
    members = (
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.GroupNorm(2, 8),
    )
    return nn.Sequential(*members, nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def of_tokens():
    def does(net, x):
        x = functional.relu(net.bn(net.fc(x)))
        return net.last(x.mean(1) + net.more(net.bn2(net.more(x).mean(1))))

    kinds = {"fc": nn.Linear(8, 8), "more": nn.Linear(8, 8), "last": nn.Linear(8, 2)}
    return Net(does, **kinds, bn=nn.LayerNorm(8), bn2=nn.LayerNorm(8))


def around():
    does, layer, norm = SHARED["convolution"]
    return Net(does, stem=layer(), bn=norm(), conv=layer(), fc=nn.Linear(8, 4))


HOOKABLE = {
    "in a row": (in_a_row, images),
    "by name": (lambda: convolutions_first(NORMS["batch"]), images),
    "of tokens": (of_tokens, tokens),
    "around": (around, images),
}


@pytest.mark.parametrize("hooks", HOOKED)
@pytest.mark.parametrize("name", HOOKABLE)
def test_hooks_on_the_backward_pass_change_nothing(name, hooks):
    make, inputs_of = HOOKABLE[name]
    found = []
    for hooked in (False, True):
        torch.manual_seed(0)
        net = make()
        handles = HOOKED[hooks](net) if hooked else []
        try:
            readings, modules, _ = read(net, lambda step: inputs_of(step).requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
        found.append((readings, modules, list(response_histograms(net, inputs_of()))))
    assert found[0] == found[1]
    assert any(reading.dead_fraction is not None for reading in found[0][0].values())


class Breaking(nn.Module):
    """A network whose forward fails behind its layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv, self.fails = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), False

    def forward(self, x):
        x = self.norm(self.conv(x))
        if self.fails:
            raise KeyError("stop")
        return x


@pytest.mark.parametrize("hooked", [False, True])
def test_nothing_is_held_of_a_forward_that_failed(hooked):
    net, kept = Breaking(), weakref.WeakSet()

    class Held:
        pass

    def pack(tensor):
        held = Held()
        held.tensor = tensor.detach()
        kept.add(held)
        return held

    if hooked:
        net.conv.register_full_backward_hook(lambda module, given, arrived: None)
    optimizer = sgd(net)
    with Observer(net, optimizer), saved_tensors_hooks(pack, lambda held: held.tensor):
        for step in range(2):
            net(images(step).requires_grad_()).square().mean().backward()
            optimizer.step()
        gc.collect()
        before = len(kept)
        net.fails = True
        with pytest.raises(KeyError):
            net(images().requires_grad_())
        gc.collect()
        assert len(kept) <= before


@dataclass
class Output:
    logits: torch.Tensor


class Plain:
    def __init__(self, hidden, logits):
        self.hidden, self.found, self.itself = hidden, {"logits": [logits, Output]}, self


def encode(net, x):
    return functional.relu(net.bn(net.conv(x))).mean((2, 3))


def decode(net, x):
    return functional.relu(net.last(functional.relu(net.fc(x))))


def detached(net, x):
    return decode(net, encode(net, x).detach())


def in_parts(net, x):
    return decode(net, encode(net, x))


def in_one_object(net, x):
    hidden = encode(net, x)
    return Plain(hidden, decode(net, hidden))


def checkpointed(net, x, reentrant=False):
    return decode(net, checkpoint(encode, net, x, use_reentrant=reentrant))


def checkpointed_reentrantly(net, x):
    return checkpointed(net, x, True)


CALLED = {  # what the net does, how it is called, and of which layers nothing shows what follows
    "whole": (in_parts, lambda net, x: net(x), ""),
    "in parts": (in_parts, in_parts, "last"),
    "in parts of which one is detached": (detached, detached, "bn last"),
    "by its forward": (in_parts, lambda net, x: net.forward(x), "last"),
    "in an object": (in_one_object, lambda net, x: net(x).found["logits"][0], ""),
    "inside another": (in_parts, lambda net, x: nn.Sequential(net)(x), ""),
    "checkpointed": (checkpointed, lambda net, x: net(x), ""),
    "reentrantly": (checkpointed_reentrantly, lambda net, x: net(x), "bn"),
}


@pytest.mark.parametrize("name", CALLED)
def test_dead_channels_are_found_however_the_network_is_called(name):
    torch.manual_seed(0)
    does, call, unseen = CALLED[name]
    kinds = {"conv": nn.Conv2d(8, 8, 3), "bn": nn.BatchNorm2d(8), "fc": nn.Linear(8, 8)}
    net = Net(does, **kinds, last=nn.Linear(8, 4))
    with torch.no_grad():
        for layer, dead in ((net.bn, 3), (net.fc, 1), (net.last, 2)):
            layer.bias[:dead], layer.bias[dead:] = -50, 50
    optimizer = sgd(net, 0.0)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            call(net, images(step).requires_grad_()).mean().backward()
            optimizer.step()
            found = observer.readings()
            dead = {"bn": 3 / 8, "fc": 1 / 8, "last": 2 / 4}
            expected = dead | dict.fromkeys(unseen.split())
            assert {path: one.dead_fraction for path, one in found.items()} == expected


def test_dead_channels_are_found_once_it_shows_what_follows():
    torch.manual_seed(0)
    net = Net(in_parts, conv=nn.Conv2d(8, 8, 3), bn=nn.BatchNorm2d(8), fc=nn.Linear(8, 8))
    net.last = nn.Linear(8, 4)
    with torch.no_grad():
        net.bn.bias[:3], net.bn.bias[3:] = -50, 50
    optimizer, found = sgd(net, 0.0), []
    with Observer(net, optimizer) as observer:
        for step in range(2 * LOOKED_AGAIN):
            net.does = detached if step < LOOKED_AGAIN // 2 else in_parts
            net(images(step)).mean().backward()
            optimizer.step()
            found.append(observer.readings()["bn"].dead_fraction)
    assert (found[0], found[-1]) == (None, 3 / 8)


def test_dead_channels_are_found_after_a_first_forward_that_failed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias[:1], net[0].bias[1:] = -50, 50
        weight = net[3].weight.clone()
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        net[3].weight.data = weight[:, :3]
        with pytest.raises(RuntimeError, match="shapes"):
            net(rows())
        net[3].weight.data = weight
        net(rows()).mean().backward()
        optimizer.step()
        assert observer.readings()["0"].dead_fraction == 1 / 4


def test_the_channels_of_a_layer_are_its_own():
    torch.manual_seed(0)

    def does(net, x):
        x = functional.relu(net.norm(net.conv(x).permute(0, 2, 3, 1)))  # (N, H, W, C)
        x = functional.relu(net.linear(x)).permute(0, 3, 1, 2)
        return Output(functional.relu(net.whole(x)))

    net = Net(
        does,
        conv=nn.Conv2d(8, 4, 3),  # C and H and W are all 4
        norm=nn.LayerNorm(4),
        linear=nn.Linear(4, 6),
        whole=nn.LayerNorm([6, 4, 4]),
    )
    with torch.no_grad():
        net.norm.bias[:1] = -50
        net.linear.bias[:3] = -50
        net.whole.bias[:2], net.whole.bias[2:] = -50, 50
    found, _, _ = read(net, images, loss=lambda output: output.logits.mean())
    assert [found[path].dead_fraction for path in ("norm", "linear", "whole")] == [
        1 / 4,
        1 / 2,
        1 / 3,
    ]
    assert found["conv"].dead_fraction is None
    assert all(reading.residual_ratio is None for reading in found.values())


def test_a_layer_that_a_relu_follows_in_some_calls_only_has_no_dead_channels():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.a(functional.relu(net.a(x))), a=nn.Linear(8, 8))
    assert read(net, rows)[0]["a"].dead_fraction is None


@pytest.mark.parametrize("frozen", [("conv", "bn"), ("conv", "bn", "fc")])
def test_dead_channels_are_found_once_a_frozen_layer_trains(frozen):
    torch.manual_seed(0)

    def does(net, x):
        x = functional.relu(net.bn(net.conv(x))).mean((2, 3))
        return net.last(functional.relu(net.fc(x)))

    net = Net(
        does,
        conv=nn.Conv2d(8, 6, 3, padding=1),
        bn=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 8),
        last=nn.Linear(8, 2),
    )
    with torch.no_grad():
        for bias, dead in ((net.bn.bias, 3), (net.fc.bias, 2)):
            bias[:dead], bias[dead:] = -50, 50
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    optimizer, found = sgd(net, 0.0), []
    with Observer(net, optimizer) as observer:
        for step in range(4):
            if step == 2:
                net.requires_grad_(True)
            net(images(step)).square().mean().backward()
            optimizer.step()
            found.append({path: one.dead_fraction for path, one in observer.readings().items()})
    fc = None if "fc" in frozen else 2 / 8
    assert found[1] == {"bn": None, "fc": fc, "last": None}
    assert found[3] == {"bn": 3 / 6, "fc": 2 / 8, "last": None}
