"""What the observer reads, against plain hooks and float64 sums; and that it leaves no trace."""

import copy
import math
import pickle
from functools import reduce
from operator import add
from statistics import fmean

import pytest
import torch
from makers import (
    CLASSES,
    CLIP,
    NETS,
    batch_of,
    clipped_step,
    hooks_of,
    in_double,
    network_of,
    sgd,
    take_step,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torchvision.models import resnet18

import analysis.measuring.responses
from analysis import LayerReading, Observer
from analysis.examining import tensor_entries
from analysis.measuring.dead_channels import dead_fractions
from analysis.measuring.mean_and_std import LONG, moments_of, row_sums
from analysis.observing.reading import STATISTICS
from nets import Insert, Network, SetSurvival, Widen, build, grow


def adamw(net, **options):
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1, **options)


# What should be read: the layers by hand, their statistics slowly ---------------------------------


def layers_by_hand(net):
    """Path -> (role, block, owners of its parameters, whether a relu follows, end of branch)."""
    if not isinstance(net, Network):
        return layers_of_resnet18(net)
    kind, order = net.architecture.block, net.architecture.order
    layers = {}
    if kind != "plain":
        layers["stem"] = ("stem", None, ["stem"], order == "post", None)
    for name in net.architecture.blocks:
        if kind == "plain":
            layers[f"{name}.linear"] = ("inner", name, [f"{name}.linear"], True, None)
            continue
        part, count = "linear" if kind == "dense" else "conv", 3 if kind == "bottleneck" else 2
        for number in range(1, count):
            bn = f"{name}.bn{number if order == 'post' else number + 1}"
            layers[bn] = ("inner", name, [f"{name}.{part}{number}", bn], True, None)
        last, end = f"{name}.{part}{count}", f"{name}.bn{count}"
        end, owners = (end, [last, end]) if order == "post" else (last, [last])
        layers[end] = ("branch", name, owners, False, None)
        if name == "stage2.block1":
            path = f"{name}.shortcut" + (".bn" if order == "post" else "")
            layers[path] = ("stream", name, [f"{name}.shortcut"], False, None)
        layers[name] = ("stream", name, [name], False, end)
    layers["head"] = ("head", None, ["head"], False, None)
    return layers


def layers_of_resnet18(net):
    layers = {"bn1": ("inner", None, ["conv1", "bn1"], True, None)}
    for stage in range(1, 5):
        for block in range(2):
            path = f"layer{stage}.{block}"
            for number in (1, 2):
                owners = [f"{path}.conv{number}", f"{path}.bn{number}"]
                layers[owners[1]] = ("inner", None, owners, number == 1, None)
            if stage > 1 and block == 0:
                owners = [f"{path}.downsample.0", f"{path}.downsample.1"]
                layers[owners[1]] = ("inner", None, owners, False, None)
    layers["fc"] = ("inner", None, ["fc"], False, None)
    return layers


def slowly(net, step):
    """Take a step and give the readings, from plain hooks and copies of gradients and weights."""
    layers, seen, gradients, before = layers_by_hand(net), {}, {}, {}

    def keep(path):
        def hook(module, args, output):
            seen[path] = output.detach().double().clone()

        return hook

    paths = {*layers, *(f"{name}.shortcut" for name in layers if layers[name][4])}
    handles = [net.get_submodule(path).register_forward_hook(keep(path)) for path in paths]

    def before_update(optimizer, *args):
        for name, parameter in net.named_parameters():
            before[name] = parameter.detach().double().clone()
            if parameter.grad is not None:
                gradients[name] = parameter.grad.detach().double().clone()

    optimizer = step.optimizer
    handles.append(optimizer.register_step_pre_hook(before_update))
    step(net)
    for handle in handles:
        handle.remove()
    after = {name: parameter.detach().double() for name, parameter in net.named_parameters()}
    readings = {}
    for path, (role, block, owners, rectified, end) in layers.items():
        output = seen[path]
        owned = [n for n in gradients if any(n.startswith(f"{owner}.") for owner in owners)]
        gradient = torch.cat([gradients[name].flatten() for name in owned])
        weight = torch.cat([before[name].flatten() for name in owned])
        update = torch.cat([(after[name] - before[name]).flatten() for name in owned])
        readings[path] = LayerReading(
            block,
            role,
            response_mean=output.mean().item(),
            response_std=output.std(correction=0).item(),
            gradient_norm=(gradient.square().mean().sqrt()).item(),
            weight_norm=weight.norm().item(),
            update_ratio=(update.norm() / weight.norm()).item(),
        )
        if rectified:
            channels = output.transpose(0, 1).flatten(1)
            dead = sum(bool((channel <= 0).all()) for channel in channels) / len(channels)
            readings[path] = replace_in(readings[path], dead_fraction=dead)
        if end:
            spread = seen[end].std(correction=0) / seen[f"{path}.shortcut"].std(correction=0)
            readings[path] = replace_in(readings[path], residual_ratio=spread.item())
    return readings


