"""What training images go through is a setting, and by default the data set's own recipe."""

from __future__ import annotations

import pytest
import torch

from training.data.augmenting import AUGMENTS, Augment, augment_of
from training.data.splits import load
from training.running.prepare import prepare
from training.settings.compare_settings import Cell, Compare
from training.settings.train_settings import Train


def test_auto_is_the_recipe_of_the_data_set():
    for name in ("cifar10", "cifar100", "fashion-mnist"):
        assert augment_of(name).flip
    for name in ("digits", "mnist", "folder:letters", "sine"):
        assert not augment_of(name).flip
    assert augment_of("folder:arrows") == Augment()
    assert str(augment_of("cifar10")) == "crop (pad 4), mirroring"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("none", "none"),
        ("crop", "crop (pad 4)"),
        ("flip", "mirroring"),
        ("crop-flip", "crop (pad 4), mirroring"),
    ],
)
def test_what_is_asked_for_is_done(how: str, words: str):
    for name in ("cifar10", "folder:x"):
        assert str(augment_of(name, how)) == words
    assert augment_of("digits", how).pad == (1 if "crop" in how else 0)


@pytest.mark.parametrize(("side", "pad"), [(3, 1), (8, 1), (28, 3), (32, 4), (224, 4)])
def test_crops_of_small_images_keep_most_of_them(side: int, pad: int):
    assert augment_of("folder:x", "crop", (3, 2 * side, side)) == Augment(pad=pad)


def test_a_recipe_set_by_hand_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(AUGMENTS, "folder", Augment(pad=2))
    assert augment_of("folder:x") == Augment(pad=2)


def test_a_run_gets_what_its_setting_says():
    for how in ("none", "crop", "flip", "crop-flip"):
        settings = Train(data="digits", net="resnet8", augment=how, device="cpu")
        ground = prepare(settings)
        assert ground.batches.augment == augment_of("digits", how)
        assert ground.data["augmentation"] == str(ground.batches.augment)
    plain = prepare(Train(data="digits", net="resnet8", augment="none", device="cpu")).batches
    inputs, _ = plain.batch(0, 0)
    plain.begin(0)
    chosen = load("digits").train.pixels[plain.draws[0, 0]].float()
    assert torch.equal(inputs, ((chosen - plain.mean) / plain.std).permute(0, 3, 1, 2))


def test_what_is_no_augmentation_is_refused():
    known = "augment must be one of auto, none, crop, crop-flip, flip; got 'mirror'"
    with pytest.raises(ValueError, match=known):
        Train(augment="mirror")
    with pytest.raises(ValueError, match=known):
        Compare(augment="mirror", cells={"a": Cell()})
    with pytest.raises(ValueError, match=r"augment must be auto or none for sine, .* got 'crop'"):
        prepare(Train(data="sine", net="mlp-8", augment="crop"))
    assert augment_of("sine", "none") == augment_of("sine") == Augment()
