"""An npz file of images: MedMNIST's as it comes, mapped where it can be, refused by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.data.npz_files import read_npz
from training.data.splits import load

Arrays = dict[str, Any]


def arrays_of(size: tuple[int, ...] = (8, 8, 3), classes: int = 3, **changes: Any) -> Arrays:
    """Twelve images and labels a part; a change of None leaves an array out."""
    generator = np.random.default_rng(0)
    found: Arrays = {}
    for part in ("train", "test"):
        found[f"{part}_images"] = generator.integers(0, 256, (12, *size), np.uint8)
        found[f"{part}_labels"] = np.arange(12) % classes
    return {name: value for name, value in (found | changes).items() if value is not None}


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r".") as refusal:
        load(f"npz:{path}")
    (line,) = str(refusal.value).splitlines()
    return line


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(arrays: Arrays, compressed: bool = False) -> Path:
        path = tmp_path / "some.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return written


@pytest.mark.parametrize("size", [(28, 28), (28, 28, 3)])
def test_medmnist(write: Callable[..., Path], size: tuple[int, ...]):
    """Its files are compressed, grey or colour, with labels (N, 1) of uint8, and a val part."""
    arrays = arrays_of(size)
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = arrays[f"{part}_labels"].astype(np.uint8)[:, None]
    arrays["val_images"], arrays["val_labels"] = arrays["test_images"][:5] // 2, [[0]] * 5
    splits = load(f"npz:{write(arrays, compressed=True)}")
    assert (splits.classes, splits.image) == (3, ((*size, 1)[2], 28, 28))
    assert splits.names == ("0", "1", "2")
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        images = getattr(splits, part)
        wanted = np.asarray(arrays[f"{name}_images"]).reshape(-1, 28, 28, (*size, 1)[2])
        assert np.array_equal(images.pixels, wanted)
        assert images.targets.dtype == torch.int64
        assert np.array_equal(images.targets, np.ravel(arrays[f"{name}_labels"]))


def test_without_a_val_part_some_are_held_out(write: Callable[..., Path]):
    splits = load(f"npz:{write(arrays_of())}", validation=0.25)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 3, 12)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first(write: Callable[..., Path], channels: int):
    last = arrays_of((8, 6, channels))
    first = {k: v.transpose(0, 3, 1, 2) if "images" in k else v for k, v in last.items()}
    assert torch.equal(
        load(f"npz:{write(first)}").test.pixels, torch.from_numpy(last["test_images"])
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [False, True])
def test_order_in_memory(write: Callable[..., Path], order: Any, compressed: bool):
    arrays = arrays_of()
    kept = {name: np.asarray(value, order=order) for name, value in arrays.items()}
    found = read_npz(str(write(kept, compressed))).train
    assert np.array_equal(found.pixels, arrays["train_images"])


def test_an_uncompressed_file_is_mapped_and_never_written_to(write: Callable[..., Path]):
    path = write(arrays_of())
    before = path.read_bytes()
    pixels = read_npz(str(path)).train.pixels
    with open("/proc/self/maps") as maps:
        assert any(line.rstrip().endswith(str(path)) for line in maps)
    pixels.zero_()
    assert path.read_bytes() == before
    assert read_npz(str(path)).train.pixels.any()


def test_class_names(write: Callable[..., Path]):
    assert load(f"npz:{write(arrays_of(class_names=['ant', 'bee', 'cow']))}").names[1] == "bee"
    told = refused(write(arrays_of(class_names=["ant", "bee"])))
    assert told.endswith("must be 3 different texts, one a class of train_labels, got <U3 (2,)")


def test_ten_thousand_classes(write: Callable[..., Path]):
    count = 10_000
    images = np.zeros((2 * count, 8, 8), np.uint8)
    labels = np.arange(2 * count) % count
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images[:5], "test_labels": labels[-5:]}
    splits = load(f"npz:{write(arrays)}")
    assert (splits.classes, len(splits.train), len(splits.validation)) == (count, count, count)


WRONG = {
    "no test": (arrays_of(test_images=None), "must hold test_images, got train_images, train_lab"),
    "half a val": (arrays_of(val_images=np.zeros((2, 8, 8, 3), np.uint8)), "must hold val_labels"),
    "floats": (
        arrays_of(train_images=np.zeros((12, 8, 8, 3))),
        "(N, C, H, W) with C from 1 to 4, got float64 (12, 8, 8, 3)",
    ),
    "16 bits": (arrays_of(test_images=np.zeros((12, 8, 8, 3), np.uint16)), "must be uint8, (N, H"),
    "flat": (arrays_of((64,)), "must be uint8, (N, H, W), (N, H, W, C)"),
    "a video": (arrays_of((5, 8, 8, 3)), "got uint8 (12, 5, 8, 8, 3)"),
    "a volume": (arrays_of((28, 28, 28)), "got uint8 (12, 28, 28, 28)"),
    "either end": (arrays_of((3, 8, 3)), "must have one axis of at most 4 channels, second or la"),
    "the images last": (
        arrays_of(train_images=np.zeros((8, 8, 3, 12), np.uint8)),
        "train_images of {file} must be uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with C",
    ),
    "rows and columns swapped": (
        arrays_of((8, 6, 3), test_images=np.zeros((12, 6, 8, 3), np.uint8)),
        "must all be of one (H, W, C), got (8, 6, 3) in train_images, (6, 8, 3) in test_images",
    ),
    "none": (arrays_of(train_images=np.zeros((0, 8, 8), np.uint8)), "got uint8 (0, 8, 8)"),
    "labels too many": (
        arrays_of(test_labels=np.zeros(13, int)),
        "test_labels of {file} must be one whole number an image, (12,) or (12, 1), got int64 (13,",
    ),
    "one-hot labels": (arrays_of(train_labels=np.eye(12, dtype=int)), "got int64 (12, 12)"),
    "float labels": (arrays_of(train_labels=np.zeros(12)), "got float64 (12,)"),
    "texts as labels": (arrays_of(train_labels=["a"] * 12), "got <U1 (12,)"),
    "a single class": (
        arrays_of(classes=1),
        "train_labels of {file} must number at least 2 classes from 0, each with an image, "
        "got 0 to 0",
    ),
    "from one": (arrays_of(train_labels=1 + np.arange(12) % 2), "got 1 to 2, none of 0"),
    "a gap": (arrays_of(train_labels=np.arange(12) % 2 * 2), "got 0 to 2, none of 1"),
    "negative": (arrays_of(train_labels=np.arange(12) % 2 - 1), "got -1 to 0"),
    "a class in the test alone": (
        arrays_of(test_labels=np.arange(12)),
        "test_labels of {file} must be from 0 to 2, the classes of train_labels, got 0 to 11",
    ),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(write: Callable[..., Path], name: str, compressed: bool):
    arrays, told = WRONG[name]
    path = write(arrays, compressed)
    assert told.format(file=path) in refused(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_pickles_are_not_opened(write: Callable[..., Path], compressed: bool):
    class Opened:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it was unpickled",)

    path = write(arrays_of(train_labels=np.array([Opened()] * 12)), compressed)
    assert f"train_labels.npy of {path} cannot be read" in refused(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short(write: Callable[..., Path], part: float, compressed: bool):
    path = write(arrays_of(), compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert refused(path).startswith(f"data npz:FILE must be a complete npz, got {path} (")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_refused_or_harmless(write: Callable[..., Path], compressed: bool):
    path = write(arrays_of((32, 32, 3)), compressed)  # more than is read at once
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    before = read_npz(str(path)).train
    for _ in range(60):
        spoilt = bytearray(whole)
        spoilt[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(spoilt)
        try:
            found = read_npz(str(path)).train
        except ValueError:
            continue
        assert torch.equal(found.pixels, before.pixels)
        assert torch.equal(found.targets, before.targets)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path):
    path = tmp_path / "some.npz"
    np.savez(path, **arrays_of())
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["train_images.npy"] = held["train_images.npy"].replace(b"(12, 8", b"(99, 8")
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in held.items():
            archive.writestr(name, value)
    assert f"train_images.npy of {path} cannot be read" in refused(path)


@pytest.mark.parametrize("name", ["nowhere.npz", "."])
def test_no_file(name: str):
    assert refused(Path(name)) == f"data npz:FILE must name an existing file, got {name!r}"


def test_an_array_alone_is_no_npz(tmp_path: Path):
    np.save(tmp_path / "some.npy", np.zeros(3))
    assert "must be a complete npz" in refused(tmp_path / "some.npy")


@pytest.mark.parametrize("label", [12, 2**40, 2**62])
def test_a_label_far_beyond_the_images_is_refused_before_it_is_counted(
    write: Callable[..., Path], label: int
):
    labels = np.append(np.arange(11) % 3, label)
    told = refused(write(arrays_of(train_labels=labels)))
    assert told.endswith(f"each with an image, got 0 to {label}, none of 3")


@pytest.mark.parametrize("again", ["train_images.npy", "train_images"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(write: Callable[..., Path], again: str):
    path = write(arrays_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(again, archive.read("test_images.npy"))
    assert f"{path} must hold every array once, got train_images.npy, " in refused(path)
