"""A comparison's own run in TensorBoard: its rows over FLOPs, their regrets and architectures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.summary import text

from analysis.judging.comparable_runs import BOARD, FRONTIER, scores_of
from analysis.judging.comparison_claims import Judgement
from analysis.recording.atomic_files import writing
from analysis.recording.record import read_history
from analysis.recording.timeline import architectures as states_of
from analysis.reporting.capacity_pictures import (
    Histories,
    architectures,
    capacity,
    mean_added,
    that_grew,
)
from analysis.reporting.row_curves import bands_of, shown
from analysis.reporting.score_pictures import final_scores, rows_beside_frontier, score_over
from analysis.reporting.verdict import verdict
from analysis.showing.comparison_tables import judgement_text
from analysis.showing.matplotlib_figures import Undrawn, drawing, png_of
from analysis.showing.tables import markdown
from analysis.showing.tensorboard_event_file import (
    EventFile,
    bands_chart,
    category,
    images_summary,
    layout_summary,
    lines_chart,
    scalars_summary,
)
from analysis.showing.tensorboard_writer import MEGA
from nets import Architecture, cost

_AXES = {"flops": ("MFLOPs", MEGA), "seconds": ("seconds", 1.0)}
"""By what a budget counts: its unit in tags, and how much of it is one of TensorBoard's steps."""
_POINTS = 50
"""Of a curve: as many as a chart can show."""
Summaries = Iterator[tuple[Any, int]]
"""Summaries with their steps."""


def write_board(folder: Path, groups: Sequence[tuple[str, Judgement]]) -> str:
    """Write FOLDER/_comparison anew, whole; give in one line why it has no pictures, or nothing.

    Scalars, under names that begin with the data and net where there are several of these:
    mean_over_MFLOPs/ROW with low_ and high_ (mean and sample std of the validation score over
    seeds; accuracies in %), and the row static-frontier; the step is training FLOPs in millions, or
    with a budget in seconds mean_over_seconds/ROW.
    regret/ROW and final_score/ROW, whose step is the seed. added_MFLOPs/ROW/STAGE/KIND, an image's
    FLOPs that growth has added, mean over seeds. final_widths/ROW: inner widths of the final
    architecture, first seed; the step is the block's place. Custom scalars: all means in one chart,
    then a chart a row with its band beside the frontier. Images and Text: 0_comparison.

    Args:
        folder: of the comparison.
        groups: a title (data and net) and a judgement each.

    Raises:
        ValueError: a run's files cannot be read.
        Unwritten: the disk is full, say; the old folder is as it was, or gone.
    """
    made = folder / f"{BOARD}.part"
    with writing(made):
        try:
            shutil.rmtree(made, ignore_errors=True)
            missing = _write(EventFile(made, times=_times(groups)), groups)
            shutil.rmtree(folder / BOARD, ignore_errors=True)
            made.rename(folder / BOARD)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return missing


def _write(events: EventFile, groups: Sequence[tuple[str, Judgement]]) -> str:
    """Write all of it, and give in one line why there are no pictures, or nothing."""
    charts, missing = [], ""
    for number, (title, judgement) in enumerate(groups, start=1):
        prefix = f"{number}_{_tag(title)}/" if len(groups) > 1 else ""
        histories = {
            name: [read_history(run.folder) for run in runs.values()]
            for name, runs in judgement.rows.items()
        }
        for summary, step in _summaries(judgement, histories, prefix):
            events.add(summary, step)
        try:
            with drawing():
                pictures = _pictures(judgement, histories)
            tags = {f"0_comparison/{prefix}{name}": png for name, png in pictures.items()}
            events.add(images_summary(tags), 0)
        except Undrawn as failure:
            missing = f"{BOARD}: {failure}"
        charts += _charts(judgement, prefix, title if prefix else "")
    events.add(layout_summary(charts), 0)
    events.flush()
    events.to_disk()
    return missing


def _times(groups: Sequence[tuple[str, Judgement]]) -> tuple[int, int]:
    """Give the times at which the first of the runs began and the last ended, in nanoseconds.

    TensorBoard lists runs by the times of their first events: this one stands before the others.
    """
    rows = [row for _, judgement in groups for row in judgement.rows.values()]
    runs = [run.folder for row in rows for run in row.values()]
    first, last = (
        [(folder / name).stat().st_mtime_ns for folder in runs]
        for name in ("config.yaml", "summary.json")
    )
    return min(first), max(last)