def replace_in(reading, **values):
    return LayerReading(**{**reading.__dict__, **values})


class Step:
    """A training step that can be taken on a network and its twin alike."""

    def __init__(self, optimizer, batch, clip=CLIP):
        self.optimizer, self.batch, self.clip = optimizer, batch, clip

    def __call__(self, net):
        take_step(net, self.optimizer, *self.batch, self.clip)


def compare(found, expected, tolerance=1e-5):
    assert list(found) == list(expected)
    for path, wanted in expected.items():
        got = found[path]
        assert (got.block, got.role, got.edited) == (wanted.block, wanted.role, wanted.edited), path
        for name in STATISTICS:
            value, want = got.value(name), wanted.value(name)
            if want is None:
                assert value is None, (path, name)
                continue
            # a mean may be near 0: its error is one of the outputs' size
            slack = tolerance * wanted.response_std if name == "response_mean" else 0.0
            assert value == pytest.approx(want, rel=tolerance, abs=slack), (path, name)


def mean_of(readings):
    """Mean over steps of every statistic."""
    result = {}
    for path, first in readings[0].items():
        rows = [step[path] for step in readings]
        means = {
            name: None
            if first.value(name) is None
            else sum(row.value(name) for row in rows) / len(rows)
            for name in STATISTICS
        }
        result[path] = replace_in(first, **means)
    return result


def read_steps(net, optimizer_of, batches, every=1, clip=CLIP):
    """Readings of the observer over the batches, and the slow ones of the very same steps."""
    optimizer = optimizer_of(net)
    with Observer(net, optimizer, every=every) as observer:
        slow = [slowly(net, Step(optimizer, batch, clip)) for batch in batches]
        return observer.readings(), slow


def in_channels_last(net, batches):
    last = [(inputs.contiguous(memory_format=torch.channels_last), t) for inputs, t in batches]
    return net.to(memory_format=torch.channels_last), last


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("name", NETS)
def test_every_statistic_of_our_nets(name, last):
    net = network_of(name)
    batches = [batch_of(NETS[name].image, step) for step in range(3)]
    if last and len(NETS[name].image) == 3:
        net, batches = in_channels_last(net, batches)
    found, slow = read_steps(net, sgd, batches)
    compare(found, mean_of(slow))
    dead = [
        reading.dead_fraction for reading in found.values() if reading.dead_fraction is not None
    ]
    assert dead
    assert max(dead) > 0
    ratios = [reading for reading in found.values() if reading.residual_ratio is not None]
    assert len(ratios) == (0 if name == "plain" else 3)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels last"])
def test_every_statistic_of_torchvisions_resnet18(last):
    torch.manual_seed(0)
    net = resnet18(num_classes=CLASSES)
    batches = [batch_of((3, 32, 32), step, 4) for step in range(2)]
    if last:
        net, batches = in_channels_last(net, batches)
    found, slow = read_steps(net, sgd, batches)
    compare(found, mean_of(slow))
    assert len(found) == 21


@pytest.mark.parametrize("optimizer_of", [sgd, adamw])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [None, CLIP])
def test_gradients_and_updates_as_the_optimizer_sees_and_makes_them(optimizer_of, fused, clip):
    net = network_of("basic")
    batches = [batch_of(net.architecture.image, step) for step in range(4)]
    found, slow = read_steps(net, lambda n: optimizer_of(n, fused=fused), batches, clip=clip)
    compare(found, mean_of(slow))


@pytest.mark.parametrize(
    ("every", "chosen"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])]
)
def test_readings_are_means_over_every_kth_step(every, chosen):
    net = network_of("basic")
    batches = [batch_of(net.architecture.image, step) for step in range(5)]
    found, slow = read_steps(net, sgd, batches, every=every)
    compare(found, mean_of([slow[step] for step in chosen]))


def test_a_long_window_is_the_mean_of_its_steps():
    def train(steps):
        net = network_of("basic")
        optimizer, found = sgd(net), []
        with Observer(net, optimizer) as observer:
            for step in range(40):
                clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
                if (step + 1) % steps == 0:
                    found.append(observer.readings())
        return found

    (whole,) = train(40)
    single = train(1)
    for path, reading in whole.items():
        for name in STATISTICS:
            values = [getattr(readings[path], name) for readings in single]
            expected = None if values[0] is None else pytest.approx(fmean(values), rel=1e-12)
            assert getattr(reading, name) == expected, (path, name)


def test_a_window_begins_with_a_reading():
    batches = [batch_of(NETS["basic"].image, step) for step in range(6)]
    net, batches = in_double(network_of("basic"), batches)
    optimizer, twin = sgd(net), copy.deepcopy(net)
    other = sgd(twin)
    slow = [slowly(twin, Step(other, batch)) for batch in batches]
    with Observer(net, optimizer, every=4) as observer:
        for length, begin in ((2, 0), (1, 2), (3, 3)):
            for batch in batches[begin : begin + length]:
                clipped_step(net, optimizer, *batch)
            compare(observer.readings(), slow[begin])


