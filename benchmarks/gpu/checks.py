"""What benchmarks.gpu measures beside steps: a record, a growth, equal bits, memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any

import torch

from benchmarks.gpu.tables import Times
from benchmarks.gpu.ways import CUDA, Data, Ours, clocked, graph, synchronize
from nets import Action, Narrow, SetSurvival, Widen
from policies import RandomSite
from training.deciding.call_policy import ask
from training.deciding.refusals import Decision, admit
from training.keeping.checkpoint import optimizer_state
from training.keeping.run_state import Run
from training.running.decide_and_grow import grow_run
from training.running.take_record import validate
from training.running.write_down import save

AFTER = 12
"""Steps after a growth until both graphs, of a step and of one that is read, are there."""


def record_times(ours: Ours, rounds: int, steps: int) -> Times:
    """Time records, each after some steps, the validation that is in one, and checkpoints."""
    run = ours.run
    found: dict[str, list[float]] = {"record": [], "validation": [], "checkpoint": []}

    def validation() -> None:
        for net in filter(None, (run.net, run.ema)):
            validate(run, net)

    for number in range(rounds + 1):
        ours.ready(steps)
        ours.steps(steps)
        with ours.there():
            times = {"record": clocked(ours.record), "validation": clocked(validation)}
            if number < 4:  # those of a large network take long
                times["checkpoint"] = clocked(lambda: save(run))
        if number:  # the first sets things up
            for name, value in times.items():
                found[name].append(value)
    return found


def growth_times(ours: Ours, rounds: int) -> Times:
    """Time growths by one Widen: decided, grown (and kept on disk), and what comes until replay.

    The run is one that may grow on. The last is what the AFTER steps after it took beyond as many
    before it.
    """
    run, policy = ours.run, RandomSite(every=1)
    found: dict[str, list[float]] = {"decision": [], "growth": [], "until replay": []}
    for number in range(rounds + 1):
        ours.ready(4 * AFTER)
        ours.steps(AFTER)
        ours.record()  # what the policy is asked with
        a_step = clocked(lambda: ours.steps(AFTER)) / AFTER
        block = list(run.net.architecture.blocks)[-1]
        decision = Decision(applied=(Widen(block, 8),))

        def decide() -> None:
            admit(run.net.architecture, ask(policy, run.history), run.limit, may_grow=True)

        def grown(decision: Decision = decision) -> None:
            grow_run(run, decision)

        with ours.there():
            times = [clocked(decide), clocked(grown)]
        times.append(clocked(lambda: ours.steps(AFTER)) - AFTER * a_step)
        if number:
            for name, value in zip(found, times, strict=True):
                found[name].append(value)
    return found


def _state_of(run: Run) -> dict[str, torch.Tensor]:
    """Give every tensor of a run's state by name, on the CPU."""
    tensors = {f"weights: {name}": value for name, value in run.net.state_dict().items()}
    if run.ema is not None:
        tensors |= {f"average: {name}": value for name, value in run.ema.state_dict().items()}
    for name, values in optimizer_state(run.net, run.optimizer)["state"].items():
        tensors |= {f"{key}: {name}": value for key, value in values.items()}
    tensors["window"] = run.window
    return {n: v.detach().cpu().clone() for n, v in tensors.items() if torch.is_tensor(v)}


def _end_of(data: Data, folder: str, captured: bool, how: Mapping[str, Any]) -> dict[str, Any]:
    """Run 60 steps, over epochs' ends and records, with a growth after 30; give the state."""
    per_epoch = len(data[0].train) // how["batch_size"]
    epochs = 60 / per_epoch
    with ExitStack() as held:
        given = {**how, **graph(captured), "epochs": epochs, "records": 6}
        ours = Ours(held, data, "its start", folder, **given)
        run = ours.run
        while not run.ended:
            ours.steps(1)
            if run.progress.step == 30:
                with ours.there():
                    grow_run(run, Decision(applied=(Widen("stage1.block1", 4),)))
            if run.record_due:
                ours.record()
        synchronize()
        return {"steps": run.progress.step, **_state_of(run)}


def equality(data: Data, folder: str, **how: Any) -> list[str]:
    """Say whether a captured run ends as an eager one, and whether two eager ones end alike."""
    ends = [
        _end_of(data, os.path.join(folder, name), name == "captured", how)
        for name in ("eager", "again", "captured")
    ]
    steps = ends[0].pop("steps")
    first, again = (_difference(ends[0], other) for other in (ends[2], ends[1]))
    how_told = ", ".join(f"{name} {value}" for name, value in how.items())
    captured = "captured" if CUDA else "eager (no graphs here)"
    return [
        f"{steps} steps with a growth and records, {how_told}",
        f"- {captured} against eager: {first or 'the same bits'}",
        f"- eager against eager: {again or 'the same bits'}",
    ]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Name the first tensor that differs, and by how much."""
    for name, value in one.items():
        found = other.get(name)
        if found is None or found.shape != value.shape:
            return f"{name} is missing or of another shape"
        if not torch.equal(value, found):
            most = (value.double() - found.double()).abs().max().item()
            return f"{name} differs by up to {most:.3g}"
    return ""


def _edits() -> Iterator[Action]:
    """Give edits without end, after every four of which the network is as it was."""
    block = "stage1.block1"
    yield from cycle(
        (Widen(block, 1), SetSurvival(block, 0.9), Narrow(block, 1), SetSurvival(block, 1.0))
    )


def memory(data: Data, folder: str, edits: int, **how: Any) -> str:
    """Say what is allocated on the device early and late in a row of edits, steps after each."""
    with ExitStack() as held:
        ours = Ours(held, data, "its start", folder, **how, **graph(True))
        held_memory: dict[int, tuple[float, float]] = {}
        early = min(20, edits // 2)
        early -= early % 4
        for number, action in enumerate(islice(_edits(), edits), start=1):
            with ours.there():
                grow_run(ours.run, Decision(applied=(action,)))
            ours.ready(3)
            ours.steps(3)
            if number in (early, edits - edits % 4):
                synchronize()
                gc.collect()
                held_memory[number] = _allocated()
    told = ", ".join(
        f"after {number} edits {used:.2f} MiB in use and {reserved:.0f} reserved"
        for number, (used, reserved) in held_memory.items()
    )
    return f"memory: {told}"


def _allocated() -> tuple[float, float]:
    if not CUDA:
        return 0.0, 0.0
    return torch.cuda.memory_allocated() / 2**20, torch.cuda.memory_reserved() / 2**20
