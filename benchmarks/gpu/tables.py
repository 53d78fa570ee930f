"""What benchmarks.gpu prints: a network's lines in its tables."""

from __future__ import annotations

from statistics import median

from analysis.showing.tables import markdown
from benchmarks.timing import ratios
from nets import Architecture, train_flops

WAYS = ("usual", "bare", "bare, one graph", "ours, eager", "ours, captured")
WAYS += ("captured, every 10 read", "captured, every 1 read", "compiled, captured")
USUAL, BARE, GRAPH, EAGER, CAPTURED, TENTH, EVERY, COMPILED = WAYS
RATIOS = (
    (TENTH, GRAPH, "<= 1.05"),
    (TENTH, CAPTURED, "<= 1.02"),
    (EVERY, CAPTURED, "<= 1.15"),
    (COMPILED, TENTH, ""),
    (EAGER, TENTH, ""),
    (USUAL, TENTH, ">= 4"),
)
"""What is set against what, and the aim."""
RECORD = ("record", "validation", "checkpoint", "decision", "growth", "until replay")
PEAKS = (("H200", 989.4), ("H100 NVL", 835.0), ("H100 PCIe", 756.0), ("H100", 989.4), ("A100", 312))
"""TFLOP/s in bf16, dense, of NVIDIA's data sheets, by a part of the device's name; the first."""
Times = dict[str, list[float]]
"""Milliseconds, round by round, by what they are of."""
Found = dict[str, tuple[Architecture, Times, Times]]
"""By network: what it is, its steps' times by way, and those of records and growths."""


def peak_of(device: str) -> float | None:
    """Give a device's peak in TFLOP/s, None where it is not known."""
    return next((peak for part, peak in PEAKS if part in device), None)


def step_table(found: Found, size: int, peak: float | None) -> str:
    """Give a step's milliseconds, images/s and share of the peak (best rounds), by way."""
    rows = []
    for net, (architecture, times, _) in found.items():
        best = {name: min(taken) for name, taken in times.items()}
        flops = size * train_flops(architecture)  # of a step
        cells = {
            "ms (median)": {n: f"{best[n]:.2f} ({median(times[n]):.2f})" for n in best},
            "images/s": {n: f"{1000 * size / taken:,.0f}" for n, taken in best.items()},
        }
        if peak:
            cells["of the peak"] = {n: f"{flops / t / 1e9 / peak:.1%}" for n, t in best.items()}
        for unit, values in cells.items():
            rows.append([net, unit, *(values.get(name, "-") for name in WAYS)])
    return markdown(["a step of", "", *WAYS], rows)


def ratio_table(found: Found, per_epoch: int) -> str:
    """Give the ratios that are aimed at: best over best, and the median of the rounds' ratios."""
    rows = []
    for one, other, aim in RATIOS:
        cells = [
            "{:.3f} ({:.3f})".format(*ratios(times, one, other))
            if one in times and other in times
            else "-"
            for _, times, _ in found.values()
        ]
        rows.append([f"{one} / {other}", *cells, aim])
    shares = []
    for _, times, more in found.values():
        known = TENTH in times and bool(more.get("record"))
        pairs = [(m(more["record"]), m(times[TENTH])) for m in (min, median)] if known else []
        told = [f"{record / (record + per_epoch * step):.1%}" for record, step in pairs]
        shares.append("{} ({})".format(*told) if told else "-")
    rows.append([f"record, of an epoch of {per_epoch} steps", *shares, "<= 3 %"])
    return markdown(["best (median)", *found, "aim"], rows)


def record_table(found: Found) -> str:
    """Give the milliseconds of records and growths."""
    rows = []
    for net, (_, _, more) in found.items():
        taken = {name: more.get(name, []) for name in RECORD}
        both = zip(taken["record"], taken["validation"], strict=True)
        taken["record beside it"] = [record - validation for record, validation in both]
        cells = [f"{min(t):.1f} ({median(t):.1f})" if t else "-" for t in taken.values()]
        rows.append([net, *cells])
    return markdown(["ms, best (median)", *RECORD, "record beside validation"], rows)
