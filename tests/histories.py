"""Records and histories by hand."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from analysis import LayerReading, Record
from nets import Action, Architecture, cost, preset, seed_of
from policies import Policy
from training.deciding.refusals import admit

LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST = seed_of(LIMIT)  # one block a stage, 4, 8 and 16 wide


def record_of(
    step: int, architecture: Architecture = FIRST, limit: Architecture = LIMIT, **values: Any
) -> Record:
    """A record in the middle of the budget, unless told otherwise."""
    given = {"step": step, "epoch": 1.0, "spent": 0.5, "seed": 0, "limit": cost(limit)}
    return Record(**{**given, "architecture": architecture, **values})


def reading(role: str = "inner", **values: Any) -> LayerReading:
    """What was read of a layer of the first block."""
    return LayerReading("stage1.block1", role, **values)


def after_all(architecture: Architecture, actions: Iterable[Action]) -> Architecture:
    """The architecture that these actions make of this one."""
    return reduce(Architecture.apply, actions, architecture)


def history_in_rounds(
    rounds: Iterable[Iterable[Action]],
    record: Callable[..., Record],
    architecture: Architecture = FIRST,
) -> list[Record]:
    """A record for every round, which ends with its actions: record(number, architecture, ...)."""
    history = []
    for number, actions in enumerate(rounds):
        history.append(record(number, architecture, applied=tuple(actions)))
        architecture = after_all(architecture, actions)
    return history


def record_and_grow(
    policy: Policy,
    history: list[Record],
    architecture: Architecture,
    limit: Architecture,
    values: Mapping[str, float],
    **given: Any,
) -> Architecture:
    """Add a record as a run makes it, with what is done then, and give the grown architecture.

    `values` are the residual ratios and importances of the blocks.
    """
    layers = {
        name: LayerReading(name, "stream", residual_ratio=value) for name, value in values.items()
    }
    given |= {"layers": layers, "importance": values}
    now = record_of(len(history) + 1, architecture, limit, **given)
    decided = policy.decide([*history, now]) if now.spent < 1 else ()
    decision = admit(architecture, decided, cost(limit), now.spent <= now.grow_until)
    history.append(replace(now, **vars(decision)))
    return after_all(architecture, decision.applied)


def write_history(folder: Path, history: Iterable[Record]) -> Path:
    """Write a run's history into its folder, and give the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "history.jsonl"
    path.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in history))
    return path
