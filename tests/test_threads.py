"""Small nets get one thread where nobody says how many, and a line says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import short_comparison, short_run

from nets import cost, preset
from training.comparing.comparison import spared
from training.comparing.jobs import jobs_of, workers_of
from training.computing.torch_settings import SMALL, is_small, own_process, spare_threads
from training.running.loop import train
from training.settings.train_settings import Train


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Nobody said how many; torch would take three."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("net", "image", "small"),
    [
        ("mlp-500", (1,), True),
        ("resnet8", (1, 8, 8), True),
        ("resnet8", (1, 12, 12), True),
        ("resnet20", (3, 32, 32), False),
        ("resnet8", (3, 32, 32), False),
    ],
)
def test_the_limits_flops_decide(net, image, small):
    flops = cost(preset(net, image=image)).flops
    assert is_small(Train(net=net, device="cpu"), flops) == small


def test_whoever_says_how_many_gets_them(monkeypatch):
    assert is_small(Train(device="cpu"), SMALL - 1)
    assert not is_small(Train(device="cpu"), SMALL)
    assert not is_small(Train(device="cpu", threads=2), 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not is_small(Train(device="cpu"), 1)


def test_one_thread_is_told_of_where_there_were_more():
    with own_process(Train(device="cpu")):
        assert spare_threads(Train(device="cpu"), 1)
        assert torch.get_num_threads() == 1
        assert not spare_threads(Train(device="cpu"), 1)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [None, 1])
def test_a_small_run_has_one_thread_and_says_so_once_if_nobody_asked(tmp_path, threads):
    said, seen = list[str](), set[int]()
    settings = short_run(tmp_path, epochs=0.04, records=2, threads=threads)
    train(settings, said.append, lambda spent: seen.add(torch.get_num_threads()))
    assert seen == {1}
    assert torch.get_num_threads() == 3
    told = ["1 thread: more would slow so small a net (--threads)" in line for line in said]
    assert told == [False, threads is None, False]


def test_the_runs_of_a_comparison_have_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr("training.comparing.jobs.cores", lambda: 8)
    for given, flops, threads in ((None, 1, 1), (None, SMALL, 4), (5, 1, 5)):
        settings = short_comparison(tmp_path, threads=given, workers=2)
        jobs = spared(settings, jobs_of(settings), {("digits", "resnet8"): flops})
        assert {job.settings.threads for job in jobs} == {threads}
        assert [job.name for job in jobs] == [job.name for job in jobs_of(settings)]


def test_who_set_the_variable_said_how_many_of_a_comparison_too(tmp_path, monkeypatch):
    monkeypatch.setattr("training.comparing.jobs.cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settings = short_comparison(tmp_path, threads=None, workers=1)
    assert {job.settings.threads for job in jobs_of(settings)} == {2}
    assert workers_of(replace(settings, workers=None)) == 4
    for given, told in (("", 8), ("0", 8), ("x", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert {job.settings.threads for job in jobs_of(settings)} == {told}
