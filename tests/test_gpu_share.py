"""How many runs share a GPU, with and without a daemon that listens where MPS's does."""

import socket

import pytest

from policies import Never
from training.comparing.gpu_share import mps_runs, runs_a_gpu
from training.comparing.jobs import workers_of
from training.settings.compare_settings import Cell, Compare


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A socket as MPS's control daemon has it; its file stays when it is closed."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control"))
        listening.listen()
        listening.setblocking(False)
        yield listening


def test_mps_runs_while_its_daemon_listens_and_is_not_spoken_to(daemon, tmp_path):
    assert mps_runs()
    with pytest.raises(BlockingIOError):
        daemon.accept()
    daemon.close()
    assert (tmp_path / "control").exists()
    assert not mps_runs()


@pytest.mark.parametrize("folder", ["nowhere", "a" * 200])
def test_without_its_socket_mps_does_not_run(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / folder))
    assert not mps_runs()


def test_small_nets_share_a_gpu_where_they_need_not_take_turns(daemon, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    small = {name: Cell(Never()) for name in "abcdefghij"}
    mixed = {**small, "large": Cell(Never(), net="wrn-28-10")}
    for cells, given, runs in (
        (small, {}, 8),
        (small, {"batch_size": 1024}, 1),
        (small, {"per_gpu": 2}, 2),
        (small, {"net": "wrn-16-4"}, 1),
        (mixed, {}, 1),
    ):
        settings = Compare(cells=cells, **given)
        assert runs_a_gpu(settings) == runs
        assert workers_of(settings) == 2 * runs
    daemon.close()
    assert runs_a_gpu(Compare(cells=small)) == 1
    assert runs_a_gpu(Compare(cells=small, per_gpu=2)) == 2
