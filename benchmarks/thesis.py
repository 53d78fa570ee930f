"""Section 5.5 of the thesis: what the machinery costs at full capacity, and the small phase's gain.

    python benchmarks/thesis.py --data mnist --data-dir data --net resnet20

A plain loop and whole runs take turns, ten steps at a time (one of them a step in which layers are
read), so that what slows the machine slows them alike. All have the same batches, precision and
optimizer; all but the last the same network, the limit. "plain again" is a second plain loop: how
far its ratio is from 1 says how much of the others' is noise. An epoch is a plain one with one
validation, and the run's with one record: validation (of the running average too), policy, history,
TensorBoard with its histograms, checkpoint.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import torch

from analysis.showing.tables import markdown
from benchmarks.timing import interleaved, training_arguments
from nets import build
from policies import Plateau
from training.computing.evaluation import evaluate
from training.computing.optimizer import make_optimizer
from training.keeping.run_state import Run
from training.running.loop import record_and_grow
from training.running.resume import open_run
from training.settings.start_settings import Start
from training.settings.train_settings import Train
from training.stepping.step import take_step

STEPS = 10
"""Steps a turn: as many as there are between two readings of the layers."""
Times = dict[str, list[float]]


class Plain:
    """The loop that one would write by hand, on the batches that a run takes."""

    def __init__(self, run: Run) -> None:
        self.run, settings, device = run, run.settings, run.precision.device
        net = build(run.net.architecture, settings.seed)
        self.net = net.to(device, memory_format=torch.channels_last)  # pyright: ignore
        self.optimizer = make_optimizer(self.net, settings)

    def steps(self) -> None:
        """Take ten steps."""
        run = self.run
        for position in range(run.progress.position, run.progress.position + STEPS):
            inputs, targets = run.batches.batch(
                run.progress.epoch, position % run.batches.per_epoch
            )
            self.optimizer.zero_grad()
            with run.precision.autocast():
                outputs = self.net(inputs)
            run.loss(outputs.float(), targets).backward()
            self.optimizer.step()

    def validate(self) -> None:
        """Read loss and accuracy on the validation split."""
        run = self.run
        evaluate(self.net, run.splits.validation, *run.statistics, run.loss, run.precision)


def steps_of(run: Run) -> Callable[[], None]:
    """Give what takes ten steps of a run, without its records."""

    def steps() -> None:
        for _ in range(STEPS):
            take_step(run)

    return steps


def times_of(settings: Train, rounds: int, folder: str) -> tuple[Times, int]:
    """Give seconds a turn (of steps, a validation, a record) by name, and the steps of an epoch."""
    starts = {
        "run": (Start(1, None), settings.ema),
        "run, without the average": (Start(1, None), 0.0),
        "run, small phase": (Start(), settings.ema),
    }
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name, (start, ema) in starts.items():
            out = f"{folder}/{len(runs)}"
            told = {**vars(settings), "start": start, "ema": ema, "out": out, "save_every": 0}
            runs[name] = open_run(Train(**told))
            stack.enter_context(runs[name].observer)
        full = runs["run"]
        plain, again = Plain(full), Plain(full)
        turns: dict[str, Callable[[], object]] = {"plain": plain.steps, "plain again": again.steps}
        turns |= {name: steps_of(run) for name, run in runs.items()}
        turns |= {"validation": plain.validate, "record": lambda: record_and_grow(full, 0.0)}
        found = interleaved(turns, rounds)
        for run in runs.values():
            assert run.board is not None
            run.board.flush()
        return found, full.batches.per_epoch


def table_of(times: Times, per_epoch: int) -> str:
    """Give the times as tables: ten steps, then an epoch of the full network."""
    plain, rows = times["plain"], []
    for name in ("plain", "plain again", "run", "run, without the average", "run, small phase"):
        own = times[name]
        ratios = [min(own) / min(plain), median(own) / median(plain)]
        own_times = [f"{1e3 * value / STEPS:.2f}" for value in (min(own), median(own))]
        rows.append([name, *own_times, *(f"{ratio:.3f}" for ratio in ratios)])
    header = ["a step of", "ms, best", "ms, median", "best / best", "median / median"]
    steps = markdown(header, rows)
    figures = []
    for middle in (min, median):
        epochs = [
            middle(times[loop]) * per_epoch / STEPS + middle(times[more])
            for loop, more in (("plain", "validation"), ("run", "record"))
        ]
        gain = middle(times["run"]) / middle(times["run, small phase"])
        figures.append((epochs[1] / epochs[0], gain))
    best, middle = figures
    rows = [
        ["overhead of an epoch", f"{best[0]:.3f}", f"{middle[0]:.3f}", "1.035", "at most 1.02"],
        ["speed of the small phase", f"{best[1]:.2f}", f"{middle[1]:.2f}", "3.1", "at least 4"],
    ]
    return f"{steps}\n\n{markdown(['ratio', 'best', 'median', 'thesis', 'aim'], rows)}"


def main() -> None:
    given = training_arguments(__doc__ or "", data="mnist", rounds=30)
    rounds = given.pop("rounds")
    # So long a budget that nothing ends; Plateau is asked at every record and finds no room.
    settings = Train(**given, epochs=10_000, optimizer="adam", policy=Plateau(), schedule="hold")
    with tempfile.TemporaryDirectory() as folder:
        times, per_epoch = times_of(settings, rounds, folder)
    device = "GPU" if torch.cuda.is_available() and given["device"] != "cpu" else "CPU"
    print(f"{given['net']}, {given['data']}, batch {given['batch_size']}, {given['precision']}")
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads of", end=" ")
    print(f"{os.cpu_count()} cores, {rounds} rounds of {STEPS} steps\n")
    print(table_of(times, per_epoch))


if __name__ == "__main__":
    main()
