"""The coordinate check: how the size of every layer's responses goes with the network's width.

Where a parametrisation suits all widths, responses after a few steps have the same size in all of
them; where their size grows as a power of the width, a learning rate tuned on a narrow net is wrong
for a wide one (Yang et al. 2022, arXiv 2203.03466, section D.1 and figure 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis.observing.observer import Observer
from analysis.recording.atomic_files import write_whole
from analysis.recording.phrases import number
from analysis.showing.matplotlib_figures import figure_of, own_settings, svg_of
from analysis.showing.tables import markdown
from nets.checks import check_count

Loss = Callable[[Tensor, Tensor], Tensor]
Made = nn.Module | tuple[nn.Module, torch.optim.Optimizer]


@dataclass(frozen=True)
class CoordinateCheck:
    """Response stds by layer, after 0, 1, ... steps, of nets of several widths.

    Args:
        widths: of the nets, ascending.
        sizes: by layer, for every number of steps, by width, (steps + 1, widths); the mean over
            seeds of the response std, in the responses' units.
    """

    widths: tuple[float, ...]
    sizes: Mapping[str, tuple[tuple[float, ...], ...]]

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(next(iter(self.sizes.values()))) - 1

    def slopes(self, step: int = -1) -> dict[str, float | None]:
        """Give, by layer, the slope of log size over log width after so many steps.

        The least-squares line's: 0 is the same size at every width, 0.5 the growth of a sum of
        independent terms, 1 that of aligned ones. None where a size is 0 or not finite.
        """
        return {layer: _slope(self.widths, rows[step]) for layer, rows in self.sizes.items()}

    def table(self) -> str:
        """Give the sizes after the last step and the slopes of the first and the last, Markdown."""
        first, last = self.slopes(0), self.slopes()
        header = ["layer", *(f"width {width:g}" for width in self.widths)]
        header += ["slope at first", f"slope after {self.steps} steps"]
        rows = [
            [layer, *map(number, rows[-1]), _signed(first[layer]), _signed(last[layer])]
            for layer, rows in self.sizes.items()
        ]
        return markdown(header, rows)

    @own_settings()
    def svg(self) -> str:
        """Give a picture as an <svg> element: sizes over width, a panel for each step."""
        figure, panels = figure_of(3 * (self.steps + 1), 3.2, self.steps + 1, self.steps + 1)
        styles = ["-", "--", ":", "-."]
        for step, axes in enumerate(panels):
            for place, (layer, rows) in enumerate(self.sizes.items()):
                slope = _signed(self.slopes(step)[layer])
                style = {"linestyle": styles[place // 10 % 4], "marker": ".", "linewidth": 1}
                axes.loglog(self.widths, rows[step], label=f"{layer} {slope}", **style)
            axes.set_title(f"after {step} steps, slopes beside the names", fontsize=8)
            axes.set_xlabel("width", fontsize=8)
            axes.legend(fontsize=5, frameon=False)
        panels[0].set_ylabel("response std", fontsize=8)
        return svg_of(figure)

    def draw(self, path: str | Path) -> None:
        """Write the picture to an .svg file."""
        element = self.svg().replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        write_whole(Path(path), element)


def coordinate_check(
    make: Callable[..., Made],
    widths: Sequence[float],
    batch: tuple[Tensor, Tensor],
    loss: Loss = nn.functional.cross_entropy,
    steps: int = 3,
    lr: float = 0.1,
    seeds: int = 1,
) -> CoordinateCheck:
    """Train nets of several widths on one batch, and give the size of every layer's responses.

        def make(width):
            net = seed_of(preset("resnet20"), width=width, blocks=1)
            return build(net, seed=torch.initial_seed())

        found = coordinate_check(make, [0.25, 0.5, 1, 2], (images, labels))
        print(found.table())
        found.draw("widths.svg")

    Args:
        make: of a width, gives a net, or a net and its optimizer (without one, SGD of `lr`): any
            module, whose layers have the same names at all widths; with several seeds torch's
            global generator is seeded before each call.
        widths: at least two different ones, above 0; the check is of their ratios.
        batch: inputs and targets, the same at every step.
        loss: takes outputs and targets, gives a scalar.
        steps: updates, at least 0; responses are read before each and after the last.
        lr: learning rate of nets that come without an optimizer.
        seeds: how many nets of each width, whose sizes are averaged.

    Raises:
        ValueError: a number out of its range, nets that have no layer in common, or the same net
            for two seeds.
    """
    check_count("steps", steps, 0)
    check_count("seeds", seeds)
    ordered = tuple(sorted(set(widths)))
    if len(ordered) < 2 or ordered[0] <= 0:
        raise ValueError(f"widths must be at least two numbers above 0, got {list(widths)}")
    found: list[dict[str, list[float]]] = []  # by width: by layer, by step
    for width in ordered:
        several = [_sizes_of(make, width, batch, loss, steps, lr, seed) for seed in range(seeds)]
        if seeds > 1 and several[0] == several[1]:
            raise ValueError(f"make must draw by torch's global seed, got one net for {seeds}")
        found.append({layer: _means([one[layer] for one in several]) for layer in several[0]})
    common = [layer for layer in found[0] if all(layer in one for one in found)]
    if not common:
        raise ValueError("make must give nets that have layers of the same names, got none")
    rows = {layer: tuple(zip(*(one[layer] for one in found))) for layer in common}
    return CoordinateCheck(ordered, rows)


def _sizes_of(
    make: Callable[..., Made],
    width: float,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    steps: int,
    lr: float,
    seed: int,
) -> dict[str, list[float]]:
    """Give response stds by layer, of every step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: Any = make(width)
        net, optimizer = made if isinstance(made, tuple) else (made, None)
        optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
        found: dict[str, list[float]] = {}
        net.train()
        with Observer(net, optimizer) as observer:
            for _ in range(steps + 1):
                optimizer.zero_grad()
                loss(net(batch[0]), batch[1]).backward()
                optimizer.step()
                for layer, reading in observer.readings().items():
                    if reading.response_std is not None:
                        found.setdefault(layer, []).append(reading.response_std)
    return {layer: sizes for layer, sizes in found.items() if len(sizes) == steps + 1}


def _means(several: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*several)]


def _slope(widths: Sequence[float], sizes: Sequence[float]) -> float | None:
    if not all(0 < size < float("inf") for size in sizes):
        return None
    x, y = [log(width) for width in widths], [log(size) for size in sizes]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle) * (b - level) for a, b in zip(x, y))
    return above / sum((a - middle) ** 2 for a in x)


def _signed(slope: float | None) -> str:
    return "-" if slope is None else f"{slope:+.2f}"
