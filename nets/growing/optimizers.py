"""How an optimizer moves to an edited network: every old entry keeps its state, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from nets.growing.assembly import carried_hooks
from nets.growing.entry_sources import Sources
from nets.growing.optimizer_state import carry_states, own_copy, sibling_of
from nets.growing.schedulers import follow_groups
from nets.modules.frozen_parts import Part, parts_of
from nets.modules.network import Network
from nets.modules.user_changes import is_plain
from nets.plan.layers import shapes_of

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
UNHELD = "unheld"
"""Key of the first group for the names of entries that no group held when they were frozen."""
_MADE_ANEW = ("params", "param_names", HELD, UNHELD)


def carry_optimizer(
    optimizer: torch.optim.Optimizer, old: Network, new: Network, sources: Sources
) -> torch.optim.Optimizer:
    """Give an optimizer for `new` with all that `optimizer` holds; the old one stays as it is.

    State is carried entry by entry. New entries of a first moment or momentum start at 0; those
    of a second moment at the mean of the tensor's old entries, since 0 beside a large step
    count makes the first updates several times too large. Wholly new tensors join the group of
    their siblings, in the order in which the network has them, and start at step 0, with
    updates of their siblings' size (see optimizer_state). What was frozen leaves its group,
    where the key "held" names it; thawed, it returns as newborn. What the optimizer does not
    hold stays out of it, thawed too: the key "unheld" of the first group names what was frozen.
    (What was frozen before there was the optimizer, or at its birth, joins when it is thawed.)
    Hooks go along.

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
    before, now = parts_of(old), parts_of(new)
    shapes = [shapes_of(net.architecture) for net in (old, new)]
    carried = _like(optimizer, _groups(optimizer, before, now, shapes[1]))
    carry_states(optimizer, carried, before, now, shapes, sources)
    return carried


def _like(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer of these groups, without state, that is like another in all else."""
    kind, scheduled = type(optimizer), hasattr(optimizer.step, "_wrapped_by_lr_sched")
    accepted = signature(kind).parameters
    defaults = {
        key: own_copy(value) for key, value in optimizer.defaults.items() if key in accepted
    }
    carried = kind([{"params": group["params"]} for group in groups], **defaults)
    if scheduled:
        # the marks by which a live scheduler knows its optimizer; without them its first step warns
        LambdaLR(carried, lambda _: 1.0)
    _carry_attributes(optimizer, carried)
    for made, group in zip(carried.param_groups, groups, strict=True):
        made.update(group)
    if scheduled:
        follow_groups(carried, optimizer)
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
    before: Mapping[str, list[Part]],
    now: Mapping[str, list[Part]],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[dict[str, Any]]:
    """Give the parameter groups for the new network, whose entries have shapes; options too."""
    entries = {id(part.parameter): part for parts in before.values() for part in parts}
    home = _homes(optimizer, entries)
    if not home:
        raise ValueError("optimizer must hold parameters of net, got one that holds none of them")
    named = {e for group in optimizer.param_groups for e in group.get(UNHELD, [])}
    unheld = (named | before.keys()) - home.keys()
    joins = now.keys() - before.keys() - unheld
    joining = {e: home.get(e, _home_of(e, home)) for e in now if e in joins}
    left = sorted(unheld & shapes.keys() - now.keys())
    parameters = [part.parameter for parts in now.values() for part in parts]
    order = {id(parameter): number for number, parameter in enumerate(parameters)}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        made = {key: own_copy(value) for key, value in group.items() if key not in _MADE_ANEW}
        members = list(_members(index, group, home, entries, now))
        for entry in (entry for entry, place in joining.items() if place == index):
            at = _place_of(order[id(now[entry][0].parameter)], members, order)
            members[at:at] = [(part.name, part.parameter) for part in now[entry]]
        made["params"] = [parameter for _, parameter in members]
        if "param_names" in group:
            made["param_names"] = [name for name, _ in members]
        held = [entry for entry, place in home.items() if place == index and entry not in now]
        names = {HELD: held, UNHELD: left if index == 0 else []}
        groups.append(made | {key: found for key, found in names.items() if found})
    return groups


def _homes(optimizer: torch.optim.Optimizer, entries: Mapping[int, Part]) -> dict[str, int]:
    """Give the group of every entry that is in one, or was until it was frozen."""
    home: dict[str, int] = {}
    for index, group in enumerate(optimizer.param_groups):
        parts = [entries.get(id(parameter)) for parameter in group["params"]]
        for entry in [*(part.entry for part in parts if part), *group.get(HELD, [])]:
            home.setdefault(entry, index)
    return home


def _members(
    index: int,
    group: Mapping[str, Any],
    home: Mapping[str, int],
    entries: Mapping[int, Part],
    now: Mapping[str, list[Part]],
) -> Iterator[tuple[str, Tensor]]:
    """Give names and parameters of what was in a group, in its order."""
    labels, seen = group.get("param_names", [""] * len(group["params"])), set()
    for label, parameter in zip(labels, group["params"], strict=True):
        part = entries.get(id(parameter))
        if part is None:
            # a parameter from outside the network (a loss's temperature, say) stays itself
            yield label, parameter
        elif part.entry not in seen and home[part.entry] == index:
            seen.add(part.entry)
            prefix = label.removesuffix(part.name)
            for new in now.get(part.entry, []):
                yield prefix + new.name, new.parameter


def _place_of(number: int, members: Sequence[tuple[str, Tensor]], order: Mapping[int, int]) -> int:
    """Give the place of a new parameter in a group: by the order in which the network has them.

    So has an optimizer that is made of the network anew, which takes a state dict place by place.
    """
    known = [(at, order[id(p)]) for at, (_, p) in enumerate(members) if id(p) in order]
    later = next((at for at, other in known if other > number), None)
    return later if later is not None else known[-1][0] + 1 if known else len(members)


def _home_of(name: str, home: Mapping[str, int]) -> int:
    """Give the group of the nearest sibling: the same leaf of another block, or of another part."""
    alike = [key for key in home if key.split(".")[-2:] == name.split(".")[-2:]]
    return home[sibling_of(name, home) or (alike or list(home))[-1]]
