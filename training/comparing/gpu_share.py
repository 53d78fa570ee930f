"""How many runs go on at a time on one GPU: its processes take turns, unless NVIDIA's MPS runs."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from nets import preset, train_flops
from training.settings.compare_settings import Compare

_GAIN = ((4e10, 8), (1e11, 4))
"""FLOPs of a training step up to which so many runs at a time pay where they need not take turns.

Measured with captured steps at batch 128 on an H200 with 16 cores, torch 2.11 (`python -m
benchmarks.gpu --processes 1 2 4 8`): ResNet-20 (3e10 FLOPs a step) 42,000 images a second for one
process, in all 72,000 for 2, 99,000 for 4 and 116,000 for 8; its start 86,000, 150,000, 210,000 and
253,000. Without MPS they take turns: 51,000, 55,000 and 53,000 for 1, 2 and 4. Between 4e10 and
1e11 it is an estimate.
"""


def runs_a_gpu(settings: Compare) -> int:
    """Give `per_gpu`, or without it what pays for the largest net of the comparison.

    The net is counted for the images that its name is known for.
    """
    if settings.per_gpu is not None:
        return settings.per_gpu
    if not mps_runs():
        return 1
    nets = {settings.ground(name)[1] for name in settings.cells}
    step = settings.batch_size * max(train_flops(preset(net)) for net in nets)
    return next((runs for most, runs in _GAIN if step <= most), 1)


def mps_runs() -> bool:
    """Say whether NVIDIA's multi-process service answers here.

    Its control daemon listens on the socket `control` in CUDA_MPS_PIPE_DIRECTORY, or in
    /tmp/nvidia-mps. The file outlives the daemon, and in a container the process id that lies
    beside it is another namespace's: so the socket is asked. It is asked for datagrams, which a
    listener of connections refuses in a way of its own, and hears nothing of.
    """
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"
    kind = getattr(socket, "AF_UNIX", None)
    if kind is None:  # Windows, which has no MPS either
        return False
    with socket.socket(kind, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(str(Path(folder) / "control"))
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True