def _summaries(judgement: Judgement, histories: Histories, prefix: str) -> Summaries:
    words = f"{verdict(judgement)}\n\n{judgement_text(judgement)}"
    yield text(f"0_comparison/{prefix}1_verdict", words), 0
    finals = {name: states_of(runs[0])[-1][1] for name, runs in histories.items()}
    yield text(f"0_comparison/{prefix}2_final_architectures", _final_table(finals)), 0
    unit, size = _AXES[judgement.axis]
    for name, band in bands_of(judgement, judgement.axis).items():
        edges = {"mean": band.middle, "low": band.low, "high": band.high}
        tags = {f"{prefix}{kind}_over_{unit}/{_tag(name)}": edge for kind, edge in edges.items()}
        yield from _curves(band.places / size, tags)
    if judgement.best is not None:
        best = shown(judgement, judgement.best)
        tags = [f"{prefix}{kind}_over_{unit}/{FRONTIER}" for kind in ("mean", "low", "high")]
        yield from _curves(judgement.grid / size, dict.fromkeys(tags, np.asarray(best)))
    scores = scores_of(judgement.rows, judgement.measure)
    for name, runs in judgement.figures.items():
        for seed, figures in runs.items():
            found = {}
            if seed in scores.get(name, {}):
                score = shown(judgement, scores[name][seed])
                found[f"{prefix}final_score/{_tag(name)}"] = score
            if figures.regret is not None:
                found[f"{prefix}regret/{_tag(name)}"] = shown(judgement, figures.regret)
            yield scalars_summary(found), seed
    yield from _architectures(histories, finals, prefix)


def _curves(places: np.ndarray, curves: Mapping[str, np.ndarray]) -> Summaries:
    grid = np.linspace(places[0], places[-1], _POINTS)
    values = {tag: np.interp(grid, places, curve) for tag, curve in curves.items()}
    steps = [int(place) for place in grid]
    for point, step in enumerate(steps):
        if point == 0 or step > steps[point - 1]:
            found = {tag: float(curve[point]) for tag, curve in values.items()}
            yield scalars_summary(found), step


def _architectures(
    histories: Histories, finals: Mapping[str, Architecture], prefix: str
) -> Summaries:
    for name, architecture in finals.items():
        for place, block in enumerate(architecture.blocks.values(), start=1):
            yield scalars_summary({f"{prefix}final_widths/{_tag(name)}": block.width}), place
    for name, runs in that_grew(histories).items():
        stages = [stage.name for stage in runs[0][-1].architecture.stages]
        for (stage, kind), flops in mean_added(runs).items():
            tag = f"{prefix}added_MFLOPs/{_tag(name)}/{stages[stage]}/{kind}"
            yield scalars_summary({tag: flops / MEGA}), 0


def _final_table(finals: Mapping[str, Architecture]) -> str:
    """Give the final architectures, first seed: size, and inner widths by stage."""
    rows, stages = [], list(dict.fromkeys(s.name for a in finals.values() for s in a.stages))
    for name, architecture in finals.items():
        size = cost(architecture)
        widths = {
            stage.name: " ".join(str(block.width) for block in stage.blocks)
            for stage in architecture.stages
        }
        told = [widths.get(stage, "-") for stage in stages]
        rows.append([name, f"{size.parameters:,}", f"{size.flops / MEGA:.3g}", *told])
    return markdown(["row", "parameters", "MFLOP an image", *stages], rows)


def _pictures(judgement: Judgement, histories: Histories) -> dict[str, bytes]:
    rows, columns = list(judgement.rows), 4
    first, other = sorted(_AXES, key=lambda axis: axis != judgement.axis)
    words = {"flops": "flops", "seconds": "time"}
    figures = {
        f"1_score_over_{words[first]}": score_over(judgement, first),
        "2_final_scores": final_scores(judgement),
        f"5_score_over_{words[other]}": score_over(judgement, other),
        "6_rows_beside_the_frontier": rows_beside_frontier(judgement, rows, columns),
    }
    if grew := list(that_grew(histories)):
        figures["3_capacity"] = capacity(histories)
        figures["4_architectures_over_time"] = architectures(histories, grew, min(3, len(grew)))
    return {name: png_of(figures[name], dpi=110) for name in sorted(figures)}


def _charts(judgement: Judgement, prefix: str, title: str) -> list[Any]:
    """Give the custom scalars: means together, then every row's band beside the frontier."""
    unit, _ = _AXES[judgement.axis]

    def band(row: str) -> tuple[str, str, str]:
        tags = [f"{prefix}{kind}_over_{unit}/{row}" for kind in ("mean", "low", "high")]
        return tags[0], tags[1], tags[2]

    frontier = [band(FRONTIER)] if judgement.best is not None else []
    rows = [bands_chart(name, [band(_tag(name)), *frontier]) for name in judgement.rows]
    start = re.escape(prefix)
    beside = {
        f"validation score over training {unit}: means": f"mean_over_{unit}/",
        "final score by seed": "final_score/",
        "anytime regret by seed": "regret/",
        "final inner widths by block": "final_widths/",
    }
    charts = [lines_chart(name, [f"{start}{pattern}"]) for name, pattern in beside.items()]
    title = f", {title}" if title else ""
    return [
        category(f"comparison{title}: the rows together", charts),
        category(f"comparison{title}: each row beside the static frontier", rows),
    ]


def _tag(name: str) -> str:
    """Give a name without what would begin a group of tags of its own."""
    return name.replace("/", "-")
