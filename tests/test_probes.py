"""Probes against slow computations: a branch cut by hand, singular values, gradients one by one."""

import copy
import math
import random

import pytest
import torch
from makers import CASES, CLASSES, architecture_of, plain, take_step
from torch import nn
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import resnet18

from analysis import (
    Observer,
    block_importance,
    effective_rank,
    gradient_signal_to_noise,
    response_histograms,
)
from nets import build


def probed(kind, order="post"):
    widths, image = ((5, 3), (4,)), (7,) if kind == "dense" else (2, 6, 6)
    return architecture_of(
        kind, order, "cifar", widths, (6, 8), CLASSES, image, survivals=(0.7, 0.6)
    )


KINDS = CASES[:-1]  # all that have branches


def trained(architecture):
    """A net that has left its first values, one block of it in eval mode, and a batch."""
    torch.manual_seed(0)
    net = build(architecture)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs = torch.randn(16, *architecture.image)
    targets = torch.randint(CLASSES, (16,))
    for _ in range(5):
        take_step(net, optimizer, inputs, targets)
    net.get_submodule("stage1.block1").eval()
    return net, optimizer, inputs, targets


def cut(net, block):
    """The net with a zero at the end of the block's branch: its last norm, or its last layer."""
    net = copy.deepcopy(net).eval()
    module = net.get_submodule(block)
    last = len([name for name, _ in module.named_children() if name.startswith("bn")])
    with torch.no_grad():
        if net.architecture.order == "post":
            module.get_submodule(f"bn{last}").weight.zero_()
            module.get_submodule(f"bn{last}").bias.zero_()
        else:
            part = "linear" if net.architecture.block == "dense" else "conv"
            module.get_submodule(f"{part}{last}").weight.zero_()
    return net


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_importance_is_the_loss_without_the_branch_minus_the_loss_with_it(kind, order):
    net, _, inputs, targets = trained(probed(kind, order))

    def loss_of(network):
        with torch.no_grad():
            return functional.cross_entropy(network(inputs), targets).item()

    whole = loss_of(copy.deepcopy(net).eval())
    expected = {name: loss_of(cut(net, name)) - whole for name in net.architecture.blocks}
    found = block_importance(net, inputs, targets, functional.cross_entropy)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)
    assert min(abs(value) for value in found.values()) > 1e-3


def importance(net, inputs, targets):
    return block_importance(net, inputs, targets, functional.cross_entropy)


def signal(net, inputs, targets):
    return gradient_signal_to_noise(net, inputs, targets, functional.cross_entropy, parts=4)


PROBES = {
    "importance": importance,
    "signal": signal,
    "rank": lambda net, inputs, targets: effective_rank(net, inputs),
    "histograms": lambda net, inputs, targets: response_histograms(net, inputs),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_a_probe_leaves_everything_as_it_was(kind, order, probe):
    net, optimizer, inputs, targets = trained(probed(kind, order))
    values = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    generators = torch.get_rng_state(), random.getstate()
    with Observer(net, optimizer) as observer:
        hooks = [len(module._forward_hooks) for module in net.modules()]
        found = PROBES[probe](net, inputs, targets)
        assert [len(module._forward_hooks) for module in net.modules()] == hooks
        assert all(r.response_std is None for r in observer.readings().values())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert [module.training for module in net.modules()] == modes
    assert [module.survival for module in net.modules() if hasattr(module, "survival")] == [
        0.7,
        0.6,
        1.0,
    ]
    for name, value in net.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert all(torch.equal(p.grad, gradients[name]) for name, p in net.named_parameters())
    assert PROBES[probe](net, inputs, targets) == found


def test_a_failing_loss_leaves_no_hook():
    net, _, inputs, targets = trained(probed("basic"))
    calls = []

    def loss(outputs, targets):
        calls.append(outputs)
        if len(calls) == 3:
            raise RuntimeError("no loss")
        return outputs.mean()

    modes = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError, match="no loss"):
        block_importance(net, inputs, targets, loss)
    assert not any(module._forward_hooks for module in net.modules())
    assert [module.training for module in net.modules()] == modes


