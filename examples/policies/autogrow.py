"""Deepens one stage after the other, until a stage's new block no longer helps.

After Wen et al. 2020 (AutoGrow, arXiv 1906.02909, periodic growth): a block goes
to the end of each stage in turn, every few records; a stage whose last block did not raise the
accuracy by `gain` stops for good. Deviations: newborn blocks start as the identity (the paper finds
random ones better), are sized by `share` and the limit, and a period counts records. A regression
is judged by its loss. Give it `--schedule hold`: the paper keeps the learning rate while it grows.
"""

from dataclasses import dataclass
from itertools import pairwise

from nets import Insert
from policies import Policy, insert
from policies.base import since_growth


@dataclass(frozen=True)
class AutoGrow(Policy):
    every: int = 2
    gain: float = 0.0005  # of an accuracy in [0, 1]
    share: float = 0.2

    def decide(self, history):
        if len(since_growth(history)) < self.every:
            return []
        born = [(r, a.after) for r in history for a in r.applied if isinstance(a, Insert)]
        stages, stopped = list(history[-1].architecture.stages), set()
        for (before, after), (later, _) in pairwise([*born, (history[-1], "")]):
            if score(later) - score(before) < self.gain:
                stopped.add(after.split(".")[0])
        names = [stage.name for stage in stages]
        turn = names.index(born[-1][1].split(".")[0]) + 1 if born else 0
        for stage in stages[turn:] + stages[:turn]:
            if stage.name not in stopped:
                actions = insert(history, stage.blocks[-1].name, self.share, f"{stage.name} helps")
                if actions:
                    return actions
        return []


def score(record):
    accuracy = record.validation_accuracy
    return -record.validation_loss if accuracy is None else accuracy
