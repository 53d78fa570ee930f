"""Files are replaced whole or added to; a write that fails names its file and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Unwritten(OSError):
    """A file that could not be written; as text one line with its name and the reason."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


def path_of(name: str, path: str | Path) -> Path:
    """Give a path as a shell does: `~` at its beginning is the home folder.

    Raises:
        ValueError: no such user; it names the argument.
    """
    text = os.path.expanduser(path)
    if text.startswith("~"):
        raise ValueError(
            f"{name} must begin with ~ for your own home folder, ~USER for that of a user here, "
            f"or ./~ for a name; got {text!r}"
        )
    found = Path(text)
    return found.absolute() if str(found).startswith("~") else found  # it was ./~


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `Unwritten` with the name of the file for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise Unwritten(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and put it in place.

    Raises:
        Unwritten: the disk is full, say; the old file is as it was.
    """
    temporary = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(_encoded(content))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append(path: Path, content: str | bytes) -> None:
    """Add to the end of a file, made if it is not there.

    It outlives the process at once, and the machine after `to_disk`.

    Raises:
        Unwritten: the disk is full, say; the file is as it was.
    """
    with writing(path):
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(_encoded(content))
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def to_disk(path: Path) -> None:
    """Flush a file to the disk with all that was added to it, if it is there.

    Raises:
        Unwritten: the disk is full, say.
    """
    with writing(path), suppress(FileNotFoundError), path.open("r+b") as file:
        os.fsync(file.fileno())


def _encoded(content: str | bytes) -> bytes:
    """Give text in UTF-8; what cannot be, in a name, is escaped."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content
