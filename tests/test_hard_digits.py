"""Digits made harder: whose images they are, what is done to them, what is refused, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import quiet, refusal_of, short_run

from training.computing.signals import Interrupted
from training.data.augmenting import augment_of
from training.data.datasets import HardDigits, hard_digits
from training.data.identity import check_same_data, identity_of
from training.data.splits import Splits, load
from training.running.loop import train
from training.settings.train_settings import Train

HARD = "digits:images=300,shift=2,noise=0.3"
CONTENT = {
    "digits": ("541b6f8092f4bb30fe6960c65e781c4d", "2749db75c07e932cc4af83ae23c0afa4"),
    HARD: ("613329d15d87c9e3cbe86657485f1ca6", "e5539452c7d4176476e075f621e30064"),
}
"""Hashes of the training and test images, the same on every machine."""


def parts(splits: Splits) -> list:
    return [splits.train, splits.validation, splits.test]


@pytest.mark.parametrize("name", CONTENT)
def test_the_images_are_the_same_on_every_machine_and_for_good(name):
    content = identity_of(load(name), augment_of(name))["content"]
    assert (content["train"], content["test"]) == CONTENT[name]


def test_few_are_trained_on_and_all_others_but_the_test_images_are_validated_on():
    plain, few = load("digits"), load("digits:images=300")
    assert [len(part) for part in parts(few)] == [300, 1138, 359]
    assert torch.equal(few.test.pixels, plain.test.pixels)
    assert (few.image, few.names, few.classes) == (plain.image, plain.names, 10)
    counts = torch.bincount(few.train.targets, minlength=10)
    assert counts.min() >= 28
    pixels = torch.cat([part.pixels for part in parts(few)]).flatten(1)
    everything = torch.cat([part.pixels for part in parts(plain)]).flatten(1)
    assert sorted(map(tuple, pixels.tolist())) == sorted(map(tuple, everything.tolist()))


def test_a_shifted_digit_is_whole_and_lies_anywhere():
    plain, shifted = load("digits").test, load("digits:shift=2").test
    assert shifted.pixels.shape[1:] == (12, 12, 1)
    assert torch.equal(shifted.targets, plain.targets)
    places = set()
    for digit, image in zip(plain.pixels[:200], shifted.pixels[:200], strict=True):
        assert image.sum() == digit.sum()  # nothing else is there
        windows = image[..., 0].unfold(0, 8, 1).unfold(1, 8, 1)  # (5, 5, 8, 8)
        same = (windows == digit[..., 0]).flatten(2).all(2).nonzero().tolist()
        assert same
        places |= {tuple(place) for place in same}
    assert len(places) == 25


def test_noise_replaces_the_share_of_pixels_that_it_says():
    plain, noisy = load("digits").train.pixels, load("digits:noise=0.3").train.pixels
    changed = plain != noisy
    assert changed.float().mean() == pytest.approx(0.3 * 255 / 256, abs=0.005)
    assert noisy[changed].float().mean() == pytest.approx(127.5, abs=2)
    assert noisy[changed].unique().numel() == 256
    assert (changed.float().mean(0) - 0.3).abs().max() < 0.06  # everywhere alike


def test_settings_are_read_in_any_order_and_any_may_be_left_out():
    assert hard_digits("noise=0.25,images=40") == HardDigits(40, 0, 0.25)
    assert hard_digits("shift=8") == HardDigits(None, 8, 0.0)
    for part, other in zip(parts(load("digits:noise=0")), parts(load("digits")), strict=True):
        assert torch.equal(part.pixels, other.pixels)
    assert augment_of("digits:noise=0.5") == augment_of("digits")
    assert Train(data=HARD).folder == Path(
        "runs/digits-images=300,shift=2,noise=0.3-resnet20-never-seed0"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "data digits:SETTINGS must be one of images, shift, noise; got ''"),
        ("hard", "data digits:SETTINGS must be one of images, shift, noise; got 'hard'"),
        ("nose=1", "got 'nose' (did you mean 'noise'?)"),
        ("images=30,", "got ''"),
        ("images=9", "data digits:images must be from 10 to 1400, got 9"),
        ("images=1401", "data digits:images must be from 10 to 1400, got 1401"),
        ("images=", "data digits:images must be an integer, got ''"),
        ("images=3e2", "data digits:images must be an integer, got '3e2'"),
        ("shift=-1", "data digits:shift must be from 0 to 8, got -1"),
        ("shift=9", "data digits:shift must be from 0 to 8, got 9"),
        ("shift=0.5", "data digits:shift must be an integer, got '0.5'"),
        ("noise=1", "data digits:noise must be at least 0 and below 1, got 1.0"),
        ("noise=-0.1", "data digits:noise must be at least 0 and below 1, got -0.1"),
        ("noise=nan", "data digits:noise must be at least 0 and below 1, got nan"),
        ("noise=x", "data digits:noise must be a number, got 'x'"),
        ("shift=1,shift=1", "data digits:SETTINGS must have shift once, got 'shift=1,shift=1'"),
    ],
)
def test_other_settings_are_refused(tmp_path, capsys, settings, words):
    line = refusal_of(capsys, ["train", "--data", f"digits:{settings}", "--out", tmp_path / "run"])
    assert line.endswith(words)
    assert not (tmp_path / "run").exists()


def test_a_run_on_them_resumes_exactly_and_on_no_others(tmp_path):
    settings = short_run(tmp_path / "whole", data=HARD, epochs=0.5, records=2, ema=0.0)
    whole = train(settings, quiet)

    def stop(spent: float) -> None:
        if spent > 0.7:
            raise Interrupted(15, "here")

    parted = replace(settings, out=str(tmp_path / "parted"))
    with pytest.raises(Interrupted):
        train(parted, quiet, stop)
    resumed = replace(parted, resume=True)
    for other in ("digits", "digits:images=300,shift=2,noise=0.2"):
        with pytest.raises(
            ValueError, match=r"data must be 'digits:images=300,shift=2,noise=0[.]3'"
        ):
            train(replace(resumed, data=other), quiet)
    assert train(resumed, quiet)["validation_loss"] == whole["validation_loss"]
    histories = [tmp_path / name / "history.jsonl" for name in ("parted", "whole")]
    assert histories[0].read_bytes() == histories[1].read_bytes()
    other = load("digits:images=300,shift=2,noise=0.31")
    with pytest.raises(ValueError, match="300 train images of other content"):
        check_same_data(tmp_path / "whole", identity_of(other, augment_of("digits")))