def test_readings_again_without_a_step_are_the_same():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer, every=3) as observer:
        assert all(r.response_std is None for r in observer.readings().values())
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
        found = observer.readings()
        assert observer.readings() == found
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 1))
        assert observer.readings() != found
    assert observer.readings() == observer.readings()


def read_moments(x, near_zero=False):
    (found,) = moments_of([row_sums(x, near_zero)], {})
    return found


@pytest.mark.parametrize("entries", [2**22, 2**8 * 20_001, 5_000_011, 24_500, 3])
@pytest.mark.parametrize("near_zero", [False, True])
def test_sums_of_any_count_of_entries_are_exact(entries, near_zero):
    x = 1 + torch.randn(entries, generator=torch.Generator().manual_seed(0))
    assert row_sums(x, near_zero).rows.length <= LONG
    found = read_moments(x, near_zero)
    wide = x.double()
    assert found[0].item() == pytest.approx(wide.mean().item(), rel=1e-6)
    assert found[1].item() == pytest.approx(wide.std(correction=0).item(), rel=1e-6)


def test_sums_near_zero_are_exact_to_thirty_deviations_and_in_bfloat16_to_its_precision():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((32, 16, 32, 32), generator=generator)
    for mean, near in ((0.0, 1e-7), (3.0, 1e-6), (30.0, 1e-5)):
        shifted = x + mean
        expected = shifted.double().std(correction=0).item()
        assert read_moments(shifted, True)[1].item() == pytest.approx(expected, rel=near)
    low = x.relu().bfloat16().contiguous(memory_format=torch.channels_last)
    expected = low.double().mean().item(), low.double().std(correction=0).item()
    assert read_moments(low, True).tolist() == pytest.approx(expected, rel=5e-4)
    assert read_moments(low.half(), True).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 5, 7, 7), (40, 16, 4, 4), (6, 5, 1, 1), (40, 5), (6, 9, 4)])
def test_channels_are_dead_where_no_entry_is_above_zero(monkeypatch, shape, dtype):
    x = -torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[:, 1] = 0.0
    x[:, 2] = -0.0
    x[-1, 3] = torch.finfo(dtype).tiny
    x[0, 4] = 1.0
    layouts = [x, x[:, :, ::2]] if x.dim() > 2 else [x]
    layouts += [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else []
    for laid_out in layouts:
        living = laid_out.clone()
        living[0] = 1.0  # the first samples tell
        outputs = [laid_out, living, laid_out[:, 1:3]]
        for looks in (True, False):  # the host may read, or not: then as on a GPU
            monkeypatch.setattr(tensor_entries, "on_host", lambda _, looks=looks: looks)
            found = [share.item() for share in dead_fractions(outputs, {})]
            assert found == pytest.approx([(shape[1] - 2) / shape[1], 0, 1])


@pytest.mark.parametrize("shape", [(6, 5, 7, 7), (6, 5, 1, 1), (40, 5), (6, 9, 4)])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, -1e4])
def test_a_large_mean_cancels_nothing(shape, mean):
    generator = torch.Generator().manual_seed(1)
    x = mean + torch.randn(shape, generator=generator)
    found = read_moments(x)
    wide = x.double()
    assert found[0].item() == pytest.approx(wide.mean().item(), rel=1e-6, abs=1e-6)
    near = 1e-5 if abs(mean) < 1e4 else 1e-4  # the sum of squares would be off by more than 1
    assert found[1].item() == pytest.approx(wide.std(correction=0).item(), rel=near)
    channels = x + 1e4 * torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2))
    assert read_moments(channels)[1].item() == pytest.approx(
        channels.double().std(correction=0).item(), rel=1e-5
    )
    assert read_moments(torch.full(shape, 3.0))[1].item() == 0
    for half in (torch.bfloat16, torch.float16):
        low = torch.randn(shape, generator=generator).to(half)
        expected = low.double().std(correction=0).item()
        assert read_moments(low)[1].item() == pytest.approx(expected, rel=1e-5)


def test_a_large_mean_inside_a_net_cancels_nothing():
    net = network_of("basic pre")
    batches = [batch_of(net.architecture.image, step) for step in range(2)]
    found, slow = read_steps(net, sgd, [(1e3 + inputs, targets) for inputs, targets in batches])
    compare(found, mean_of(slow))


def test_dead_channels_are_those_that_no_image_wakes():
    torch.manual_seed(0)
    net = build(NETS["basic"])
    with torch.no_grad():
        bn = net.get_submodule("stage1.block1.bn1")
        bn.bias.copy_(torch.tensor([-100.0, 0.0, 0.0, -100.0, 0.0]))
        bn.weight[2] = 0.0  # all outputs 0: dead as well
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
    assert observer.readings()["stage1.block1.bn1"].dead_fraction == 3 / 5
    assert observer.readings()["stage2.block1.bn1"].dead_fraction == 0


