"""Data sets by name: scikit-learn's digits, torchvision's files, images of one's own, the sine."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, fields
from http.client import HTTPException
from importlib.util import find_spec
from math import pi
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nets.checks import check_choice, check_kinds
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
NAMES = ("digits", "digits:SETTINGS", *TORCHVISION, "folder:PATH", "npz:FILE", "sine")
SINE_POINTS = {"train": 1000, "test": 500}
_LEVELS, _SIDE, _MOST_IMAGES = 256, 8, 1400
"""Grey levels and side of a digit, and the most training images that leave some to validate on."""


@dataclass(frozen=True)
class HardDigits:
    """How hard the digits are made, as `digits:images=300,shift=2,noise=0.3` says it.

    Args:
        images: for training, from 10 to 1400, as many of each class as all have; all others but the
            plain digits' test images are validated on, so that a comparison's noise is small. None
            is the plain digits' split: 1295 and 143.
        shift: pixels by which a digit may lie off the middle, each way, from 0 to 8; the image
            grows by that border, 8 + 2 shift a side, so that no digit is cut.
        noise: share of all pixels that hold a random grey level instead, from 0 to below 1.
    """

    images: int | None = None
    shift: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.images is not None and not 10 <= self.images <= _MOST_IMAGES:
            raise ValueError(f"images must be from 10 to {_MOST_IMAGES}, got {self.images}")
        if not 0 <= self.shift <= _SIDE:
            raise ValueError(f"shift must be from 0 to {_SIDE}, got {self.shift}")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must be at least 0 and below 1, got {self.noise}")


def read(name: str, data_dir: Path) -> Parts:
    """Read a data set as its source divides it.

    Raises:
        ValueError: an unknown name, or files that are missing or cannot be used; it says which.
    """
    if name.startswith("folder:"):
        return read_folder(name.removeprefix("folder:"))
    if name.startswith("npz:"):
        return read_npz(name.removeprefix("npz:"))
    if name.startswith("digits:"):
        return harder(read_digits(), hard_digits(name.removeprefix("digits:")))
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


def hard_digits(text: str) -> HardDigits:
    """Read settings of digits, as `images=300,shift=2,noise=0.3`.

    Raises:
        ValueError: a setting is unknown, said twice, or out of its range.
    """
    known = tuple(item.name for item in fields(HardDigits))
    given: dict[str, Any] = {}
    for setting in text.split(","):
        name, _, value = setting.partition("=")
        check_choice("data digits:SETTINGS", name, known)
        if name in given:
            raise ValueError(f"data digits:SETTINGS must have {name} once, got {text!r}")
        try:
            given[name] = float(value) if name == "noise" else int(value)
        except ValueError:
            kind = "a number" if name == "noise" else "an integer"
            raise ValueError(f"data digits:{name} must be {kind}, got {value!r}") from None
    try:
        return HardDigits(**given)
    except ValueError as error:
        raise ValueError(f"data digits:{error}") from None


def harder(digits: Parts, hard: HardDigits) -> Parts:
    """Shift digits and replace pixels, each image by draws of its own: the same on all machines.

    Only whole numbers and uniform ones are drawn, which no processor rounds its own way.
    """
    pixels, targets = digits.train.pixels, digits.train.targets
    count, side = len(pixels), _SIDE + 2 * hard.shift
    corners = generator_of("digits", "shift")
    top, left = torch.randint(2 * hard.shift + 1, (2, count, 1, 1), generator=corners)
    image, rows = torch.arange(count)[:, None, None], torch.arange(_SIDE)[:, None]
    shifted = pixels.new_zeros(count, side, side, 1)
    shifted[image, top + rows, left + torch.arange(_SIDE)] = pixels
    drawn = generator_of("digits", "noise")
    noisy = torch.rand(shifted.shape, generator=drawn, dtype=torch.float64) < hard.noise
    levels = torch.randint(_LEVELS, shifted.shape, generator=drawn, dtype=torch.uint8)
    images = Images(torch.where(noisy, levels, shifted), targets)
    return Parts(images, None, digits.names, few=hard.images)


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
