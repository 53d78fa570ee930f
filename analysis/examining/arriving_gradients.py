"""Gradients that arrive at layers' outputs in the backward pass, by hooks on the outputs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from analysis.examining.tensor_entries import as_it_lies, row_norms

MANY = 64  # arrivals at one place after which they are summed up, so that memory is bounded


class ArrivingGradients:
    """Notes the std and the L2 norm of what arrives, until it is taken at the end of a step."""

    def __init__(self) -> None:
        self._found: dict[int, list[Tensor]] = {}  # by place: (2,) std and norm
        self._counts: dict[int, int] = {}
        self._step = 0

    def listen(self, output: Tensor, place: int) -> None:
        """Note the gradient of an output of the step under way when it arrives.

        What works on the output in place later changes nothing of that.
        """
        if output.requires_grad:
            output.register_hook(partial(self._note, place, self._step))

    @torch.no_grad()
    def _note(self, place: int, step: int, gradient: Tensor) -> None:
        if step != self._step or not gradient.numel():  # of a graph that outlived its step
            return
        wide = torch.promote_types(gradient.dtype, torch.float32)
        size = gradient.numel()
        mean = gradient.sum(dtype=wide).double() / size
        norm = row_norms(as_it_lies(gradient)[None])[0]
        variance = norm.square() / size - mean.square()
        found = self._found.setdefault(place, [])
        found.append(torch.stack([variance.clamp_min_(0).sqrt_(), norm]))
        self._counts[place] = self._counts.get(place, 0) + 1
        if len(found) > MANY:
            self._found[place] = [torch.stack(found).sum(0)]

    @torch.no_grad()
    def take(self, scale: Tensor | None) -> list[tuple[tuple[int, ...], Tensor]]:
        """Give places and numbers, std and norm, of this step, and begin the next.

        Args:
            scale: by which the loss was multiplied, (1,); None for 1. Several arrivals at a place,
                of several forward or backward passes, give their mean.
        """
        found, self._found = self._found, {}
        counts, self._counts = self._counts, {}
        self._step += 1
        if not found:
            return []
        device = next(iter(found.values()))[0].device
        sums = [each[0] if len(each) == 1 else torch.stack(each).sum(0) for each in found.values()]
        numbers = torch.cat([sum_.to(device) / counts[place] for place, sum_ in zip(found, sums)])
        if scale is not None:
            numbers = numbers / scale.to(device).double()
        return [(tuple(slot for place in found for slot in (place, place + 1)), numbers)]
