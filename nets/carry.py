"""How values move to a grown network: old entries keep their place, new ones follow one rule.

The rule, entry by entry, that keeps outputs exactly: new output rows are drawn fresh, new input
columns of old rows are zero, new BatchNorm channels are the identity. A newborn residual block ends
in a zero (the last BatchNorm's weight in post-activation order, the last layer in pre-activation
order); a newborn plain layer is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nets.initializers import Initializer, generator_of, initializer_of
from nets.modules import Network, PlainBlock, ResidualBlock


def corner(shape: torch.Size) -> tuple[slice, ...]:
    """Give the leading part of a larger tensor that an old tensor of `shape` fills."""
    return tuple(slice(size) for size in shape)


def carry_values(
    old: Mapping[str, Tensor],
    network: Network,
    *,
    born: frozenset[str],
    initializer: str | Initializer,
    seed: int,
) -> dict[str, Tensor]:
    """Give values for every entry of `network` (which may be on the meta device).

    Args:
        old: the state dict before the edit; empty to build from nothing.
        network: the network after the edit; only its shapes are used.
        born: names of the blocks that this growth has added so far.
        initializer: for new weights.
        seed: with the entry's name and the first new row it determines the new values.
    """
    draw = initializer_of(initializer)
    zero = {name for block in born for name in _silent(network, block)}
    asleep = tuple(f"{name.rsplit('.', 2)[0]}." for name in zero)
    identity = {
        f"{block}.linear.weight"
        for block in born
        if isinstance(network.get_submodule(block), PlainBlock)
    }
    values = {}
    for name, empty in network.state_dict().items():
        kept = old.get(name)
        if kept is not None and kept.shape == empty.shape:
            values[name] = kept.clone()
            continue
        start = 0 if kept is None else kept.shape[0]
        with torch.device("cpu"):  # the generators', whatever the default device is
            value = _fresh(name, empty, start, draw, seed)
        if name in zero:
            value.zero_()
        if name in identity and kept is None:
            value[corner(torch.Size([value.shape[1]] * 2))] = torch.eye(
                value.shape[1], device=value.device
            )
        like = _sibling(old, empty) if kept is None else kept
        value = value.to(like.device, like.dtype if value.is_floating_point() else None)
        if kept is not None:
            # a residual block born in this growth ends in a zero; a second keeps it asleep longer
            if kept.dim() > 1 and not name.startswith(asleep):
                value[:start] = 0
            value[corner(kept.shape)] = kept
        values[name] = value
    return values


def _sibling(old: Mapping[str, Tensor], empty: Tensor) -> Tensor:
    """Give an old entry whose device and dtype a new one takes: a weight, or one of BatchNorm."""
    floating = [value for value in old.values() if value.is_floating_point()]
    alike = [value for value in floating if (value.dim() > 1) == (empty.dim() > 1)]
    return [*alike, *floating, torch.empty(0)][0]


def _silent(network: Network, block: str) -> list[str]:
    """Name the entries that are zero in a newborn block, so that its branch starts at exactly 0."""
    module = network.get_submodule(block)
    if not isinstance(module, ResidualBlock):
        return []
    return [f"{block}.{module.norms[-1] if module.post else module.layers[-1]}.weight"]


def _fresh(name: str, empty: Tensor, start: int, draw: Initializer, seed: int) -> Tensor:
    shape, leaf = tuple(empty.shape), name.rsplit(".", 1)[-1]
    if leaf == "weight" and len(shape) > 1:
        value = draw(shape, generator_of(seed, name, start))
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"initializer must give a tensor of shape {shape} for {name}, got {got}"
            )
        return value.detach().to(torch.float32, copy=True)
    if not empty.is_floating_point():
        return torch.zeros(shape, dtype=empty.dtype)
    return torch.ones(shape) if leaf in ("weight", "running_var") else torch.zeros(shape)


_NEW_ENTRIES = {"exp_avg_sq": "mean", "max_exp_avg_sq": "mean", "square_avg": "mean"}
"""How new entries of an optimizer's state start: at the old ones' mean, or else at zero."""
_SUPPORTED = ("SGD", "Adam", "AdamW", "RMSprop")


def carry_optimizer(
    optimizer: torch.optim.Optimizer, old: Network, new: Network
) -> torch.optim.Optimizer:
    """Give an optimizer for `new` with all that `optimizer` holds; the old one stays as it is.

    State is carried entry by entry. New entries of a first moment or momentum start at 0; those of
    a second moment at the mean of the tensor's old entries, since 0 beside a large step count makes
    the first updates several times too large. Wholly new tensors join the group of their siblings
    and start at step 0.

    Raises:
        ValueError: the optimizer is not SGD, Adam, AdamW or RMSprop, or holds no parameter of
            `old`.
    """
    kind = type(optimizer)
    if kind.__name__ not in _SUPPORTED:
        raise ValueError(f"optimizer must be one of {', '.join(_SUPPORTED)}; got {kind.__name__}")
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    grown = dict(new.named_parameters())
    home: dict[str, int] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        members = [names.get(id(parameter)) for parameter in group["params"]]
        home.update({name: index for name in members if name})
        # a parameter from outside the network (a loss's temperature, say) stays itself
        params = [
            grown[name] if name else own for name, own in zip(members, group["params"], strict=True)
        ]
        options = {
            key: _own(value) for key, value in group.items() if key not in ("params", "param_names")
        }
        groups.append({**options, "params": params})
        if "param_names" in group:
            groups[-1]["param_names"] = list(group["param_names"])
    if not home:
        raise ValueError("optimizer must hold parameters of net, got one that holds none of them")
    for name, parameter in grown.items():
        group = _home_of(name, home) if name not in home and name not in names.values() else None
        if group is not None:
            groups[group]["params"].append(parameter)
            if "param_names" in groups[group]:
                groups[group]["param_names"].append(name)
    accepted = signature(kind).parameters
    defaults = {key: _own(value) for key, value in optimizer.defaults.items() if key in accepted}
    carried = kind([{"params": group["params"]} for group in groups], **defaults)
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        # the marks by which a live scheduler knows its optimizer; without them its first step warns
        LambdaLR(carried, lambda _: 1.0)
        carried._opt_called = getattr(optimizer, "_opt_called", False)  # pyright: ignore[reportAttributeAccessIssue]
    for made, group in zip(carried.param_groups, groups, strict=True):
        made.update(group)
    for parameter, state in optimizer.state.items():
        target = grown[names[id(parameter)]] if id(parameter) in names else parameter
        carried.state[target] = {
            key: _carry_state(key, value, parameter, target) for key, value in state.items()
        }
    _start_fused_momentum(carried)
    return carried


def _start_fused_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give new tensors a momentum of 0, with which their first step is as without one.

    Fused SGD fails on a group in which some tensors have a momentum and some have none.
    """
    for group in optimizer.param_groups:
        buffers = [
            optimizer.state[p].get("momentum_buffer")
            for p in group["params"]
            if p in optimizer.state
        ]
        if (
            isinstance(optimizer, torch.optim.SGD)
            and group["fused"]
            and any(map(torch.is_tensor, buffers))
        ):
            for parameter in group["params"]:
                if parameter not in optimizer.state:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _carry_state(key: str, value: Any, old: Tensor, new: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != old.shape or old.shape == new.shape:
        return value.clone()
    fill = value.mean() if _NEW_ENTRIES.get(key) == "mean" else value.new_zeros(())
    grown = torch.empty_like(new, dtype=value.dtype, device=value.device)
    grown.copy_(fill.expand_as(grown))
    grown[corner(value.shape)] = value
    return grown


def _home_of(name: str, home: Mapping[str, int]) -> int | None:
    """Give the group of the nearest sibling: the same leaf of another block."""
    stage, _, leaf = name.split(".", 2)
    siblings = [key for key in home if key.count(".") >= 2 and key.split(".", 2)[2] == leaf]
    near = [key for key in siblings if key.startswith(f"{stage}.")]
    return home[(near or siblings)[-1]] if siblings else None
