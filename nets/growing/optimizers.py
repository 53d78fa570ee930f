"""How an optimizer moves to an edited network: every old entry keeps its state, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nets.growing.carry import Sources, place_old
from nets.growing.handover import carried_hooks
from nets.growing.newborn import newborn_state
from nets.growing.schedulers import follow_groups
from nets.modules.given import is_plain
from nets.modules.held import join_values, split_entries
from nets.modules.network import Network

_NEW_ENTRIES = {"exp_avg_sq": "mean", "max_exp_avg_sq": "mean", "square_avg": "mean"}
"""How new entries of an optimizer's state start: at the old ones' mean, or else at zero."""
_SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
HELD = "held"
"""Key of a parameter group for the names of its entries that are frozen now, so that they return.
"""


@dataclass(frozen=True)
class _Part:
    """A parameter, as a part of the joined entry `entry`; `place` is empty if it is all of it."""

    name: str
    parameter: Tensor
    entry: str
    place: tuple[slice, ...]


def _parts(net: Network) -> dict[str, list[_Part]]:
    """Give the parameters of every joined entry; none for one that is frozen."""
    where = {
        piece.name: (entry, piece.place)
        for entry, pieces in split_entries(net).items()
        for piece in pieces
    }
    found: dict[str, list[_Part]] = {}
    for name, parameter in net.named_parameters():
        entry, place = where.get(name, (name, ()))
        found.setdefault(entry, []).append(_Part(name, parameter, entry, place))
    return found


def carry_optimizer(
    optimizer: torch.optim.Optimizer, old: Network, new: Network, sources: Sources
) -> torch.optim.Optimizer:
    """Give an optimizer for `new` with all that `optimizer` holds; the old one stays as it is.

    State is carried entry by entry. New entries of a first moment or momentum start at 0; those of
    a second moment at the mean of the tensor's old entries, since 0 beside a large step count makes
    the first updates several times too large. Wholly new tensors join the group of their siblings
    and start at step 0, with updates of their siblings' size (see nets.growing.newborn). What was
    frozen leaves its group; thawed, it returns as newborn. Hooks go along.

    Args:
        optimizer: SGD, Adam, AdamW or RMSprop.
        old: its network.
        new: the network after the edits.
        sources: where the joined entries of `new` come from.

    Raises:
        ValueError: the optimizer is of another kind, or holds nothing of `old`.
    """
    kind = type(optimizer)
    if kind not in _SUPPORTED:
        known = ", ".join(each.__name__ for each in _SUPPORTED)
        module = "" if kind.__module__.startswith("torch.optim") else f" of {kind.__module__}"
        raise ValueError(f"optimizer must be one of {known}; got {kind.__name__}{module}")
    before, now = _parts(old), _parts(new)
    groups = _groups(optimizer, before, now)
    accepted = signature(kind).parameters
    defaults = {key: _own(value) for key, value in optimizer.defaults.items() if key in accepted}
    carried = kind([{"params": group["params"]} for group in groups], **defaults)
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        # the marks by which a live scheduler knows its optimizer; without them its first step warns
        LambdaLR(carried, lambda _: 1.0)
    _carry_attributes(optimizer, carried)
    for made, group in zip(carried.param_groups, groups, strict=True):
        made.update(group)
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        follow_groups(carried, optimizer)
    ours = {id(part.parameter) for parts in before.values() for part in parts}
    for parameter, state in optimizer.state.items():
        if id(parameter) not in ours:
            carried.state[parameter] = {key: _own(value) for key, value in state.items()}
    old_shapes, shapes = (_shapes(net) for net in (old, new))
    for entry, parts in now.items():
        known = [
            (part, optimizer.state[part.parameter])
            for part in before.get(entry, [])
            if part.parameter in optimizer.state
        ]
        if known:
            states = _carry_entry(known, parts, sources[entry], old_shapes[entry], shapes[entry])
            carried.state.update(states)
    _start_newborns(carried, now)
    _start_fused_momentum(carried)
    return carried


def _carry_attributes(optimizer: torch.optim.Optimizer, carried: torch.optim.Optimizer) -> None:
    """Carry hooks and plain data that a user, or a scheduler, has set on an optimizer."""
    for kind in _HOOKS:
        vars(carried)[kind] = carried_hooks(vars(optimizer)[kind])
    marked = hasattr(optimizer.step, "_wrapped_by_lr_sched")
    for key, value in vars(optimizer).items():
        if key in vars(carried) and (key != "step" or marked):
            continue
        if hasattr(type(optimizer), key) or not is_plain(value):
            raise ValueError(
                f"optimizer must be as torch makes it, for growth carries that: it has an "
                f"attribute of its own, {key}"
            )
        vars(carried)[key] = deepcopy(value)


def _groups(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, list[_Part]],
    now: Mapping[str, list[_Part]],
) -> list[dict[str, Any]]:
    """Give the parameter groups for the new network, options included."""
    entries = {id(part.parameter): part for parts in before.values() for part in parts}
    home: dict[str, int] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        made = {
            key: _own(value) for key, value in group.items() if key not in ("params", "param_names")
        }
        held = [name for name in made.pop(HELD, []) if name not in now]
        labels = group.get("param_names", [""] * len(group["params"]))
        members: list[tuple[str, Tensor]] = []
        for label, parameter in zip(labels, group["params"], strict=True):
            part = entries.get(id(parameter))
            if part is None:
                # a parameter from outside the network (a loss's temperature, say) stays itself
                members.append((label, parameter))
            elif part.entry not in home:
                home[part.entry] = index
                prefix = label.removesuffix(part.name)
                members.extend((prefix + p.name, p.parameter) for p in now.get(part.entry, []))
                if part.entry not in now:
                    held.append(part.entry)
        home.update({name: index for name in group.get(HELD, []) if name not in home})
        groups.append({**made, "params": members, **({HELD: held} if held else {})})
    if not home:
        raise ValueError("optimizer must hold parameters of net, got one that holds none of them")
    for entry, parts in now.items():
        returned = entry in home and entry not in before
        if returned or (entry not in home and entry not in before):
            group = home[entry] if returned else _home_of(entry, home)
            groups[group]["params"].extend((part.name, part.parameter) for part in parts)
    for group, source in zip(groups, optimizer.param_groups, strict=True):
        if "param_names" in source:
            group["param_names"] = [name for name, _ in group["params"]]
        group["params"] = [parameter for _, parameter in group["params"]]
    return groups


def _home_of(name: str, home: Mapping[str, int]) -> int:
    """Give the group of the nearest sibling: the same leaf of another block, or of another part."""
    alike = [key for key in home if key.split(".")[-2:] == name.split(".")[-2:]]
    return home[_sibling_of(name, home) or (alike or list(home))[-1]]


def _sibling_of(name: str, names: Iterable[str]) -> str | None:
    """Name the same leaf of another block, of the same stage if there is one."""
    stage, _, leaf = (name.split(".", 2) + [""] * 2)[:3]
    siblings = [key for key in names if key.count(".") >= 2 and key.split(".", 2)[2] == leaf]
    near = [key for key in siblings if key.startswith(f"{stage}.")]
    return (near or siblings or [None])[-1]


def _start_newborns(optimizer: torch.optim.Optimizer, now: Mapping[str, list[_Part]]) -> None:
    """Let tensors without state begin in measure, where a sibling has some."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    known = {
        entry: part.parameter
        for entry, parts in now.items()
        for part in parts
        if part.parameter in optimizer.state
    }
    for entry, parts in now.items():
        sibling = known.get(_sibling_of(entry, known) or "")
        for part in parts:
            new = part.parameter not in optimizer.state and id(part.parameter) in groups
            if new and sibling is not None:
                group = groups[id(part.parameter)]
                state = newborn_state(part.parameter, sibling, optimizer.state[sibling], group)
                optimizer.state.update({part.parameter: state} if state else {})


