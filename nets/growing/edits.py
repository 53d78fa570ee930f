"""One edit after the other, carried out on values: what each action asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nets.growing.assembly import assemble
from nets.growing.carry import Sources, Values, carry_values, chain, sources_of
from nets.growing.gradmax import best_rows
from nets.growing.initializers import LOUD, Initializer, initializer_of
from nets.growing.net2net import copy_channels
from nets.growing.saliency import kept_channels
from nets.modules.network import Network
from nets.modules.passes import Loss
from nets.plan.actions import Action, Widen, WidenStage
from nets.plan.architecture import Architecture
from nets.plan.reductions import Narrow, Remove


@dataclass(frozen=True)
class Carried:
    """Where a sequence of edits stands.

    Args:
        origin: the network before all of them.
        values: joined values, of the network and then of its EMA if there is one.
        sources: where the entries of `values` come from in `origin`.
        born: blocks added so far.
        disturbed: blocks in front of which one was removed that had not faded.
    """

    origin: Network
    values: list[Values]
    sources: Sources
    born: frozenset[str] = frozenset()
    disturbed: frozenset[str] = frozenset()


def begin(origin: Network, values: list[Values]) -> Carried:
    """Start with the network as it is."""
    return Carried(origin, values, sources_of(values[0], on_meta(origin.architecture.thawed()), {}))


def carry(
    carried: Carried,
    action: Action,
    before: Architecture,
    after: Architecture,
    choice: str | Initializer,
    seed: int,
    probe: Any,
    loss: Loss | None,
) -> Carried:
    """Carry out one action, which leads from the architecture `before` to `after`.

    Raises:
        ValueError: the initializer is unknown, or probe or loss are missing.
    """
    draw, old = initializer_of(choice), carried.values
    born = (carried.born | (set(after.blocks) - set(before.blocks))) & set(after.blocks)
    layout = on_meta(after.thawed())
    kept: Mapping[str, Tensor] = {}
    rows: Mapping[str, Tensor] = {}
    if isinstance(action, Narrow):
        present = assemble(carried.origin, before, old[0])
        kept = kept_channels(present, old[0], action, probe, loss)
    if isinstance(action, Widen) and choice == "gradmax":
        present = assemble(carried.origin, before, old[0])
        rows = best_rows(present, action.block, action.by, probe, loss)
    sources = sources_of(old[0], layout, kept)
    rule = {"born": born, "draw": draw, "seed": seed, "silent": choice != LOUD}
    new = [carry_values(values, layout, sources, **rule) for values in old]
    for values, earlier in zip(new, old):
        for name, value in rows.items():
            start, columns = earlier[name].shape[:2]
            values[name][start : start + len(value), :columns] = value.to(values[name])
        if choice == "net2net" and isinstance(action, Widen | WidenStage):
            copy_channels(values, earlier, sources, on_meta(before), seed)
    disturbed = carried.disturbed
    faded = isinstance(action, Remove) and _has_faded(before, action, old[0])
    if isinstance(action, Remove) and not (action.steps or faded or action.block in carried.born):
        names = list(before.blocks)
        disturbed |= set(names[names.index(action.block) + 1 :])
    return Carried(carried.origin, new, chain(carried.sources, sources), frozenset(born), disturbed)


def unknown_channels(network: Network, carried: Carried) -> dict[str, Tensor]:
    """Say, by BatchNorm, of which channels the running statistics are not known, (C,) of bool.

    Those are new channels, and all that are not frozen behind a block that was removed at once.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            (places,) = carried.sources[f"{name}.running_mean"]
            unknown = places < 0
            block = ".".join(name.split(".")[:2])
            if block in carried.disturbed or (carried.disturbed and name.startswith("head")):
                unknown = torch.ones_like(unknown)
            unknown[: getattr(module, "held", 0)] = False
            found[name] = unknown
    return found


def _has_faded(before: Architecture, action: Remove, values: Values) -> bool:
    fade = before.blocks[action.block].fade
    return fade > 0 and int(values[f"{action.block}.fade"]) >= fade


def on_meta(architecture: Architecture) -> Network:
    """Give a network without values."""
    with torch.device("meta"):
        return Network(architecture)
