"""One npz file with images and labels, under MedMNIST's names; its arrays are mapped, not read.

numpy writes an npz as a zip of .npy files, as they are (savez) or compressed (savez_compressed).
Those that lie there as they are can be mapped, so that the runs of a machine share one copy.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy

from analysis.recording.atomic_files import path_of
from training.data.images import Images, Parts

_MOST_CHANNELS = 4
_SHAPES = f"(N, H, W), (N, H, W, C) or (N, C, H, W) with C from 1 to {_MOST_CHANNELS}"
_SIZES = 26
"""Where a zip's member says how long its name and its extra field are; it has 30 bytes before."""


def read_npz(path: str) -> Parts:
    """Read train_images, train_labels, test_images and test_labels; val_* where they are there.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with C from 1 to 4. Labels are whole
    numbers from 0, (N,) or (N, 1), and every class has a training image. `class_names`, one text a
    class, may be there too. Nothing is unpickled.

    Raises:
        ValueError: the file or an array is missing or damaged, holds objects, or has another shape
            or type; it says which.
    """
    file = path_of("data", path)
    if not path or not file.is_file():
        raise ValueError(f"data npz:FILE must name an existing file, got {path!r}")
    try:
        with ZipFile(file) as archive:
            infos = archive.infolist()
    except (OSError, BadZipFile, ValueError) as error:
        raise ValueError(f"data npz:FILE must be a complete npz, got {file} ({error})") from None
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        names = ", ".join(info.filename for info in infos)
        raise ValueError(f"data: {file} must hold every array once, got {names}")
    needed = ["train", "test", *["val"] * ("val_images" in members or "val_labels" in members)]
    for name in [f"{part}_{what}" for part in needed for what in ("images", "labels")]:
        if name not in members:
            known = ", ".join(members) or "nothing"
            raise ValueError(f"data: {file} must hold {name}, got {known}")
    parts = {part: _part(file, members, part) for part in needed}
    sizes = {part: tuple(images.pixels.shape[1:]) for part, images in parts.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} in {part}_images" for part, size in sizes.items())
        raise ValueError(f"data: images of {file} must all be of one (H, W, C), got {told}")
    names = _class_names(file, members, parts)
    return Parts(parts["train"], parts["test"], names, parts.get("val"))


def _part(file: Path, members: dict[str, ZipInfo], part: str) -> Images:
    """Give a part's images and labels."""
    images, labels = (_array(file, members[f"{part}_{what}"]) for what in ("images", "labels"))
    pixels = _channels_last(file, f"{part}_images", images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(pixels),), (len(pixels), 1)):
        raise ValueError(
            f"data: {part}_labels of {file} must be one whole number an image, ({len(pixels)},) or "
            f"({len(pixels)}, 1), got {labels.dtype} {labels.shape}"
        )
    return Images(pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64)))


def _channels_last(file: Path, name: str, images: np.ndarray) -> torch.Tensor:
    """Give images as (N, H, W, C); an axis of at most four is that of the channels."""
    shape = images.shape
    first, last = (len(shape) == 4 and shape[axis] <= _MOST_CHANNELS for axis in (1, 3))
    told = f"got {images.dtype} {shape}"
    if images.dtype != np.uint8 or not (len(shape) == 3 or first or last) or 0 in shape:
        raise ValueError(f"data: {name} of {file} must be uint8, {_SHAPES}, {told}")
    if first and last:
        allowed = f"must have one axis of at most {_MOST_CHANNELS} channels, second or last"
        raise ValueError(f"data: {name} of {file} {allowed}, {told}")
    if len(shape) == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1) if first else images))


def _class_names(
    file: Path, members: dict[str, ZipInfo], parts: dict[str, Images]
) -> tuple[str, ...]:
    """Give the names of the classes, or their numbers; refuse labels that are of no class."""
    counts = _counts(file, parts["train"])
    for part, images in parts.items():
        least, most = int(images.targets.min()), int(images.targets.max())
        if least < 0 or most >= len(counts):
            allowed = f"must be from 0 to {len(counts) - 1}, the classes of train_labels"
            raise ValueError(f"data: {part}_labels of {file} {allowed}, got {least} to {most}")
    if "class_names" not in members:
        return tuple(map(str, range(len(counts))))
    names = _array(file, members["class_names"])
    if names.dtype.kind != "U" or names.shape != counts.shape or len(set(names)) < len(names):
        allowed = f"must be {len(counts)} different texts, one a class of train_labels"
        raise ValueError(f"data: class_names of {file} {allowed}, got {names.dtype} {names.shape}")
    return tuple(map(str, names))


def _counts(file: Path, train: Images) -> np.ndarray:
    """Count the training images of every class, none of which may lack them."""
    least, most = int(train.targets.min()), int(train.targets.max())
    # More classes than images leave one empty: counting them all could take any memory.
    counts = np.bincount(train.targets.clamp(0, len(train)).numpy())
    if least != 0 or len(counts) < 2 or 0 in counts:
        empty = f", none of {int(np.flatnonzero(counts == 0)[0])}" if 0 in counts else ""
        allowed = "must number at least 2 classes from 0, each with an image"
        got = f"{least} to {most}{empty}"
        raise ValueError(f"data: train_labels of {file} {allowed}, got {got}")
    return counts


def _array(file: Path, info: ZipInfo) -> np.ndarray:
    """Give an array of the file; where it is not compressed, a view of what lies on the disk.

    It can be written to, as torch wants it; what is written stays in this process.
    """
    try:
        with ZipFile(file) as archive, archive.open(info) as member:
            if info.compress_type != ZIP_STORED:
                values = npy.read_array(member, allow_pickle=False)
                if member.read(1):  # its end also checks the sum over all of it
                    raise ValueError("there is more than its header says")
                return values
            shape, fortran, dtype = _header(member)
            begin = member.tell()
        values = _mapped(file, info)[begin:]
        return np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
    # What zipfile, zlib and numpy raise of damaged, encrypted or pickled members.
    except (
        *(OSError, BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError),
        *(zlib.error, TypeError, SyntaxError, KeyError, struct.error, MemoryError),
    ) as error:
        name, told = info.filename, " ".join(str(error).split())
        raise ValueError(f"data: {name} of {file} cannot be read ({told})") from None


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read what an array that follows is: its shape, whether columns come first, its type."""
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(member)


def _mapped(file: Path, info: ZipInfo) -> memoryview:
    """Map a member that is stored as it is, and check its sum."""
    with file.open("rb") as opened:
        opened.seek(info.header_offset + _SIZES)
        name, extra = struct.unpack("<HH", opened.read(4))
        whole = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
    begin = info.header_offset + _SIZES + 4 + name + extra
    member = whole[begin : begin + info.file_size]
    if zlib.crc32(member) != info.CRC:
        raise ValueError("its bytes are not those that were written")
    return member
