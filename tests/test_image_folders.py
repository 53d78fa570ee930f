"""A folder of images: nothing in it is left out, and its order hangs on names alone."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import write_images

from training.data.image_folders import read_folder
from training.data.splits import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images, and one image each in the test part."""
    write_images(tmp_path, {"a": 3, "b": 3}, {"a": 1, "b": 1})
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as refusal:
        read_folder(str(folder))
    (line,) = str(refusal.value).splitlines()
    line.encode()  # it can be printed anywhere
    return line


def test_classes_have_names(folder: Path):
    assert read_folder(str(folder))[2] == load(f"folder:{folder}").names == ("a", "b")


def test_litter_is_left_out(folder: Path):
    before = read_folder(str(folder))[0]
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        for place in (folder / "train", folder / "train" / "a"):
            (place / name).write_bytes(b"litter")
    (folder / "train" / "labels.txt").write_text("beside the classes")
    assert np.array_equal(read_folder(str(folder))[0].pixels, before.pixels)


def test_an_image_in_no_class_is_refused(folder: Path):
    os.link(folder / "train" / "a" / "0.png", folder / "train" / "lost.PNG")
    assert refused(folder).endswith(
        f"train must hold a folder for every class, got {folder}/train/lost.PNG"
    )


def test_a_folder_in_a_class_is_refused(folder: Path):
    (folder / "train" / "a" / "deeper").mkdir()
    assert "train/a/deeper is no image that can be read (it is a folder)" in refused(folder)


def test_links_are_followed_and_broken_ones_refused(folder: Path):
    before = read_folder(str(folder))[0]
    (folder / "train" / "a" / "0.png").rename(folder / "kept.png")
    (folder / "train" / "a" / "0.png").symlink_to(folder / "kept.png")
    (folder / "train" / "b").rename(folder / "elsewhere")
    (folder / "train" / "b").symlink_to(folder / "elsewhere")
    assert np.array_equal(read_folder(str(folder))[0].pixels, before.pixels)
    (folder / "kept.png").unlink()
    assert "train/a/0.png is no image that can be read (it is a broken link)" in refused(folder)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere", "train must hold classes, got the broken link"),
        ("c", "train/c cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_class_that_is_a_broken_link_is_refused(target: str, why: str, folder: Path):
    for part in ("train", "test"):
        (folder / part / "c").symlink_to(folder / part / target)
    assert why in refused(folder)


def test_links_in_a_circle_are_refused(folder: Path):
    (folder / "train" / "a" / "x.png").symlink_to(folder / "train" / "a" / "x.png")
    assert "train/a/x.png is no image that can be read" in refused(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path):
    os.mkfifo(folder / "test" / "b" / "pipe.png")
    assert "test/b/pipe.png is no image that can be read (it is no file)" in refused(folder)


def test_a_folder_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))  # pyright: ignore

    monkeypatch.setattr("training.data.image_folders.os.scandir", forbidden)
    assert refused(folder) == f"data: {folder}/train cannot be read: Permission denied"


def test_an_image_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = Path.open

    def guarded(path: Path, *given: str):
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *given)  # pyright: ignore

    monkeypatch.setattr(Path, "open", guarded)
    assert "train/a/2.png is no image that can be read" in refused(folder)


def test_the_two_writings_of_one_name_are_one_class(folder: Path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (folder / "train" / "b").rename(folder / "train" / apart)
    (folder / "test" / "b").rename(folder / "test" / composed)
    assert read_folder(str(folder))[2] == ("a", composed)
    (folder / "train" / composed).mkdir()
    assert f"train must hold every class once, got {composed} twice" in refused(folder)


def test_classes_that_differ_in_case_are_two(folder: Path):
    for part in ("train", "test"):
        (folder / part / "b").rename(folder / part / "A")
    assert read_folder(str(folder))[2] == ("A", "a")


def test_names_that_are_no_utf8_are_read_and_told(folder: Path):
    for part in ("train", "test"):
        os.rename(folder / part / "b", os.fsencode(folder / part) + b"/\xff")
    os.rename(folder / "train" / "a" / "1.png", os.fsencode(folder / "train" / "a") + b"/\xfe.png")
    assert read_folder(str(folder))[2] == ("a", "\\udcff")
    Path(os.fsdecode(os.fsencode(folder / "train" / "a") + b"/\xfe.png")).write_bytes(b"notes")
    assert "train/a/\\udcfe.png is no image that can be read" in refused(folder)


def test_pillow_says_nothing_of_metadata(folder: Path):
    exif = Image.Exif()
    exif[274] = 1
    file = folder / "train" / "a" / "0.jpg"
    Image.new("RGB", (8, 8)).save(file, exif=exif)
    file.write_bytes(file.read_bytes().replace(b"\x00\x01\x01\x12", b"\x00\xff\x01\x12"))
    read_folder(str(folder))  # warnings are errors here


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_image_that_cannot_be_used_is_named(part: str, folder: Path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / part / "b" / "deep.png")
    line = refused(folder)
    assert line.startswith("images must be grey, palette or RGB of up to 8 bits a channel")
    assert line.endswith(f"{folder}/{part}/b/deep.png holds 16 bits a channel (PNG)")
