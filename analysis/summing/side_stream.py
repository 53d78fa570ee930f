"""A second stream inside a CUDA graph, for work that what comes next does not wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


class SideStream:
    """While a whole step is captured, work of its own runs beside the step's, if that is allowed.

    A graph of one stream runs its kernels one after the other, also those that leave most of a GPU
    idle. Elsewhere the work runs in its place.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._stream: Any = None
        self._kept: list[object] = []

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow it for a while, in which everything is captured up to the `join` of all work."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False

    @contextmanager
    def work(self, *kept: object) -> Iterator[None]:
        """Let what is inside run beside what follows until `join`.

        Args:
            kept: what the work reads and did not make, or who holds it: its memory must not be
                given to others meanwhile. If all of it is empty there is no work.
        """
        captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if not (self._allowed and captured and any(kept)):
            yield
            return
        self._kept.extend(kept)
        main = torch.cuda.current_stream()
        self._stream = _stream_beside(main)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let what follows wait for the work."""
        if self._kept:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._kept.clear()


@cache
def _stream_beside(main: Any) -> Any:
    """Give the second stream of a first: the same one for every network that is trained there.

    What the allocator has for one stream it gives to no other, in the pool of graphs too, which
    outlives a network that has grown.
    """
    return torch.cuda.Stream(main.device)
