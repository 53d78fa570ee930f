"""Data sets by name: scikit-learn's digits, torchvision's files, images of one's own, the sine."""

from __future__ import annotations

import os
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from math import pi
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nets.checks import check_choice
from nets.modules.random_draws import generator_of
from training.data.image_folders import read_folder
from training.data.images import Images, Parts
from training.data.npz_files import read_npz

TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", "MNIST/raw/*.gz"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw", "FashionMNIST/raw/*.gz"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
}
"""By data set: torchvision's class, the folder of its files, their archives."""
NAMES = ("digits", *TORCHVISION, "folder:PATH", "npz:FILE", "sine")
SINE_POINTS = {"train": 1000, "test": 500}


def read(name: str, data_dir: Path) -> Parts:
    """Read a data set as its source divides it.

    Raises:
        ValueError: an unknown name, or files that are missing or cannot be used; it says which.
    """
    if name.startswith("folder:"):
        return read_folder(name.removeprefix("folder:"))
    if name.startswith("npz:"):
        return read_npz(name.removeprefix("npz:"))
    check_choice("data", name, NAMES)
    if name == "digits":
        return read_digits()
    if name == "sine":
        return Parts(sine("train"), sine("test"))
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
    return Parts(Images(pixels, rows[:, -1].long()), None, tuple(map(str, range(10))))


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

    kind_name, folder, archives = TORCHVISION[name]
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
    return parts


def _open(kind: Any, root: Path) -> Parts | None:
    """Read the training and the test part; None where files are missing or damaged."""
    images, names = [], ()
    for train in (True, False):
        try:
            part = kind(root, train=train)
        # Missing files are a RuntimeError; a truncated IDX file may be any of the others.
        except (RuntimeError, AssertionError, ValueError, TypeError, KeyError):
            return None
        pixels = torch.as_tensor(part.data).contiguous()  # CIFAR's lie channels first
        # (N, H, W) of grey images -> (N, H, W, 1)
        images.append(Images(pixels.view(*pixels.shape[:3], -1), torch.as_tensor(part.targets)))
        names = tuple(part.classes)
    return Parts(images[0], images[1], names)


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
