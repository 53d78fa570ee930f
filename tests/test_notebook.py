"""The notebook runs from top to bottom in a kernel of this interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "observe_and_grow.ipynb"
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
resources = {"metadata": {"path": sys.argv[2]}}
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
nbformat.write(notebook, sys.argv[3])
"""


def test_the_notebook_runs_and_shows_what_it_promises(tmp_path):
    # a process of its own: Jupyter's warnings are not ours, and its files stay in tmp_path
    folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = {**os.environ, **{name: str(tmp_path / name) for name in folders}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = tmp_path / "done.ipynb"
    words = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path), str(done)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    cells = json.loads(done.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert said.count("is wider by 12; outputs moved by") == 2
    assert "largest residual ratio" in said
    assert 0 <= float(said.rpartition("held-out accuracy ")[2].partition("%")[0]) <= 100
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
