"""Random numbers that depend on seeds and names alone: generators, and draws of forwards."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

Draw = Tensor
"""(2,) int64: the seed and the number of training forwards so far; stochastic depth draws from it.
"""
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


def uniform(draw: Draw, salt: int, samples: int | None = None) -> Tensor:
    """Give a number in [0, 1) that depends on (seed, step, salt) alone, without asking the host.

    With `samples`, so many numbers, which depend on their place as well. The mixing steps are those
    of splitmix64 (Steele et al. 2014) in int64 arithmetic that wraps around.
    """
    bits = draw[0] * -7046029254386353131 + draw[1] * -4658895280553007687 + salt
    if samples is not None:
        places = torch.arange(1, samples + 1, device=draw.device)
        bits = bits + places * -7723592293110705685
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (bits & ((1 << 53) - 1)).double() / (1 << 53)


def hash_of(*parts: object) -> int:
    """Hash the parts to a number below 2**62, the same in every process and on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def generator_of(*parts: object) -> torch.Generator:
    """Give a CPU generator whose stream depends on the parts alone."""
    return torch.Generator().manual_seed(hash_of(*parts))
