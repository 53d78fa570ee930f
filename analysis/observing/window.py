"""Sums of statistics over the steps of a window, kept on the device; they become LayerReadings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from analysis.examining.entry_histograms import EntryHistogram
from analysis.observing.reading import STATISTICS, LayerReading
from analysis.observing.watched_layers import Layer
from analysis.summing.all_ranks import largest_over_ranks, sum_over_ranks
from analysis.summing.step_sums import StepSums, Values, rearranged, told
from analysis.summing.whole_sums import WholeSums

_FORWARD = ("response_mean", "response_std")


class Window:
    """Adds up what steps gave, for every statistic of every layer, and how often.

    What was read of a step that goes on for long is added up aside.

    Args:
        rows: the layers; those without modules are not reported.
        statistics: names of all that a layer has.
        histograms: names of those that are counted of every layer's parameters.
    """

    def __init__(
        self, rows: Sequence[Layer], statistics: Sequence[str], histograms: Sequence[str] = ()
    ) -> None:
        self._rows, self._statistics, self._width = rows, statistics, len(statistics)
        self._histograms = tuple(histograms)
        self._forget()
        self.begin()

    def _forget(self) -> None:
        self._totals: Tensor | None = None  # (2, size): sums; how many readings were undefined
        self._finite: Tensor | None = None  # (size,): how often each sum stayed finite
        self._whole = WholeSums(len(self._rows), self._histograms)
        self._steps = StepSums(self._statistics, self.size)

    def begin(self) -> None:
        """Begin a new window, in the same memory."""
        for value in self.tensors():
            value.zero_()
        self._counts = [0] * self.size
        self._added = 0  # readings so far
        self.drop_aside()

    def tensors(self) -> list[Tensor]:
        """Give the sums, which `add` changes in place; none before the first one."""
        found = (self._totals, self._finite, *self._whole.tensors())
        return [value for value in found if value is not None]

    def counted(self) -> list[int]:
        """Give the counts: of readings, then by statistic."""
        return [self._added, *self._counts]

    def uncount(self, before: Sequence[int]) -> list[int]:
        """Go back to earlier counts, and give how much there was since then."""
        found = [now - then for now, then in zip(self.counted(), before, strict=True)]
        self._added, *self._counts = before
        return found

    def count(self, counts: Sequence[int]) -> None:
        """Count what was added by another way than `add`."""
        self._added, *self._counts = [a + b for a, b in zip(self.counted(), counts, strict=True)]

    def __bool__(self) -> bool:
        """Say whether anything was read."""
        return any(self._counts)

    @property
    def size(self) -> int:
        """How many statistics there are, of all layers."""
        return len(self._rows) * len(self._statistics)

    @property
    def aside(self) -> bool:
        """Whether parts of a step are aside."""
        return self._aside is not None

    def add(
        self,
        values: Values,
        undefined: Values,
        left_out: Sequence[Tensor] = (),
        whole: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a step, or the end of one of which parts are aside.

        Args:
            values: statistics in float64.
            undefined: 1 where a value is not defined and 0 stands for it.
            whole: what `WholeSums` adds up.
            left_out: by optimizer, whether its update was left out, (1,) each, not 0 if so; then
                what is not finite is undefined.
        """
        with torch.inference_mode(False), torch.no_grad():
            start, counts = self._aside, self._aside_counts
            self.drop_aside()
            skipped = None
            if left_out and values:
                skipped = torch.cat([one.to(values[0][1].device) for one in left_out]).any()
            reading = self._steps.of_step(values, undefined, skipped)
            if start is not None:
                self._steps.join(reading, told(start.to(reading.device), skipped))
            totals, finite = self._sums_on(reading)
            self._steps.join(totals, reading)
            self._whole.add(whole or {})
            finite += totals[0].abs() < torch.inf
            self._added += 1
            self._counts = [a + b for a, b in zip(self._counts, counts)]
            _count(self._counts, values)

    def put_aside(self, values: Values) -> None:
        """Add a part of the step under way."""
        with torch.inference_mode(False), torch.no_grad():
            part = self._steps.of_part(values)
            if self._aside is not None:
                self._steps.join(part, self._aside.to(part.device))
            self._aside = part
            _count(self._aside_counts, values)

    def drop_aside(self) -> None:
        """Forget what is aside."""
        self._aside: Tensor | None = None  # what `StepSums.of_part` gave, summed up
        self._aside_counts = [0] * self.size

    def readings(self, edited: Mapping[str, int]) -> dict[str, LayerReading]:
        """Give the means by the layer's path, None where nothing was read or all was undefined.

        Args:
            edited: the step of the last edit, by block.
        """
        means, width = self._means(), len(self._statistics)
        found = {}
        for index, layer in enumerate(self._rows):
            if layer.modules:
                given = zip(self._statistics, means[index * width : (index + 1) * width])
                values = dict(given)
                own = [name for name in values if name not in STATISTICS]
                extra = {name: value for name in own if (value := values.pop(name)) is not None}
                found[layer.path] = LayerReading(
                    layer.block,
                    layer.role,
                    **values,
                    edited=edited.get(layer.block or ""),
                    extra=extra,
                )
        return found

    def take_in_all_ranks(self, device: torch.device) -> None:
        """Take in what the other processes have read; all must do so at once."""
        nothing = torch.zeros(2, self.size, dtype=torch.float64, device=device)
        totals, _ = self._sums_on(nothing if self._totals is None else self._totals)
        largest = totals[0, self._steps.largest] if self._steps.largest is not None else None
        if largest is not None:
            greatest = largest_over_ranks(largest)
        counts = torch.tensor(self.counted(), dtype=torch.float64, device=totals.device)
        sum_over_ranks([totals, counts, *self._whole.all_on(totals.device)])
        if largest is not None:
            largest.copy_(greatest)
        self._added, *self._counts = map(int, counts.tolist())

    def norms(self) -> tuple[float | None, float | None]:
        """Give the gradient norm of the whole network, at the update and before it was clipped."""
        return self._whole.norms()

    def histograms(self) -> dict[str, dict[str, EntryHistogram]]:
        """Give the histograms that were asked for, by name and by the layer's path."""
        return self._whole.histograms([row.path if row.modules else None for row in self._rows])

    def _means(self) -> list[float | None]:
        if self._totals is None:
            return [None] * self.size
        totals, undefined = self._totals.tolist()
        counts = [count - int(none) for count, none in zip(self._counts, undefined)]
        if (largest := self._steps.largest) is not None:
            counts[largest] = [min(count, 1) for count in counts[largest]]
        return [total / count if count else None for total, count in zip(totals, counts)]

    def first_broken(self) -> tuple[str, str, int] | None:
        """Give what Observer.first_broken tells: of the sums that broke in the earliest reading."""
        finite = [] if self._finite is None else self._finite.tolist()
        least, width = min(finite, default=0), len(self._statistics)
        broken = [k for k, count in enumerate(finite) if count == least < self._added]
        broken = [slot for slot in broken if self._rows[slot // width].modules] or broken
        forward = [slot for slot in broken if self._statistics[slot % width] in _FORWARD]
        broken = forward or broken
        if not broken:
            return None
        others = len({slot // width for slot in broken}) - 1
        return self._rows[broken[0] // width].path, self._statistics[broken[0] % width], others

    def state(self) -> dict[str, Any]:
        """Give totals and counts."""
        totals = self._totals.to("cpu", copy=True) if self._totals is not None and self else None
        return {"totals": totals, "counts": list(self._counts), "whole": self._whole.state()}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self.begin()
        self._counts, totals = list(state["counts"]), state["totals"]
        self._whole.load(state.get("whole", {}), device)
        if totals is not None:
            if totals.dim() == 1:  # of a checkpoint from before some readings could be undefined
                totals = torch.stack([totals, torch.zeros_like(totals)])
            with torch.inference_mode(False):
                self._sums_on(totals.to(device))[0].copy_(totals)

    def rearrange(self, rows: Sequence[Layer], slots: Sequence[int | None]) -> None:
        """Go on with other layers: of every slot, which of the old ones it was, if any."""
        sums = self._totals, self._aside
        counts, whole = (self._counts, self._aside_counts), self._whole
        self._rows = rows
        self._forget()
        self.begin()
        of_parameters = slots[self._statistics.index("gradient_norm") :: self._width]
        whole.rearrange([None if slot is None else slot // self._width for slot in of_parameters])
        self._whole = whole
        self._totals, self._aside = (rearranged(totals, slots) for totals in sums)
        self._counts, self._aside_counts = (
            [0 if slot is None else old[slot] for slot in slots] for old in counts
        )

    def _sums_on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Give totals and finite on the device of a reading; they begin with 0."""
        totals = torch.zeros_like(like) if self._totals is None else self._totals.to(like.device)
        finite = torch.zeros_like(like[0]) if self._finite is None else self._finite
        self._totals, self._finite = totals, finite.to(like.device)
        return self._totals, self._finite


def _count(counts: list[int], values: Values) -> None:
    for slots, _ in values:
        for slot in slots:
            counts[slot] += 1
