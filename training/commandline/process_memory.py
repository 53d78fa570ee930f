"""What glibc does with memory that a process of ours frees: it stays. No torch here."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_LARGEST = (2**30, 2**25)
"""Bytes up to which a block comes from the heap; older glibc take no more than the second."""


def keep_memory() -> None:
    """Let freed memory stay with the process, where glibc's mallopt is there to ask.

    Otherwise the blocks of a training step may go back to the system and come anew in every step: a
    matter of luck that costs a step nothing or up to a tenth. It is for the whole process, and for
    good: a command may ask for it, a function in somebody's notebook may not.
    """
    with suppress(OSError, AttributeError):  # macOS, Windows, musl
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # one without the other makes it worse: a threshold that is set no longer adapts
        if any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST):
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
