"""What all tests share: one thread a process, no pictures, and what is left out by default."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the suite runs in several processes

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("runs")  # what fails in there is explained as in a test


def pytest_collection_modifyitems(config, items):
    without_gpu = pytest.mark.skip(reason="needs a GPU")
    slow = pytest.mark.skip(reason="slow: give -m slow")
    for item in items:
        # not `in item.keywords`, which holds the names of the folders above too
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_gpu)
        if item.get_closest_marker("slow") and "slow" not in config.getoption("-m"):
            item.add_marker(slow)


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Runs draw nothing for TensorBoard, which takes longer than a short run.

    A module that looks at pictures has a fixture of its own by this name, which does nothing.
    """
    from analysis.showing.tensorboard_writer import Board  # late: TensorBoard takes a second

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "pictures", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def own_modules():
    """The `mine.py` of one test is not the next one's."""
    yield
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def plain_reports():
    """Comparisons write reports without pictures, as above; test_html_report looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.reporting.html_report._pictures", lambda judgement: [])
        patch.setattr("analysis.reporting.comparison_board._pictures", lambda *_: {})
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of three records that has grown; tests take copies."""
    import run
    from analysis.showing.tensorboard_writer import Board

    folder = tmp_path_factory.mktemp("finished") / "run"
    command = "train --net resnet8 --epochs 0.1 --records 3 --batch_size 32 --device cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "pictures", lambda *_: None)
        assert run.main([*command.split(), "--policy", "Periodic", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def example(monkeypatch):
    """A function that gives the policy class of an example by its import path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "policies"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(path):
        module, name = path.split(".")
        return getattr(importlib.import_module(module), name)

    return load


@pytest.fixture(scope="session")
def parser():
    """The command line's parser, made once: that takes longer than most refusals."""
    from training.commandline.options import make_parser

    return make_parser()


@pytest.fixture
def refusal(capsys, monkeypatch, parser):
    """A function that runs a command which must refuse in one line, and gives the line.

    Nothing may train, and no file in the working directory may change.
    """
    from runs import refusal_of

    import run
    import training.running.loop

    def no_step(*_):
        raise AssertionError("this must not train")

    monkeypatch.setattr(training.running.loop, "take_step", no_step)
    monkeypatch.setattr(run, "make_parser", lambda: parser)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def refused(words):
        before = contents()
        line = refusal_of(capsys, words)
        assert contents() == before
        return line

    return refused


def contents():
    """Give the files below the working directory with their bytes, and the folders.

    Locks are left out, and folders that were made for one.
    """
    paths = list(Path().rglob("*"))
    files = {path: path.read_bytes() for path in paths if path.is_file() and path.name != ".lock"}
    made = {folder for path in paths if path.name == ".lock" for folder in path.parents}
    made -= {folder for path in files for folder in path.parents}
    return files, {path for path in paths if path.is_dir()} - made
