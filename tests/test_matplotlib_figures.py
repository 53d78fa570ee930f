"""Pictures are drawn with our own settings, the user's stay, and no picture ends a run."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis import read_history
from analysis.reporting import capacity_pictures, comparison_board, html_report
from analysis.showing import history_pictures
from analysis.showing.matplotlib_figures import own_settings, svg_of
from run import main
from training.comparing.comparison import compare
from training.running.loop import train
from training.settings.compare_settings import Cell, Compare
from training.settings.start_settings import Start
from training.settings.train_settings import Train

QUICK = {"net": "resnet8", "epochs": 0.1, "records": 2, "batch_size": 32, "device": "cpu"}
THEIRS = {
    "text.usetex": True,
    "font.family": "no such font",
    "axes.formatter.use_mathtext": True,
    "axes.prop_cycle": matplotlib.cycler(color=["red"]),
    "savefig.dpi": 20,
    "savefig.bbox": "tight",
    "image.cmap": "jet",
    "figure.autolayout": True,
    "lines.linewidth": 9,
}


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Instead of the one for all tests: the pictures are drawn here."""


@pytest.fixture
def theirs():
    with matplotlib.rc_context(THEIRS):
        before = dict(matplotlib.rcParams)
        yield
        assert dict(matplotlib.rcParams) == before


def digests(drawn):
    return {name: hashlib.sha256(png).hexdigest() for name, png in drawn.items()}


@pytest.fixture(scope="module")
def plain(finished_run):
    return digests(history_pictures.draw(read_history(finished_run)))


def test_pictures_are_the_same_under_any_settings(finished_run, plain, theirs):
    assert digests(history_pictures.draw(read_history(finished_run))) == plain


def test_a_pictures_warnings_and_logs_are_the_users(theirs):
    logger = logging.getLogger("matplotlib")
    level = logger.level
    with own_settings():
        assert not matplotlib.rcParams["text.usetex"]
        assert logger.level == logging.CRITICAL
    assert logger.level == level


def test_names_are_drawn_as_they_are(finished_run, theirs):
    history = read_history(finished_run)
    names = ["$\\foo$", "a$b", "_hidden", "網 ±", "100 %", "\\frac"]
    for name in names:
        figure = capacity_pictures.layer_statistics({name: [history] for name in names}, name)
        assert name in svg_of(figure)


CHILD = """
import sys
from analysis.showing.matplotlib_figures import own_settings
with own_settings():
    from matplotlib.figure import Figure
    Figure().savefig(sys.argv[1])
import matplotlib, os
print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
"""


@pytest.mark.parametrize(
    ("backend", "theirs"), [("module://nowhere.at_all", "agg"), ("svg", "svg")]
)
def test_any_backend_may_be_asked_for(tmp_path, backend, theirs):
    """In a process of its own: matplotlib reads MPLBACKEND when it is imported."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: agg\nno.such.key: 3\n")
    told = {**os.environ, "MPLBACKEND": backend, "MPLCONFIGDIR": str(tmp_path / "matplotlibrc")}
    told["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path / "out.png")]
    done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == backend
    if backend == theirs:
        assert done.stdout.split()[1] == theirs
    assert (tmp_path / "out.png").stat().st_size


def fails(*_):
    raise RuntimeError("no\ncanvas")


FAILURE = "no pictures could be drawn: RuntimeError: no canvas"


def test_a_run_ends_without_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(history_pictures, "draw", fails)
    said: list[str] = []
    train(Train(**QUICK, out=str(tmp_path)), said.append)
    assert (tmp_path / "summary.json").exists()
    assert [line.endswith(FAILURE) for line in said] == [False, False, True]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "growth_history/text_summary" in tags["tensors"]


def test_inspect_shows_all_else(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(history_pictures, "draw", fails)
    assert main(["inspect", str(finished_run), "--out", str(tmp_path / "pictures")]) == 0
    shown = capsys.readouterr().out
    assert "Layers at step" in shown
    assert shown.splitlines()[-1] == FAILURE
    assert not (tmp_path / "pictures").exists()


def test_a_comparison_ends_without_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(history_pictures, "draw", fails)
    monkeypatch.setattr(html_report, "score_over", fails)
    monkeypatch.setattr(comparison_board, "score_over", fails)
    cells = {"a": Cell(start=Start(0.25, None)), "b": Cell(start=Start(0.5, None))}
    settings = Compare(**QUICK, threads=1, cells=cells, seeds=[0], workers=1, out=str(tmp_path))
    outcome = compare(settings, lambda line: None)
    assert outcome.failures == ()
    told = [f"report.html: {FAILURE}", "", f"_comparison: {FAILURE}"]
    assert outcome.text.splitlines()[-3:] == told
    assert FAILURE in (tmp_path / "report.html").read_text()
    assert FAILURE not in (tmp_path / "comparison.md").read_text()