def test_forwards_that_do_not_train_are_ignored():
    net = network_of("basic")
    twin = copy.deepcopy(net)
    optimizer, other = sgd(net), sgd(twin)
    batch, elsewhere = batch_of(net.architecture.image), batch_of(net.architecture.image, 9)
    (expected,) = [slowly(twin, Step(other, batch))]
    with Observer(net, optimizer) as observer:
        net.eval()
        net(elsewhere[0])
        net.train()
        draw, norms = net.draw.clone(), copy.deepcopy(dict(net.named_buffers()))
        with torch.no_grad():
            net(elsewhere[0])
        net.draw.copy_(draw)
        for name, buffer in net.named_buffers():
            buffer.copy_(norms[name])
        optimizer.zero_grad()
        functional.cross_entropy(net(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        net.eval()
        net(elsewhere[0])
        net.train()
        optimizer.step()
        net.eval()
        net(elsewhere[0])
        assert observer.step == 1
        compare(observer.readings(), expected)


# No trace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_left_on_the_module(known):
    net = network_of("basic")
    optimizer = sgd(net)
    before = copy.deepcopy(net.state_dict())
    names = {path: set(vars(module)) for path, module in net.named_modules()}
    with Observer(net, optimizer if known else None) as observer:
        assert hooks_of(net, optimizer)
        for step in range(2):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
        observer.readings()
    assert hooks_of(net, optimizer) == []
    assert {path: set(vars(module)) for path, module in net.named_modules()} == names
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert hooks_of(other) == []
        assert list(other.state_dict()) == list(before)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters()))
    with pytest.raises(KeyError, match="stop"), Observer(net, optimizer):
        raise KeyError("stop")
    assert hooks_of(net, optimizer) == []


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["basic", "bottleneck pre", "plain"])
def test_training_is_bit_equal_with_and_without(name, known):
    net = network_of(name)
    for block in net.modules():
        if hasattr(block, "survival"):
            block.survival = 0.7
    twin = copy.deepcopy(net)
    optimizer, other = adamw(net), adamw(twin)
    with Observer(net, optimizer if known else None, every=2) as observer:
        for step in range(50):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
            clipped_step(twin, other, *batch_of(net.architecture.image, step))
            if step % 7 == 6:
                observer.readings()
    for key, value in twin.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_nothing_is_read_on_the_host_within_a_step():
    with torch.device("meta"):
        for name, architecture in NETS.items():
            net = Network(architecture)
            for block in net.modules():
                if hasattr(block, "survival"):
                    block.survival = 0.5
            for known in (True, False):
                optimizer = sgd(net, foreach=True)
                with Observer(net, optimizer if known else None) as observer:
                    inputs = torch.empty(3, *architecture.image)
                    targets = torch.empty(3, dtype=torch.int64)
                    for _ in range(2):
                        take_step(net, optimizer, inputs, targets)
                    assert observer.step == (2 if known else 1), name
                    with pytest.raises(NotImplementedError):
                        observer.readings()


def test_the_default_device_may_be_another():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    inputs, optimizer = torch.randn(5, 4), sgd(net)
    with torch.no_grad():
        net[3].bias.fill_(-9)  # dead
    with torch.device("meta"), Observer(net, optimizer) as observer:
        for _ in range(2):
            optimizer.zero_grad()
            net(inputs).sum().backward()
            optimizer.step()
        found = observer.readings()
    assert found["1"].response_std == pytest.approx(1, abs=0.1)
    assert (found["1"].dead_fraction, found["3"].dead_fraction) == (0, 1)


def test_nothing_is_read_on_the_host_within_a_step_of_any_module():
    with torch.device("meta"):
        net = resnet18(num_classes=CLASSES)
        optimizer = sgd(net, foreach=True)
        with Observer(net, optimizer, extra={"largest": torch.amax}) as observer:
            for _ in range(2):
                inputs, targets = torch.empty(3, 3, 32, 32), torch.empty(3, dtype=torch.int64)
                take_step(net, optimizer, inputs, targets)
            assert observer.step == 2


def test_steps_that_are_not_read_have_no_hooks_on_the_layers():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer, every=3) as observer:
        hooked = []
        for step in range(7):
            hooked.append(bool(hooks_of(net)))
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
        assert hooked == [True, False, False, True, False, False, True]
        assert not hooks_of(net)
        observer.readings()
        assert hooks_of(net)


# Other loops ------------------------------------------------------------------------------------


def test_without_an_optimizer_every_training_forward_is_a_step():
    batches = [batch_of(NETS["basic"].image, step) for step in range(3)]
    net, batches = in_double(network_of("basic"), batches)
    optimizer, twin = sgd(net), copy.deepcopy(net)
    other = sgd(twin)
    slow = [slowly(twin, Step(other, batch, clip=None)) for batch in batches]
    # the weights are read when the step ends: with the next forward or with the readings
    shown = [{p: replace_in(r, update_ratio=None) for p, r in step.items()} for step in slow]
    with Observer(net) as observer:
        for batch in batches:
            take_step(net, optimizer, *batch)
        assert observer.step == 2
        found = observer.readings()
        assert observer.step == 3
    for path, wanted in mean_of(shown).items():
        assert found[path].update_ratio is None
        for name in ("response_mean", "response_std", "gradient_norm", "residual_ratio"):
            want = wanted.value(name)
            near = pytest.approx(want, rel=1e-5, abs=1e-6) if want is not None else None
            assert found[path].value(name) == near, (path, name)
        assert found[path].weight_norm == pytest.approx(wanted.weight_norm, rel=0.1)


