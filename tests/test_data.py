"""Splits that never move, batches that are a function of (seed, epoch, position), refusals."""

from __future__ import annotations

import pickle
import tarfile
from hashlib import md5
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import numpy as np
import pytest
import torch
from PIL import Image
from runs import write_images

from training.data.augmenting import Augment, augment_of
from training.data.batches import Batches, evaluation_batches
from training.data.datasets import NAMES, read
from training.data.images import Images
from training.data.splits import channel_statistics, divide, load, normalised, part_of

SHARED = Path(__file__).parents[2] / "shared" / "data"


def some_images(count: int = 20, size: tuple[int, ...] = (6, 5, 3), classes: int = 4) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % classes)


CROP_AND_FLIP = Augment(pad=2, flip=True)


def some_batches(
    images: Images,
    size: int = 5,
    seed: int = 0,
    augment: Augment = CROP_AND_FLIP,
) -> Batches:
    return Batches(images, size, seed, "cpu", augment, *channel_statistics(images))


def draws_of(batches: Batches, epoch: int) -> torch.Tensor:
    """Give what an epoch draws, (3, steps, batch)."""
    batches.begin(epoch)
    return batches.draws.transpose(0, 1)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write 200 + 100 images in CIFAR-100's format, and tell torchvision their checksums."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 200), ("test", 100)):
        written[part] = generator.integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
        labels = [index % 100 for index in range(count)]
        entry = {"data": written[part].reshape(count, -1), "fine_labels": labels}
        (folder / part).write_bytes(pickle.dumps(entry, protocol=2))
    names = {"fine_label_names": [str(label) for label in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    sums = {file.name: md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return written


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    file.write_bytes(header + array.tobytes())


class HalfAnswer:
    """What a server sends before the line breaks."""

    length = 8

    def __init__(self, request: Request, error: Exception | None):
        self.url, self.error, self.begun = request.full_url, error, False

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        if self.begun and self.error:
            raise self.error
        self.begun = not self.begun
        return b"half" if self.begun else b""


LOST = URLError("the line is dead")


def break_downloads(monkeypatch: pytest.MonkeyPatch, error: Exception | None = LOST) -> None:
    """Let every download end half-way: with an error, or silently."""
    monkeypatch.setattr("urllib.request.urlopen", lambda request: HalfAnswer(request, error))


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.targets, b.targets)


def rows(images: Images) -> set[bytes]:
    return {pixels.numpy().tobytes() for pixels in images.pixels}


# The data sets


def test_digits_are_divided_by_class():
    splits = load("digits")
    assert (splits.classes, splits.image, splits.task, splits.name) == (
        10,
        (1, 8, 8),
        "classification",
        "digits",
    )
    parts = (splits.train, splits.validation, splits.test)
    assert sum(len(part) for part in parts) == 1797
    for part in parts:
        assert (part.pixels.dtype, part.targets.dtype) == (torch.uint8, torch.int64)
    totals = sum(torch.bincount(part.targets, minlength=10) for part in parts)
    for part, share in zip(parts, (0.72, 0.08, 0.2), strict=True):
        counts = torch.bincount(part.targets, minlength=10)
        assert (counts - share * totals).abs().max() <= 1
    assert splits.train.pixels.max() == 255
    assert splits.train.pixels.unique().numel() == 17


def test_digits_are_those_that_scikit_learn_gives():
    from sklearn.datasets import load_digits  # late: it takes a second or two

    levels, targets = map(torch.from_numpy, load_digits(return_X_y=True))
    images = read("digits", Path())[0]
    assert torch.equal(images.pixels.flatten(1), (levels * 255 / 16).round().to(torch.uint8))
    assert torch.equal(images.targets, targets)


def test_the_validation_split_does_not_depend_on_the_run():
    torch.manual_seed(1)
    one = load("digits")
    torch.manual_seed(2)
    other = load("digits")
    for part in ("train", "validation", "test"):
        assert same(getattr(one, part), getattr(other, part))
    assert same(one.test, load("digits", validation=0.3).test)


def test_dividing_keeps_every_image_once_and_every_class_on_both_sides():
    images = Images(
        torch.arange(26, dtype=torch.uint8).view(-1, 1, 1, 1),
        torch.tensor([0] * 20 + [1] * 5 + [2]),
    )
    stays, held = divide(images, 0.1, "validation")
    assert torch.bincount(held.targets).tolist() == [2, 1]
    both = torch.cat([stays.pixels, held.pixels]).flatten()
    assert both.sort().values.tolist() == list(range(26))
    assert stays.pixels.flatten().tolist() == sorted(stays.pixels.flatten().tolist())
    assert held.pixels.flatten().tolist() != [0, 1, 20]
    for image, target in zip(held.pixels.flatten().tolist(), held.targets.tolist(), strict=True):
        assert images.targets[image] == target


def test_a_division_never_takes_all_of_a_class():
    stays, held = divide(some_images(count=8, classes=4), 0.99, "validation")
    assert torch.bincount(stays.targets).tolist() == [1, 1, 1, 1]
    assert torch.bincount(held.targets).tolist() == [1, 1, 1, 1]


def test_a_part_is_stratified_and_fixed():
    images = some_images(count=200, classes=4)
    part = part_of(images, 40)
    assert torch.bincount(part.targets).tolist() == [10, 10, 10, 10]
    assert rows(part) <= rows(images)
    assert same(part, part_of(images, 40))
    assert part_of(images, 200) is images


@pytest.mark.parametrize("classes", [1, 3, 50, 100, 200])
@pytest.mark.parametrize("most", [1, 7, 99, 199])
def test_a_part_has_as_many_images_as_asked_for(classes, most):
    part = part_of(some_images(count=200, classes=classes), most)
    counts = torch.bincount(part.targets, minlength=classes)
    assert len(part) == most
    assert counts.max() <= -(-most // classes) + 1


def test_sine_is_a_fixed_regression():
    splits = load("sine")
    assert (splits.classes, splits.image, splits.task) == (1, (1,), "regression")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [900, 100, 500]
    for part in (splits.train, splits.validation, splits.test):
        assert part.pixels.dtype == part.targets.dtype == torch.float32
        assert part.pixels.shape == part.targets.shape
        assert torch.equal(part.targets, part.pixels.sin())
        assert part.pixels.min() < -6
        assert part.pixels.max() > 6
        assert part.pixels.abs().max() <= 2 * torch.pi
    assert same(splits.train, load("sine").train)
    assert not rows(splits.train) & (rows(splits.validation) | rows(splits.test))


@pytest.mark.skipif(not (SHARED / "MNIST").exists(), reason="the real MNIST is not here")
def test_mnist_is_read_where_torchvision_keeps_it():
    splits = load("mnist", SHARED)
    assert (splits.classes, splits.image) == (10, (1, 28, 28))
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (60000, 10000)
    assert abs(len(splits.validation) - 6000) <= 5
    mean, std = channel_statistics(splits.train)
    assert mean.item() / 255 == pytest.approx(0.1307, abs=5e-4)  # the constants that everyone uses
    assert std.item() / 255 == pytest.approx(0.3081, abs=5e-4)


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(40, 28, 28), dtype=np.uint8)
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[:count])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    splits = load("fashion-mnist", tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 20)
    assert torch.equal(splits.test.pixels, torch.from_numpy(pixels[:20, :, :, None]))
    assert splits.test.targets.tolist() == [index % 10 for index in range(20)]


def test_cifar100_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = write_cifar100(tmp_path, monkeypatch)
    splits = load("cifar100", tmp_path)
    assert (splits.classes, splits.image) == (100, (3, 32, 32))
    assert torch.bincount(splits.train.targets).tolist() == [1] * 100
    assert torch.bincount(splits.validation.targets).tolist() == [1] * 100
    assert torch.equal(splits.test.pixels, torch.from_numpy(written["test"].transpose(0, 2, 3, 1)))
    assert splits.test.targets.tolist() == list(range(100))
    inputs, _ = next(evaluation_batches(splits.test, *channel_statistics(splits.train), "cpu"))
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # to torchvision
def test_an_archive_in_the_data_folder_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import CIFAR100

    write_cifar100(tmp_path / "made", monkeypatch)
    archive = tmp_path / "data" / "cifar-100-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive.read_bytes()).hexdigest())
    break_downloads(monkeypatch)
    (tmp_path / "data" / "cifar-100-python").mkdir()
    (tmp_path / "data" / "cifar-100-python" / "train").write_bytes(b"an unfinished attempt")
    splits = load("cifar100", tmp_path / "data")
    assert same(splits.train, load("cifar100", tmp_path / "made").train)
    entries = sorted(entry.name for entry in archive.parent.iterdir())
    assert entries == ["cifar-100-python", archive.name]


@pytest.mark.parametrize("error", [LOST, IncompleteRead(b"the line is dead"), None])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("mnist", "MNIST/raw/"),
        ("fashion-mnist", "FashionMNIST/raw/"),
        ("cifar10", "cifar-10-batches-py/"),
        ("cifar100", "cifar-100-python/"),
    ],
)
def test_without_a_network_one_line_says_where_the_files_go(
    name: str,
    where: str,
    error: Exception | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    break_downloads(monkeypatch, error)
    for folder in (tmp_path, tmp_path / "new"):
        message = f"{name} is not in {folder} and cannot be downloaded: put {where} or "
        with pytest.raises(ValueError, match=message) as refusal:
            load(name, folder)
        assert "\n" not in str(refusal.value)
        assert (str(error) if error else "corrupted") in str(refusal.value)
        assert refusal.value.__suppress_context__
        assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar100(tmp_path, monkeypatch)
    break_downloads(monkeypatch)
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cifar100 is not in .* cannot be downloaded"):
        load("cifar100", tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"\x00\x00\x08\x01")
    with pytest.raises(ValueError, match=r"mnist is not in .* cannot be downloaded"):
        load("mnist", tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["MNIST", "cifar-100-python"]


def test_a_folder_of_images(tmp_path: Path):
    name = write_images(tmp_path, {"b": 3, "a": 4}, {"a": 2, "b": 1}, (3, 4, 3))
    (tmp_path / "train" / "a" / ".hidden").write_text("no image")
    Image.new("L", (4, 3), 7).save(tmp_path / "test" / "b" / "grey.gif")
    splits = load(name)
    assert (splits.classes, splits.image) == (2, (3, 3, 4))
    assert (splits.task, splits.name) == ("classification", name)
    assert torch.bincount(splits.train.targets).tolist() == [3, 2]
    assert torch.bincount(splits.validation.targets).tolist() == [1, 1]
    assert splits.test.targets.tolist() == [0, 0, 1, 1]
    with Image.open(tmp_path / "test" / "a" / "1.png") as image:
        assert np.array_equal(splits.test.pixels[1].numpy(), np.asarray(image))
    assert (splits.test.pixels[3] == 7).all()


def test_threads_keep_the_order_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = write_images(tmp_path, {"a": 20, "b": 15}, {"a": 1, "b": 1}, (3, 4, 3))
    serial = load(name)
    monkeypatch.setattr("training.data.image_folders.THREADED_PIXELS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert same(serial.train, load(name).train)


# Refusals


def test_an_unknown_data_set_lists_the_known_ones():
    for name in ("imagenet", "folder", ""):
        known = ", ".join(NAMES)
        with pytest.raises(ValueError, match=f"data must be one of {known}; got '{name}'"):
            load(name)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_validation_share_out_of_range(share: float):
    with pytest.raises(ValueError, match=f"validation must be above 0 and below 1, got {share}"):
        load("sine", validation=share)


def test_classes_of_one_image_leave_nothing_to_validate_on(tmp_path: Path):
    with pytest.raises(ValueError, match="validation needs a class of at least 2 images, got none"):
        load(write_images(tmp_path, {"a": 1, "b": 1}, {"a": 1, "b": 1}, (3, 4, 3)))


@pytest.mark.parametrize("path", ["", "/not/here"])
def test_a_folder_that_is_missing(path: str):
    message = f"data folder:PATH must name an existing folder, got '{path}'"
    with pytest.raises(ValueError, match=message):
        load(f"folder:{path}")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({}, {"a": 1, "b": 1}, r"must hold train/CLASS/\* and test/CLASS/\*; .*/train is missing"),
        ({"a": 1, "b": 1}, {}, r"must hold train/CLASS/\* and test/CLASS/\*; .*/test is missing"),
        ({"a": 2, "b": 0}, {"a": 1, "b": 1}, "/train/b must hold at least one image, got none"),
        ({"a": 2, "b": 2}, {"a": 0, "b": 1}, "/test/a must hold at least one image, got none"),
        ({"a": 2}, {"a": 1}, r"train of .* must hold at least 2 classes, got 1 \(a\)"),
        ({"a": 2, "b": 2}, {"a": 1}, "must hold the same classes; only in train: b$"),
        ({"a": 2, "b": 2}, {"a": 1, "c": 1, "d": 1}, "; only in train: b; only in test: c, d$"),
    ],
)
def test_a_folder_that_is_incomplete(
    train: dict[str, int], test: dict[str, int], message: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        load(write_images(tmp_path, train, test, (3, 4, 3)))


def test_an_empty_part_of_a_folder(tmp_path: Path):
    name = write_images(tmp_path, {}, {"a": 1, "b": 1}, (3, 4, 3))
    (tmp_path / "train").mkdir()
    message = "/train must hold a folder of images for every class, got none"
    with pytest.raises(ValueError, match=message):
        load(name)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_file_that_is_no_image_is_named(part: str, tmp_path: Path):
    name = write_images(tmp_path, {"a": 2, "b": 2}, {"a": 1, "b": 1}, (3, 4, 3))
    whole = (tmp_path / part / "b" / "0.png").read_bytes()
    for content in (b"notes", whole[:60]):
        (tmp_path / part / "b" / "notes.txt").write_bytes(content)
        with pytest.raises(ValueError, match=f"/{part}/b/notes.txt is no image that can be read"):
            load(name)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_of_another_size_is_named(part: str, tmp_path: Path):
    name = write_images(tmp_path, {"a": 2, "b": 2}, {"a": 1, "b": 1}, (3, 4, 3))
    Image.new("RGB", (3, 4)).save(tmp_path / part / "b" / "other.png")
    other, first = f".*/{part}/b/other.png", ".*/train/a/0.png"
    message = f"images must all be of one size, got 3 x 4 in {other} and 4 x 3 in {first}"
    with pytest.raises(ValueError, match=message):
        load(name)


def test_batch_sizes_out_of_range():
    images = some_images(20)
    message = r"batch_size must be at most 20 \(the training images\), got 21"
    with pytest.raises(ValueError, match=message):
        some_batches(images, size=21)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        some_batches(images, size=1)
    assert some_batches(images, size=20).per_epoch == 1


def test_positions_epochs_and_augmentations_out_of_range():
    batches = some_batches(some_images())
    with pytest.raises(ValueError, match=r"position must be in 0 \.\. 3, got 4"):
        batches.batch(0, 4)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        batches.begin(-1)
    with pytest.raises(ValueError, match="pad must be at least 0, got -1"):
        Augment(pad=-1)
    with pytest.raises(ValueError, match=r"augment must be Augment\(\) for flat inputs"):
        some_batches(load("sine").train, augment=Augment(pad=1))
    with pytest.raises(ValueError, match=r"data must be one of digits, .*; got 'imagenet'"):
        augment_of("imagenet")


# Batches


@pytest.mark.parametrize(
    "augment", [Augment(), Augment(pad=2), Augment(flip=True), Augment(pad=3, flip=True)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_equals_cropping_and_mirroring_by_hand(augment: Augment, channels: int):
    images = some_images(size=(6, 5, channels))
    mean, std = channel_statistics(images)
    batches = some_batches(images, augment=augment)
    pad = augment.pad
    for position, (inputs, targets) in enumerate(batches.steps(3)):
        for row, (image, corner, flip) in enumerate(draws_of(batches, 3)[:, position].T.tolist()):
            top, left = divmod(corner - image * (6 + 2 * pad) * (5 + 2 * pad), 5 + 2 * pad)
            wide = np.pad(images.pixels[image].numpy(), ((pad, pad), (pad, pad), (0, 0)))
            crop = wide[top : top + 6, left : left + 5]
            view = torch.tensor((crop[:, ::-1] if flip else crop).copy())
            assert torch.equal(inputs[row], ((view.float() - mean) / std).permute(2, 0, 1))
            assert targets[row] == images.targets[image]


def test_every_crop_and_both_directions_are_drawn():
    images = some_images(count=400, size=(4, 4, 1))
    batches = some_batches(images, size=100, augment=Augment(pad=1, flip=True))
    image, corner, flip = draws_of(batches, 0).flatten(1)
    offsets = (corner - image * 36).tolist()
    everywhere = {(top, left) for top in range(3) for left in range(3)}
    assert {divmod(offset, 6) for offset in offsets} == everywhere
    assert 150 < flip.sum() < 250
    assert not draws_of(some_batches(images, augment=Augment(pad=1)), 0)[2].any()


def test_the_same_seed_epoch_and_position_give_the_same_batch():
    images = some_images()
    whole = some_batches(images, seed=1)
    through = [inputs for epoch in range(3) for inputs, _ in whole.steps(epoch)]
    fresh = some_batches(images, seed=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    resumed = [inputs for inputs, _ in fresh.steps(2, start=1)]
    assert len(resumed) == 3
    for inputs, expected in zip(resumed, through[-3:], strict=True):
        assert torch.equal(inputs, expected)
    assert torch.equal(fresh.batch(0, 2)[0], through[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_and_seeds_have_orders_of_their_own():
    images = some_images()
    order = draws_of(some_batches(images, seed=1), 0)[0]
    assert not torch.equal(order, draws_of(some_batches(images, seed=1), 1)[0])
    assert not torch.equal(order, draws_of(some_batches(images, seed=2), 0)[0])
    assert torch.equal(order, draws_of(some_batches(images, seed=1, augment=Augment()), 0)[0])


def test_every_image_comes_once_an_epoch_and_an_incomplete_batch_is_dropped():
    images = some_images(count=20)
    batches = some_batches(images)
    assert batches.per_epoch == 4
    for epoch in range(2):
        assert draws_of(batches, epoch)[0].flatten().sort().values.tolist() == list(range(20))
    short = some_batches(images, size=6)
    assert short.per_epoch == 3
    assert draws_of(short, 0)[0].unique().numel() == 18
    assert [len(targets) for _, targets in short.steps(0)] == [6, 6, 6]


def test_batches_leave_the_images_alone():
    for images in (some_images(), load("sine").train):
        before = images.pixels.clone()
        batches = some_batches(images, augment=Augment())
        list(batches.steps(0))
        list(evaluation_batches(images, batches.mean, batches.std, "cpu"))
        assert torch.equal(images.pixels, before)


def test_sine_batches_are_flat():
    images = load("sine").train
    mean, std = channel_statistics(images)
    batches = some_batches(images, size=64, augment=augment_of("sine"))
    inputs, targets = batches.batch(0, 1)
    chosen = draws_of(batches, 0)[0, 1]
    assert torch.equal(inputs, (images.pixels[chosen] - mean) / std)
    assert torch.equal(targets, images.targets[chosen])


def test_inputs_are_float32_in_channels_last():
    images = some_images()
    batches = some_batches(images)
    for inputs, targets in (
        batches.batch(0, 0),
        *evaluation_batches(images, batches.mean, batches.std, "cpu", 8),
    ):
        assert inputs.shape[1:] == (3, 6, 5)
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)


def test_evaluation_gives_every_image_as_it_is():
    images = some_images(count=20)
    mean, std = channel_statistics(images)
    batches = list(evaluation_batches(images, mean, std, "cpu", batch_size=8))
    assert [len(targets) for _, targets in batches] == [8, 8, 4]
    expected = ((images.pixels.float() - mean) / std).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), expected)
    assert torch.equal(torch.cat([targets for _, targets in batches]), images.targets)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(evaluation_batches(images, mean, std, "cpu", batch_size=0))


def test_statistics_equal_the_direct_computation():
    images = some_images()
    mean, std = channel_statistics(images)
    values = images.pixels.double().view(-1, 3)
    torch.testing.assert_close(mean, values.mean(0).float())
    torch.testing.assert_close(std, values.std(0, correction=0).float())
    points = load("sine").train
    torch.testing.assert_close(channel_statistics(points)[1], points.pixels.std(0, correction=0))
    whole = normalised(images.pixels, mean, std)
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.var((0, 2, 3), correction=0), torch.ones(3))


def test_a_constant_channel_stays_finite():
    pixels = torch.full((4, 2, 2, 1), 9, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(4, dtype=torch.int64))
    assert [value.item() for value in channel_statistics(images)] == [9, 1]


def test_nothing_in_a_batch_waits_for_the_host():
    images = some_images()
    batches = Batches(images, 5, 0, "meta", Augment(pad=2, flip=True), *channel_statistics(images))
    with pytest.raises(RuntimeError):
        batches.targets[0].item()  # so a read would raise
    for inputs, targets in batches.steps(0):
        assert inputs.device.type == targets.device.type == "meta"
        assert (inputs.shape, targets.shape) == ((5, 3, 6, 5), (5,))


def test_every_data_set_has_an_augmentation():
    for name in NAMES:
        assert isinstance(augment_of(name), Augment)
    assert augment_of("cifar100") == augment_of("cifar10") == Augment(pad=4, flip=True)
    assert augment_of("folder:x") == Augment()
    assert not any(augment_of(name).flip for name in ("digits", "mnist", "sine"))
