"""A second stream in a captured step, told by a stand-in for CUDA's streams."""

import weakref
from contextlib import contextmanager

import pytest
import torch

from analysis.summing.side_stream import SideStream


class Cuda:
    """Notes who waits for whom and where work runs."""

    def __init__(self, monkeypatch, capturing):
        self.told, self.current = [], self.Stream("step", self)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.Stream("side", self))
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    class Stream:
        def __init__(self, name, cuda):
            self.name, self.cuda = name, cuda

        def wait_stream(self, other):
            self.cuda.told.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def work(self):
        self.told.append(f"work on {self.current.name}")


def test_work_waits_for_the_step_so_far_and_the_step_for_it_only_when_joined(monkeypatch):
    cuda, beside = Cuda(monkeypatch, capturing=True), SideStream()
    for _ in range(2):
        with beside.work([torch.zeros(1)]):
            cuda.work()
        cuda.work()
        beside.join()
        assert cuda.told == [
            "side waits for step",
            "work on side",
            "work on step",
            "step waits for side",
        ]
        cuda.told.clear()
    beside.join()
    assert cuda.told == []  # there is nothing to wait for


def test_what_work_reads_is_kept_until_it_is_joined(monkeypatch):
    class Kept:
        pass

    cuda, beside, kept = Cuda(monkeypatch, capturing=True), SideStream(), Kept()
    alive = weakref.ref(kept)
    with beside.work([kept]):
        del kept
    assert alive() is not None
    beside.join()
    assert alive() is None
    assert cuda.told


@pytest.mark.parametrize("cuda", [True, False])
def test_work_that_is_not_captured_runs_in_its_place(monkeypatch, cuda):
    told = Cuda(monkeypatch, capturing=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
    beside = SideStream()
    with beside.work([torch.zeros(1)]):
        told.work()
    beside.join()
    assert told.told == ["work on step"]
