"""A captured step does what the step does, bit for bit, wherever graphs can be captured.

No GPU is needed: a dispatch mode writes down every operation of a step with its arguments, and
does them again in the same memory. As in a CUDA graph Python's numbers stay what they were, tensors
are read where they lie, and neither Python nor hooks run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences
from torch.utils._python_dispatch import TorchDispatchMode

import analysis.examining.tensor_entries
import training.running.resume
from analysis import Observer, Record
from analysis.examining.requests import ALSO, statistics_asked
from nets import Action, Freeze, Insert, Remove, SetSurvival, Unfreeze, Widen
from policies import Policy
from training.computing.optimizer import Precision, check_graph, obstacle, slow_settings
from training.keeping.run_state import Run
from training.running.loop import record_and_grow
from training.running.resume import open_run
from training.running.write_down import save, write_losses
from training.settings.start_settings import Start
from training.settings.train_settings import Train
from training.stepping.captured_step import Captured
from training.stepping.step import take_step

BLOCK = "stage2.block1"
FROM_HOST_OR_TO_IT = ("lift_fresh", "_local_scalar_dense", "equal", "is_nonzero", "_pin_memory")


class Recorder(TorchDispatchMode):
    """Writes down the operations of work, to do them again as a graph's replay does."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tensors_in(outputs)))
        return outputs

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.operations = []
        with self:
            work()
        operations = self.operations

        def replay() -> None:
            with torch.no_grad():
                for func, args, kwargs, outputs in operations:
                    again = tensors_in(func(*args, **kwargs))
                    for there, here in zip(outputs, again, strict=True):
                        if there.data_ptr() != here.data_ptr():
                            there.copy_(here)

        return replay


