"""A run, a resumed run and all rows of a comparison see the same images, or say what differs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import quiet, short_comparison, short_run, write_images

import training.running.prepare
from policies import Never, Periodic
from training.asking.branch import branch
from training.asking.branch_points import branch_point_of
from training.comparing.comparison import compare
from training.data.augmenting import AUGMENTS, Augment
from training.data.identity import difference, identity_of
from training.data.splits import load
from training.keeping.run_folder import read_config
from training.running.loop import train
from training.running.prepare import check_processes
from training.settings.compare_settings import Cell, Compare
from training.settings.start_settings import Start
from training.settings.train_settings import Train

SHAPE = (8, 8, 3)


def write_two_classes(root: Path, count: int = 20) -> None:
    """Write two classes of `count` images to train on and half as many to test on."""
    train, test = dict.fromkeys("ab", count), dict.fromkeys("ab", count // 2)
    write_images(root, train, test, name="{:02}.png")


def settings(root: Path, **changes: object) -> Train:
    """A growing run of seconds on images in root/images, in root/run."""
    plain = {"epochs": 1, "records": 4, "batch_size": 12, "precision": "float32"}
    plain |= {"data": f"folder:{root}/images", "policy": Periodic(every=1), "start": Start(0.25, 1)}
    return short_run(root / "run", **{**plain, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and a finished run on them."""
    root = tmp_path_factory.mktemp("finished")
    write_two_classes(root / "images")
    train(settings(root), quiet)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of both, whose config.yaml says that the images are the copy's."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["data"] = f"folder:{tmp_path}/images"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def stopped(root: Path) -> None:
    """Take the copy's run back to before its summary: it resumes from its last checkpoint."""
    (root / "run" / "summary.json").unlink()


def one_more(images: Path) -> None:
    shutil.copy(images / "train" / "a" / "03.png", images / "train" / "a" / "00more.png")


def one_less(images: Path) -> None:
    (images / "test" / "b" / "02.png").unlink()


def one_pixel(images: Path) -> None:
    file = images / "train" / "b" / "05.png"
    pixels = np.array(Image.open(file))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)


def one_test_pixel(images: Path) -> None:
    Image.new("RGB", SHAPE[:2]).save(images / "test" / "b" / "00.png")


def one_moved(images: Path) -> None:
    shutil.move(images / "train" / "a" / "03.png", images / "train" / "b" / "03x.png")


def one_renamed(images: Path) -> None:
    (images / "train" / "a" / "00.png").rename(images / "train" / "a" / "zz.png")


def other_class(images: Path) -> None:
    for part in ("train", "test"):
        (images / part / "b").rename(images / part / "c")


