"""What BatchNorms tell of their responses, against what is read from the tensors."""

import copy

import pytest
import torch
from makers import CLASSES, Doubled, batch_of, clipped_step, hooks_of, in_double, network_of, sgd
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from analysis import Observer
from analysis.measuring.batchnorm_std import told_by


def read(net, batches, told=True, monkeypatch=None):
    """Readings over the batches, with or without what the norms tell."""
    if not told:
        monkeypatch.setattr("analysis.measuring.responses.told_by", lambda norm, output: None)
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        for batch in batches:
            clipped_step(net, optimizer, *batch)
        return observer.readings()


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels last"])
@pytest.mark.parametrize("name", ["basic", "basic pre", "bottleneck", "dense", "resnet18"])
def test_what_norms_tell_is_what_hooks_read(name, last, monkeypatch):
    torch.manual_seed(0)
    net = resnet18(num_classes=CLASSES) if name == "resnet18" else network_of(name)
    image = (3, 32, 32) if name == "resnet18" else net.architecture.image
    for norm in net.modules():
        if name != "resnet18" and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.eps = 0.3  # so that the variance matters
    if last:
        net = net.to(memory_format=torch.channels_last)
    net, batches = in_double(net, [batch_of(image, step) for step in range(5)])
    twin = copy.deepcopy(net)
    told, seen = read(net, batches), read(twin, batches, False, monkeypatch)
    assert list(told) == list(seen)
    for path, reading in seen.items():
        found = told[path]
        assert found.response_std == pytest.approx(reading.response_std, rel=1e-5), path
        slack = 1e-6 * reading.response_std
        assert found.response_mean == pytest.approx(reading.response_mean, rel=1e-5, abs=slack)
        if reading.residual_ratio is not None:
            assert found.residual_ratio == pytest.approx(reading.residual_ratio, rel=1e-5)
    assert any(found.response_std != seen[path].response_std for path, found in told.items())


class Shared(nn.Module):
    """Calls one norm as often as it is told, and relus in place."""

    def __init__(self, norm, times):
        super().__init__()
        self.conv, self.norm, self.times = nn.Conv2d(3, 4, 3), norm, times
        self.head = nn.Linear(4, CLASSES)
        self.responses = []

    def forward(self, x):
        x = self.conv(x)
        for _ in range(self.times):
            x = self.norm(2 * x)
            self.responses.append(x.detach().double().clone())
            x = functional.relu(x, inplace=True)
        return self.head(x.mean((2, 3)))


NORMS = {
    "plain": (lambda: nn.BatchNorm2d(4, eps=0.5), True),
    "slow": (lambda: nn.BatchNorm2d(4, eps=0.5, momentum=0.02), True),
    "only the last batch": (lambda: nn.BatchNorm2d(4, eps=0.5, momentum=1.0), True),
    "hardly moving": (lambda: nn.BatchNorm2d(4, momentum=1e-4), True),
    "averaging": (lambda: nn.BatchNorm2d(4, momentum=None), True),
    "without weight": (lambda: nn.BatchNorm2d(4, affine=False), False),
    "without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), True),
    "held": (lambda: nn.BatchNorm2d(4).eval(), False),
    "of one's own": (lambda: Doubled(4), False),
    "of groups": (lambda: nn.GroupNorm(2, 4), False),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", NORMS)
def test_every_call_of_every_norm_is_read_before_it_is_overwritten(name, accumulated, times):
    torch.manual_seed(0)
    make, told = NORMS[name]
    norm = make()
    output = norm(torch.randn(3, 4, 2, 2, requires_grad=True))
    assert (told_by(norm, output) is not None) is told
    if getattr(norm, "weight", None) is not None:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -2, 2)
    net = Shared(norm, times)
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            if step == 1:  # neither counts nor disturbs
                with torch.no_grad():
                    net(batch_of((3, 8, 8), 9)[0])
                observer.readings()
            net.responses.clear()
            for part in range(accumulated):
                inputs, targets = batch_of((3, 8, 8), 10 * step + part)
                functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        found = observer.readings()["norm"]
    assert len(net.responses) == accumulated * times
    spreads = [response.std(correction=0).item() for response in net.responses]
    means = [response.mean().item() for response in net.responses]
    assert found.response_std == pytest.approx(sum(spreads) / len(spreads), rel=1e-5)
    assert found.response_mean == pytest.approx(sum(means) / len(means), rel=1e-5, abs=1e-6)


