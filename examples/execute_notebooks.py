"""Runs the notebooks here from top to bottom, and keeps what they print and draw.

python examples/execute_notebooks.py            # in place
python examples/execute_notebooks.py FOLDER     # into another folder, where they also run
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    here = Path(__file__).resolve().parent
    with TemporaryDirectory() as temporary:
        for path in sorted(here.glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            place = {"metadata": {"path": given[0] if given else temporary}}
            client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place)
            client.record_timing = False
            client.execute()
            notebook.metadata["language_info"] = {"name": "python"}  # without a version
            nbformat.write(notebook, Path(given[0] if given else here) / path.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
