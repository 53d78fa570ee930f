"""Draws the architectures over time of a comparison: python experiments/architectures.py OUT."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # found from any folder
    sys.path.insert(0, str(Path(__file__).parents[1]))

from analysis import read_history
from analysis.recording.atomic_files import write_whole
from analysis.reporting.capacity_pictures import architectures, that_grew
from analysis.showing.matplotlib_figures import svg_of

SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
"""What a file of its own must say of SVG, and a part of a page need not."""


def main(words: Sequence[str]) -> int:
    """Write OUT/architectures.svg, the first seed of every row that grew, and print its address."""
    (folder,) = map(Path, words)
    runs = {path.parent.name: path for path in sorted(folder.glob("*/seed*"), reverse=True)}
    rows = [read_history(runs[name]) for name in sorted(runs)]
    histories = {name: [history] for name, history in zip(sorted(runs), rows)}
    if not any(record.applied for history in rows for record in history):
        print(f"no run in {folder} has grown")
        return 1
    path = folder / "architectures.svg"
    picture = svg_of(architectures(histories, list(that_grew(histories)), columns=3))
    write_whole(path, picture.replace("<svg", f"<svg {SPACES}", 1))
    print(f"what grew, and when: {path.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
