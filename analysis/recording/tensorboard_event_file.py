"""A TensorBoard event file without a thread: what is refused is raised where it was written."""

from __future__ import annotations

import os
import socket
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

from analysis.recording.atomic_files import append, to_disk

_VERSION = "brain.Event:2"
_PREFIX = "events.out.tfevents."


class EventFile:
    """A new event file in `folder`; summaries wait in memory until `flush`.

    TensorBoard's own writer has a thread that dies with a traceback when the disk is full.

    Args:
        folder: made if it is not there.
        purge_step: events of this step and later in the folder's older files are hidden.

    Raises:
        Unwritten: the disk is full, say; so does `flush`.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_PREFIX}{_stamp(folder)}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._waiting = BytesIO()
        self._write(Event(file_version=_VERSION))
        if purge_step is not None:
            self._write(Event(step=purge_step, file_version=_VERSION))
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, session_log=start))
        self.flush()

    def add(self, summary: Summary, step: int) -> None:
        """Keep a summary for the next `flush`."""
        self._write(Event(summary=summary, step=step))

    def flush(self) -> None:
        """Write out what is waiting."""
        waiting, self._waiting = self._waiting.getvalue(), BytesIO()
        if waiting:
            append(self._path, waiting)

    def to_disk(self) -> None:
        """Flush the file to the disk, as far as it is written out."""
        to_disk(self._path)

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self._waiting).write(event.SerializeToString())


class WriterEvents:
    """The event file of a `torch.utils.tensorboard.SummaryWriter`, which writes in a thread."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, summary: Summary, step: int) -> None:
        """Hand a summary to the writer's file, as its own `add_scalar` does."""
        self._writer._get_file_writer().add_summary(summary, step)

    def flush(self) -> None:
        """Have the writer write out what is waiting."""
        self._writer.flush()

    def to_disk(self) -> None:
        """Do the same; the writer cannot do more."""
        self.flush()


def _stamp(folder: Path) -> str:
    """Give the time in nanoseconds, or what comes after the folder's last file if that is later.

    TensorBoard reads the files of a folder in the order of their names, and a clock may have been
    set back since the last one was begun. All stamps of ours have 19 digits.
    """
    now = f"{time.time_ns():019d}"
    names = [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")]
    stamps = [name.partition(".")[0] for name in names]
    last = max((stamp for stamp in stamps if stamp.isdecimal()), default="")
    return now if now > last else f"{int(last) + 1:0{len(last)}d}"
