"""A compiled run: compiled anew after every growth, its layers read as in any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import quiet, short_run

import training.stepping.step
from analysis import Record, read_history
from nets import Action, Insert, Widen
from policies import Never, Policy
from training.running.loop import train
from training.settings.start_settings import Start
from training.settings.train_settings import Train

GROWTHS = 10


@dataclass(frozen=True)
class Growing(Policy):
    """Grows at each of the first ten records."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        if len(history) > GROWTHS:
            return []
        if len(history) % 4 == 0:
            return [Insert("stage2.block1", 2)]
        return [Widen(f"stage{len(history) % 3 + 1}.block1", 1)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of graphs compiled, and of their calls, so far: aot_eager with a count."""
    counts = [0, 0]
    backend: Any = torch._dynamo.lookup_backend("eager")

    def counting(module: Any, inputs: Any) -> Any:
        compiled = backend(module, inputs)
        counts[0] += 1

        def call(*values: Any) -> Any:
            counts[1] += 1
            return compiled(*values)

        return call

    monkeypatch.setattr("training.computing.wrapped_model.BACKEND", counting)
    yield counts
    torch._dynamo.reset()


def small(folder: Path, **changes: Any) -> Train:
    given = {"epochs": 1.2, "records": 12, "ema": 0, "budget": "epochs", "grow_until": 1}
    given |= {"precision": "float32", "start": Start(0.5, 1), "compile": True, "observe_every": 3}
    return short_run(folder, **{**given, **changes})


def test_a_run_that_grows_ten_times_is_compiled_to_its_end(tmp_path, graphs, monkeypatch):
    steps: list[tuple[int, int]] = []
    step = training.stepping.step.train_step

    def stepped(*values: Any) -> None:
        before = list(graphs)
        step(*values)
        steps.append((graphs[0] - before[0], graphs[1] - before[1]))

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)
    train(small(tmp_path, policy=Growing()), quiet)
    history = read_history(tmp_path)
    assert sum(bool(record.applied) for record in history) == GROWTHS
    edges = [0, *(record.step for record in history)]
    for (first, last), record in zip(pairwise(edges), history, strict=True):
        window = steps[first:last]
        assert sum(compiled for compiled, _ in window) <= 1
        sampled = [index % 3 == 0 for index in range(len(window))]
        called = [calls for _, calls in window]
        assert called == [0 if read else 1 for read in sampled], record.step
        for path, reading in record.layers.items():
            assert None not in (reading.response_std, reading.gradient_norm), path


def test_a_compiled_run_is_the_run(tmp_path, graphs):
    for name, compiled in (("compiled", True), ("plain", False)):
        settings = small(tmp_path / name, policy=Never(), epochs=0.3, records=2, compile=compiled)
        train(replace(settings, lr=1e-4), quiet)  # so small that rounding stays rounding
    one, other = (read_history(tmp_path / name)[-1] for name in ("compiled", "plain"))
    assert graphs[0] == 1
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
    assert one.layers.keys() == other.layers.keys()
    for path, reading in one.layers.items():
        assert reading.response_std == pytest.approx(other.layers[path].response_std, rel=1e-3)
