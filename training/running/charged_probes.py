"""What needs the network itself, measured for a policy that names it in `needs`, and charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.utils.flop_counter import FlopCounterMode

from analysis import Record, block_importance, effective_rank
from nets import cost
from training.keeping.run_state import Run


def measure_probes(run: Run) -> Mapping[str, Mapping[str, float]]:
    """Measure the probes that the run's policy needs, by name; no policy is asked at the end."""
    needs = run.settings.policy.needs
    found: dict[str, Mapping[str, float]] = {}
    if run.spent >= 1:
        return found
    images, forward = len(run.probe[0]), cost(run.net.architecture).flops
    if "importance" in needs:
        found["importance"] = block_importance(run.net, *run.probe, run.loss)
        run.progress.flops += (1 + len(found["importance"])) * images * forward
    if "effective_rank" in needs:
        with FlopCounterMode(display=False) as counter:  # the forward, and products of responses
            found["effective_rank"] = effective_rank(run.net, run.probe[0])
        run.progress.flops += counter.get_total_flops()
    return found


def with_probes(record: Record, measured: Mapping[str, Mapping[str, float]]) -> Record:
    """Give the record with what was measured: by block, or by layer into its reading's `extra`."""
    ranks = measured.get("effective_rank", {})
    layers = {
        path: replace(reading, extra={**reading.extra, "effective_rank": ranks[path]})
        if path in ranks
        else reading
        for path, reading in record.layers.items()
    }
    return replace(record, layers=layers, importance=measured.get("importance", {}))
