"""Growth where a layer's statistic is extreme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nets import Action
from nets.checks import check_choice, check_count
from policies.base import History, Policy, due, growths, insert, series, sites, stalled, widen
from policies.scheduled import check_schedule


@dataclass(frozen=True)
class LayerStatistic(Policy):
    """Grows the block in which a layer's statistic is extreme.

    The thesis asks whether the standard deviations of the layers (He et al. 2015, figure 7) say
    where capacity is missing. The residual ratio is the better first guess: a response std after
    BatchNorm restates BatchNorm's own weights. In our runs on CIFAR-10 images, three seeds each,
    the highest residual ratio, response std and gradient norm did as well as random sites, to 0.1
    points, at one epoch of ResNet-14's FLOPs; at four epochs the residual ratio was 0.8 points
    ahead of them (95 % interval -0.1 to +1.7) and level with the best static size, the other two
    0.5 behind. No 'where' was shown to beat RandomSite: judge it against that, and look whether
    the statistic merely picks the stage (docs/thesis.md, 5.4). Widening and inserting did equally
    well. A newborn block takes long to contribute, and the statistic may return to the same
    site meanwhile: `cooldown` keeps it away.

    Args:
        statistic: "residual_ratio", "response_std", "gradient_norm", "update_ratio",
            "dead_fraction" or any other of a LayerReading, the user's own included.
        pick: "highest" or "lowest".
        trend: 0 compares levels; k compares the change over the last k records.
        edit: "widen", "insert", or "both" in turn; if one fits nowhere, the other.
        when: "periodic" grows every `every` records, "plateau" when the validation loss has stalled
            for `patience` records.
        every, patience: see `when`.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1.
        cooldown: records for which an edited block is left alone.
    """

    statistic: str = "residual_ratio"
    pick: str = "highest"
    trend: int = 0
    edit: str = "both"
    when: str = "periodic"
    every: int = 1
    patience: int = 2
    share: float = 0.1
    cooldown: int = 1

    def __post_init__(self) -> None:
        check_choice("pick", self.pick, ("highest", "lowest"))
        check_count("trend", self.trend, least=0)
        check_choice("edit", self.edit, ("widen", "insert", "both"))
        check_choice("when", self.when, ("periodic", "plateau"))
        check_count("patience", self.patience)
        check_schedule(self.every, self.share, self.cooldown)

    def decide(self, history: History) -> Sequence[Action]:
        periodic = self.when == "periodic"
        if not (due(history, self.every) if periodic else stalled(history, self.patience)):
            return []
        values = self._values(history)
        free = [site for site in sites(history, self.cooldown) if site in values]
        ranked = sorted(free, key=lambda site: values[site], reverse=self.pick == "highest")
        edits = {"widen": [widen], "insert": [insert], "both": [widen, insert]}[self.edit]
        turn = len(growths(history)) % len(edits)
        for edit in edits[turn:] + edits[:turn]:
            for site in ranked:
                reason = f"{self.pick} {self.statistic}, {values[site]:.3g}"
                actions = edit(history, site, self.share, reason)
                if actions:
                    return actions
        return []

    def _values(self, history: History) -> dict[str, float]:
        """Give each block's most extreme value, of the layers inside it if they have it."""
        found: dict[str, dict[str, list[float]]] = {}
        for path, reading in history[-1].layers.items():
            values = series(history, path, self.statistic)[-self.trend - 1 :]
            enough = len(values) > self.trend and reading.value(self.statistic) is not None
            if reading.block is not None and enough:
                value = values[-1] - values[0] if self.trend else values[-1]
                found.setdefault(reading.role, {}).setdefault(reading.block, []).append(value)
        role = "inner" if "inner" in found else "stream"
        extreme = max if self.pick == "highest" else min
        return {block: extreme(values) for block, values in found.get(role, {}).items()}
