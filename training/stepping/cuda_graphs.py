"""Work on a GPU captured as CUDA graphs, which share their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from analysis.observing.hooks import Hook

_OF_MODULES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
Replay = Callable[[], None]


class CudaGraphs:
    """Captures work on the current stream of a GPU; all graphs live in one pool of memory.

    A replay does what the capture has seen, with the memory that it has seen, and costs the host
    next to nothing. The graphs of one pool must run one after the other.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # a pool of which all graphs are gone cannot be captured into again
        self._anchor = self.record(lambda: torch.zeros(1, device="cuda"))

    def record(self, work: Callable[[], Any]) -> Replay:
        """Capture the work, which must have run on this stream before; it does not run now."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.current_stream().synchronize()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
        return graph.replay


def foreign_hook(net: nn.Module) -> str | None:
    """Name a module with a hook that is not ours, which replays would not call, or None."""
    for path, module in net.named_modules():
        for kind in _OF_MODULES:
            if any(not isinstance(hook, Hook) for hook in vars(module)[kind].values()):
                return path or "the network"
    return None
