"""What benchmarks.gpu times a step of: the usual loop, a bare one, and ours, on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from nets import build
from policies import Never
from training.computing.wrapped_model import to_device
from training.data.augmenting import augment_of, draw_crops, table_of, views_of
from training.data.identity import identity_of
from training.data.images import Images
from training.data.splits import Splits, channel_statistics, normalised
from training.keeping.run_state import Run
from training.running import prepare
from training.running.loop import record_and_grow
from training.running.resume import open_run
from training.settings.start_settings import Start
from training.settings.train_settings import Train
from training.stepping.step import take_step

CUDA = torch.cuda.is_available()
NETS = {
    "resnet20": ("resnet20", Start(1, None)),
    "its start": ("resnet20", Start(0.25, 1)),
    "wrn-16-4": ("wrn-16-4", Start(1, None)),
    "wrn-28-10": ("wrn-28-10", Start(1, None)),
}
"""By their names in the table: the limit and the net that is trained."""
Data = tuple[Splits, dict[str, Any]]


def random_data(train: int, validation: int) -> Data:
    """Draw images of CIFAR-100's shape, and work out once what every run asks of its data."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
        return Images(pixels, torch.arange(count) % 100)

    parts = images(train), images(validation), images(validation)
    names = tuple(map(str, range(100)))
    splits = Splits(*parts, 100, (3, 32, 32), "classification", "cifar100", names)
    identity = identity_of(splits, augment_of("cifar100"))
    known = {"channel_statistics": channel_statistics(splits.train), "identity_of": identity}
    return splits, {"load": splits, **known}


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    if CUDA:
        torch.cuda.synchronize()


def clocked(work: Callable[[], object]) -> float:
    """Give the milliseconds of some work, the device's part of it included."""
    synchronize()
    start = perf_counter()
    work()
    synchronize()
    return 1000 * (perf_counter() - start)


@dataclass(frozen=True)
class Way:
    """Steps of some loop: `steps(n)` takes n of them, `ready(n)` what is not timed before."""

    steps: Callable[[int], object]
    ready: Callable[[int], object] = lambda steps: None

    def milliseconds(self, steps: int) -> float:
        """Give the milliseconds of a step, the mean of `steps` of them."""
        self.ready(steps)
        return clocked(lambda: self.steps(steps)) / steps


