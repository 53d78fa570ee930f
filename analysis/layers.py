"""Which layers of a network are watched, under which role, and whose parameters belong to them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from nets.modules import Network, PlainBlock, ResidualBlock

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_SUMMING = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # their norms follow sums


@dataclass(frozen=True)
class Layer:
    """A watched module: its path is its name, its output is the response that is read.

    `source` is the path of the module that makes the output, where that is not the layer's own;
    `modules` are the paths of the modules whose parameters are the layer's; `rectified` says that
    a relu follows; `branch` and `shortcut` are the paths whose outputs a block adds up;
    `near_zero` that norms hold the output's mean within a few standard deviations.
    """

    path: str
    role: str
    block: str | None = None
    modules: tuple[str, ...] = ()
    rectified: bool = False
    branch: str | None = None
    shortcut: str | None = None
    source: str | None = None
    near_zero: bool = False


def unwrap(net: nn.Module) -> nn.Module:
    """Give the module inside torch.compile's and DistributedDataParallel's wrappers."""
    children = dict(net.named_children())
    if "_orig_mod" in children:  # to name torch.compile's class is to import all of its compiler
        return unwrap(children["_orig_mod"])
    return unwrap(net.module) if isinstance(net, DistributedDataParallel) else net


def layers_of(net: nn.Module) -> list[Layer]:
    """List the layers to watch, in the order of definition.

    In a network of ours these are the stem, every layer inside a block, the block as a whole,
    projecting shortcuts and the head; in any other module the normalisations, and the
    convolutions and linear layers that feed none.
    """
    return _layers_of_network(net) if isinstance(net, Network) else _layers_of_module(net)


def _layers_of_network(net: Network) -> list[Layer]:
    layers, stream = [], None
    relu = getattr(net.architecture, "activation", "relu") == "relu"
    if net.architecture.stem != "none":
        source = "stem.bn" if net.post else None
        rectified = net.post and relu
        layers.append(Layer("stem", "stem", None, ("stem",), rectified, source=source))
    for name in net.architecture.blocks:
        module = net.get_submodule(name)
        if isinstance(module, PlainBlock):
            path = f"{name}.linear"
            layers.append(Layer(path, "inner", name, (path,), rectified=relu))
        if isinstance(module, ResidualBlock):
            layers.extend(_layers_of_block(name, module, stream, relu))
            stream = name
    layers.append(Layer("head", "head", modules=("head",)))
    return layers


def _layers_of_block(
    name: str, module: ResidualBlock, stream: str | None, relu: bool
) -> list[Layer]:
    convolutions = [f"{name}.{layer}" for layer in module.layers]
    norms = [f"{name}.{norm}" for norm in module.norms]
    # after each layer but the last comes the norm through which its response is read
    following = norms[:-1] if module.post else norms[1:]
    layers = [
        Layer(norm, "inner", name, (convolution, norm), rectified=relu)
        for convolution, norm in zip(convolutions[:-1], following, strict=True)
    ]
    end = norms[-1] if module.post else convolutions[-1]
    owners = (convolutions[-1], norms[-1]) if module.post else (convolutions[-1],)
    layers.append(Layer(end, "branch", name, owners))
    shortcut = f"{name}.shortcut"
    if module.projects:
        owner, shortcut = shortcut, f"{shortcut}.bn" if module.post else shortcut
        layers.append(Layer(shortcut, "stream", name, (owner,)))
    elif stream is not None:
        shortcut = stream  # the output of the block before, which has been read already
    layers.append(Layer(name, "stream", name, (name,), False, end, shortcut, near_zero=module.post))
    return layers


def _layers_of_module(net: nn.Module) -> list[Layer]:
    layers: list[Layer] = []
    feeders: set[str] = set()
    for parent, module in net.named_modules():
        prefix = f"{parent}." if parent else ""
        previous, before = "", None
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if isinstance(child, _NORMS):
                fed = before is not None and _outputs(before) == _channels(child)
                fed = fed and not isinstance(module, _SUMMING)
                feeders.update([previous] if fed else [])
                layers.append(Layer(path, "inner", modules=(previous, path) if fed else (path,)))
            elif isinstance(child, _WEIGHTED):
                layers.append(Layer(path, "inner", modules=(path,)))
            previous, before = path, child if isinstance(child, _WEIGHTED) else None
    # a module of several names goes by its first
    order = {path: position for position, (path, _) in enumerate(net.named_modules())}
    kept = [layer for layer in layers if layer.path in order and layer.path not in feeders]
    return sorted(kept, key=lambda layer: order[layer.path])


def _outputs(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels  # pyright: ignore


def _channels(norm: nn.Module) -> int:
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[-1]
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features  # pyright: ignore
