"""Grows the layer whose responses have shrunk most: `--policy falling_std.FallingStd`."""

from dataclasses import dataclass

from policies import Policy, series, sites, widen


@dataclass(frozen=True)
class FallingStd(Policy):
    window: int = 10
    share: float = 0.1

    def decide(self, history):
        falls = {}
        for layer, reading in history[-1].layers.items():
            stds = series(history, layer, "response_std")[-self.window :]
            if len(stds) == self.window and reading.block in sites(history):
                falls[reading.block] = max(stds[0] - stds[-1], falls.get(reading.block, 0))
        block = max(falls, key=falls.get, default=None)
        if not block or not falls[block]:
            return []
        return widen(history, block, self.share, f"response std fell by {falls[block]:.3g}")
