"""A policy for experiments/pruning.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nets import Action
from policies import LayerStatistic
from policies.base import History


@dataclass(frozen=True)
class UpTo(LayerStatistic):
    """Grows as LayerStatistic does, up to a part of the limit's parameters.

    Args:
        parameters: of the net at the end, at most, as a fraction of the limit's.
    """

    parameters: float = 0.5

    def decide(self, history: History) -> Sequence[Action]:
        record = history[-1]
        parameters = round(self.parameters * record.limit.parameters)
        within = replace(record, limit=replace(record.limit, parameters=parameters))
        return super().decide((*history[:-1], within))