def another_class(images: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(images / part / "b", images / part / "c")


def swapped_classes(images: Path) -> None:
    for part in ("train", "test"):
        (images / part / "b").rename(images / part / "x")
        (images / part / "a").rename(images / part / "b")
        (images / part / "x").rename(images / part / "a")


def other_size(images: Path) -> None:
    for file in images.rglob("*.png"):
        Image.open(file).resize((9, 8)).save(file)


CHANGES: dict[Callable[[Path], None], str] = {
    one_more: r"37 instead of 36 train images, 4 validation images of other content",
    one_less: r"19 instead of 20 test images$",
    one_pixel: r"got (36 train|4 validation) images of other content or in another order$",
    one_test_pixel: r"got 20 test images of other content or in another order$",
    one_moved: r"train images of other content",
    one_renamed: r"train images of other content or in another order",
    other_class: r"got other classes \(new c; gone b\)$",
    another_class: r"got other classes \(new c\)$",
    swapped_classes: r"36 train images of other content",
    other_size: r"got images of 3 x 8 x 9 instead of 3 x 8 x 8$",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_images(change, root: Path):
    stopped(root)
    change(root / "images")
    before = (root / "run" / "checkpoint.pt").read_bytes()
    message = f"data must be those of the run in {root}/run, got .*{CHANGES[change].lstrip('got ')}"
    with pytest.raises(ValueError, match=message) as refusal:
        train(settings(root, resume=True), quiet)
    assert "\n" not in str(refusal.value)
    assert (root / "run" / "checkpoint.pt").read_bytes() == before


def touched(images: Path) -> None:
    for file in images.rglob("*.png"):
        os.utime(file, (1, 1))
        Image.open(file).save(file, compress_level=1)


def another_format(images: Path) -> None:
    for file in images.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()


@pytest.mark.parametrize("change", [touched, another_format])
def test_a_run_goes_on_with_the_same_images_in_other_files(change, root: Path):
    stopped(root)
    change(root / "images")
    train(settings(root, resume=True), quiet)


def test_images_that_only_moved_go_on(root: Path):
    stopped(root)
    (root / "images").rename(root / "elsewhere")
    moved = f"folder:{root}/elsewhere"
    train(settings(root, resume=True, data=moved), quiet)
    assert read_config(root / "run")["data"] == moved
    summary = train(settings(root, resume=True, data=moved, final=True), quiet)
    assert summary["test_readings"] == 1


def test_the_test_set_is_read_of_the_same_images(root: Path):
    one_test_pixel(root / "images")
    with pytest.raises(ValueError, match="got 20 test images of other content"):
        train(settings(root, resume=True, final=True), quiet)
    assert json.loads((root / "run" / "summary.json").read_text())["test_readings"] == 0


def test_branches_are_trained_on_the_same_images(root: Path):
    step = json.loads((root / "run" / "summary.json").read_text())["growth"][0]["step"]
    fork = branch_point_of(root / "run", step)
    one_more(root / "images")
    with pytest.raises(ValueError, match=f"data must be those of the run in {root}/run, got 37"):
        branch(root / "run", step, steps=1, orders=1, say=quiet)
    assert not (fork.out / "branches.csv").exists()


def old(root: Path) -> None:
    """Make the copy's run one of an earlier version: no data.json, and three settings less."""
    (root / "run" / "data.json").unlink()
    config = yaml.safe_load((root / "run" / "config.yaml").read_text())
    for name in ("augment", "rates", "stem"):
        del config[name]
    (root / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    for file in (root / "run").rglob("*.pt"):
        state = torch.load(file, weights_only=True)
        for name in ("augment", "rates", "stem"):
            state["identity"].pop(name, None)
        state["identity"]["data"] = config["data"]
        torch.save(state, file)


def test_a_run_of_an_earlier_version_goes_on_as_it_was(root: Path):
    stopped(root)
    old(root)
    elsewhere = f"folder:{shutil.copytree(root / 'images', root / 'elsewhere')}"
    with pytest.raises(ValueError, match="augment must be 'crop-flip' to resume"):
        train(settings(root, resume=True), quiet)
    with pytest.raises(ValueError, match=r"data must be 'folder:.*images' to resume .* got 'fold"):
        train(settings(root, resume=True, augment="crop-flip", data=elsewhere), quiet)
    train(settings(root, resume=True, augment="crop-flip"), quiet)
    assert (root / "run" / "data.json").exists()


def test_an_earlier_run_on_digits_goes_on(tmp_path: Path):
    digits = {"data": "digits", "epochs": 0.05, "records": 1, "policy": Never(), "batch_size": 32}
    train(settings(tmp_path, **digits), quiet)
    stopped(tmp_path)
    old(tmp_path)
    train(settings(tmp_path, **digits, resume=True), quiet)


def test_a_data_json_that_is_damaged_is_named(root: Path):
    stopped(root)
    for content in ("", "[]", "{}", '{"classes": ["a", "b"], "image": 3}'):
        (root / "run" / "data.json").write_text(content)
        with pytest.raises(ValueError, match=r"out: .*data\.json cannot be read|got images of"):
            train(settings(root, resume=True), quiet)


def test_a_new_run_takes_no_data_json_that_lies_there(root: Path):
    shutil.rmtree(root / "run")
    (root / "run").mkdir()
    (root / "run" / "data.json").write_text("left by another run")
    train(settings(root, epochs=0.1, records=1), quiet)
    assert json.loads((root / "run" / "data.json").read_text())["classes"] == ["a", "b"]


def test_augmentation_binds_a_run(root: Path, monkeypatch: pytest.MonkeyPatch):
    stopped(root)
    with pytest.raises(ValueError, match=r"augment must be 'auto' to resume .* got 'flip'"):
        train(settings(root, resume=True, augment="flip"), quiet)
    monkeypatch.setitem(AUGMENTS, "folder", Augment(pad=4))
    with pytest.raises(ValueError, match=r"got augmentation crop \(pad 4\) instead of none$"):
        train(settings(root, resume=True), quiet)


# Comparisons


def rows(root: Path, **changes: object) -> Compare:
    cells = {"static": Cell(Never()), "growing": Cell(Periodic(every=1))}
    plain = {"epochs": 0.5, "records": 2, "batch_size": 12, "seeds": [0], "cells": cells}
    given = {**plain, "data": f"folder:{root}/images", **changes}
    return short_comparison(root / "comparison", **given)


@pytest.fixture
def compared(tmp_path: Path, plain_reports: None) -> Path:
    write_two_classes(tmp_path / "images")
    cells = {"static": Cell(Never())}
    assert not compare(rows(tmp_path, cells=cells), quiet).failures
    return tmp_path


def test_rows_that_are_run_later_see_the_same_images(compared: Path):
    one_more(compared / "images")
    message = r"data must be those of the run in .*static/seed0, got 37 instead of 36 train images"
    for changes in ({}, {"cells": {"static": Cell(Never())}}):
        with pytest.raises(ValueError, match=message):
            compare(rows(compared, **changes), quiet)
    assert not (compared / "comparison" / "growing").exists()


def test_images_that_moved_are_compared_on(compared: Path):
    (compared / "images").rename(compared / "elsewhere")
    outcome = compare(rows(compared, data=f"folder:{compared}/elsewhere"), quiet)
    assert not outcome.failures
    assert "growing" in outcome.text


def test_images_that_change_while_rows_are_run_fail_the_later_rows(compared: Path):
    def change(line: str) -> None:
        if line.startswith("2/3"):
            one_pixel(compared / "images")

    cells = {name: Cell(Never()) for name in ("static", "second", "third")}
    outcome = compare(rows(compared, cells=cells), change)
    (failure,) = outcome.failures
    assert failure.startswith("third  seed 0  failed: data must be those of the run in ")
    assert "of other content or in another order" in failure


def test_rows_on_data_of_their_own_have_their_own_images(compared: Path):
    write_two_classes(compared / "others", count=24)
    own = Cell(Never(), data=f"folder:{compared}/others")
    settings = rows(compared, cells={"static": Cell(Never()), "own": own})
    lines: list[str] = []
    assert not compare(settings, lines.append).failures
    assert lines[0] == (
        f"augmentation: folder:{compared}/images none; "
        f"folder:{compared}/others none (--augment auto)"
    )
    one_less(compared / "others")
    with pytest.raises(ValueError, match="own/seed0, got 23 instead of 24 test images"):
        compare(settings, quiet)


# What is told


def test_identities_are_of_content_alone():
    digits = load("digits")
    one, other = identity_of(digits, Augment()), identity_of(load("digits"), Augment())
    assert one == other
    assert one["images"] == {"train": 1295, "validation": 143, "test": 359}
    assert one["classes"] == list("0123456789")
    relabelled = replace(digits.train, targets=digits.train.targets.roll(1))
    changed = identity_of(replace(digits, train=relabelled), Augment())
    assert difference(one, changed) == "1295 train images of other content or in another order"
    turned = dict(one, classes=one["classes"][::-1])
    assert difference(one, turned) == "other classes (in another order)"
    sine = load("sine")
    shaken = replace(sine.train, pixels=sine.train.pixels * (1 + 1e-7))
    assert not difference(
        identity_of(sine, Augment()), identity_of(replace(sine, train=shaken), Augment())
    )


def test_processes_that_see_other_images_are_refused(monkeypatch: pytest.MonkeyPatch):
    mine = identity_of(load("digits"), Augment())
    first = {**mine, "images": {**mine["images"], "train": 1}}
    check_processes(mine)
    monkeypatch.setattr(training.running.prepare.distributed, "greatest", lambda value: 1.0)
    with pytest.raises(ValueError, match="on all processes, got other data on another process"):
        check_processes(mine)
    monkeypatch.setattr(training.running.prepare.distributed, "from_first", lambda make: first)
    with pytest.raises(ValueError, match="on all processes, got 1295 instead of 1 train images"):
        check_processes(mine)
