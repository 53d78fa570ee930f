"""What an optimizer knows of each entry, moved to an edited network by name.

Tensors that it has not seen begin with updates of the size of their siblings': divided by the root
of its own square, the first gradient of a tensor gives updates of a whole learning rate, some ten
times those of tensors that have trained for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from nets.growing.entry_sources import Sources, place_old
from nets.modules.frozen_parts import Part
from nets.modules.user_changes import is_plain

State = dict[str, Any]
_MEANS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""State of which new entries start at the old ones' mean; in all else they start at zero."""
_BIASED = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}
"""Moments that Adam divides by 1 - beta^step, and which of its betas that is."""


def carry_states(
    optimizer: torch.optim.Optimizer,
    carried: torch.optim.Optimizer,
    before: Mapping[str, list[Part]],
    now: Mapping[str, list[Part]],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    sources: Sources,
) -> None:
    """Give `carried`, which steps the parts `now`, what `optimizer` knows of those `before`.

    `shapes` are those of all joined entries before and now.
    """
    ours = {id(part.parameter) for parts in before.values() for part in parts}
    groups = {id(p): group for group in carried.param_groups for p in group["params"]}
    for parameter, state in optimizer.state.items():
        if id(parameter) not in ours:
            carried.state[parameter] = {key: own_copy(value) for key, value in state.items()}
    for entry, parts in now.items():
        known = [
            (part, optimizer.state[part.parameter])
            for part in before.get(entry, [])
            if part.parameter in optimizer.state
        ]
        if known:
            old_shape, shape = (each[entry] for each in shapes)
            betas = groups.get(id(parts[0].parameter), {}).get("betas")
            moved = _carry_entry(known, parts, sources.get(entry), old_shape, shape, betas)
            carried.state.update(moved)
    _start_newborns(carried, now, groups)
    _start_fused_momentum(carried)


def _carry_entry(
    known: list[tuple[Part, State]],
    parts: list[Part],
    source: tuple[Tensor, ...] | None,
    old_shape: tuple[int, ...],
    shape: tuple[int, ...],
    betas: Sequence[Any] | None,
) -> dict[Tensor, State]:
    """Give the state of those parts of an entry that hold something which had state before.

    A part goes on from the latest step of the old ones in it; the moments of all others are brought
    to that step.
    """
    # what no edit has touched, which is most, needs no way through its joined form
    if source is None and [part.place for part in parts] == [part.place for part, _ in known]:
        pairs = zip(parts, (state for _, state in known))
        return {
            part.parameter: {key: _copy_for(part.parameter, value) for key, value in state.items()}
            for part, state in pairs
        }
    # read on the host only where there may be several
    counts = [float(state.get("step", 0)) if len(known) > 1 else 0.0 for _, state in known]
    marks = [
        (part, torch.full(part.parameter.shape[:2], count, dtype=torch.float64, device="cpu"))
        for (part, _), count in zip(known, counts)
    ]
    steps = _moved(marks, -1.0, source, old_shape[:2], shape[:2])  # -1: nothing is known
    latest = [float(steps[part.place or ...].max()) for part in parts]
    states = {}
    for step in sorted({step for step in latest if step >= 0}):
        joined = {
            key: _moved(values, fill, source, old_shape, shape)
            for key, values, fill in _moments_at(step, known, counts, betas)
        }
        rest = known[counts.index(step)][1]
        for part in (part for part, own in zip(parts, latest) if own == step):
            states[part.parameter] = {
                key: _like(part.parameter, joined[key][part.place or ...])
                if key in joined
                else own_copy(value)
                for key, value in rest.items()
            }
    return states


def _moments_at(
    step: float, known: list[tuple[Part, State]], counts: list[float], betas: Sequence[Any] | None
) -> Iterator[tuple[str, list[tuple[Part, Tensor]], Tensor | float]]:
    """Give what is as large as the old parts of an entry, as if all were at one step.

    Adam divides moments by 1 - beta^step: what that gives stays. By name, with what new entries
    start from. Step 0 counts as 1, as a newborn's second moment counts (`newborn_state`).
    """
    for key, first in known[0][1].items():
        if not isinstance(first, Tensor) or first.shape != known[0][0].parameter.shape:
            continue
        values = [(part, state[key]) for part, state in known]
        if betas is not None and key in _BIASED:
            beta = float(betas[_BIASED[key]])
            biases = [1 - beta ** max(each, 1.0) for each in (step, *counts)]
            values = [
                (part, value if own == step else value * (biases[0] / bias))
                for (part, value), own, bias in zip(values, counts, biases[1:])
            ]
        fill = 0.0
        if key in _MEANS:
            fill = torch.cat([value.flatten() for _, value in values]).mean()
        yield key, values, fill


