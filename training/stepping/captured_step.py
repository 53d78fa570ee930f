"""A run's step as two graphs, one in which the layers are read and one without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from training.computing.optimizer import obstacle
from training.keeping.run_state import Run
from training.settings.train_settings import Common
from training.stepping.cuda_graphs import CudaGraphs, Replay, foreign_hook
from training.stepping.step import step_on_device
from training.stepping.update import tensors_of

Counts = list[int]
T = TypeVar("T")


class Recorder(Protocol):
    """What captures work; see `CudaGraphs.record`."""

    def record(self, work: Replay) -> Replay: ...


class Captured:
    """Takes a run's steps as replays of one that was captured, one for each architecture and way.

    A step that reads the layers adds to the observer's sums on the device, and its counts are known
    from the capture. Before a capture the step runs once, so that what is made once is made, and
    all that it has changed is put back: every step that counts is a replay.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._replays: dict[bool, tuple[Replay, Counts]] = {}  # by whether the layers are read
        self._repeated: dict[str, tuple[Replay, Any] | None] = {}
        self._settled = False  # whether nothing grew any more when these were captured
        self._hindered = False  # by a hook that replays would not call

    def step(self, run: Run) -> None:
        """Do what `step_on_device` does."""
        if run.settled != self._settled:
            self.forget()
            self._settled = run.settled
        read = run.observer.due
        if read not in self._replays:
            self._look_for_hooks(run)
            if self._hindered:
                step_on_device(run)
                return
            self._replays[read] = self._capture(run)
        replay, counts = self._replays[read]
        replay()
        run.observer.count(counts)

    def repeated(self, name: str, work: Callable[[], T]) -> T:
        """Do some other work, which changes nothing: a replay from the second time on."""
        if name not in self._repeated or self._hindered:
            self._repeated[name] = None
            return work()
        known = self._repeated[name]
        if known is None:
            found: list[T] = []
            replay = self._recorder.record(lambda: found.append(work()))
            known = self._repeated[name] = replay, found[0]
        known[0]()
        return known[1]

    def forget(self) -> None:
        """Drop what was captured, of a network that has grown."""
        self._replays.clear()
        self._repeated.clear()

    def _look_for_hooks(self, run: Run) -> None:
        """Say, once in a warning, whether the network has hooks that replays would not call."""
        hooked = foreign_hook(run.net)
        if hooked and run.settings.graphs == "true":
            raise ValueError(f"graph must be auto or false here, got true: {hooked} has a hook")
        if hooked and not self._hindered:
            warnings.warn(f"steps are not captured: {hooked} has a hook", stacklevel=2)
        self._hindered = hooked is not None

    def _capture(self, run: Run) -> tuple[Replay, Counts]:
        def work() -> None:
            step_on_device(run)

        before = _changing(run)
        kept = [torch.empty_like(value) for value in before]
        _copy_all(before, kept)
        generator = torch.cuda.get_rng_state() if run.window.is_cuda else None
        run.observer.rehearse(work)
        replays: list[Replay] = []
        counts = run.observer.rehearse(lambda: replays.append(self._recorder.record(work)))
        known = {id(value): old for value, old in zip(before, kept)}
        now = _changing(run)
        if made := [value for value in now if id(value) not in known]:
            torch._foreach_zero_(made)
        back = [value for value in now if id(value) in known]
        _copy_all([known[id(value)] for value in back], back)
        if generator is not None:
            torch.cuda.set_rng_state(generator)
        return replays[0], counts


def _changing(run: Run) -> list[Tensor]:
    """Give all tensors that a step changes; those that its first one makes begin with 0."""
    nets = [run.net] if run.ema is None else [run.net, run.ema]
    found = [value for net in nets for value in (*net.parameters(), *net.buffers())]
    found += [v for own in run.optimizer.state.values() for v in own.values() if torch.is_tensor(v)]
    return [*found, *tensors_of(run.scaler), *run.observer.tensors(), run.window, run.trace]


def _copy_all(values: list[Tensor], into: list[Tensor]) -> None:
    """Copy tensors into others of their kind, with one kernel for many of a dtype and device."""
    alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for value, target in zip(values, into, strict=True):
        sources, targets = alike.setdefault((value.dtype, value.device), ([], []))
        sources.append(value)
        targets.append(target)
    with torch.no_grad():
        for sources, targets in alike.values():
            torch._foreach_copy_(targets, sources)


def captured_of(settings: Common, device: torch.device) -> Captured | None:
    """Give what takes a run's steps on a device, or None for as they are written."""
    wanted = settings.graphs != "false" and not obstacle(device)
    return Captured(CudaGraphs()) if wanted else None
