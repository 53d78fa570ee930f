"""The network in the form that training steps call: for several processes, compiled, or itself."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nets import Network
from training.computing import distributed
from training.settings.train_settings import Train

BACKEND = "inductor"
"""Of torch.compile."""
_SYNC = "forward_sync_buffers"
if _SYNC not in signature(DistributedDataParallel).parameters:
    _SYNC = "broadcast_buffers"  # its name in older versions
_APART: dict[str, Any] = {_SYNC: False}


def to_device(net: Network, device: torch.device) -> Network:
    """Give the network on the device, in the memory format in which its convolutions are fast."""
    return net.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def model_of(net: Network, settings: Train) -> nn.Module:
    """Give the network in the form that training steps call; once after every growth."""
    model = wrapped(net)
    if not settings.compile:
        return model
    # What was compiled for the nets before it counts towards the limit of recompilations.
    torch._dynamo.reset()
    # A run's own: a file cut short by a kill would break the runs that share it.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.folder.absolute() / "compiled")
    compiled: Any = torch.compile(model, backend=BACKEND)
    return compiled


def wrapped(net: Network) -> nn.Module:
    """Give the network in the form whose gradients are means over all processes.

    Running statistics go their own ways until `distributed.share_buffers` makes them rank 0's: in
    training nothing depends on them but what is frozen, and then they are held.
    """
    net.rank = distributed.rank()
    return net if distributed.size() == 1 else DistributedDataParallel(net, **_APART)


def apart(model: nn.Module) -> AbstractContextManager[Any]:
    """Give a context in which gradients are summed on their own process, for a later backward."""
    no_sync = getattr(model, "no_sync", None)  # also that of a DDP network inside a compiled one
    return no_sync() if no_sync else nullcontext()
