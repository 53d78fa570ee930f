"""What needs the network itself, measured on a fixed batch, now and then.

Probes run in eval mode; buffers, modes, gradients and the global generator stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.examining.tensor_entries import as_it_lies
from analysis.measuring.norm_layers import NormActivation, channel_axis, first_of
from analysis.observing.hooks import Hooks
from analysis.observing.watched_layers import parameters_of, rows_of, unwrap
from analysis.observing.watched_network import layers_while
from nets.modules.network import Network
from nets.modules.probe_batch import in_mode
from nets.modules.residual import ResidualBlock

Loss = Callable[[Tensor, Tensor], Tensor]
BUCKETS = 30
LANES = 64
"""Places of every bucket on a GPU, whose threads wait for each other to add to the same one."""


class Histogram(NamedTuple):
    """A histogram in the terms of TensorBoard's `add_histogram_raw(tag, **histogram._asdict())`."""

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    bucket_limits: list[float]
    bucket_counts: list[float]


@torch.no_grad()
def block_importance(net: Network, inputs: Tensor, targets: Tensor, loss: Loss) -> dict[str, float]:
    """Give, by block, the loss without its branch minus the loss with it, in eval mode.

    A block's branch is cut and its shortcut kept (Veit et al. 2016, arXiv 1605.06431, section 4.1).
    Buffers, modes and the global generator stay as they are. It costs `1 + blocks` forward passes.

    Args:
        net: a network from `nets.build`; blocks of plain nets have no branch and are left out.
        inputs: of a fixed batch, (N, *image).
        targets: of that batch, (N,).
        loss: takes outputs and targets, gives a scalar.
    """
    branches = {}
    for name in net.architecture.blocks:
        module = net.get_submodule(name)
        if isinstance(module, ResidualBlock):
            end = module.norms[-1] if module.post else module.layers[-1]
            branches[name] = module.get_submodule(end)
    with in_mode(net, training=False):
        losses = [loss(net(inputs), targets)]
        for branch in branches.values():
            handle = branch.register_forward_hook(
                lambda module, args, output: torch.zeros_like(output)
            )
            try:
                losses.append(loss(net(inputs), targets))
            finally:
                handle.remove()
    whole, *without = torch.stack(losses).tolist()
    return {name: value - whole for name, value in zip(branches, without, strict=True)}


