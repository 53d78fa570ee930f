"""One run on several processes: what torchrun started, and what they tell each other.

Every process (a rank) takes the same actions on the same network; of each batch it has its own
part. Rank 0 alone writes, prints and asks the policy. Without torchrun there is one process, and
everything here gives back what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from os import environ
from time import sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def started() -> int:
    """Give the number of processes that torchrun has started for this run, 1 without it."""
    return int(environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


@contextmanager
def joined() -> Iterator[bool]:
    """Join the processes that torchrun has started, if it has; give whether this is rank 0.

    gloo carries what lies on the CPU, nccl what lies on GPUs; each process takes the GPU of its
    local rank.
    """
    if started() == 1:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank() == 0
    finally:
        dist.destroy_process_group()
        # gloo's threads outlive the group. One that lets go of the last tensor only as the
        # interpreter ends aborts the process (seen with torch 2.14.1 on a busy machine).
        sleep(0.2)


def rank() -> int:
    """Give the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(sums: Tensor) -> Tensor:
    """Give the sum over all processes, the same on each; `sums` stays as it is."""
    if size() == 1:
        return sums
    sums = sums.clone()
    dist.all_reduce(sums)
    return sums


def greatest(value: float) -> float:
    """Give the largest value of any process. Hosts wait for each other, but for no device."""
    if size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.item()


def most(found: Tensor) -> Tensor:
    """Give the greatest entries of all processes, the same on each; no host waits for a device."""
    if size() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def from_first(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 alone, and give its result on every rank, or raise its ValueError."""
    if size() == 1:
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except ValueError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def gathered(value: T) -> list[T]:
    """Give what every process gives, in the order of ranks, on each."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def on_first(context: AbstractContextManager[object]) -> Iterator[None]:
    """Enter a context on rank 0 alone, or raise its ValueError on every rank."""
    with ExitStack() as entered:
        from_first(lambda: entered.enter_context(context))
        yield


def share_buffers(*nets: nn.Module | None) -> None:
    """Give every process the running statistics (and all other buffers) of rank 0."""
    if size() > 1:
        for net in filter(None, nets):
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)
