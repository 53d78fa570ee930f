"""How values are carried to an edited network: old entries keep their place, new ones are drawn.

The rule, entry by entry, that keeps outputs exactly: new output rows are drawn, new input columns
of old rows are zero, new BatchNorm channels are the identity. A newborn residual block ends in a
zero (the last BatchNorm's weight in post-activation order, the last layer in pre-activation order);
a newborn plain layer is the identity. All of this is about joined entries
(nets.modules.frozen_parts), as if nothing were held fixed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nets.growing.assembly import assemble
from nets.growing.channel_scores import kept_channels
from nets.growing.entry_sources import Carried, Sources, Values, chain, place_old, sources_of
from nets.initializing.edit import Edit, Measured
from nets.initializing.fresh_values import fresh_value
from nets.initializing.given_values import given_values
from nets.initializing.initializer import Initializer
from nets.modules.probe_batch import checked_inputs
from nets.plan.action_dicts import name_of
from nets.plan.actions import Action
from nets.plan.architecture import Architecture
from nets.plan.cost import train_flops
from nets.plan.layers import layer_specs, shapes_of
from nets.plan.removal import Narrow, Remove


def carry(
    carried: Carried, action: Action, after: Architecture, initializer: Initializer
) -> Carried:
    """Carry out one action, which leads to the architecture `after`.

    Raises:
        ValueError: it needs a probe or a loss that is missing.
    """
    before, old = carried.architecture, carried.values
    kept, measured = dict[str, Tensor](), Measured()
    if isinstance(action, Narrow):
        present = assemble(carried.origin, before, old[0])
        kept = kept_channels(present, old[0], action, carried.probe, carried.loss)
        if action.saliency != "magnitude":
            inputs = checked_inputs(carried.origin, carried.probe)
            assert inputs is not None  # else it was refused
            measured.flops += len(inputs) * train_flops(before.thawed())
    born = (carried.born | (set(after.blocks) - set(before.blocks))) & set(after.blocks)
    sources = sources_of(old[0], after, kept)
    fresh = _fresh_values(old[0], after, sources, born, initializer, carried.seed)
    news = [_carry_values(each, fresh, after, sources, born) for each in old]
    new = [values for values, _ in news]
    if any((index < 0).any() for source in sources.values() for index in source):
        edits = _edits(carried, action, after, name_of(initializer), news, sources, measured)
        new = [{**edit.new, **given_values(initializer, edit)} for edit in edits]
    return replace(
        carried,
        architecture=after,
        values=new,
        sources=chain(carried.sources, sources),
        born=born,
        disturbed=carried.disturbed | _disturbed(carried, action),
        flops=carried.flops + measured.flops,
    )


def _edits(
    carried: Carried,
    action: Action,
    after: Architecture,
    name: str,
    news: list[tuple[Values, Values]],
    sources: Sources,
    measured: Measured,
) -> list[Edit]:
    """Give what an initializer of that name sees of the network, and then of its average.

    `news` are the values of each after the action, and what was drawn for it.
    """
    return [
        Edit(
            action=action,
            before=carried.architecture,
            after=after,
            old=old,
            new=new,
            drawn=drawn,
            sources=sources,
            seed=carried.seed,
            probe=carried.probe,
            loss=carried.loss,
            initializer=name,
            values=carried.values[0],
            assemble=partial(assemble, carried.origin),
            measured=measured,
        )
        for old, (new, drawn) in zip(carried.values, news)
    ]


def _disturbed(carried: Carried, action: Action) -> set[str]:
    """Name the blocks whose input jumps, since one that has not faded goes before them."""
    if not isinstance(action, Remove) or action.steps or action.block in carried.born:
        return set()
    fade = carried.architecture.blocks[action.block].fade
    if fade and int(carried.values[0][f"{action.block}.fade"]) >= fade:
        return set()
    names = list(carried.architecture.blocks)
    return set(names[names.index(action.block) + 1 :])


def unknown_channels(carried: Carried) -> dict[str, Tensor]:
    """Say of which channels the running statistics are not known, (C,) of bool.

    By BatchNorm that has some. Those are new channels, and all that are not frozen behind a block
    that was removed at once.
    """
    found = {}
    for spec in layer_specs(carried.architecture):
        if spec.kind != "norm":
            continue
        (source,) = carried.sources.get(
            f"{spec.name}.running_mean", (torch.arange(*spec.shape, device="cpu"),)
        )
        behind = carried.disturbed and spec.home in (*carried.disturbed, "head")
        channels = torch.ones_like(source, dtype=torch.bool) if behind else source < 0
        channels[: spec.held_channels] = False
        if channels.any():
            found[spec.name] = channels
    return found


def _fresh_values(
    old: Values,
    architecture: Architecture,
    sources: Sources,
    born: frozenset[str],
    initializer: Initializer,
    seed: int,
) -> Values:
    """Give new joined values, on the CPU, for every entry of which some is new or gone.

    Args:
        old: the values before the edit.
        architecture: after the edit.
        sources: where its entries come from.
        born: names of the blocks that this growth has added so far.
        initializer: draws new weights.
        seed: with the entry's name and the first new row it determines the new values.
    """
    zero, shapes = _zero_at_birth(architecture, born), shapes_of(architecture)
    fresh = {}
    for name in sources:
        start = old[name].shape[0] if name in old else 0
        with torch.device("cpu"):  # the generators', whatever the default device is
            value = fresh_value(name, shapes[name], start, initializer, seed)
        if name in zero:
            value.zero_()
        if name not in old and architecture.block == "plain" and value.dim() == 2:
            square = slice(value.shape[1])
            value[square, square] = torch.eye(value.shape[1], device=value.device)
        fresh[name] = value
    return fresh


def _carry_values(
    old: Values, fresh: Values, architecture: Architecture, sources: Sources, born: frozenset[str]
) -> tuple[Values, Values]:
    """Give joined values for every entry of `architecture`; those that stay are shared with `old`.

    Second come the weights of which some is new as they were drawn, old entries overwritten.
    """
    asleep = tuple(f"{name.rsplit('.', 2)[0]}." for name in _zero_at_birth(architecture, born))
    values, drawn = {}, {}
    for name in shapes_of(architecture):
        if name not in fresh:
            values[name] = old[name]
            continue
        value, kept = fresh[name], old.get(name)
        like = _sibling(old, value) if kept is None else kept
        dtype = like.dtype if value.is_floating_point() else None
        value = value.to(like.device, dtype, copy=True)
        if value.dim() > 1:
            drawn[name] = value.clone()
        if kept is not None:
            # a residual block born in this growth ends in a zero; a second keeps it asleep longer
            silent = kept.dim() > 1 and not name.startswith(asleep)
            place_old(value, kept, sources[name], silent)
        values[name] = value
    return values, drawn


def _sibling(old: Values, new: Tensor) -> Tensor:
    """Give an old entry whose device and dtype a new one takes: a weight, or one of BatchNorm."""
    floating = [value for value in old.values() if value.is_floating_point()]
    alike = [value for value in floating if (value.dim() > 1) == (new.dim() > 1)]
    return [*alike, *floating][0]


def _zero_at_birth(architecture: Architecture, born: frozenset[str]) -> set[str]:
    """Name the weight that is zero in each newborn block, so that its branch starts at exactly 0.

    It is that of the last layer of the branch, or of the norm behind it.
    """
    if architecture.block == "plain" or not born:
        return set()
    last = {spec.home: spec.name for spec in layer_specs(architecture) if spec.home in born}
    return {f"{name}.weight" for name in last.values()}