def _shapes(net: Network) -> dict[str, torch.Size]:
    values = join_values(net, net.state_dict())
    return {entry: value.shape for entry, value in values.items()}


def _carry_entry(
    known: list[tuple[_Part, dict[str, Any]]],
    parts: list[_Part],
    places: tuple[Tensor, ...],
    old_shape: torch.Size,
    shape: torch.Size,
) -> dict[Tensor, dict[str, Any]]:
    """Give the state of those parts of an entry that hold something which had state before."""
    marks = [(part, torch.ones(part.parameter.shape[:2], device="cpu")) for part, _ in known]
    reached = _moved(marks, 0.0, places, old_shape[:2], shape[:2])
    joined: dict[str, Tensor] = {}
    common: dict[str, Any] = {}
    for key, first in known[0][1].items():
        values = [(part, state[key]) for part, state in known]
        if not isinstance(first, Tensor):
            common[key] = first
        elif first.shape != known[0][0].parameter.shape:
            common[key] = torch.stack([value for _, value in values]).amax(0)  # step
        else:
            every = torch.cat([value.flatten() for _, value in values])
            fill = every.mean().item() if _NEW_ENTRIES.get(key) == "mean" else 0.0
            joined[key] = _moved(values, fill, places, old_shape, shape)
    states = {}
    for part in parts:
        if reached[part.place or ...].any():
            own = {
                key: _like(part.parameter, value[part.place or ...])
                for key, value in joined.items()
            }
            states[part.parameter] = {**{key: _own(value) for key, value in common.items()}, **own}
    return states


def _moved(
    values: list[tuple[_Part, Tensor]],
    fill: float,
    places: tuple[Tensor, ...],
    old_shape: torch.Size,
    shape: torch.Size,
) -> Tensor:
    """Join the values of an entry's old parts and move them to the new places."""
    whole = values[0][1].new_full(old_shape, fill)
    for part, value in values:
        whole[part.place or ...] = value
    moved = whole.new_full(shape, fill)
    place_old(moved, whole, places)
    return moved


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _own(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return deepcopy(value) if isinstance(value, list | dict | set) and is_plain(value) else value


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
