"""The notebooks run from top to bottom in a kernel of this interpreter, and keep what they gave."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("observe_and_grow", "read_comparison")


def outputs_of(path: Path) -> list[list[dict]]:
    """Give what every cell of code gave."""
    cells = json.loads(path.read_text())["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def kinds_of(outputs: list[dict]) -> list[list[str]]:
    return [sorted(output.get("data", {output.get("name"): ""})) for output in outputs]


def said_in(cells: list[list[dict]]) -> str:
    """Give all that was printed, and the Markdown that was shown."""
    texts = [
        output.get("text") or output["data"].get("text/markdown", "")
        for outputs in cells
        for output in outputs
    ]
    return "".join("".join(text) for text in texts)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the cells give here, by notebook."""
    # a process of its own: Jupyter's warnings are not ours, and its files stay in the folder
    folder = tmp_path_factory.mktemp("notebooks")
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = {**os.environ, **{name: str(folder / name) for name in places}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "examples" / "execute_notebooks.py"), str(folder)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return {name: outputs_of(folder / f"{name}.ipynb") for name in NAMES}


def test_one_observes_and_grows(ran):
    said = said_in(ran["observe_and_grow"])
    assert said.count("is wider by 12; outputs moved by") == 2
    assert "largest residual ratio" in said
    assert 0 <= float(said.rpartition("held-out accuracy ")[2].partition("%")[0]) <= 100
    pictures = [kind for cell in ran["observe_and_grow"] for kind in kinds_of(cell)]
    assert len([kinds for kinds in pictures if "image/png" in kinds]) == 3


def test_the_other_reads_a_comparison(ran):
    said = said_in(ran["read_comparison"])
    assert len(re.findall(r"^periodic [01] \d+\.\d% grew at steps \[\d", said, re.MULTILINE)) == 2
    assert len(re.findall(r"^static-full [01] \d+\.\d% grew at steps \[\]$", said, re.M)) == 2
    assert len(re.findall(r"^\| (?:static-full|periodic) +\| ", said, re.MULTILINE)) == 4
    assert re.search(r"^\| stage\d\.block\d.* \| +\d\.\d{3} \|$", said, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_what_it_gave(ran, name):
    path = ROOT / "examples" / f"{name}.ipynb"
    assert path.stat().st_size < 150_000
    kept = outputs_of(path)
    for there, here in zip(kept, ran[name], strict=True):
        if "text/markdown" not in str(here):  # how many hints there are hangs on rounding
            assert kinds_of(there) == kinds_of(here)
    assert "text/markdown" in str(kept)
    for place in ("stderr", "/tmp/", "/home/", "/root/"):
        assert place not in str(kept)


def test_all_notebooks_are_looked_at():
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(NAMES)