def test_any_loss_will_do():
    net, _, inputs, _ = trained(probed("basic"))
    targets = torch.randn(16, CLASSES)
    found = block_importance(net, inputs, targets, nn.MSELoss())
    with torch.no_grad():
        whole, without = (
            functional.mse_loss(network(inputs), targets).item()
            for network in (copy.deepcopy(net).eval(), cut(net, "stage1.block2"))
        )
    assert found["stage1.block2"] == pytest.approx(without - whole, abs=1e-6)


def test_plain_nets_have_no_branches():
    net = build(plain(6, 5, image=(7,), classes=CLASSES))
    inputs, targets = torch.randn(3, 7), torch.randint(CLASSES, (3,))
    assert block_importance(net, inputs, targets, functional.cross_entropy) == {}


def outputs_of(net, inputs, paths):
    """What the modules give in eval mode, in float64."""
    net, seen = copy.deepcopy(net).eval(), {}
    for path in paths:
        module = net.get_submodule(path)
        module.register_forward_hook(lambda m, a, out, path=path: seen.update({path: out.double()}))
    with torch.no_grad():
        net(inputs)
    return seen


@pytest.mark.parametrize("name", ["basic", "dense", "resnet18"])
def test_effective_rank_is_the_entropy_of_the_covariances_singular_values(name):
    if name == "resnet18":
        torch.manual_seed(0)
        net, inputs = resnet18(num_classes=CLASSES), torch.randn(4, 3, 32, 32)
    else:
        net, _, inputs, _ = trained(probed(name))
    found = effective_rank(net, inputs)
    for path, output in outputs_of(net, inputs, found).items():
        rows = output.transpose(0, 1).flatten(1)
        values = torch.linalg.svdvals(torch.cov(rows))
        shares = [value / values.sum().item() for value in values.tolist() if value > 0]
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert found[path] == pytest.approx(expected, rel=1e-6), path
        assert 1 <= found[path] <= len(rows)


class Fixed(nn.Module):
    """A layer that gives what it was given."""

    def __init__(self, norm=None):
        super().__init__()
        self.layer = norm or nn.BatchNorm1d(4, affine=False, track_running_stats=False)
        self.layer.forward = lambda x: x

    def forward(self, x):
        return self.layer(x)


def test_effective_rank_counts_directions():
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    one, two, three = signs.T
    for columns, expected in (
        ([one, two, three, 0 * one], 3.0),
        ([one, one, two, two], 2.0),
        ([one, 5 * one, -one, 7 + one], 1.0),
        ([3 + 0 * one] * 4, 0.0),
    ):
        rank = effective_rank(Fixed(), torch.stack(columns, 1))["layer"]
        assert rank == pytest.approx(expected, abs=1e-9)
    tokens = torch.stack([one, two, three, 0 * one], 1).view(2, 4, 4)  # channels last
    rank = effective_rank(Fixed(nn.LayerNorm(4)), tokens)["layer"]
    assert rank == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("buckets", [30, 4])
def test_histograms_count_every_response_once(buckets, device):
    net, _, inputs, _ = trained(probed("basic"))
    net, inputs = net.to(device, memory_format=torch.channels_last), inputs.to(device)
    found = response_histograms(net, inputs, buckets)
    for path, output in outputs_of(net, inputs, found).items():
        histogram, entries = found[path], output.flatten()
        assert (histogram.min, histogram.max) == (entries.min().item(), entries.max().item())
        assert histogram.num == entries.numel() == sum(histogram.bucket_counts)
        assert histogram.sum == pytest.approx(entries.sum().item(), rel=1e-9)
        assert histogram.sum_squares == pytest.approx(entries.square().sum().item(), rel=1e-9)
        assert len(histogram.bucket_limits) == buckets
        assert histogram.bucket_limits[-1] == pytest.approx(histogram.max)
        below = [(entries <= limit).sum().item() for limit in histogram.bucket_limits[:-1]]
        running = torch.tensor(histogram.bucket_counts).cumsum(0)[:-1]
        assert running.tolist() == pytest.approx(below, abs=1)


