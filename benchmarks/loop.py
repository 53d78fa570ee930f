"""What the training loop costs beside a bare one, and beside the loop that most people write.

    python -m benchmarks.loop --data folder:PATH

The loops take turns, ten steps at a time, all with one network, optimizer and batch size. "bare" is
forward, backward and update on one batch in memory, in the run's precision and layout; "bare again"
says how much of a ratio is noise. "run" is what `run.py train` does: data and augmentation, layers
read in one step of ten, running average, counters; its record is what is done at an equal part of
the budget: validation (of the running average too), policy, history, TensorBoard, checkpoint. It
looks at as many images as it does of CIFAR-10, whose epoch has 45,000, whatever --data has.
"usual" is a DataLoader over PIL images with torchvision's transforms, NCHW, float32.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from analysis.showing.tables import markdown
from benchmarks.timing import interleaved, ratios, training_arguments
from nets import build
from policies import Plateau
from training.commandline.process_memory import keep_memory
from training.computing.optimizer import make_optimizer
from training.data.splits import part_of
from training.keeping.run_state import Run
from training.running.loop import record_and_grow
from training.running.resume import open_run
from training.settings.start_settings import Start
from training.settings.train_settings import Train
from training.stepping.step import take_step

STEPS = 10
"""Steps a turn: as many as there are between two readings of the layers."""
EPOCH = 45_000
"""Training images of CIFAR-10, without the validation split."""


def bare_of(run: Run) -> Callable[[], None]:
    """Give ten steps of a hand-written loop on one batch in memory."""
    net = build(run.net.architecture).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer, (inputs, targets) = make_optimizer(net, run.settings), run.batches.batch(0, 0)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            with run.precision.autocast():
                outputs = net(inputs)
            functional.cross_entropy(outputs.float(), targets).backward()
            optimizer.step()

    return steps


def usual_of(run: Run) -> Callable[[], None]:
    """Give ten steps of the loop of most tutorials; the images are in memory, as PIL's."""
    net, batches = build(run.net.architecture), usual_batches(run)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def steps() -> None:
        for _ in range(STEPS):
            inputs, targets = next(batches)
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()

    return steps


def usual_batches(run: Run) -> Iterator[Any]:
    """Give batches without end by a DataLoader in this process: workers would take its cores."""
    from torchvision.transforms import v2
    from torchvision.transforms.functional import to_pil_image

    mean, std = ((values / 255).tolist() for values in run.statistics)
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    train = run.splits.train
    images = [to_pil_image(pixels.permute(2, 0, 1)) for pixels in train.pixels]
    examples = list(zip(images, train.targets.tolist(), strict=True))

    def collate(chosen: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.stack([transform(image) for image, _ in chosen])
        return inputs, torch.tensor([target for _, target in chosen])

    size = run.settings.batch_size
    while True:
        yield from DataLoader(
            examples,  # pyright: ignore
            size,
            shuffle=True,
            drop_last=True,
            collate_fn=collate,
        )


def turns_of(run: Run) -> dict[str, Callable[[], None]]:
    """Give what is timed, by name: ten steps of each loop, and the run's record."""

    def steps() -> None:
        for _ in range(STEPS):
            take_step(run)
        run.observer.readings()  # else a record would work out what was read in these steps

    turns = {"bare": bare_of(run), "bare again": bare_of(run), "run": steps}
    return {**turns, "run's record": lambda: record_and_grow(run, 0.0), "usual": usual_of(run)}


def main() -> None:
    given = training_arguments(__doc__ or "", data="cifar10", rounds=12)
    rounds = given.pop("rounds")
    keep_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        # So long a budget that nothing ends; Plateau is asked at every record and finds no room.
        settings = Train(
            **given,
            augment="crop-flip",  # as the usual loop
            epochs=10_000,
            policy=Plateau(),
            start=Start(1, None),
            save_every=0,  # what a record costs at most
            out=folder,
        )
        run = open_run(settings)
        run.judged = part_of(run.splits.train, settings.validation_images)
        turns = turns_of(run)
        with run.observer:
            seconds = interleaved(turns, rounds)
        assert run.board is not None
        run.board.flush()
    print(f"{given['net']}, {given['data']}, batch {given['batch_size']}, {run.precision.dtype}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print(f"{rounds} rounds of {STEPS} steps\n\n{table_of(seconds, EPOCH // settings.batch_size)}")


def table_of(seconds: dict[str, list[float]], per_epoch: int) -> str:
    """Give the times of a step as ratios to the bare one's: of the best, and the rounds' median."""
    rows = []
    for name in ("bare", "bare again", "run", "usual"):
        milliseconds = f"{1e3 * min(seconds[name]) / STEPS:.1f}"
        figures = [f"{value:.3f}" for value in ratios(seconds, name, "bare")]
        rows.append([name, milliseconds, *figures, "<= 1.03" if name == "run" else ""])
    faster = [f"{value:.2f}" for value in ratios(seconds, "usual", "run")]
    rows.append(["usual, over the run's", "", *faster, ">= 1.8"])
    record, run = seconds["run's record"], seconds["run"]
    shares = [m(record) / (m(record) + m(run) * per_epoch / STEPS) for m in (min, median)]
    told = [f"{share:.1%}" for share in shares]
    rows.append(["record, of an epoch of CIFAR-10", "", *told, "< 3 %"])
    return markdown(["a step of", "ms, best", "best / best", "median", "aim"], rows)


if __name__ == "__main__":
    main()
