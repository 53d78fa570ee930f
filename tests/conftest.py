"""What all tests share: one thread a process, no pictures, and what is left out by default."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the suite runs in several processes

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    without_gpu = pytest.mark.skip(reason="needs a GPU")
    slow = pytest.mark.skip(reason="slow: give -m slow")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(without_gpu)
        if "slow" in item.keywords and "slow" not in config.getoption("-m"):
            item.add_marker(slow)


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Runs draw nothing for TensorBoard, which takes longer than a short run.

    A module that looks at pictures has a fixture of its own by this name, which does nothing.
    """
    from analysis.board import Board  # late: TensorBoard takes a second

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "pictures", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def plain_reports():
    """Comparisons write reports without pictures, as above; test_report looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report._pictures", lambda judgement: [])
        yield
