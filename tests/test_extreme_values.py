"""Outputs without entries, and numbers whose squares float32 cannot hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from analysis import Observer
from analysis.examining.outliers import kurtosis, powers
from analysis.examining.requests import ALSO


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.1)


class Experts(nn.Module):
    """Two experts that share out the rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.ReLU())])

    def forward(self, x: Tensor, first: int) -> Tensor:
        return torch.cat([self.experts[0](x[:first]), self.experts[1](x[first:])])


def test_a_call_with_an_output_of_no_entries_counts_for_nothing():
    torch.manual_seed(0)
    net = Experts()
    optimizer, stds = sgd(net), []
    with Observer(net, optimizer, also=tuple(ALSO)) as observer:
        for first in (4, 8, 0):
            images = torch.randn(8, 3)
            if first:
                stds.append(net.experts[0](images[:first]).std(correction=0).item())
            net(images, first).square().sum().backward()
            optimizer.step()
        assert observer.first_broken() is None
        found = observer.readings()
    assert found["experts.0"].response_std == pytest.approx(sum(stds) / 2, rel=1e-5)
    assert found["experts.1.0"].response_std > 0
    assert 0 <= found["experts.1.0"].dead_fraction <= 1
    assert all(value == value for one in found.values() for value in one.extra.values())


@pytest.mark.parametrize("size", [1e-30, 1e25], ids=["vanishing", "exploding"])
@pytest.mark.parametrize("width", [4, 300])
@pytest.mark.parametrize("known", [False, True], ids=["", "optimizer"])
def test_gradients_whose_squares_are_out_of_range_have_their_norms(size, width, known):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1))
    optimizer, arrived = sgd(net), []
    also = "activation_gradient", "gradient_norm_before_clipping"
    images = torch.randn(8, width)

    def listen(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: arrived.append(gradient.double()))

    net[0].register_forward_hook(listen)
    with Observer(net, optimizer if known else None, also=also) as observer:
        (net(images) * size).sum().backward()
        gradients = [p.grad.double().flatten() for p in net.parameters()]
        if known:
            optimizer.step()
        found = observer.readings()["0"]
    inner, norm = torch.cat(gradients[:2]), torch.cat(gradients).norm().item()
    assert 0 < norm < float("inf")
    assert found.gradient_norm == pytest.approx(inner.square().mean().sqrt().item(), rel=1e-5)
    assert observer.gradient_norm_before_clipping == pytest.approx(norm, rel=1e-5)
    assert found.extra["activation_gradient_norm"] == pytest.approx(
        arrived[0].norm().item(), rel=1e-5
    )


@pytest.mark.parametrize("std", [1e-11, 1e-8, 1.0, 1e6, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_kurtosis_is_right_or_none(std, dtype):
    x = (torch.randn(4, 8, 50, generator=torch.Generator().manual_seed(0)) * std).to(dtype)
    centred = x.double() - x.double().mean()
    expected = (centred**4).mean() / centred.square().mean().square()
    if dtype == torch.float64 or 2e-9 < std < 1e7:
        assert kurtosis([powers(x)]).item() == pytest.approx(expected.item(), rel=1e-4)
    else:
        assert kurtosis([powers(x)]).isnan()


def test_complex_parameters_have_norms():
    class Phases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phases = nn.Parameter(torch.randn(3, 5, dtype=torch.complex64))
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x.to(torch.complex64) @ self.phases).abs())

    net = Phases()
    optimizer: Any = sgd(net)
    with Observer(net, optimizer) as observer:
        weight = net.phases.detach().abs().double().norm().item()
        net(torch.randn(8, 3)).square().mean().backward()
        gradient = net.phases.grad.abs().double().square().mean().sqrt().item()
        optimizer.step()
        found = observer.readings()[""]
    assert found.weight_norm == pytest.approx(weight, rel=1e-6)
    assert found.gradient_norm == pytest.approx(gradient, rel=1e-6)


def test_a_batchnorm_is_read_with_the_weights_of_its_forward():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    optimizer = sgd(net)
    other = {"weight": torch.full((4,), 3.0), "bias": torch.ones(4)}
    with Observer(net, optimizer) as observer:
        x = net[0](torch.randn(8, 3, 6, 6))
        response = functional_call(net[1], other, x)
        functional.relu(response).sum().backward()
        optimizer.step()
        found = observer.readings()["1"]
    assert found.response_std == pytest.approx(response.std(correction=0).item(), rel=1e-4)
    assert found.response_mean == pytest.approx(response.mean().item(), rel=1e-4)