def tensors_in(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    several = values if isinstance(values, list | tuple) else ()
    return [found for value in several for found in tensors_in(value)]


@dataclass(frozen=True)
class Scripted(Policy):
    """Does all that changes a network, one after the other."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        plan: list[list[Action]] = [
            [SetSurvival(BLOCK, 0.5), Insert(BLOCK, 8)],
            [Freeze("stage1.block1", channels=2), Widen("stage3.block1", by=4)],
            [Unfreeze("stage1.block1"), Remove("stage2.block2", steps=5)],
            [SetSurvival(BLOCK, 0.8)],  # in place, and captured steps follow
        ]
        return plan[len(history) - 1] if len(history) <= len(plan) else []


def opened(folder: Path, **options: Any) -> Run:
    """Open a run of five epochs of four batches each and five records, or resume it."""
    ways = {
        "net": "resnet8",
        "batch_size": 300,
        "start": Start(0.5, 1),
        "epochs": 5.2,
        "budget": "epochs",
        "records": 5,
        "validation_images": 100,
        "ema": 0.9,
        "observe_every": 3,
        "device": "cpu",
    }
    run = open_run(Train(**{**ways, **options}, policy=Scripted(), out=str(folder), resume=True))
    if run.settings.optimizer == "rmsprop":
        for group in run.optimizer.param_groups:
            group["capturable"] = True  # as on a GPU
    return run


def spoil(run: Run, step: int) -> None:
    """Give a training image of the next batch a value that is not finite, or take it back."""
    run.batches.std[0, 0, 0] = 0.0 if step == 7 else 1.0
    run.batches.mean[0, 0, 0] = -1.0 if step == 7 else 0.0


def train(
    run: Run, change: Callable[[Run, int], None] | None = None, until: int | None = None
) -> None:
    """Train to the end, or to a step after which the state is kept."""
    with run.held, run.observer:
        while not run.ended and run.progress.step != until:
            if change:
                change(run, run.progress.step)
            take_step(run)
            if run.record_due:
                record_and_grow(run, 0.0)
        if not run.ended:
            write_losses(run)
            save(run)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """A CPU looks at numbers to find dead channels, and knows no capturable optimizers."""
    monkeypatch.setattr(analysis.examining.tensor_entries, "on_host", lambda _: False)
    module = sys.modules["torch.optim.rmsprop"]
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda: ["cpu"])


WAYS = [
    {},
    {"optimizer": "adam", "precision": "bf16"},
    {"optimizer": "adamw", "precision": "fp16", "accumulate": 2},
    {"optimizer": "rmsprop", "precision": "float32", "schedule": "hold"},
    {"optimizer": "rmsprop", "precision": "fp16"},
    {"precision": "fp16", "observe_every": 1},
    {"precision": "bf16", "accumulate": 3, "observe_every": 2},
    {"momentum": 0.0, "ema": 0.0, "observe_every": 100},
    {"nonfinite": "skip"},
    {"nonfinite": "skip", "optimizer": "adam", "accumulate": 2},
    {"nonfinite": "skip", "optimizer": "rmsprop"},
    {"nonfinite": "skip", "precision": "fp16"},
    {"nonfinite": "skip", "precision": "fp16", "optimizer": "rmsprop"},
    {"augment": "crop", "optimizer": "adamw", "observe_every": 1},
    {"rates": "cohort"},
    {"batch_growth": 4, "start": Start(0.4, 1, 0.5), "epochs": 4.6},  # 4, 2, 4 batches a step
    {"batch_growth": 2, "accumulate": 2, "rates": "cohort", "precision": "bf16"},
    {"rates": "cohort", "nonfinite": "skip", "optimizer": "adamw", "precision": "fp16"},
    {"rates": "cohort", "nonfinite": "skip", "optimizer": "rmsprop", "observe_every": 1},
]


@pytest.mark.parametrize("options", WAYS, ids=lambda ways: "-".join(map(str, ways.values())))
def test_replays_give_what_the_steps_give(tmp_path, options):
    change = spoil if options.get("nonfinite") else None
    steps, replays = (opened(tmp_path / name, **options) for name in ("steps", "replays"))
    train(steps, change)
    replays.captured = Captured(Recorder())
    train(replays, change)
    assert steps.progress.epoch == 5
    assert steps.progress.skipped == bool(change)
    same(steps, replays)


@pytest.mark.parametrize(
    "options", [WAYS[1], WAYS[2], {"nonfinite": "skip", "observe_every": 1}], ids=str
)
def test_what_is_read_on_request_is_in_the_replays_too(tmp_path, monkeypatch, options):
    kept: dict[Observer, list[Any]] = {}

    class Told(Observer):
        def readings(self) -> Any:
            found = super().readings()
            norms = self.gradient_norm, self.gradient_norm_before_clipping
            kept.setdefault(self, []).append((norms, self.histograms()))
            return found

    monkeypatch.setattr(training.running.resume, "Observer", partial(Told, also=tuple(ALSO)))
    change = spoil if options.get("nonfinite") else None
    steps, replays = (opened(tmp_path / name, **options) for name in ("steps", "replays"))
    train(steps, change)
    recorder = Recorder()
    replays.captured = Captured(recorder)
    train(replays, change)
    same(steps, replays)
    extra = {name for one in steps.history for r in one.layers.values() for name in r.extra}
    assert extra == set(statistics_asked(tuple(ALSO)))
    assert kept[steps.observer] == kept[replays.observer]
    for (after, before), histograms in kept[steps.observer]:
        assert before == pytest.approx(after, rel=1e-5)  # nothing clips, and a scale is taken out
        assert histograms["update_histogram"]["head"].counts
    names = [str(func) for func, *_ in recorder.operations]
    assert not [n for n in names for part in FROM_HOST_OR_TO_IT if f".{part}." in n]


def same(steps: Run, replays: Run) -> None:
    """Assert that two runs that grew as they were told are in the same state, bit for bit."""
    told = [tuple(Scripted().decide([None] * n)) for n in (1, 2, 3, 4)]  # pyright: ignore
    done = [record.applied[-len(one) :] for record, one in zip(steps.history, told)]
    assert done == told
    assert steps.history == replays.history
    assert not differences(steps.net.state_dict(), replays.net.state_dict())
    for one, other in zip(steps.optimizer.state.values(), replays.optimizer.state.values()):
        assert not differences(one, other)
    if steps.ema and replays.ema:
        assert not differences(steps.ema.state_dict(), replays.ema.state_dict())
    assert steps.scaler.state_dict() == replays.scaler.state_dict()
    losses = [(run.folder / "losses.csv").read_text() for run in (steps, replays)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "options", [*WAYS[:3], *WAYS[-3:-1]], ids=lambda ways: "-".join(map(str, ways.values()))
)
def test_a_captured_step_takes_nothing_from_the_host_and_tells_it_nothing(tmp_path, options):
    run, recorder = opened(tmp_path, **options), Recorder()
    run.captured = Captured(recorder)
    with run.held, run.observer:
        while not run.record_due:
            take_step(run)
        record_and_grow(run, 0.0)
        for _ in range(3):  # one that reads the layers, two that do not
            take_step(run)
            names = [str(func) for func, *_ in recorder.operations]
            assert len(names) > 200
            assert not [n for n in names for part in FROM_HOST_OR_TO_IT if f".{part}." in n]


def test_a_hook_of_ones_own_is_called_at_every_step_and_told_once(tmp_path):
    run, called = opened(tmp_path), []
    run.captured = Captured(Recorder())
    run.net.stem.register_forward_hook(lambda *_: called.append(1))
    with run.held, run.observer:
        with pytest.warns(UserWarning, match="steps are not captured: stem has a hook"):
            take_step(run)
        for _ in range(3):  # a second warning would be an error
            take_step(run)
        assert len(called) == 4
        assert run.observer.step == run.progress.step == 4


def test_what_keeps_steps_from_being_captured_is_said(monkeypatch):
    cuda = torch.device("cuda")
    assert obstacle(torch.device("cpu")) == "cpu has no CUDA graphs"
    assert obstacle(cuda) is None
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    assert not slow_settings(Train(), Precision(cuda, torch.float32))
    for value, told in (
        ("PYTORCH_ALLOC_CONF", "PYTORCH_ALLOC_CONF asks for expandable_segments"),
        ("two", "there are several processes"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(value, "max_split_size_mb:128,expandable_segments:True")
            ranks = 1 + (value == "two")
            patch.setattr("training.computing.distributed.size", lambda ranks=ranks: ranks)
            (line,) = slow_settings(Train(), Precision(cuda, torch.float32))
            assert line == f"slow: steps are not captured as a CUDA graph: {told}"
            assert not slow_settings(Train(graph="false"), Precision(cuda, torch.float32))
            refused = f"graph must be auto or false here, got true: {told}"
            with pytest.raises(ValueError, match=refused):
                check_graph(Train(graph=True), cuda)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_left_out_takes_no_readings_with_it(tmp_path, accumulate):
    run = opened(tmp_path, nonfinite="skip", accumulate=accumulate, observe_every=1)
    train(run, spoil)
    assert run.progress.skipped == 1
    for record in run.history:
        assert not [path for path, layer in record.layers.items() if layer.response_std is None]
