"""Growth where a layer's statistic is extreme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from analysis.observing.reading import STATISTICS
from nets import Action
from nets.checks import check_choice, meant
from policies.base import Policy, series, sites
from policies.fitting import (
    MOST,
    Choice,
    check_growth,
    grow_at,
    kinds_in_turn,
    kinds_of,
    last_kinds,
    share_of,
    shuffled,
)
from policies.times import History, Time, check_time, due, in_records, levelled, records_to_level


@dataclass(frozen=True)
class LayerStatistic(Policy):
    """Grows the block in which a layer's statistic is extreme.

    The thesis asks whether the standard deviations of the layers (He et al. 2015, figure 7) say
    where capacity is missing. The residual ratio is the better first guess: a response std after
    BatchNorm restates BatchNorm's own weights. Each block is widened, gets a block after it and has
    its stream widened in turn, whatever is done elsewhere; of equal blocks one is drawn from (seed,
    step). On simulated runs of 20, 40 and 200 records statistics that rank the blocks differently
    lead to different nets, which reach the limit's FLOPs (tests/test_schedules.py).

    That a statistic finds the better sites on real data is not shown. Our runs of it on CIFAR-10
    (docs/thesis.md, 5.4), which found no 'where' that beats RandomSite, were made before turns
    belonged to the sites: edits alternated over the whole net, its cooldown had the same period,
    and one block was only widened and another only inserted after, whatever the statistic. They
    say nothing about statistics. Judge one against RandomSite, and look whether it merely picks
    the stage. A newborn block takes long to contribute, and the statistic may return to the same
    site meanwhile: `cooldown` keeps it away.

    Args:
        statistic: "residual_ratio", "response_std", "gradient_norm", "update_ratio",
            "dead_fraction" or any other of a LayerReading, the user's own included. Where no
            block has it, as the residual ratio in a plain net, nothing grows.
        pick: "highest" or "lowest".
        trend: 0 compares levels; else the change over so many records, or that fraction of the
            budget.
        edit: of blocks: "widen", "insert", or "both" in turn.
        when: "periodic" grows every `every`, "plateau" when the validation loss has levelled, as
            Plateau says it, over `patience`.
        every: between growths, if `when` is "periodic": a fraction of the budget, or a number of
            records.
        patience: over how long the loss must be level, if `when` is "plateau"; as `every`.
        share: the FLOPs a growth adds, as a fraction of the limit's; None as of Periodic.
        cooldown: for how long an edited block is left alone, as `every`, or 0.
        streams: widen residual streams too; None as of Periodic.
        widest: a block's inner width at most, as of Periodic; None for no cap.

    Raises:
        ValueError: by `decide`, if no layer of any record has a statistic of that name.
    """

    statistic: str = "residual_ratio"
    pick: str = "highest"
    trend: Time = 0
    edit: str = "both"
    when: str = "periodic"
    every: Time = 0.05
    patience: Time = 0.1
    share: float | None = None
    cooldown: Time = 0.05
    streams: bool | None = None
    widest: float | None = MOST

    def __post_init__(self) -> None:
        check_choice("pick", self.pick, ("highest", "lowest"))
        check_time("trend", self.trend, least=0)
        check_choice("when", self.when, ("periodic", "plateau"))
        check_time("patience", self.patience)
        check_growth(self)

    def decide(self, history: History) -> Sequence[Action]:
        self._check_statistic(history)
        if self.when == "periodic":
            every, ready = self.every, due(history, self.every)
        else:
            every = records_to_level(in_records(history, self.patience))
            ready = levelled(history, self.patience)
        if not ready:
            return []
        values = self._values(history)
        names = [name for name in sites(history, self.cooldown) if name in values]
        highest = self.pick == "highest"
        ranked = sorted(shuffled(history[-1], names), key=values.__getitem__, reverse=highest)
        choices, others = (
            [
                Choice(kind, name, f"{self.pick} {self.statistic}, {values[name]:.3g}")
                for name in ranked
                for kind in kinds_in_turn(history, name, kinds)
            ]
            for kinds in (
                kinds_of(history, self.edit, self.streams),
                last_kinds(self.edit, self.streams),
            )
        )
        share = share_of(history, self.share, every)
        return grow_at(history, choices, share, self.widest, others=others)

    def _check_statistic(self, history: History) -> None:
        """Raise a ValueError for a name that nothing has: such a run would never grow."""
        extras = [layer.extra for record in history for layer in record.layers.values()]
        if self.statistic in STATISTICS or not extras:
            return
        known = list(dict.fromkeys([*STATISTICS, *(name for extra in extras for name in extra)]))
        if self.statistic not in known:
            words = f"{', '.join(known)}; got {self.statistic!r}{meant(self.statistic, known)}"
            raise ValueError(f"statistic must be one that layers have: {words}")

    def _values(self, history: History) -> dict[str, float]:
        """Give each block's most extreme value, of the layers inside it if they have it."""
        found: dict[str, dict[str, list[float]]] = {}
        trend = in_records(history, self.trend)
        for path, reading in history[-1].layers.items():
            values = series(history, path, self.statistic)[-trend - 1 :]
            now = reading.value(self.statistic)
            enough = len(values) > trend and now is not None and isfinite(now)
            if reading.block is not None and enough:
                value = values[-1] - values[0] if trend else values[-1]
                found.setdefault(reading.role, {}).setdefault(reading.block, []).append(value)
        role = "inner" if "inner" in found else "stream"
        extreme = max if self.pick == "highest" else min
        return {block: extreme(values) for block, values in found.get(role, {}).items()}