def test_without_an_optimizer_weights_are_those_before_the_step():
    net = network_of("basic")
    optimizer, twin = sgd(net), copy.deepcopy(net)
    expected = slowly(twin, Step(sgd(twin), batch_of(net.architecture.image), clip=None))
    with Observer(net) as observer:
        take_step(net, optimizer, *batch_of(net.architecture.image))
        found = observer.readings()
    for path, wanted in expected.items():
        assert found[path].weight_norm == pytest.approx(wanted.weight_norm, rel=1e-5), path


@pytest.mark.parametrize("known", [True, False])
def test_accumulated_gradients_are_read_as_one(known):
    net = network_of("plain")
    optimizer, twin = sgd(net), copy.deepcopy(net)
    other = sgd(twin)
    one, two = batch_of((7,), 0), batch_of((7,), 1)

    def accumulate(network, stepper):
        stepper.zero_grad()
        for inputs, targets in (one, two):
            (functional.cross_entropy(network(inputs), targets) / 2).backward()
        gradients = {n: p.grad.double().clone() for n, p in network.named_parameters()}
        stepper.step()
        return gradients

    with torch.no_grad():
        outputs = [twin.get_submodule("stage1.block1.linear")(x).double() for x, _ in (one, two)]
    gradients = accumulate(twin, other)
    with Observer(net, optimizer if known else None) as observer:
        accumulate(net, optimizer)
        found = observer.readings()["stage1.block1.linear"]
    assert observer.step == (1 if known else 2)
    both = [gradients[f"stage1.block1.linear.{leaf}"].flatten() for leaf in ("weight", "bias")]
    if known:
        norm = torch.cat(both).square().mean().sqrt().item()
        assert found.gradient_norm == pytest.approx(norm, rel=1e-5)
    spread = sum(output.std(correction=0).item() for output in outputs) / 2
    assert found.response_std == pytest.approx(spread, rel=1e-5)


class Twice(nn.Module):
    """Calls one layer twice in a forward."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(self.shared(functional.relu(self.shared(x))))


def test_a_layer_called_twice_is_read_as_the_mean_of_its_calls():
    torch.manual_seed(0)
    net = Twice()
    inputs, targets = batch_of((5,))
    first = net.shared(inputs)
    second = net.shared(functional.relu(first))
    spreads = [x.double().std(correction=0).item() for x in (first, second)]
    means = [x.double().mean().item() for x in (first, second)]
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, inputs, targets)
        gradients = torch.cat([p.grad.double().flatten() for p in net.shared.parameters()])
        found = observer.readings()["shared"]
    assert found.response_std == pytest.approx(sum(spreads) / 2, rel=1e-5)
    assert found.response_mean == pytest.approx(sum(means) / 2, rel=1e-5)
    assert found.gradient_norm == pytest.approx(gradients.square().mean().sqrt().item(), rel=1e-5)


class Tied(nn.Module):
    """Holds one layer under two names."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(5, 5)
        self.first = nn.Sequential(shared, nn.ReLU())
        self.second = nn.Sequential(shared, nn.ReLU(), nn.Linear(5, CLASSES))

    def forward(self, x):
        return self.second(self.first(x))


def test_a_layer_of_two_names_is_read_once():
    torch.manual_seed(0)
    net = Tied()
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of((5,)))
    assert list(observer.readings()) == ["first.0", "second.2"]
    assert all(r.gradient_norm > 0 for r in observer.readings().values())


