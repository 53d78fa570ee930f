"""Pictures and numbers of the thesis' experiments, from the folders of finished comparisons.

    python experiments/thesis.py draw runs/sine runs/sine-thesis
    python experiments/thesis.py gap runs/mnist
    python experiments/thesis.py quarter data/cifar10 data/cifar10-quarter

`draw` prints each comparison's table and draws the comparisons side by side: error.png, the error
on validation against epochs and against training FLOPs; for the sine also fits.png, what the
networks of the first seed give. `gap` prints how far training accuracy is ahead of validation
accuracy, beside a static net of the same training loss. `quarter` copies a folder of images with
every fourth training image.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
import torch

from analysis.showing.tables import markdown
from nets import Architecture, build
from training.data.splits import channel_statistics, load, normalised

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 400
Rows = dict[str, list[Path]]
"""Folders of finished runs by row, in order of their seeds."""


def rows_of(folder: Path) -> Rows:
    """Give the finished runs of a comparison, in the order of its table."""
    path = folder / "comparison.csv"
    if not path.is_file():
        raise ValueError(f"folder must be that of a finished comparison, got {str(folder)!r}")
    found: Rows = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["run"], []).append(folder / line["run"] / f"seed{line['seed']}")
    return found


def column(run: Path, name: str) -> np.ndarray:
    """Give one column of a run's metrics.csv; what was not read is nan."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return np.array([float(line[name] or "nan") for line in csv.DictReader(file)])


def error(run: Path) -> np.ndarray:
    """Give the error on validation at every record: % wrong, or a regression's mean square."""
    wrong = 100 * (1 - column(run, "validation_accuracy"))
    return column(run, "validation_loss") if np.isnan(wrong).all() else wrong


# Pictures ---------------------------------------------------------------------------------------


def draw(folders: Sequence[Path], out: Path) -> list[Path]:
    """Draw the comparisons side by side and give the files."""
    out.mkdir(parents=True, exist_ok=True)
    comparisons = {folder.name: rows_of(folder) for folder in folders}
    pictures = {"error.png": errors(comparisons)}
    runs = [runs[0] for rows in comparisons.values() for runs in rows.values()]
    if all(json.loads((run / "summary.json").read_text())["data"] == "sine" for run in runs):
        pictures["fits.png"] = fits(comparisons)
    for name, figure in pictures.items():
        figure.savefig(out / name, dpi=110)
    return [out / name for name in pictures]


def errors(comparisons: dict[str, Rows]) -> Figure:
    """Draw the error against epochs and FLOPs: a thin line a run, a thick one their mean.

    Means are geometric, since the axis is logarithmic.
    """
    figure, panels = _panels(len(comparisons))
    for place, (name, rows) in enumerate(comparisons.items()):
        for axes, key in zip((panels[0][place], panels[1][place]), ("epoch", "train_flops")):
            for color, (row, runs) in enumerate(rows.items()):
                lines = [(column(run, key), np.log10(error(run).clip(1e-12))) for run in runs]
                for x, y in lines:
                    axes.plot(x, 10**y, color=f"C{color}", alpha=0.25, linewidth=0.7)
                grid = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), 200)
                middle = np.mean([np.interp(grid, x, y) for x, y in lines], 0)
                axes.plot(grid, 10**middle, color=f"C{color}", linewidth=1.8, label=row)
            axes.set_yscale("log")
            axes.set_xlabel({"epoch": "epochs", "train_flops": "training FLOPs"}[key])
            axes.set_ylabel("error on validation")
        panels[0][place].set_title(name)
    _legend(figure, panels[0][-1])
    return figure


def fits(comparisons: dict[str, Rows]) -> Figure:
    """Draw what the first seed's networks give for sin(x), and below it how far they are off."""
    figure, panels = _panels(len(comparisons))
    points = torch.linspace(-2 * math.pi, 2 * math.pi, POINTS)[:, None]  # (POINTS, 1)
    for place, (name, rows) in enumerate(comparisons.items()):
        above, below = panels[0][place], panels[1][place]
        above.plot(points, points.sin(), color="black", linewidth=3, alpha=0.3, label="sin")
        for row, runs in rows.items():
            outputs = outputs_of(runs[0], points)
            above.plot(points, outputs, linewidth=1.1, label=row)
            below.plot(points, outputs - points.sin(), linewidth=1.1)
        above.set_title(f"{name}, {next(iter(rows.values()))[0].name}")
        above.set_ylabel("output")
        below.set_ylabel("output - sin(x)")
        below.set_xlabel("x")
    _legend(figure, panels[0][-1])
    return figure


