"""A second stream in a captured step, told by a stand-in for CUDA's streams."""

import weakref
from contextlib import contextmanager

import pytest
import torch
from makers import NETS, batch_of, network_of, sgd, take_step

from analysis import Observer
from analysis.summing.side_stream import SideStream

FORK, JOIN = "side waits for step", "step waits for side"


class Cuda:
    """Notes who waits for whom and where work runs."""

    def __init__(self, monkeypatch, capturing=True, initialized=True):
        self.told, self.current = [], self.Stream("step", self)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: self.Stream("side", self))
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    class Stream:
        device = torch.device("cuda", 0)

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
    cuda, beside = Cuda(monkeypatch), SideStream()
    for _ in range(2):
        with beside.allowed(), beside.work([torch.zeros(1)]):
            cuda.work()
        cuda.work()
        beside.join()
        assert cuda.told == [FORK, "work on side", "work on step", JOIN]
        cuda.told.clear()
    beside.join()
    assert cuda.told == []  # there is nothing to wait for


def test_what_work_reads_is_kept_until_it_is_joined(monkeypatch):
    class Kept:
        pass

    cuda, beside, kept = Cuda(monkeypatch), SideStream(), Kept()
    alive = weakref.ref(kept)
    with beside.allowed(), beside.work([kept]):
        del kept
    assert alive() is not None
    beside.join()
    assert alive() is None
    assert cuda.told


@pytest.mark.parametrize("what", ["no CUDA", "not captured", "not allowed", "nothing to do"])
def test_all_other_work_runs_in_its_place(monkeypatch, what):
    cuda = Cuda(monkeypatch, what != "not captured", what != "no CUDA")
    beside = SideStream()
    with beside.allowed() if what != "not allowed" else beside.work():
        kept = [] if what == "nothing to do" else [torch.zeros(1)]
        with beside.work(kept, []):
            cuda.work()
    beside.join()
    assert cuda.told == ["work on step"]


def test_an_observer_is_done_with_weights_before_they_are_updated(monkeypatch):
    net = network_of("basic")
    optimizer, batch = sgd(net), batch_of(NETS["basic"].image, 0)
    take_step(net, optimizer, *batch)  # what is made once is made
    cuda = Cuda(monkeypatch)
    optimizer.register_step_post_hook(lambda *_: cuda.told.append("update"))
    with Observer(net, optimizer) as observer:
        observer.rehearse(lambda: take_step(net, optimizer, *batch))
        assert cuda.told == [FORK, JOIN, "update"]
        cuda.told.clear()
        with torch.no_grad():
            net.eval()(batch[0])  # a capture of its own, of a validation
        assert cuda.told == []
        net.train()(batch[0]).sum().backward()  # of a part of a step, by somebody else
        assert cuda.told == []