def test_histograms_are_read_from_the_device_at_once(monkeypatch):
    net, _, inputs, _ = trained(probed("basic"))
    reads, read = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or read(self))
    assert len(response_histograms(net, inputs)) > 5
    assert len(reads) == 1


class Force(nn.Module):
    """Takes a gradient in its forward, as networks of energies and scores do."""

    def __init__(self):
        super().__init__()
        self.energy, self.head = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).square().sum(), x)
        return self.head(force)


def test_a_probe_of_a_net_that_takes_gradients_reads_its_numbers():
    torch.manual_seed(0)
    net, inputs = Force(), torch.randn(8, 3)
    found = response_histograms(net, inputs)["head"]
    outputs = net(inputs)
    assert found.min == pytest.approx(outputs.min().item(), rel=1e-6)
    assert found.max == pytest.approx(outputs.max().item(), rel=1e-6)


def test_histograms_of_equal_responses_and_of_no_buckets():
    (histogram,) = response_histograms(Fixed(), torch.full((3, 4), 2.0)).values()
    assert (histogram.min, histogram.max, sum(histogram.bucket_counts)) == (2, 2, 12)
    assert histogram.bucket_limits == sorted(set(histogram.bucket_limits))
    with pytest.raises(ValueError, match="buckets must be at least 1, got 0"):
        response_histograms(Fixed(), torch.zeros(3, 4), 0)


def test_tensorboard_takes_a_histogram(tmp_path):
    net, _, inputs, _ = trained(probed("basic"))
    with SummaryWriter(tmp_path) as writer:
        for path, histogram in response_histograms(net, inputs).items():
            writer.add_histogram_raw(path, **histogram._asdict(), global_step=1)
    assert any(file.stat().st_size > 1000 for file in tmp_path.iterdir())


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("kind", ["basic", "dense"])
def test_signal_to_noise_is_that_of_gradients_taken_one_by_one(kind, parts):
    net, _, inputs, targets = trained(probed(kind))
    net.stage1.block2.requires_grad_(False)
    found = gradient_signal_to_noise(net, inputs, targets, functional.cross_entropy, parts)
    twin, size, rows = copy.deepcopy(net).eval(), 16 // parts, []
    for part in range(parts):
        chosen = slice(part * size, (part + 1) * size)
        twin.zero_grad()
        functional.cross_entropy(twin(inputs[chosen]), targets[chosen]).backward()
        rows.append({n: p.grad.double() for n, p in twin.named_parameters() if p.grad is not None})
    part = "linear" if kind == "dense" else "conv"
    owners = {"stem": ["stem"], "head": ["head"], "stage1.block1": ["stage1.block1"]}
    owners["stage1.block1.bn1"] = [f"stage1.block1.{part}1", "stage1.block1.bn1"]
    for path, prefixes in owners.items():
        names = [name for name in rows[0] if any(name.startswith(f"{p}.") for p in prefixes)]
        gradients = torch.stack([torch.cat([row[n].flatten() for n in names]) for row in rows])
        expected = gradients.mean(0).square().sum() / gradients.var(0).sum()
        assert found[path] == pytest.approx(expected.item(), rel=1e-5), path
    assert not [path for path in found if path.startswith("stage1.block2")]


@pytest.mark.parametrize("parts", [1, 17])
def test_parts_are_checked(parts):
    net, _, inputs, targets = trained(probed("basic"))
    with pytest.raises(ValueError, match=f"parts must be from 2 to the batch's 16, got {parts}"):
        gradient_signal_to_noise(net, inputs, targets, functional.cross_entropy, parts)


def test_probes_of_a_compiled_net_have_the_names_of_the_net_itself():
    net, _, inputs, _ = trained(probed("basic"))
    assert effective_rank(torch.compile(net, backend="eager"), inputs) == effective_rank(
        net, inputs
    )
