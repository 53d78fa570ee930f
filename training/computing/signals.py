"""SIGINT (Ctrl-C) and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The run was stopped by a signal; its checkpoint is written. `code` is the exit code."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + number


class Interrupts:
    """Holds back SIGINT and SIGTERM inside a `with` block; `number` is the one that came, or None.

    A second signal does what it always does. Outside the main thread nothing is held back.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()