class Zoo(nn.Module):
    """Norms with and without a layer that feeds them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.lone = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 4, 1)
        self.group = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.lone(self.norm(self.embed(x)))[:, :, None]
        return self.head(self.group(self.conv(x)).flatten(1))


def test_norms_of_any_kind_cover_what_feeds_them():
    torch.manual_seed(0)
    net = Zoo()
    optimizer = sgd(net)
    inputs, targets = batch_of((6,))
    response = net.norm(net.embed(inputs)).double()
    with Observer(net, optimizer) as observer:
        take_step(net, optimizer, inputs, targets)
    found = observer.readings()
    assert list(found) == ["norm", "lone", "group", "head"]
    assert found["norm"].response_std == pytest.approx(response.std(correction=0).item(), rel=1e-5)
    for path, owners in (("norm", (net.embed, net.norm)), ("lone", (net.lone,))):
        gradients = [p.grad.double().flatten() for module in owners for p in module.parameters()]
        norm = torch.cat(gradients).square().mean().sqrt().item()
        assert found[path].gradient_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("name", ["basic", "bottleneck pre", "dense", "resnet18"])
def test_under_autocast_outputs_are_read_within_the_precision_of_bfloat16(name, last):
    torch.manual_seed(0)
    net = resnet18(num_classes=CLASSES) if name == "resnet18" else network_of(name)
    batches = [batch_of((3, 32, 32) if name == "resnet18" else NETS[name].image)]
    if last and name != "dense":
        net, batches = in_channels_last(net, batches)
    ((inputs, targets),) = batches
    twin = copy.deepcopy(net)
    optimizer, other = sgd(net), sgd(twin)

    def step(network, stepper):
        stepper.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(inputs)
        assert outputs.dtype == torch.bfloat16
        functional.cross_entropy(outputs.float(), targets).backward()
        stepper.step()

    class Cast(Step):
        def __call__(self, network):
            step(network, self.optimizer)

    expected = slowly(twin, Cast(other, None))
    with Observer(net, optimizer) as observer:
        step(net, optimizer)
        compare(observer.readings(), expected, tolerance=2**-8)


@pytest.mark.parametrize("fused", [True, False])
def test_scaled_gradients_are_read_unscaled(fused):
    net = network_of("basic")
    twin = copy.deepcopy(net)
    optimizer, other = sgd(net, fused=fused), sgd(twin, fused=fused)
    batch = batch_of(net.architecture.image)
    expected = slowly(twin, Step(other, batch, clip=None))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Observer(net, optimizer) as observer:
        loss = functional.cross_entropy(net(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        compare(observer.readings(), expected, tolerance=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_a_block_that_is_unfrozen_later_is_seen(known):
    net = network_of("basic")
    frozen = net.get_submodule("stage1.block2")
    frozen.requires_grad_(False)
    optimizer = sgd(net)
    path = "stage1.block2.bn1"
    with Observer(net, optimizer if known else None) as observer:
        take_step(net, optimizer, *batch_of(net.architecture.image))
        reading = observer.readings()[path]
        assert reading.gradient_norm is None
        assert reading.response_std > 0
        frozen.requires_grad_(True)
        take_step(net, optimizer, *batch_of(net.architecture.image, 1))
        owned = [*frozen.conv1.parameters(), *frozen.bn1.parameters()]
        gradients = torch.cat([p.grad.double().flatten() for p in owned])
        reading = observer.readings()[path]
    norm = gradients.square().mean().sqrt().item()
    assert reading.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert (reading.update_ratio is not None) is known


# Growing and resuming ---------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_following_a_grown_net_keeps_names_and_marks_what_was_edited(known):
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer if known else None) as observer:
        for step in range(3):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
        names = list(observer.readings())
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 3))
        actions = [
            Widen("stage1.block2", 2),
            Insert("stage2.block1", 3),
            SetSurvival("stage1.block1", 0.5),
        ]
        grown = grow(net, actions, optimizer)
        if known:
            observer.follow(grown)
        else:
            observer.follow(grown.network)
        assert hooks_of(net, optimizer) == []
        assert observer.step == 4
        twin = grow(net, actions, optimizer)
        batch = batch_of(net.architecture.image, 5)
        clipped_step(grown.network, grown.optimizer, *batch)
        found = observer.readings()
        assert observer.step == 5
    assert [name for name in found if "stage2.block2" not in name] == names
    marks = {reading.block: reading.edited for reading in found.values()}
    assert marks == {
        None: None,
        "stage1.block1": None,
        "stage1.block2": 4,
        "stage2.block1": None,
        "stage2.block2": 4,
    }
    expected = slowly(twin.network, Step(twin.optimizer, batch))
    for path, reading in expected.items():
        assert found[path].response_std == pytest.approx(reading.response_std, rel=1e-5)


def test_marks_are_of_the_last_edit():
    net = network_of("basic")
    with Observer(net, sgd(net), step=10, edited={"stage1.block1": 7}) as observer:
        for _ in range(2):
            grown = grow(observer.net, [Widen("stage1.block2", 1)], observer.optimizer)
            observer.follow(grown)
            clipped_step(grown.network, grown.optimizer, *batch_of(net.architecture.image))
        found = observer.readings()
    assert found["stage1.block1"].edited == 7
    assert found["stage1.block2"].edited == 11
    assert observer.step == 12


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_a_resumed_window_goes_on_exactly(name, cut):
    def train(observer, net, optimizer, steps):
        for step in steps:
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))

    def begin():
        net = network_of(name)
        return net, sgd(net)

    net, optimizer = begin()
    with Observer(net, optimizer, every=2, edited={"stage1.block1": 0}) as observer:
        train(observer, net, optimizer, range(4))
        observer.readings()
        train(observer, net, optimizer, range(4, 9))
        expected = observer.readings(), observer.step
    net, optimizer = begin()
    with Observer(net, optimizer, every=2, edited={"stage1.block1": 0}) as observer:
        train(observer, net, optimizer, range(4))
        observer.readings()
        train(observer, net, optimizer, range(4, 4 + cut))
        state = pickle.loads(pickle.dumps(observer.state_dict()))
    with Observer(net, optimizer, every=2) as observer:
        observer.load_state_dict(state)
        train(observer, net, optimizer, range(4 + cut, 9))
        assert (observer.readings(), observer.step) == expected


@pytest.mark.parametrize("name", ["basic", "dense", "resnet18"])
def test_a_steps_numbers_are_the_same_to_the_last_bit_with_others_and_alone(name):
    torch.manual_seed(0)
    net = resnet18(num_classes=CLASSES) if name == "resnet18" else network_of(name)
    twin = copy.deepcopy(net)
    image = (3, 32, 32) if name == "resnet18" else net.architecture.image
    batches = [batch_of(image, step) for step in range(5)]
    with Observer(net, optimizer := sgd(net)) as observer:
        for batch in batches:
            clipped_step(net, optimizer, *batch)
        found = observer.readings()
    alone = []
    with Observer(twin, optimizer := sgd(twin)) as observer:
        for batch in batches:
            clipped_step(twin, optimizer, *batch)
            alone.append(observer.readings())
    for path, reading in found.items():
        for statistic in STATISTICS:
            values = [readings[path].value(statistic) for readings in alone]
            # not sum(), which since Python 3.12 rounds once: the window adds one to the other
            mean = None if None in values else reduce(add, values) / len(values)
            assert reading.value(statistic) == mean, (path, statistic)


def test_an_update_that_failed_leaves_nothing_to_the_next():
    net = network_of("basic")
    optimizer = sgd(net)

    def failing(*_):
        raise RuntimeError("no update")

    with Observer(net, optimizer) as observer:
        inputs, targets = batch_of(net.architecture.image)
        functional.cross_entropy(net(inputs), targets).backward()
        handle = optimizer.register_step_pre_hook(failing)
        with pytest.raises(RuntimeError, match="no update"):
            optimizer.step()
        handle.remove()
        observer.skip()
        optimizer.zero_grad()
        net(inputs)
        optimizer.step()
        assert observer.readings()["head"].gradient_norm is None


def test_a_broken_gradient_is_its_layers_own():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        inputs, targets = batch_of(net.architecture.image)
        functional.cross_entropy(net(inputs), targets).backward()
        net.get_submodule("stage1.block2.conv1").weight.grad[0, 0] = math.nan
        optimizer.step()
        found = observer.readings()
    broken = {path for path, reading in found.items() if math.isnan(reading.gradient_norm)}
    assert broken == {"stage1.block2", "stage1.block2.bn1"}


@pytest.mark.parametrize("known", [True, False])
def test_sparse_gradients_are_read(known):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer if known else None) as observer:
        net(torch.tensor([1, 1, 3])).square().sum().backward()
        gradients = [net[2].weight.grad.double(), net[2].bias.grad.double()]
        optimizer.step()
        found = observer.readings()["2"].gradient_norm
    expected = torch.cat([g.flatten() for g in gradients]).square().mean().sqrt().item()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_any_size_layout_and_dtype(dtype):
    torch.manual_seed(0)
    sizes = [(1, 1), (7, 9), (8, 8), (5, 13), (300, 300)]
    net = nn.ModuleDict({str(n): nn.Linear(a, b, False) for n, (a, b) in enumerate(sizes)})
    net["4"].weight.data = net["4"].weight.data.T.contiguous().T
    net["2"].to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    before = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    with Observer(net, optimizer) as observer:
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        for layer in net.values():  # which makes it a step of training
            layer(torch.ones(1, layer.in_features, dtype=layer.weight.dtype))
        optimizer.step()
        found = observer.readings()
    for path, reading in found.items():
        old, new = before[f"{path}.weight"], net[path].weight.detach().double()
        gradient = net[path].weight.grad.double()
        assert reading.weight_norm == pytest.approx(old.norm().item(), rel=1e-6)
        assert reading.gradient_norm == pytest.approx(
            gradient.square().mean().sqrt().item(), rel=1e-6
        )
        ratio = ((new - old).norm() / old.norm()).item()
        assert reading.update_ratio == pytest.approx(ratio, rel=1e-5)


def test_a_resumed_observer_gives_the_last_readings_again():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
        expected, state = observer.readings(), observer.state_dict()
    resumed = Observer(net, optimizer)
    resumed.load_state_dict(state)
    assert resumed.readings() == expected


def test_a_loaded_state_knows_nothing_of_the_steps_before_it():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 0))
        state, expected = observer.state_dict(), observer.readings()
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 1))
        observer.load_state_dict(state)
        assert observer.readings() == expected


def test_statistics_may_be_asked_for_in_inference_mode():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
            with torch.inference_mode():
                observer.state_dict()
                observer.first_broken()
        assert observer.readings()["head"].gradient_norm


def test_a_statistic_of_ones_own_may_change_its_tensor_later():
    net, count = network_of("basic").double(), torch.zeros((), dtype=torch.float64)
    optimizer = sgd(net)
    with Observer(net, optimizer, extra={"calls": lambda output: count.add_(1)}) as observer:
        for step in range(3):
            images, targets = batch_of(net.architecture.image, step)
            clipped_step(net, optimizer, images.double(), targets)
        found = [reading.extra["calls"] for reading in observer.readings().values()]
    layers = len(found)
    assert sorted(found) == [number + layers for number in range(1, layers + 1)]


def test_a_failure_while_statistics_are_worked_out_counts_no_step_twice(monkeypatch):
    net = network_of("basic")
    optimizer = sgd(net)
    moments_of, calls = analysis.measuring.responses.moments_of, []

    def failing(layers, known):
        found = moments_of(layers, known)
        calls.append(found)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return found

    monkeypatch.setattr(analysis.measuring.responses, "moments_of", failing)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
        with pytest.raises(RuntimeError, match="out of memory"):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, 2))
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 3))
        found = observer.readings()["head"].response_mean
    heads = [calls[step][-1, 0].item() for step in (0, 1, 3)]
    assert len(calls) == 4
    assert found == pytest.approx(fmean(heads), rel=1e-12)


def test_an_output_of_no_entries_is_no_failure():
    net = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer) as observer:
        images = torch.randn(8, 3)
        (net[0](images).sum() + net[1](images[:0]).sum()).backward()
        optimizer.step()
        found = observer.readings()
    assert found["0"].response_std > 0
    assert found["1"].response_std is None


def test_one_parameter_without_an_optimizer_is_read():
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    with Observer(net) as observer:
        for _ in range(2):
            net(torch.randn(8, 4)).square().sum().backward()
        net(torch.randn(8, 4))
        found = observer.readings()["0"]
    assert found.weight_norm == pytest.approx(net[0].weight.norm().item(), rel=1e-6)
    assert found.gradient_norm > 0


def test_a_batchnorm_without_a_bias_is_read_from_its_output():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net[1].register_parameter("bias", None)  # as bias=False in later versions of torch
    seen = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer) as observer:
        net(torch.randn(8, 3, 6, 6)).sum().backward()
        optimizer.step()
        found = observer.readings()["1"].response_std
    assert found == pytest.approx(seen[0].double().std(correction=0).item(), rel=1e-5)


class OnTwoGpus(nn.Module):
    """Nets of fake tensors need no GPU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, device="cuda:0")
        self.second = nn.Linear(4, 5, device="cuda:1")

    def forward(self, x):
        return self.second(self.first(x).to("cuda:1"))


