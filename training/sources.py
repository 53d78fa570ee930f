"""Where images come from: scikit-learn's digits, torchvision's files, a folder, the sine."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from math import pi
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from analysis.files import path_of
from nets.checks import check_choice
from nets.initializers import generator_of

TORCHVISION = {
    "mnist": ("MNIST", 10, "MNIST/raw", "MNIST/raw/*.gz"),
    "fashion-mnist": ("FashionMNIST", 10, "FashionMNIST/raw", "FashionMNIST/raw/*.gz"),
    "cifar10": ("CIFAR10", 10, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", 100, "cifar-100-python", "cifar-100-python.tar.gz"),
}
"""By data set: torchvision's class, how many classes, the folder of its files, their archives."""
NAMES = ("digits", *TORCHVISION, "folder:PATH", "sine")
SINE_POINTS = {"train": 1000, "test": 500}
THREADED_PIXELS = 128 * 128
"""Images of at least so many pixels are decoded in several threads (measured on 2 cores)."""


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs and targets of one split.

    `pixels` are uint8 (N, H, W, C), `targets` int64 (N,); for a regression both are float32 (N, 1).
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, chosen: Tensor) -> Images:
        """Give the images that a boolean mask or indices choose."""
        return Images(self.pixels[chosen], self.targets[chosen])


Parts = tuple[Images, Images | None, int]
"""The training part, the test part (None where the source has none) and the number of classes."""


def read(name: str, data_dir: Path) -> Parts:
    """Read a data set as its source divides it.

    Raises:
        ValueError: an unknown name, or files that are missing or cannot be used; it says which.
    """
    if name.startswith("folder:"):
        return read_folder(name.removeprefix("folder:"))
    check_choice("data", name, NAMES)
    if name == "digits":
        return read_digits()
    if name == "sine":
        return sine("train"), sine("test"), 1
    return read_torchvision(name, data_dir)


def read_digits() -> Parts:
    """Read scikit-learn's 1797 digits, (8, 8, 1), their 17 grey levels spread over 0..255."""
    # Its file, read as `load_digits` does, which takes seconds of imports before.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))  # (1797, 65): 64 levels, the target
    pixels = (rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).round().to(torch.uint8)
    return Images(pixels, rows[:, -1].long()), None, 10


def sine(part: str) -> Images:
    """Draw the fixed points of one part: x uniform on [-2 pi, 2 pi], the target is sin(x)."""
    uniform = torch.rand(SINE_POINTS[part], 1, generator=generator_of("sine", part))
    points = (2 * uniform - 1) * 2 * pi
    return Images(points, points.sin())


def read_torchvision(name: str, data_dir: Path) -> Parts:
    """Read the files that torchvision knows, and download them where they are missing.

    Raises:
        ValueError: the files are not there and cannot be downloaded; it says where they go.
    """
    from torchvision import datasets  # a second of imports that only these data sets pay

    kind_name, classes, folder, archives = TORCHVISION[name]
    kind = getattr(datasets, kind_name)
    parts = _open(kind, data_dir)
    if parts is None:
        try:
            _download(kind, data_dir, folder, archives)
        except (OSError, RuntimeError, HTTPException) as error:
            absent = f"{name} is not in {data_dir} and cannot be downloaded"
            reason = " ".join(str(error).split())  # one line, even of a list of mirrors
            advice = f"put {folder}/ or {archives} there, complete"
            raise ValueError(f"{absent}: {advice} ({reason})") from None
        parts = _open(kind, data_dir)
        assert parts is not None  # the download was read before it came to its place
    return *parts, classes


def _open(kind: Any, root: Path) -> tuple[Images, Images] | None:
    """Read the training and the test part; None where files are missing or damaged."""
    images = []
    for train in (True, False):
        try:
            part = kind(root, train=train)
        # Missing files are a RuntimeError; a truncated IDX file may be any of the others.
        except (RuntimeError, AssertionError, ValueError, TypeError, KeyError):
            return None
        pixels = torch.as_tensor(part.data).contiguous()  # CIFAR's lie channels first
        # (N, H, W) of grey images -> (N, H, W, 1)
        images.append(Images(pixels.view(*pixels.shape[:3], -1), torch.as_tensor(part.targets)))
    return images[0], images[1]


def _download(kind: Any, data_dir: Path, folder: str, archives: str) -> None:
    """Download beside the final place and rename, so that nobody ever sees half a data set."""
    created = not data_dir.exists()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=data_dir) as name:
            staging = Path(name)
            for archive in data_dir.glob(archives):  # what the user brought is checked and unpacked
                copy = staging / archive.relative_to(data_dir)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copyfile(archive, copy)
            kind(staging, train=True, download=True)
            if _open(kind, data_dir) is not None:  # another process was faster
                return
            target = data_dir / folder
            if target.exists():
                os.replace(target, staging / "damaged")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / folder, target)
    except BaseException:
        if created:
            with suppress(OSError):
                data_dir.rmdir()
        raise


def read_folder(path: str) -> Parts:
    """Read PATH/train/CLASS/* and PATH/test/CLASS/* as RGB; the classes are numbered by name.

    Raises:
        ValueError: a folder or class is missing or empty, train and test differ in their classes, a
            file is no image, or an image has another size than the first.
    """
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
    return _decode_all(train, first), _decode_all(test, first), len(train)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """List the files of every class, both sorted by name; what begins with a dot is left out."""
    if not folder.is_dir():
        allowed = "data folder:PATH must hold train/CLASS/* and test/CLASS/*"
        raise ValueError(f"{allowed}; {folder} is missing")
    seen = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = {
        entry.name: sorted(file for file in entry.iterdir() if not file.name.startswith("."))
        for entry in seen
        if entry.is_dir()
    }
    if not classes:
        raise ValueError(f"{folder} must hold a folder of images for every class, got none")
    for name, files in classes.items():
        if not files:
            raise ValueError(f"{folder / name} must hold at least one image, got none")
    return classes


def _decode_all(classes: dict[str, list[Path]], first: Path) -> Images:
    """Decode the files of a part in threads; all must have the size of `first`."""
    files = [file for members in classes.values() for file in members]
    size = _decode(first).shape
    pixels = np.empty((len(files), *size), dtype=np.uint8)

    def place(chunk: np.ndarray) -> None:
        for index in chunk:
            image = _decode(files[index])
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


def _decode(file: Path) -> np.ndarray:
    """Decode one file to uint8 RGB, (H, W, 3)."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    # Damaged files leave PIL's decoders as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no image that can be read ({error})") from None
