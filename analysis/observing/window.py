"""Sums over the steps of a window, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analysis.measuring.breaks import Breaks
from analysis.measuring.waiting import Waiting
from analysis.observing.hooks import HookForm, Values
from analysis.observing.hooks import values_of as values_of_hooks
from analysis.observing.parameters import ParameterForm
from analysis.observing.parameters import values_of as values_of_parameters

Form = tuple[HookForm, ParameterForm | None]


class Window:
    """Adds up what steps gave, for each of a number of slots, and how often.

    What was read of a step that goes on for long is added up aside.
    """

    def __init__(self, size: int) -> None:
        self._waiting = Waiting(self._work_out)  # steps, not yet in the totals
        self._aside = Waiting(self._work_out_aside)  # parts of the step under way
        self._indices: dict[Any, Tensor] = {}
        self.begin(size)

    def begin(self, size: int) -> None:
        """Begin a new window."""
        self._totals: Tensor | None = None  # (2, size): sums; how many readings were undefined
        self._counts = [0] * size
        self._step: Tensor | None = None  # as the totals, of what is aside
        self._step_counts = [0] * size
        self._breaks = Breaks()

    def __bool__(self) -> bool:
        """Say whether anything was read."""
        return any(self._counts)

    @property
    def aside(self) -> bool:
        """Whether parts of a step are aside."""
        return bool(self._aside) or self._step is not None

    def add(self, form: Form, parts: list[Tensor]) -> None:
        """Add a step, or the end of one of which parts are aside."""
        if not self.aside:
            self._waiting.add(form, parts)
            return
        self._waiting.flush()
        self._aside.flush()
        start, counts = self._step, self._step_counts
        self.drop_aside()
        assert start is not None
        numbers = torch.cat([part.to(start) for part in parts]) if parts else start.new_empty(0)
        self._work_out(form, numbers[None], start)
        self._counts = [a + b for a, b in zip(self._counts, counts)]

    def put_aside(self, form: HookForm, parts: list[Tensor]) -> None:
        """Add a part of the step under way."""
        self._aside.add((form, None), parts)

    def drop_aside(self) -> None:
        """Forget what is aside."""
        self._aside.drop()
        self._step, self._step_counts = None, [0] * len(self._counts)

    def drop(self) -> None:
        """Forget what was not yet added to the totals."""
        self._waiting.drop()
        self.drop_aside()

    def flush(self) -> None:
        """Add what waits to the totals."""
        self._waiting.flush()

    def means(self) -> list[float | None]:
        """Give the means by slot, None where nothing was read or all was undefined."""
        self.flush()
        if self._totals is None:
            return [None] * len(self._counts)
        totals, undefined = self._totals.tolist()
        counts = [count - int(none) for count, none in zip(self._counts, undefined)]
        return [total / count if count else None for total, count in zip(totals, counts)]

    def broken(self) -> list[int]:
        """Give the slots whose total was the first to be NaN or infinite."""
        self.flush()
        return self._breaks.first()

    def state(self) -> dict[str, Any]:
        """Give totals and counts."""
        self.flush()
        totals = None if self._totals is None else self._totals.to("cpu", copy=True)
        return {"totals": totals, "counts": list(self._counts)}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self.drop()
        self.begin(len(state["counts"]))
        self._counts, totals = list(state["counts"]), state["totals"]
        if totals is not None:
            if totals.dim() == 1:  # of a checkpoint from before some readings could be undefined
                totals = torch.stack([totals, torch.zeros_like(totals)])
            self._totals = totals.to(device, copy=True)

    def rearrange(self, slots: Sequence[int | None]) -> None:
        """Go on with other slots: of each, which of the old ones it was, if any."""
        self.flush()
        self._aside.flush()
        sums = self._totals, self._step
        counts = self._counts, self._step_counts
        self.begin(len(slots))
        self._totals, self._step = (_rearranged(totals, slots) for totals in sums)
        self._counts, self._step_counts = (
            [0 if slot is None else old[slot] for slot in slots] for old in counts
        )

    def _work_out(self, form: Form, numbers: Tensor, start: Tensor | None = None) -> None:
        """Add what steps gave to the totals.

        Of a step the values are the same to the last bit whichever steps it is worked out with.
        """
        with torch.inference_mode(False), torch.no_grad():
            readings, slots = self._readings(form, numbers, start)
            for reading in readings:
                if self._totals is not None:
                    reading = self._totals.to(reading.device) + reading
                self._totals = reading
                self._breaks.add(reading[0])
            for slot in slots:
                self._counts[slot] += len(readings)

    def _work_out_aside(self, form: Form, numbers: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for row in numbers:
                readings, slots = self._readings(form, row[None], self._step)
                self._step = readings[0]
                for slot in slots:
                    self._step_counts[slot] += 1

    def _readings(
        self, form: Form, numbers: Tensor, start: Tensor | None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Give what each of some steps adds to the totals, (steps, 2, slots), and to which slots.

        Args:
            form: of the numbers.
            numbers: (steps, numbers) float64.
            start: what was aside of a single step, (2, slots).
        """
        hooks, parameters = form
        found, undefined = values_of_hooks(hooks, numbers[:, : hooks.count]), []
        if parameters is not None:
            values, undefined = values_of_parameters(parameters, numbers[:, hooks.count :])
            found += values
        readings = numbers.new_zeros(len(numbers), 2, len(self._counts))
        if start is not None:
            readings += start.to(readings.device)
        slots = self._sum(readings[:, 0], found)
        self._sum(readings[:, 1], undefined)
        return readings, slots

    def _sum(self, readings: Tensor, found: Values) -> tuple[int, ...]:
        slots = tuple(slot for places, _ in found for slot in places)
        if slots:
            key = slots, readings.device
            if key not in self._indices:
                self._indices[key] = torch.tensor(slots, device=readings.device)
            readings.index_add_(1, self._indices[key], torch.cat([value for _, value in found], 1))
        return slots


def _rearranged(totals: Tensor | None, slots: Sequence[int | None]) -> Tensor | None:
    if totals is None:
        return None
    found = totals.new_zeros(2, len(slots))
    for place, slot in enumerate(slots):
        if slot is not None:
            found[:, place] = totals[:, slot]
    return found
