"""The growths that are tried at one place: at every site, with what else the run did there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from analysis.judging.growth_sites import KINDS, site_of
from analysis.recording.phrases import phrase
from nets import Action, Architecture, Freeze, Insert, Widen, WidenStage
from nets.modules.random_draws import generator_of
from nets.plan.action_dicts import name_of
from nets.plan.actions import adds_capacity
from policies.base import largest_amount, largest_by, largest_width
from training.asking.branch_points import BranchPoint
from training.deciding.refusals import admit

NONE = "none"
"""The branch without growth."""
DONE = "what was done: "
"""Begins the name of a recorded growth that is none of the sites."""
LEAST_SHARE = 0.75
"""A growth that comes to less than this share of the recorded one's FLOPs is not of equal cost."""
Candidates = dict[str, tuple[Action, ...]]


def candidates(
    point: BranchPoint, kinds: Sequence[str] = tuple(KINDS), most: int | None = None
) -> tuple[Candidates, list[str]]:
    """Give by name all that is done in each branch, and what is left out, a line each with why.

    A branch grows at one site, by about the FLOPs of the recorded growth, with its initializer and
    a newborn's survival, and does what else the run did at that step, in the same order: it
    freezes, changes survival, removes. The branch without growth does what the run would have, had
    its growth been refused: all of that but freezing, which makes room for growth. The recorded
    growth is among them, also where it is no site.

    Args:
        point: the place.
        kinds: of sites, from KINDS.
        most: sites of each kind, drawn by the run's seed and the step; by default all.

    Raises:
        ValueError: something that the run did there cannot be done without its growth, or again.
    """
    done, before = point.done, base_of(point)
    grown = [action for action in done if adds_capacity(action)]
    found: Candidates = {NONE: tuple(a for a in _beside(done) if not isinstance(a, Freeze))}
    left_out: list[str] = []
    for kind in kinds:
        tried: Candidates = {}
        for place in _places(before, kind):
            try:
                action = _growth(before, kind, place, grown)
            except ValueError as error:
                left_out.append(f"{KINDS[kind].__name__} at {place}: {error}")
                continue
            actions = _instead(done, action)
            why = _obstacle(point, actions, before, action)
            if why:
                left_out.append(f"{phrase(action)}: {why}")
            else:
                tried[phrase(action)] = actions
        names = _drawn(point, kind, list(tried), most)
        found |= {name: tried[name] for name in names}
        if len(names) < len(tried):
            left_out.append(f"{kind}: {len(tried) - len(names)} of {len(tried)} sites not drawn")
    if done not in found.values():
        more = f" and {len(grown) - 1} more" if len(grown) > 1 else ""
        found[f"{DONE}{phrase(grown[0])}{more}"] = done
    return found, left_out


def base_of(point: BranchPoint) -> Architecture:
    """Give the architecture with all that the run did at that step but its growth.

    Raises:
        ValueError: something of that is of what grew there.
    """
    architecture = point.record.architecture
    for action in _beside(point.record.applied):
        try:
            architecture = architecture.apply(action)
        except ValueError as error:
            raise ValueError(
                f"at: the growth at step {point.record.step} of {point.run} cannot be branched: "
                f"{phrase(action)} goes with what grew there ({error})"
            ) from None
    return architecture


def _beside(done: Sequence[Action]) -> list[Action]:
    """Give what was done beside growing."""
    return [action for action in done if not adds_capacity(action)]


def _instead(done: Sequence[Action], action: Action) -> tuple[Action, ...]:
    """Give what was done with one action in the place of all growth."""
    first = next(number for number, each in enumerate(done) if adds_capacity(each))
    return (*_beside(done[:first]), action, *_beside(done[first:]))


def _places(architecture: Architecture, kind: str) -> list[str]:
    """Give the blocks, or one stage of each stream."""
    if kind != "streams":
        return list(architecture.blocks)
    stages = architecture.stages if architecture.block != "plain" else ()
    wider = {architecture.apply(WidenStage(stage.name, 1)): stage.name for stage in stages[::-1]}
    return list(wider.values())[::-1]


def _growth(architecture: Architecture, kind: str, place: str, grown: Sequence[Action]) -> Action:
    """Give the largest growth at a place that costs at most what was grown, or the least there is.

    It has the initializer and the survival of what was grown, if that had but one.
    """
    flops = site_of(architecture, grown).flops
    used = {name_of(own): own for a in grown if (own := getattr(a, "initializer", None))}
    same = all(getattr(action, "initializer", None) for action in grown) and len(used) == 1
    how: dict[str, Any] = {"initializer": next(iter(used.values())) if same else None}
    if kind == "widen":
        return Widen(place, max(1, largest_by(architecture, place, flops)), **how)
    if kind == "insert":
        survival = {action.survival for action in grown if isinstance(action, Insert)}
        width = max(1, largest_width(architecture, place, flops))
        return Insert(place, width, survival.pop() if len(survival) == 1 else 1.0, **how)
    by = largest_amount(architecture, lambda by: WidenStage(place, by), 1, flops, float("inf"))
    return WidenStage(place, max(1, by), **how)


def _obstacle(
    point: BranchPoint, actions: tuple[Action, ...], before: Architecture, action: Action
) -> str:
    """Say why a growth cannot be tried in the recorded one's place, or nothing."""
    decision = admit(point.record.architecture, actions, point.record.limit, may_grow=True)
    if decision.refused:
        whys = [why for each, why in decision.refused if adds_capacity(each)]
        return (whys or [why for _, why in decision.refused])[0]
    added, flops = (site_of(before, each).flops for each in ([action], point.grown))
    fits = LEAST_SHARE * flops <= added <= flops
    return "" if fits else f"adds {added:,} FLOPs, not about {flops:,}"


def _drawn(point: BranchPoint, kind: str, names: list[str], most: int | None) -> list[str]:
    """Draw names, whatever the layers say; a larger draw holds a smaller one."""
    if most is None or most >= len(names):
        return names
    generator = generator_of(point.record.seed, "sites", point.record.step, kind)
    chosen = torch.randperm(len(names), generator=generator)[:most]
    return [names[number] for number in sorted(chosen.tolist())]
