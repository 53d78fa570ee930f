"""At a record a policy's probes are measured: each on a copy of the network, named and charged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from traceback import format_exc
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis import Record, block_importance, effective_rank, gradient_signal_to_noise
from analysis.observing.watched_layers import rows_of
from analysis.recording.probed import Probe, probe_name
from nets import Network, grow
from nets.modules.random_draws import hash_of
from policies.gain import Gain
from training.computing import distributed
from training.deciding.call_policy import Answer, failure_of
from training.deciding.check_probes import number_of, wrong_numbers
from training.deciding.user_errors import told
from training.keeping.run_state import Run

Numbers = Mapping[str, float]


def _importance(net: Network, batch: Any, loss: Any) -> Numbers:
    inputs, targets = batch
    return block_importance(net, inputs, targets, loss)


def _effective_rank(net: Network, batch: Any, loss: Any) -> Numbers:
    return effective_rank(net, batch[0])


def _signal_to_noise(net: Network, batch: Any, loss: Any) -> Numbers:
    """Layers without a gradient, or with the same one on all parts, have no finite ratio."""
    inputs, targets = batch
    found = gradient_signal_to_noise(net, inputs, targets, loss)
    return {path: value for path, value in found.items() if isfinite(value)}


BOX: dict[str, Callable[..., Numbers]] = {
    "importance": _importance,
    "effective_rank": _effective_rank,
    "gradient_signal_to_noise": _signal_to_noise,
    "gain": Gain(),
}


@dataclass
class Measured:
    """What probes have given, by their names, what that cost, and how one has failed, if it has."""

    numbers: dict[str, Numbers] = field(default_factory=dict)
    flops: int = 0
    failure: Answer | None = None


def measure_probes(run: Run, record: Record) -> Measured:
    """Measure what the run's policy needs at this record; no policy is asked at the end.

    Rank 0 measures, and every process gets the same. What is charged are the matrix products and
    convolutions of forward and backward passes, as torch counts them (2 FLOPs a multiply-add).
    """
    if run.spent >= 1:
        return Measured()
    return distributed.from_first(lambda: _measure_all(run, record))


def _measure_all(run: Run, record: Record) -> Measured:
    policy, measured, name = run.settings.policy, Measured(), "needs_at"
    known = list(map(probe_name, policy.needs))
    try:
        for probe in policy.needs_at((*run.history, record)):
            name = f"probe {probe_name(probe)}"
            if probe_name(probe) not in known:
                raise ValueError(f"needs_at must give what is in needs, got {probe_name(probe)!r}")
            numbers, flops = _measure(run, probe, record.step)
            measured.flops += flops
            wrong = wrong_numbers(
                numbers, run.net.architecture.blocks, [row.path for row in rows_of(run.net)]
            )
            if wrong:
                measured.failure = Answer(failure=failure_of(policy, record, f"{name} {wrong}"))
                return measured
            floats = {path: number_of(value) for path, value in numbers.items()}
            measured.numbers[probe_name(probe)] = floats  # pyright: ignore[reportArgumentType]
    except (Exception, SystemExit) as error:
        why = f"{name}: {told(error)}"
        measured.failure = Answer(failure=failure_of(policy, record, why), trace=format_exc())
    return measured


def _measure(run: Run, probe: Probe, step: int) -> tuple[Numbers, int]:
    """Give what a probe gives, and its FLOPs.

    It gets copies of the network, in eval mode, and of the probe batch: whatever it does to them
    is gone with them. The global generators begin as (seed, step, name) says and are put back.
    """
    function = BOX[probe] if isinstance(probe, str) else probe
    net = grow(run.net, ()).network.eval()
    batch = run.probe[0].clone(), run.probe[1].clone()
    seed = hash_of(run.settings.seed, step, "probe", probe_name(probe))
    with (
        _generators(seed, run.precision.device),
        torch.enable_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        numbers = function(net, batch, run.loss)
    return numbers, counter.get_total_flops()


@contextmanager
def _generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for a while: torch's, Python's and numpy's."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
