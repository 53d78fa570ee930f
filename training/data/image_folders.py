"""A folder of images: its classes are folders, and nothing in it is left out without a word."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import normalize
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from PIL import Image

from analysis.recording.atomic_files import path_of
from training.data.image_files import decode
from training.data.images import Images, Parts

THREADED_PIXELS = 128 * 128
"""Images of at least so many pixels are decoded in several threads (measured on 2 cores)."""
_LITTER = ("thumbs.db", "desktop.ini")
"""What Windows leaves in folders of images; what begins with a dot is left out too."""
_Classes = dict[str, list[Path]]


def read_folder(path: str) -> Parts:
    """Read PATH/train/CLASS/* and PATH/test/CLASS/* as RGB; the classes are numbered by name.

    Raises:
        ValueError: a folder or class is missing or empty, train and test differ in their classes, a
            file is no image or none that `training.data.image_files.decode` takes as it is, or an
            image has another size than the first.
    """
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        told = str(error)
        if isinstance(error, OSError):
            told = f"data: {error.filename} cannot be read: {error.strerror}"
        raise ValueError(_printable(told)) from None


def _printable(text: str) -> str:
    """Give a text in which bytes of a name that are no UTF-8 stand as escapes."""
    return text.encode(errors="backslashreplace").decode()


def _read(path: str) -> Parts:
    root = path_of("data", path)
    if not path or not root.is_dir():
        raise ValueError(f"data folder:PATH must name an existing folder, got {path!r}")
    train, test = _class_files(root / "train"), _class_files(root / "test")
    if train.keys() != test.keys():
        lone = [
            f"only in {part}: {', '.join(sorted(mine.keys() - other.keys()))}"
            for part, mine, other in (("train", train, test), ("test", test, train))
            if mine.keys() - other.keys()
        ]
        raise ValueError(f"train and test of {root} must hold the same classes; {'; '.join(lone)}")
    if len(train) < 2:
        only = ", ".join(train)
        raise ValueError(f"train of {root} must hold at least 2 classes, got 1 ({only})")
    first = next(iter(train.values()))[0]
    with catch_warnings():
        simplefilter("ignore")  # Pillow's, of metadata; what makes an image unusable is an error
        parts = _decode_all(train, first), _decode_all(test, first)
    return Parts(*parts, tuple(map(_printable, train)))


def _class_files(folder: Path) -> _Classes:
    """List the files of every class, both in the order of their names."""
    if not folder.is_dir():
        allowed = "data folder:PATH must hold train/CLASS/* and test/CLASS/*"
        raise ValueError(f"{allowed}; {folder} is missing")
    classes: _Classes = {}
    for entry in _entries(folder):
        if entry.is_dir():
            name = normalize("NFC", entry.name)  # macOS may write one name in two ways
            if name in classes:
                raise ValueError(f"{folder} must hold every class once, got {name} twice")
            classes[name] = [Path(file.path) for file in _entries(entry) if _is_file(file)]
        elif entry.is_symlink() and not entry.is_file():
            raise ValueError(f"{folder} must hold classes, got the broken link {entry.path}")
        elif Path(entry.name).suffix.lower() in Image.registered_extensions():
            raise ValueError(f"{folder} must hold a folder for every class, got {entry.path}")
    if not classes:
        raise ValueError(f"{folder} must hold a folder of images for every class, got none")
    for name, files in classes.items():
        if not files:
            raise ValueError(f"{folder / name} must hold at least one image, got none")
    return classes


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Give what is in a folder by name, but for hidden files and litter."""
    with os.scandir(folder) as entries:
        seen = [each for each in entries if not each.name.startswith(".")]
    seen = [each for each in seen if each.name.lower() not in _LITTER]
    return sorted(seen, key=lambda each: (normalize("NFC", each.name), each.name))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Say yes, or refuse what is no file: to open a pipe would wait for ever."""
    try:
        if entry.is_file():
            return True
    except OSError as error:  # links in a circle
        raise ValueError(f"{entry.path} is no image that can be read ({error.strerror})") from None
    kind = "a folder" if entry.is_dir() else "a broken link" if entry.is_symlink() else "no file"
    raise ValueError(f"{entry.path} is no image that can be read (it is {kind})")


def _decode_all(classes: _Classes, first: Path) -> Images:
    """Decode the files of a part in threads; all must have the size of `first`."""
    files = [file for members in classes.values() for file in members]
    size = decode(first).shape
    pixels = np.empty((len(files), *size), dtype=np.uint8)

    def place(chunk: np.ndarray) -> None:
        for index in chunk:
            image = decode(files[index])
            if image.shape != size:
                got, wanted = (f"{width} x {height}" for height, width, _ in (image.shape, size))
                where = f"{got} in {files[index]} and {wanted} in {first}"
                raise ValueError(f"images must all be of one size, got {where}")
            pixels[index] = image

    # Threads that decode small images wait for the interpreter's lock: slower than one thread.
    threads = os.cpu_count() or 1 if size[0] * size[1] >= THREADED_PIXELS else 1
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(place, np.array_split(np.arange(len(files)), 8 * threads)):
            pass  # raises the first error in the order of the files
    counts = torch.tensor([len(members) for members in classes.values()])
    return Images(torch.from_numpy(pixels), torch.arange(len(classes)).repeat_interleave(counts))
