"""Draws the gallery of docs/gallery.md: the architecture over time of every row that grew.

python experiments/gallery.py runs/gallery docs/pictures/policies
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from analysis import read_comparison
from analysis.showing.architecture_pictures import architecture_over_time

COLOURS = 64
"""So many are enough for bands, and make a picture a third as large."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw a comparison's first seed, row by row.")
    parser.add_argument("comparison", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    first = {run.row: run for run in reversed(read_comparison(given.comparison))}
    for row, run in first.items():
        if any(record.applied for record in run.history):
            picture = Image.open(BytesIO(architecture_over_time(run.history)))
            small = picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
            small.save(given.out / f"{row}.png", optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
