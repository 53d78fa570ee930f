"""What a command says and where: nothing that is written there ends a run. No torch here."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from time import monotonic

_SHOWN = {"±": "+-", "×": "x", "…": "...", "–": "-"}
"""What our own texts hold beyond ASCII."""

_UNHEARD = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EBADF, errno.EDQUOT)

SILENCE = 60.0
"""Seconds without a line after which a comparison that is no terminal's says what goes on."""


def open_streams() -> None:
    """Open streams that are closed onto nothing, and let stdout show what it can of any text.

    A closed one (`>&-`, a daemon, pythonw) is None, or is taken by the next file that is opened,
    into which a library would then print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            if stream.fileno() < 3:
                os.set_inheritable(stream.fileno(), True)  # for processes that run cells
            setattr(sys, name, stream)
    codecs.register_error("shown", _shown)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="shown")  # pyright: ignore[reportAttributeAccessIssue]


def _shown(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_SHOWN.get(c) or ascii(c)[1:-1] for c in text), error.end


def say(line: str) -> None:
    """Print a line at once; if that fails the run goes on, and its end tells it."""
    with suppress(OSError):
        print(line, flush=True)


@contextmanager
def reporting(first: bool = True):
    """Give (say, advance): a progress bar on a terminal, plain lines otherwise.

    Of several processes that train one network the first alone reports.
    """
    with reporting_runs(first) as (heard, advance, _):
        yield heard, advance


@contextmanager
def reporting_runs(first: bool = True):
    """Give (say, advance, running), as `reporting`; `running` takes the fractions spent by run.

    On a terminal the bar names the runs that go on; elsewhere a line does, after a silent minute.
    """
    if not first:
        yield lambda line: None, None, None
        return
    if not sys.stdout.isatty():
        plain = _PlainLines()
        yield plain.say, None, plain.running
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    going = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)
    )
    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), going
    with Progress(*columns, transient=True, expand=True) as bar:
        task = bar.add_task("budget", total=1.0)

        def above(line: str) -> None:
            with suppress(OSError):
                bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield (
            above,
            lambda spent: bar.update(task, completed=spent),
            lambda spent: bar.update(task, description=going_on(spent)),
        )


class _PlainLines:
    """Says lines; after a minute without one, what goes on."""

    def __init__(self) -> None:
        self._said = monotonic()

    def say(self, line: str) -> None:
        say(line)
        self._said = monotonic()

    def running(self, spent: Mapping[str, float]) -> None:
        if spent and monotonic() - self._said >= SILENCE:
            self.say(f"running: {going_on(spent)}")


def going_on(spent: Mapping[str, float]) -> str:
    """Give in one line which runs go on and what part of its budget each has spent."""
    return ", ".join(f"{name} {part:.0%}" for name, part in spent.items())


def complain(line: str) -> None:
    """Print a line on stderr, if anybody hears it: the exit code tells the same."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def lose_stdout(error: OSError) -> str:
    """Give up what waits for a stdout that cannot be written, and say so if that was the error."""
    try:
        sys.stdout.flush()
    except OSError:  # or the end of the process would fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return "stdout cannot be written: " if error.errno in _UNHEARD and not error.filename else ""
