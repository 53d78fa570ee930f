"""A lock on a folder, so that one process at a time writes in it; it ends with its holder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.recording.atomic_files import writing
from training.computing.signals import Interrupted, Interrupts

try:
    import fcntl
except ImportError:  # Windows: nothing is held there
    fcntl = None

NAME = ".lock"
"""The file in the folder; it stays, with the last holder's process id in it."""
_PATIENCE = 0.3
"""Seconds in which a holder writes its process id, and `wait_for` lets go again."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there; nothing is held on a file system without locks.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out must be a folder, got the file {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"out: {folder} cannot be written: {error.strerror}") from None
    try:
        end = time.monotonic() + _PATIENCE
        while not _taken(file):
            if time.monotonic() > end:
                holder = os.pread(file, 200, 0).decode().strip()
                raise ValueError(f"out: {folder} is in use by process {holder}")
            time.sleep(_PATIENCE / 10)
        with writing(folder / NAME):
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(file)


def wait_for(folder: Path) -> None:
    """Wait until nobody holds the folder: a worker, say, that outlives its killed parent.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    if not (folder / NAME).exists():
        return
    file = os.open(folder / NAME, os.O_RDONLY)
    try:
        with Interrupts() as interrupts:
            while not _taken(file, shared=True):
                if interrupts.number:
                    raise Interrupted(interrupts.number, f"{folder} is in use")
                time.sleep(_PATIENCE / 10)
    finally:
        os.close(file)


def _taken(file: int, shared: bool = False) -> bool:
    """Try to take the lock; also true where there are no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
