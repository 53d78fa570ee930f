"""A TensorBoard event file without a thread: what is refused is raised where it was written.

Below are the summaries that go into it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars

from analysis.recording.atomic_files import append, to_disk
from analysis.showing.matplotlib_figures import size_of_png

_VERSION = "brain.Event:2"
_PREFIX = "events.out.tfevents."
_LAYOUT: Any = layout_pb2


class EventFile:
    """A new event file in `folder`; summaries wait in memory until `flush`.

    TensorBoard's own writer has a thread that dies with a traceback when the disk is full.

    Args:
        folder: made if it is not there.
        purge_step: events of this step and later in the folder's older files are hidden.
        times: of all events, and that in the file's name, in nanoseconds, so that the same events
            are the same file; by default they are written now.

    Raises:
        Unwritten: the disk is full, say; so does `flush`.
    """

    def __init__(
        self, folder: Path, purge_step: int | None = None, times: tuple[int, int] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        writer = f"{_stamp(folder)}.{socket.gethostname()}.{os.getpid()}"
        self._time = times[0] / 1e9 if times else None
        self._path = folder / f"{_PREFIX}{f'{times[1]:019d}.again' if times else writer}"
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
        """Write out what is waiting, and flush the file to the disk."""
        self.flush()
        to_disk(self._path)

    def _write(self, event: Event) -> None:
        event.wall_time = time.time() if self._time is None else self._time
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


def category(title: str, charts: Sequence[Any], closed: bool = False) -> Any:
    """Give a category of custom scalars, whose charts are loaded once it is open."""
    return _LAYOUT.Category(title=title, chart=charts, closed=closed)


def lines_chart(title: str, patterns: Sequence[str]) -> Any:
    """Give a chart of all tags that begin with one of the patterns."""
    return _LAYOUT.Chart(title=title, multiline=_LAYOUT.MultilineChartContent(tag=patterns))


def bands_chart(title: str, bands: Sequence[tuple[str, str, str]]) -> Any:
    """Give a chart of lines with bands: the tags of the value and of the band's edges, each."""
    kind = _LAYOUT.MarginChartContent
    series = [kind.Series(value=value, lower=low, upper=high) for value, low, high in bands]
    return _LAYOUT.Chart(title=title, margin=kind(series=series))


def layout_summary(categories: Sequence[Any]) -> Summary:
    """Give the custom scalars of a run."""
    summary = custom_scalars({})  # TensorBoard's own way needs TensorFlow
    told = _LAYOUT.Layout(category=categories).SerializeToString()
    summary.value[0].tensor.string_val[0] = told
    return summary


def scalars_summary(scalars: Mapping[str, float | None]) -> Summary:
    """Give numbers by tag; what is None is left out."""
    values = [
        Summary.Value(tag=tag, simple_value=value)
        for tag, value in scalars.items()
        if value is not None
    ]
    return Summary(value=values)


def images_summary(images: Mapping[str, bytes]) -> Summary:
    """Give PNGs by tag."""
    values = []
    for tag, png in images.items():
        size = dict(zip(("width", "height"), size_of_png(png)))
        image = Summary.Image(encoded_image_string=png, colorspace=4, **size)
        values.append(Summary.Value(tag=tag, image=image))
    return Summary(value=values)
