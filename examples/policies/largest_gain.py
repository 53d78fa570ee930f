"""Widens where it lowers the loss most in a few steps: the choice of Firefly, by trying.

After Wu et al. 2020 (Firefly, arXiv 2102.08574, algorithm 1), which trains small candidates for a
few steps and keeps the best. Deviations: every candidate is a widening of one block by new channels
(the probe "gain" tries each on a copy, on the probe batch); the best one alone is kept, and grown
in the network as it is. What trying costs is charged, so it is done at records where the policy may
grow, and at no others.
"""

from dataclasses import dataclass

from policies import Gain, Policy, due, probed, sites, widen


@dataclass(frozen=True)
class LargestGain(Policy):
    every: int = 4
    until: float = 0.6  # as --grow_until: growth is refused after it
    steps: int = 3
    share: float = 0.1

    @property
    def needs(self):
        return (Gain(steps=self.steps),)

    def needs_at(self, history):
        return self.needs if due(history, self.every) and history[-1].spent <= self.until else ()

    def decide(self, history):
        if not self.needs_at(history):
            return []
        gains = probed(history[-1], "gain")
        for block in sorted(gains, key=gains.get, reverse=True):
            reason = f"lowers the loss by {gains[block]:.3g} in {self.steps} steps"
            actions = widen(history, block, self.share, reason) if block in sites(history) else []
            if actions:
                return actions
        return []