def test_a_norm_between_a_forward_and_its_update_is_closed_first():
    torch.manual_seed(0)
    net = Shared(nn.BatchNorm2d(4, eps=0.5), 1)
    optimizer = sgd(net)
    inputs, targets = batch_of((3, 8, 8))
    with Observer(net, optimizer) as observer:
        functional.cross_entropy(net(inputs), targets).backward()
        with torch.no_grad():
            net(100 * inputs)
        optimizer.step()
        found = observer.readings()["norm"]
    expected = net.responses[0].std(correction=0).item()
    assert found.response_std == pytest.approx(expected, rel=1e-5)
    assert hooks_of(net, optimizer) == []


def test_a_transformer_block():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(block, nn.Linear(8, CLASSES))
    seen = {}
    for path in ("0.linear1", "0.linear2", "0.norm1", "0.norm2", "1"):
        module = net.get_submodule(path)
        module.register_forward_hook(lambda m, a, out, path=path: seen.update({path: out.double()}))
    optimizer = sgd(net)
    inputs = torch.randn(6, 5, 8)
    with Observer(net, optimizer) as observer:
        net(inputs).square().mean().backward()
        gradients = {name: p.grad.double() for name, p in net.named_parameters()}
        optimizer.step()
        found = observer.readings()
    for path, output in seen.items():
        owned = [g.flatten() for name, g in gradients.items() if name.startswith(f"{path}.")]
        norm = torch.cat(owned).square().mean().sqrt().item()
        spread = output.std(correction=0).item()
        assert found[path].response_std == pytest.approx(spread, rel=1e-5), path
        assert found[path].gradient_norm == pytest.approx(norm, rel=1e-5), path
    owned = [g.flatten() for name, g in gradients.items() if name.startswith("0.self_attn.")]
    norm = torch.cat(owned).square().mean().sqrt().item()
    assert found["0.self_attn"].gradient_norm == pytest.approx(norm, rel=1e-5)
    assert "0.self_attn.out_proj" not in found  # attention works with its weights


class InModes(nn.Module):
    """Calls one norm after the other as the letters say: training, in eval mode, or under no_grad.

    Every call has inputs of another size. Keeps the std of what trains, the truth, in `seen`.
    """

    def __init__(self, calls, named=False):
        super().__init__()
        self.norm, self.head, self.calls, self.seen = nn.BatchNorm1d(5), nn.Linear(5, 1), calls, []
        self.named = named
        self.norm.momentum, self.norm.eps = 0.3, 0.3
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x):
        total = 0
        for place, call in enumerate(self.calls):
            self.norm.train(call != "e")
            with torch.set_grad_enabled(call != "n"):
                inputs = x * 3**place
                output = self.norm(input=inputs) if self.named else self.norm(inputs)
            if call != "n":
                self.seen.append(output.detach().double().std(correction=0).item())
            total = total + self.head(output).square().mean()
        self.norm.train()
        return total


@pytest.mark.parametrize("calls", ["t", "tt", "te", "et", "tnt", "nt", "tet", "ttn", "tete"])
@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("named", [False, True], ids=["", "by name"])
def test_a_norm_that_ran_unseen_or_in_eval_mode_is_read_all_the_same(calls, forwards, named):
    torch.manual_seed(0)
    net = InModes(calls, named)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer) as observer:
        for _ in range(forwards):
            net(torch.randn(16, 5)).backward()
        optimizer.step()
        found = observer.readings()["norm"].response_std
    assert found == pytest.approx(sum(net.seen) / len(net.seen), rel=1e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_norms_are_read_in_every_kth_step(known, every):
    torch.manual_seed(0)
    net = InModes("t")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer if known else None, every) as observer:
        for step in range(6):
            optimizer.zero_grad()
            net((1 + step) * torch.randn(16, 5)).backward()
            optimizer.step()
        found = observer.readings()["norm"].response_std
    read = net.seen[::every]
    assert found == pytest.approx(sum(read) / len(read), rel=1e-5)


def test_a_net_that_is_restored_after_a_forward_failed():
    torch.manual_seed(0)
    net = InModes("t")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    state = copy.deepcopy(net.state_dict())
    with Observer(net, optimizer) as observer:
        head, net.head = net.head, None
        with pytest.raises(TypeError):
            net(5 * torch.randn(16, 5))
        net.head = head
        net.load_state_dict(state)
        net(torch.randn(16, 5)).backward()
        optimizer.step()
        found = observer.readings()["norm"].response_std
    assert found == pytest.approx(sum(net.seen) / 2, rel=1e-5)


def test_a_norm_without_running_statistics_is_read_from_its_outputs():
    torch.manual_seed(0)
    net = InModes("t")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with Observer(net, optimizer) as observer:
        net(torch.randn(16, 5)).backward()
        net.norm.track_running_stats = False
        net(torch.randn(16, 5)).backward()
        optimizer.step()
        found = observer.readings()["norm"].response_std
    assert found == pytest.approx(sum(net.seen) / 2, rel=1e-5)