class Ours:
    """A run of ours that stays open beside others, each on the stream that it was opened on."""

    def __init__(self, held: ExitStack, data: Data, net: str, out: str, **settings: Any) -> None:
        limit, start = NETS[net]
        given = {"data": "cifar100", "net": limit, "start": start, "policy": Never()}
        given |= {"epochs": 10_000.0, "budget": "epochs", "lr": 0.01, "out": out}
        with ExitStack() as patched:
            for name, value in data[1].items():
                patched.enter_context(patch.object(prepare, name, lambda *_, v=value: v))
            self.run: Run = open_run(Train(**{**given, **settings}))
        held.enter_context(self.run.held)
        self._stream = torch.cuda.current_stream() if CUDA else None
        held.enter_context(self.run.observer)

    def there(self) -> AbstractContextManager[object]:
        """Give the context in which the run was opened."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def steps(self, count: int) -> None:
        """Take steps."""
        with self.there():
            for _ in range(count):
                take_step(self.run)

    def record(self) -> None:
        """Make a record."""
        with self.there():
            record_and_grow(self.run, 0.0)

    def ready(self, count: int) -> None:
        """Make the record now that would be due within so many steps."""
        run = self.run
        due = (run.progress.boundary + 1) * run.budget.total / run.settings.record_count  # images
        if due - run.progress.images <= count * run.settings.batch_size:
            while not run.record_due:
                self.steps(1)
            self.record()

    def way(self) -> Way:
        """Give the steps as they are timed."""
        return Way(self.steps, self.ready)


def graph(wanted: bool) -> dict[str, Any]:
    """Give the settings of a run that takes its steps eagerly, or as replays where it can."""
    return {"graph": ("true" if CUDA else "auto") if wanted else "false"}


def bare_of(run: Run, captured: bool = False) -> Way:
    """Give steps written by hand: batch, forward, backward, fused update; as one graph if asked."""
    stream = torch.cuda.Stream() if CUDA else None
    with torch.cuda.stream(stream) if stream else nullcontext():
        step = _bare_step(run)
        for _ in range(3):  # the optimizer's state is made, cuDNN chooses
            step()
        if captured:
            synchronize()
            recorded = torch.cuda.CUDAGraph()
            # thread_local: a DataLoader's thread may pin memory meanwhile
            with torch.cuda.graph(recorded, stream=stream, capture_error_mode="thread_local"):
                step()
            step = recorded.replay
    synchronize()

    def steps(count: int) -> None:
        with torch.cuda.stream(stream) if stream else nullcontext():
            for _ in range(count):
                step()

    return Way(steps)


def _bare_step(run: Run) -> Callable[[], None]:
    """Give a step without arguments that may be captured: its place in the data is a tensor."""
    precision, batch = run.precision, _batches_of(run)
    half = precision.dtype != torch.float32
    net = to_device(build(run.net.architecture), precision.device)
    weights = [value for value in net.parameters() if value.dim() > 1]
    others = [value for value in net.parameters() if value.dim() <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    how = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": True}
    optimizer = torch.optim.SGD(groups, 0.01, **how)

    def step() -> None:
        inputs, targets = batch()
        optimizer.zero_grad(set_to_none=True)
        with precision.searching():  # cuDNN, as ours does
            # a cache of weights that were cast does not outlive a capture
            cast = precision.dtype if half else None
            with torch.autocast(precision.device.type, cast, enabled=half, cache_enabled=False):
                outputs = net(inputs)
            functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()

    def searching() -> None:
        with precision.searching():  # as ours: cuDNN's fastest algorithms
            step()

    return searching


def _batches_of(run: Run) -> Callable[[], tuple[Tensor, Tensor]]:
    """Give batches as ours are: a gather that crops and mirrors, at a place kept on the device."""
    device, train, size = run.precision.device, run.splits.train, run.settings.batch_size
    augment, generator = augment_of("cifar100"), torch.Generator().manual_seed(0)
    count = len(train) // size
    order = torch.randperm(len(train), generator=generator)[: count * size]
    crops = draw_crops(order, (32, 32), augment, generator)
    draws = torch.stack([order, *crops]).view(3, count, size).to(device)
    table = table_of(train.pixels.to(device), augment)
    views, targets = views_of((32, 32), augment).to(device), train.targets.to(device)
    mean, std = (values.to(device) for values in run.statistics)
    place = torch.zeros(1, dtype=torch.int64, device=device)

    def batch() -> tuple[Tensor, Tensor]:
        order, corner, flip = draws.index_select(1, place).squeeze(1).unbind()
        place.add_(1).remainder_(count)
        index = corner[:, None] + views.index_select(0, flip)  # (B, H * W)
        pixels = table.index_select(0, index.flatten()).view(-1, 32, 32, 3)
        return normalised(pixels, mean, std), targets.index_select(0, order)

    return batch


class PilImages(torch.utils.data.Dataset):  # pyright: ignore[reportMissingTypeArgument]
    """Images as torchvision's data sets give them: each a PIL image that is transformed."""

    def __init__(self, images: Images, transform: Callable[[Any], Tensor]) -> None:
        self.pixels, self.targets = images.pixels.numpy(), images.targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def usual_of(run: Run, workers: int) -> Way:
    """Give the loop of most tutorials: a DataLoader, NCHW, float32, the loss read at every step."""
    from torchvision import transforms

    device, ahead = run.precision.device, 2 * workers
    mean, std = ((values / 255).tolist() for values in run.statistics)
    changed = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose(
        [*changed, transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    images = PilImages(run.splits.train, transform)
    batches = _without_end(images, run.settings.batch_size, workers)
    net = build(run.net.architecture).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def steps(count: int) -> None:
        for _ in range(count):
            inputs, targets = (part.to(device, non_blocking=True) for part in next(batches))
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            loss.item()

    def ready(count: int) -> None:
        for _ in range(ahead):  # made while other ways were timed
            next(batches)

    return Way(steps, ready)


def _without_end(images: PilImages, size: int, workers: int) -> Iterator[Sequence[Tensor]]:
    how: dict[str, Any] = {"shuffle": True, "drop_last": True, "num_workers": workers}
    how |= {"pin_memory": CUDA, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(images, size, **how)
    while True:
        yield from loader


@contextmanager
def told(problems: list[str], what: str) -> Iterator[None]:
    """Note what cannot be done here and go on: a table lacks it then, and says why."""
    try:
        yield
    except Exception as error:
        problems.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