@pytest.mark.skipif(torch.__version__ < "2.10", reason="torch 2.9 asks for CUDA's driver")
def test_parameters_on_several_gpus_have_their_norms_taken():
    with FakeTensorMode(allow_fallback_kernels=True):
        net = OnTwoGpus()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, foreach=False)
        with Observer(net, optimizer) as observer:
            net(torch.randn(2, 3, device="cuda:0"))
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            assert [value.shape for value in observer.tensors()][-1] == (5,)


def test_a_state_does_not_change_with_the_observer():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
        state = observer.state_dict()
        before = copy.deepcopy(state)
        other = Observer(net, optimizer)
        other.load_state_dict(state)
        with other:
            clipped_step(net, optimizer, *batch_of(net.architecture.image, 1))
        observer.edited["stage1.block1"] = 1
    assert torch.equal(state["window"].pop("totals"), before["window"].pop("totals"))
    assert state == before


def test_the_state_can_be_saved_and_loaded_without_running_code(tmp_path):
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
        observer.readings()
        clipped_step(net, optimizer, *batch_of(net.architecture.image, 1))
        torch.save(observer.state_dict(), tmp_path / "state.pt")
        resumed = Observer(net, optimizer)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert resumed.readings() == observer.readings()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": -1}, "every must be at least 1, got -1"),
        ({"every": 1.5}, "every must be an integer of at least 1, got 1.5"),
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"extra": {"own": 3}}, "extra must give a function for each name, got {'own': 3}"),
    ],
)
def test_what_is_given_is_checked(given, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        Observer(**{"net": nn.Linear(2, 2)} | given)


def test_a_batchnorms_response_std_is_that_of_its_entries():
    net = network_of("basic")
    bn = net.get_submodule("stage1.block1.bn1")
    with torch.no_grad():
        expected = math.sqrt(bn.weight.square().mean() + bn.bias.double().var(correction=0))
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
    assert observer.readings()["stage1.block1.bn1"].response_std == pytest.approx(
        expected, rel=1e-4
    )


def test_readings_of_an_observer_that_was_never_entered_warn_once():
    net = nn.Linear(3, 2)
    optimizer = sgd(net)
    observer = Observer(net, optimizer)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"nothing is read outside of its block: `with Observer"):
        assert observer.readings()[""].response_std is None
    assert observer.readings()[""].gradient_norm is None  # and no second warning


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=r"net must be a torch.nn.Module, got str"):
        Observer("resnet20")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"architecture must be an Architecture, .* got 'resnet20'"
    ):
        build("resnet20")  # pyright: ignore[reportArgumentType]