def _moved(
    values: list[tuple[Part, Tensor]],
    fill: Tensor | float,
    source: tuple[Tensor, ...] | None,
    old_shape: tuple[int, ...],
    shape: tuple[int, ...],
) -> Tensor:
    """Join the values of an entry's old parts and move them to the new places."""
    whole = values[0][1].new_empty(old_shape).fill_(fill)
    for part, value in values:
        whole[part.place or ...] = value
    if source is None:
        return whole
    moved = whole.new_empty(shape).fill_(fill)
    place_old(moved, whole, source)
    return moved


def _start_newborns(
    optimizer: torch.optim.Optimizer,
    now: Mapping[str, list[Part]],
    groups: Mapping[int, Mapping[str, Any]],
) -> None:
    """Let tensors without state begin in measure, where a sibling has some."""
    known = {
        entry: part.parameter
        for entry, parts in now.items()
        for part in parts
        if part.parameter in optimizer.state
    }
    for entry, parts in now.items():
        news = [part for part in parts if part.parameter not in optimizer.state]
        sibling = known.get(sibling_of(entry, known) or "") if news else None
        for part in news:
            group = groups.get(id(part.parameter))
            if group is not None and sibling is not None:
                state = newborn_state(part.parameter, sibling, optimizer.state[sibling], group)
                optimizer.state.update({part.parameter: state} if state else {})


def newborn_state(
    parameter: Tensor, sibling: Tensor, known: Mapping[str, Any], group: Mapping[str, Any]
) -> State | None:
    """Give the state, at step 0, in which a new tensor starts; None for an empty one.

    Moments are 0 but for the second, which makes the first update as large as the sibling's, for
    equal gradients. In Adam it counts like one gradient among those to come.

    Args:
        parameter: the new tensor.
        sibling: an old one, a like layer's.
        known: the sibling's state.
        group: the options of the new tensor's group.
    """
    if "exp_avg_sq" in known:
        filled, value = "exp_avg_sq", _of_adam(known, group)
    elif "square_avg" in known:
        mean = known.get("grad_avg")
        spread = known["square_avg"] - (0 if mean is None else mean.square())
        filled, value = "square_avg", spread.mean()
    else:
        return None
    state: State = {}
    for key, old in known.items():
        if not isinstance(old, Tensor) or old.shape != sibling.shape:
            state[key] = torch.zeros_like(old) if isinstance(old, Tensor) else old
            continue
        state[key] = torch.zeros_like(parameter, dtype=old.dtype).detach()
    state[filled] += value.to(state[filled])
    return state


def _of_adam(known: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Give v0 for which the first update, g / sqrt(g^2 + k v), is of the size of m / sqrt(v).

    m, a mean of gradients, is as large as they are where they agree, and smaller by the root of
    (1 + beta1) / (1 - beta1) where they are noise; k lies between, within a factor of 2.1.
    """
    first, second = map(float, group["betas"])
    squares = known.get("max_exp_avg_sq", known["exp_avg_sq"])
    if second == 0:
        return torch.zeros_like(squares.mean())
    step = known["step"].to(squares.device)
    mean = squares.mean() / (1 - second**step)
    value = ((1 + first) / (1 - first)) ** 0.5 * mean * (1 - second) / second
    # at step 0 there is only what a newborn starts with
    return torch.where(step > 0, value, known["exp_avg_sq"].mean())


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


def sibling_of(name: str, names: Iterable[str]) -> str | None:
    """Name the same leaf of another block, of the same stage if there is one."""
    stage, _, leaf = (name.split(".", 2) + [""] * 2)[:3]
    siblings = [key for key in names if key.count(".") >= 2 and key.split(".", 2)[2] == leaf]
    near = [key for key in siblings if key.startswith(f"{stage}.")]
    return (near or siblings or [None])[-1]


def _copy_for(parameter: Tensor, value: Any) -> Any:
    """Copy what is known of a parameter; what is of its shape comes to lie as it does.

    Fused steps go through both as they lie, and its layout may have changed.
    """
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    return _like(parameter, value) if fits else own_copy(value)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def own_copy(value: Any) -> Any:
    """Give a value that changes without the one that it is copied from."""
    if isinstance(value, Tensor):
        return value.clone()
    return deepcopy(value) if isinstance(value, list | dict | set) and is_plain(value) else value
