"""The draw of a training forward, also of one that is run again (activation checkpointing)."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

MOST = 64
"""Forwards between one that is run again and its backward pass, at the most."""


def is_recomputing() -> bool:
    """Say whether a forward runs inside a backward pass, which had not stored what it gave."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Draws:
    """Counts training forwards in a buffer, and knows which forward is run again by its input.

    A network inside `torch.utils.checkpoint` is called a second time by the backward pass, with the
    same input in the same place of memory; the latest of several such forwards comes first.
    """

    def __init__(self) -> None:
        self._known: deque[list[Any]] = deque(maxlen=MOST)  # input, draw, backward pass

    def of(self, x: Tensor, draw: Tensor, rank: int) -> Tensor:
        """Give the draw of a training forward on `x`, in memory of its own.

        Args:
            x: the network's input.
            draw: (2,) int64, the seed and the number of training forwards; advanced in place.
            rank: tells the processes of one run apart.
        """
        if isinstance(x, Proxy):
            return draw
        if is_recomputing():
            now = torch._C._current_graph_task_id()
            for entry in reversed(self._known):
                if entry[0] == _place(x) and entry[2] != now:
                    entry[2] = now
                    return entry[1]
            return draw + (rank << 40)
        draw[1] += 1
        own = draw + (rank << 40)
        if not torch.compiler.is_compiling() and _is_checkpointed():
            self._known.append([_place(x), own, None])
        return own


def _place(x: Tensor) -> tuple[int, torch.Size]:
    return x.data_ptr(), x.shape


def _is_checkpointed() -> bool:
    """Say whether a forward may be run again: it stores nothing, or hands over what it stores."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None or not torch.is_grad_enabled()


def hash_of(*parts: object) -> int:
    """Hash the parts to a number below 2**62, the same in every process and on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def generator_of(*parts: object) -> torch.Generator:
    """Give a CPU generator whose stream depends on the parts alone."""
    return torch.Generator().manual_seed(hash_of(*parts))
