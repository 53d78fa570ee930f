"""Adds one node when the error's curve has flattened: the oldest of growth rules.

After Ash 1989 (Dynamic Node Creation in Backpropagation Networks, Connection Science 1(4), pages
365-375): grow when the error changed over the last `window` steps by less than `trigger` times
the error at the last growth, and not before `window` steps after it; stop at `goal`. Deviations:
the paper has one hidden layer and squared error; here the error is the training loss of a record,
the window counts records, and the blocks take turns. `by` nodes are added: one is little in a
ResNet.
"""

from dataclasses import dataclass

from nets import Widen
from policies import Policy, growths, largest_by, room
from policies.base import since_growth


@dataclass(frozen=True)
class Ash(Policy):
    window: int = 2
    trigger: float = 0.05
    goal: float = 0.0
    by: int = 1

    def decide(self, history):
        errors = [r.train_loss for r in since_growth(history) if r.train_loss is not None]
        grown = len(history) > len(since_growth(history))
        first = history[-len(since_growth(history)) - 1].train_loss if grown else None
        errors = errors if first is None else [first, *errors]
        if len(errors) <= self.window or errors[-1] <= self.goal:
            return []
        fall = (errors[-self.window - 1] - errors[-1]) / errors[0]
        blocks, turn = list(history[-1].architecture.blocks), len(growths(history))
        block = blocks[turn % len(blocks)]
        fits = largest_by(history[-1].architecture, block, *room(history[-1])) >= self.by
        if abs(fall) >= self.trigger or not fits:
            return []
        return [Widen(block, self.by, reason=f"error fell by {fall:.1%} in {self.window} records")]