@torch.no_grad()
def outputs_of(run: Path, points: torch.Tensor) -> torch.Tensor:
    """Give a finished run's outputs, (N, 1), as docs/own_loop.md shows; points are (N, 1)."""
    net = build(Architecture.from_dict(json.loads((run / "architecture.json").read_text())))
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(state["weights"])
    statistics = channel_statistics(load("sine").train)
    return net.eval()(normalised(points, *statistics))


def _panels(columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Give two rows of panels without pyplot, which would keep the figure for ever."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * columns, 8), layout="constrained")
    panels = figure.subplots(2, columns, sharey="row", squeeze=False)
    return figure, panels.tolist()


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


# Regularisation ---------------------------------------------------------------------------------


def gap(folder: Path) -> str:
    """Give training minus validation accuracy, in points, beside a static net's of equal loss.

    All runs are taken at their ends, where the learning rate has fallen to 0: under a high rate
    validation swings by ten points from record to record. The static rows' gaps are joined by
    straight lines over their training losses; where a row's loss lies outside of these, there is
    none to compare with. Training numbers are means over the steps since the record before.
    """
    summaries = {
        row: [json.loads((run / "summary.json").read_text()) for run in runs]
        for row, runs in rows_of(folder).items()
    }
    losses = {row: mean(run["train_loss"] for run in runs) for row, runs in summaries.items()}
    gaps = {
        row: [100 * (run["train_accuracy"] - run["validation_accuracy"]) for run in runs]
        for row, runs in summaries.items()
    }
    static = [row for row, runs in summaries.items() if all(r["policy"] == "Never" for r in runs)]
    line = sorted((losses[row], mean(gaps[row])) for row in static)
    lines = []
    for row, runs in summaries.items():
        told = "-"
        if row not in static and line and line[0][0] <= losses[row] <= line[-1][0]:
            told = f"{np.interp(losses[row], *zip(*line)):+.2f}"
        spread = f" ± {stdev(gaps[row]):.2f}" if len(runs) > 1 else ""
        accuracies = (
            f"{100 * mean(run[f'{part}_accuracy'] for run in runs):.2f}"
            for part in ("train", "validation")
        )
        own = f"{mean(gaps[row]):+.2f}{spread}"
        lines.append([row, f"{losses[row]:.3f}", *accuracies, own, told, str(len(runs))])
    header = ["run", "training loss", "training accuracy %", "validation accuracy %", "gap"]
    return markdown([*header, "static net of that loss", "seeds"], lines)


def quarter(source: Path, target: Path) -> int:
    """Copy SOURCE/test whole and of SOURCE/train every fourth image of each class; count these."""
    if target.exists():
        raise ValueError(f"target must not be there yet, got {str(target)!r}")
    shutil.copytree(source / "test", target / "test")
    count = 0
    for kind in sorted(path for path in (source / "train").iterdir() if path.is_dir()):
        (target / "train" / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[::4]:
            shutil.copy(image, target / "train" / kind.name)
            count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("draw", help="tables, and pictures of error and fits")
    pictures.add_argument("folders", type=Path, nargs="+", help="of finished comparisons")
    pictures.add_argument("--out", type=Path, help="of the pictures; by default the first folder")
    gaps = commands.add_parser("gap", help="training against validation accuracy at equal loss")
    gaps.add_argument("folder", type=Path, help="of a finished comparison")
    less = commands.add_parser("quarter", help="a folder with a quarter of the training images")
    less.add_argument("source", type=Path)
    less.add_argument("target", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "gap":
            print(gap(given.folder))
        elif given.command == "quarter":
            print(f"{quarter(given.source, given.target):,} training images in {given.target}")
        else:
            files = draw(given.folders, given.out or given.folders[0])
            for folder in given.folders:
                print(f"{folder}\n\n{(folder / 'comparison.md').read_text(encoding='utf-8')}")
            print("\n".join(map(str, files)))
    except (ValueError, OSError) as problem:
        print(f"thesis.py: error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
