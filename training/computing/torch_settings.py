"""What a run sets of torch in its process, and that all of it is afterwards as it was.

Several runs in one process (a comparison's, a notebook's) must not change each other or what comes
after them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from training.computing.optimizer import Precision
from training.settings.train_settings import Common

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_VARIABLES = (_WORKSPACE, "TORCHINDUCTOR_CACHE_DIR")
_FIXED_WORKSPACES = (":4096:8", ":16:8")
"""With which cuBLAS sums in one order (NVIDIA's manual of cuBLAS, "Results reproducibility")."""
SMALL = 4 * 10**6
"""FLOPs an image of the limit below which a CPU gets one thread, unless told: to hand so little
work to several costs what they save. Fastest steps of 128 on 2 cores that others used too, one
thread and two: mlp-500 on sine (2,000 FLOPs) 0.17 and 0.23 ms; resnet8 on digits (1.5 million) 12
ms and, as two threads wait for each other, seconds. The bound itself, above resnet8 on digits of 12
x 12 and far below CIFAR's nets, is a choice: no quiet machine has measured it."""


def is_small(settings: Common, flops: int) -> bool:
    """Say whether a run gets one thread where nobody said how many: its limit's FLOPs are few.

    The limit decides, not the net as it is: a run must not change its threads as it grows. Who set
    OMP_NUM_THREADS said how many.
    """
    told = settings.threads is not None or "OMP_NUM_THREADS" in os.environ
    return not told and flops < SMALL and Precision.of(settings).device.type == "cpu"


def spare_threads(settings: Common, flops: int) -> bool:
    """Set one thread for a small net, inside `own_process`; say whether there were more.

    Args:
        settings: of the run.
        flops: an image's, of its limit.
    """
    spared = is_small(settings, flops) and torch.get_num_threads() > 1
    if spared:
        torch.set_num_threads(1)
    return spared


@contextmanager
def own_process(settings: Common) -> Iterator[None]:
    """Set threads and, for `deterministic`, torch as a run wants them; put back all at the end.

    A GPU's work goes to a stream of its own. What is put back: the number of threads, the global
    generators of the CPU and, where CUDA runs, of all GPUs, torch's flags of determinism and
    precision, and the environment's variables.

    Raises:
        ValueError: the device is not there, or it is too late for `deterministic`.
    """
    device = Precision.of(settings).device
    cuda = device.type == "cuda" or torch.cuda.is_initialized()
    gpus = range(torch.cuda.device_count()) if cuda else ()
    with ExitStack() as after:
        after.enter_context(torch.random.fork_rng(gpus, device_type="cuda"))
        after.callback(torch.set_num_threads, torch.get_num_threads())
        for name in _VARIABLES:
            after.callback(_set_variable, name, os.environ.get(name))
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if settings.deterministic:
            after.enter_context(_deterministic(device))
        if device.type == "cuda":
            after.enter_context(_own_stream(device))
        yield


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own, in the order of what came before and comes after.

    A step can be captured only where the gradients' accumulation knows no other stream.
    """
    outer, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(outer)
    with torch.cuda.device(device), torch.cuda.stream(own):
        yield
    outer.wait_stream(own)


def _set_variable(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Let torch use no algorithm whose sums hang on the order of threads, and float32 be float32.

    TF32 would be deterministic, but it is not the float32 that a CPU computes.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted: list[tuple[Any, str, Any]] = [
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn.conv, "fp32_precision", "ieee"),
        (cudnn.rnn, "fp32_precision", "ieee"),  # else torch's older name of both can't be read
        (matmul, "fp32_precision", "ieee"),
    ]
    before = [getattr(owner, name) for owner, name, _ in wanted]
    mode = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        torch.use_deterministic_algorithms(True)
        if device.type == "cuda":
            _fix_workspace(device)
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        for (owner, name, _), value in zip(wanted, before):
            setattr(owner, name, value)


def _fix_workspace(device: torch.device) -> None:
    """Fix cuBLAS's workspace. It asks the environment once in a process, at its first product."""
    if os.environ.get(_WORKSPACE) not in _FIXED_WORKSPACES:
        os.environ[_WORKSPACE] = _FIXED_WORKSPACES[0]
    matrix = torch.ones(2, 2, device=device)
    try:
        torch.mm(matrix, matrix)
    except RuntimeError:
        raise ValueError(
            "deterministic comes too late: this process has used cuBLAS without a fixed workspace; "
            f"set {_WORKSPACE}={_FIXED_WORKSPACES[0]} before it starts, or use another process"
        ) from None