def effective_rank(net: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Give, by layer, how many directions its responses fill: a number in [1, channels].

    The exponential of the entropy of p, where p are the eigenvalues of the covariance of the
    channels, over the batch and all positions, divided by their sum (Roy and Vetterli 2007, "The
    effective rank", definition 1, of the covariance matrix). 0 if the responses do not vary. It
    costs one forward pass and a float64 covariance per layer.

    Args:
        net: our network or any module; the layers are those of `Observer`, of a module that is not
            ours those whose outputs are known to have channels along one of their axes.
        inputs: of a fixed batch.
    """
    ours = isinstance(unwrap(net), Network)

    def rank(module: nn.Module, output: Tensor) -> Tensor | None:
        axis = 1 if ours else channel_axis(module, output)
        if axis is None or output.dim() < 2:
            return None
        rows = output.movedim(axis, -1).flatten(0, -2).double()  # (samples, channels)
        rows = rows - rows.mean(0)
        values = torch.linalg.eigvalsh(rows.T @ rows).clamp_min(0)
        shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return torch.special.entr(shares).sum().exp() * shares.sum().round()

    read = _read_outputs(net, inputs, rank)
    return _on_host(read)


def response_histograms(
    net: nn.Module, inputs: Tensor, buckets: int = BUCKETS
) -> dict[str, Histogram]:
    """Give, by layer, the histogram of its responses in buckets of equal width.

    Args:
        net: our network or any module; the layers are those of `Observer`, but that one which feeds
            a norm and more has no row of its own: no graph is there to show it.
        inputs: of a fixed batch.
        buckets: 30 buckets keep a histogram at 0.6 kB in TensorBoard's files.
    """
    return histograms_of(response_counts(net, inputs, buckets))


def response_counts(net: nn.Module, inputs: Tensor, buckets: int = BUCKETS) -> dict[str, Tensor]:
    """Give what `response_histograms` needs, by layer, (4 + buckets,) float64 on the device.

    Smallest and largest response, their sum and sum of squares, and how many are in each bucket.
    """
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")

    def count(module: nn.Module, output: Tensor) -> Tensor:
        entries = as_it_lies(output).double()
        least, largest = entries.aminmax()
        sums = torch.stack([least, largest, entries.sum(), entries.square().sum()])
        width = (largest - least) / buckets
        index = entries.sub(least).div_(width.where(width > 0, 1.0)).long()
        index = index.clamp_(0, buckets - 1)
        lanes = LANES if index.is_cuda else 1
        if lanes > 1:
            index.mul_(lanes).add_(torch.arange(len(index), device=index.device).remainder_(lanes))
        # as torch.histc, which has no deterministic form on a GPU; sums of ones are exact
        counts = entries.new_zeros(buckets * lanes).index_add_(0, index, torch.ones_like(entries))
        return torch.cat([sums, counts.view(buckets, lanes).sum(1)])

    return _read_outputs(net, inputs, count)


def histograms_of(found: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """Give the histograms by layer of what `response_counts` gave: one copy from the device."""
    histograms = {}
    for path, numbers in _on_host(found).items():
        least, largest, total, squares, *counts = numbers
        width = (largest - least) / len(counts) or 1.0
        limits = [least + width * (bucket + 1) for bucket in range(len(counts))]
        size = int(sum(counts))
        histograms[path] = Histogram(least, largest, size, total, squares, limits, counts)
    return histograms


def gradient_signal_to_noise(
    net: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, parts: int = 8
) -> dict[str, float]:
    """Give, by layer, how well its gradients on parts of the batch agree.

    |mean|^2 / variance of the layer's gradient over the parts, both summed over its entries, the
    variance with n - 1: the inverse of McCandlish et al.'s simple noise scale (2018, arXiv
    1812.06162, equation 2.9) in units of a part, and Liu et al.'s GSNR (2020, arXiv 2001.07384)
    of a layer instead of an entry. Pure noise gives 1 / parts. Frozen layers are left
    out. It costs one forward and backward pass over the batch.

    Args:
        net: our network or any module; the layers are those of `Observer`.
        inputs: of a fixed batch, (N, ...).
        targets: of that batch, (N, ...).
        loss: takes outputs and targets, gives the mean over a part.
        parts: how many parts of equal size the batch is cut into, from 2 to N; a remainder is
            left out.
    """
    if not 2 <= parts <= len(inputs):
        raise ValueError(f"parts must be from 2 to the batch's {len(inputs)}, got {parts}")
    net, size = unwrap(net), len(inputs) // parts
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    squares = [value.clone() for value in total]

    def run() -> None:
        for part in range(parts):
            chosen = slice(part * size, (part + 1) * size)
            value = loss(net(inputs[chosen]), targets[chosen])
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    total[index] += gradient
                    squares[index] += gradient.double().square()

    with in_mode(net, training=False), torch.enable_grad():
        layers = layers_while(net, run)
    signal = {id(p): (s / parts).square().sum() for p, s in zip(parameters, total)}
    power = {id(p): s.sum() / parts for p, s in zip(parameters, squares)}
    found = {}
    for layer in layers:
        owned = [id(p) for p in parameters_of(net, layer) if p.requires_grad]
        if owned:
            mean = torch.stack([signal[key] for key in owned]).sum()
            spread = torch.stack([power[key] for key in owned]).sum() - mean
            found[layer.path] = mean / (spread * parts / (parts - 1))
    return _on_host(found)


def _on_host(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give what was found by layer, of one shape, as numbers or lists: one copy from the device."""
    return dict(zip(found, torch.stack(list(found.values())).tolist())) if found else {}


@torch.no_grad()
def _read_outputs(
    net: nn.Module, inputs: Tensor, read: Callable[[nn.Module, Tensor], Tensor | None]
) -> dict[str, Tensor]:
    """Give, by layer, what `read` makes of its response in eval mode; of several, of the last."""
    net = unwrap(net)
    found: dict[str, Tensor | None] = {}
    hooks = Hooks()

    def attach(path: str, module: nn.Module) -> None:
        inside: list[Tensor | None] = []

        def keep(module: nn.Module, args: object, output: Any) -> None:
            output = first_of(output)
            if inside:  # read before the activation that the norm carries
                found[path] = inside.pop()
            elif isinstance(output, Tensor) and output.is_floating_point():
                found[path] = read(module, output)

        if not isinstance(net, Network) and NormActivation.suits(module):
            hooks.inside(NormActivation(module, lambda x: inside.append(read(module, x))))
        hooks.after(module, keep)

    def run() -> None:
        try:
            for row in rows_of(net):
                attach(row.path, net.get_submodule(row.path))
            net(inputs)
        finally:
            hooks.remove()

    with in_mode(net, training=False):
        layers = layers_while(net, run)
    values = {layer.path: found.get(layer.path) for layer in layers}
    return {path: value for path, value in values.items() if value is not None}
