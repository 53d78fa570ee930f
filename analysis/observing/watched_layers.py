"""Which layers of a network are watched, under which role, and whose parameters belong to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from analysis.measuring.norm_layers import FEEDERS, is_norm
from nets.modules.network import Network
from nets.modules.residual import PlainBlock, ResidualBlock


@dataclass(frozen=True)
class Layer:
    """A watched module: its path is its name, its output is the response that is read.

    `source` is the path of the module that makes the output, where that is not the layer's own;
    `modules` are the paths of the modules whose parameters are the layer's, and unless it is
    `bare` those of the modules inside them; `rectified` says that a relu is known to follow;
    `branch` and `shortcut` are the paths whose outputs a block adds up; `small_mean` that norms
    hold the output's mean within a few standard deviations; `chosen` that it is to be read, by
    itself or by what it feeds.
    """

    path: str
    role: str
    block: str | None = None
    modules: tuple[str, ...] = ()
    rectified: bool = False
    branch: str | None = None
    shortcut: str | None = None
    source: str | None = None
    small_mean: bool = False
    bare: bool = False
    chosen: bool = True


def unwrap(net: nn.Module) -> nn.Module:
    """Give the module inside torch.compile's and DistributedDataParallel's wrappers."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    children = dict(net.named_children())
    if "_orig_mod" in children:  # to name torch.compile's class is to import all of its compiler
        return unwrap(children["_orig_mod"])
    return unwrap(net.module) if isinstance(net, DistributedDataParallel) else net


def rows_of(net: nn.Module) -> list[Layer]:
    """List what may be a layer, in the order of definition; `paired` makes it the layers to watch.

    In a network of ours these are the stem, every layer inside a block, the block as a whole,
    projecting shortcuts and the head. In any other module they are the norms and all modules that
    hold parameters of their own, a norm and its feeder by themselves.
    """
    return _layers_of_network(net) if isinstance(net, Network) else _layers_of_module(net)


def paired(rows: list[Layer], pairs: Mapping[str, str]) -> list[Layer]:
    """Give norms what feeds them; rows that feed one are left without modules, and are no layers.

    So are rows that were not chosen, unless what feeds them was.

    Args:
        rows: what `rows_of` gave.
        pairs: the path of a norm's feeder, by that of the norm.
    """
    modules = {row.path: row.modules for row in rows}
    given = {norm: modules[feeder] + modules[norm] for norm, feeder in pairs.items()}
    given.update(dict.fromkeys(pairs.values(), ()))
    chosen = {row.path for row in rows if row.chosen}
    given |= {p: () for p in modules if p not in chosen and pairs.get(p) not in chosen}
    return [replace(row, modules=given.get(row.path, row.modules)) for row in rows]


def certain_pairs(net: nn.Module, rows: Sequence[Layer]) -> dict[str, str]:
    """Give the pairs that no forward need show, feeders by norm: adjacent members of Sequential.

    A module of several names may be fed by several; only a forward tells.
    """
    if isinstance(net, Network):
        return {}
    names = Counter(id(module) for _, module in net.named_modules(remove_duplicate=False))
    path_of = {id(net.get_submodule(row.path)): row.path for row in rows}
    pairs = {}
    for sequence in net.modules():
        if type(sequence).forward is not nn.Sequential.forward:
            continue
        for one, next_one in pairwise(sequence.children()):
            alone = names[id(one)] == names[id(next_one)] == 1
            if alone and isinstance(one, FEEDERS) and is_norm(next_one):
                pairs[path_of[id(next_one)]] = path_of[id(one)]
    return pairs


def parameters_of(net: nn.Module, layer: Layer) -> list[nn.Parameter]:
    """Give the parameters that are read as a layer's, each once."""
    modules = [net.get_submodule(path) for path in layer.modules]
    found = [p for module in modules for p in module.parameters(recurse=not layer.bare)]
    return list({id(parameter): parameter for parameter in found}.values())


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
    layers.append(
        Layer(name, "stream", name, (name,), False, end, shortcut, small_mean=module.post)
    )
    return layers


def _layers_of_module(net: nn.Module) -> list[Layer]:
    """List norms and modules with parameters of their own; `named_modules` gives each once."""
    home: dict[str, str] = {}  # the path of the layer in which a module's parameters are read
    owners: dict[str, list[str]] = {}
    for path, module in net.named_modules():
        parent = path.rpartition(".")[0]
        part = path and (_never_runs(module) or _is_part(path, net.get_submodule(parent)))
        home[path] = home[parent] if part else path
        if is_norm(module) or next(module.parameters(recurse=False), None) is not None:
            owners.setdefault(home[path], []).append(path)
    return [Layer(p, "inner", modules=tuple(owners[p]), bare=True) for p in home if p in owners]


def _never_runs(module: nn.Module) -> bool:
    held = nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict
    return isinstance(module, held) and type(module).forward is nn.Module.forward


def _is_part(path: str, parent: nn.Module) -> bool:
    """Whether the module above works with a module's weights: attention, or a parametrization."""
    return isinstance(parent, nn.MultiheadAttention) or "parametrizations" in path.split(".")
