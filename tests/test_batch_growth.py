"""A larger batch while the net is small: its size, its images, its rate, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences, grey_images
from runs import csv_rows, quiet, refusal_of, short_run

import training.asking.branch
import training.stepping.step
from analysis import Record, read_history
from nets import Action, Cost, Narrow, Widen, WidenStage, cost, preset, seed_of, train_flops
from policies import Never, Periodic, Policy
from training.asking.branch import branch
from training.asking.branch_candidates import NONE
from training.comparing.dry_run import forecast
from training.comparing.jobs import job_of
from training.computing.budget import Progress
from training.computing.learning_rate import batch_factor, learning_rate
from training.data.augmenting import Augment
from training.data.batches import Batches
from training.data.images import Images
from training.keeping.run_folder import read_config
from training.running.loop import record_and_grow, train
from training.running.prepare import CHECKED
from training.running.resume import open_run
from training.running.write_down import save, write_losses
from training.settings.compare_settings import Cell, Compare
from training.settings.start_settings import Start
from training.settings.train_settings import Train
from training.stepping.step import take_step, weight_in_average

NET = seed_of(preset("resnet8", image=(1, 8, 8)), 0.25)
FLOPS = cost(NET).flops
BLOCK = "stage1.block1"
SMALL = Start(0.25, 1, 0.25)
"""A fifteenth of the limit's FLOPs."""


@pytest.mark.parametrize(
    ("most", "room", "per_epoch", "factor"),
    [
        (1, 100, 100, 1),
        (8, 100, 100, 8),
        (7, 100, 100, 4),  # a power of two
        (8, 7.99, 100, 4),  # a step costs no more than the limit's
        (8, 2, 100, 2),
        (8, 1.99, 100, 1),
        (8, 1, 100, 1),
        (10**22, 100, 5, 4),  # of what an epoch has
        (10**22, 100, 1, 1),
    ],
)
def test_the_batch_is_the_largest_power_of_two_that_fits(most, room, per_epoch, factor):
    limit = Cost(0, int(room * FLOPS))
    assert batch_factor(Train(batch_growth=most), limit, NET, per_epoch) == factor


@pytest.mark.parametrize(
    ("optimizer", "times"), [("sgd", 4), ("adam", 2), ("adamw", 2), ("rmsprop", 2)]
)
@pytest.mark.parametrize("spent", [0, 0.3, 0.9])
def test_the_learning_rate_is_scaled_before_its_schedule(optimizer, times, spent):
    settings = Train(optimizer=optimizer, lr=0.5, schedule="hold")
    rate = learning_rate(settings, spent)
    assert learning_rate(settings, spent, 4) == pytest.approx(times * rate, rel=1e-15)
    assert learning_rate(settings, spent, 1) == rate


def batches_of(rank: int = 0, ranks: int = 1) -> Batches:
    statistics = torch.tensor([100.0]), torch.tensor([50.0])
    images = Images(*grey_images(47))
    return Batches(images, 6, 3, "cpu", Augment(1, flip=True), *statistics, rank, ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_joined_batches_are_the_single_ones_one_after_the_other(ranks):
    for rank in range(ranks):
        single, joined = batches_of(rank, ranks), batches_of(rank, ranks)
        joined.join(3)
        for position in (0, 1, 3, 4):  # a net may change anywhere in an epoch
            parts = zip(*(single.batch(2, position + ahead) for ahead in range(3)))
            expected = [torch.cat(part) for part in parts]
            assert not differences(list(joined.batch(2, position)), expected)
        assert [len(targets) for _, targets in joined.steps(2)] == [18 // ranks] * 2
        joined.join(1)
        assert not differences(list(joined.batch(2, 6)), list(single.batch(2, 6)))


def test_more_batches_than_an_epoch_has_are_refused():
    batches = batches_of()
    for count in (0, 8):
        with pytest.raises(ValueError, match=rf"count must be in 1 \.\. 7, got {count}"):
            batches.join(count)
    batches.join(4)
    with pytest.raises(ValueError, match=r"position must be in 0 \.\. 3, got 4"):
        batches.batch(0, 4)


def test_an_epoch_ends_where_too_few_batches_are_left():
    progress, places = Progress(), []
    for joined in (4, 4, 1, 2, 4, 4, 1, 1, 8, 1):  # of 10
        progress.make_room(10, joined)
        places.append((progress.epoch, progress.position))
        progress.next_batch(10, joined)
    first, second, third = (
        [(0, 0), (0, 4), (0, 8)],
        [(1, 0), (1, 2), (1, 6)],
        [(2, 0), (2, 1), (2, 2)],
    )
    assert places == [*first, *second, *third, (3, 0)]


@dataclass(frozen=True)
class Scripted(Policy):
    """Grows past two sizes of the batch, and back past one."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        plan = {1: [WidenStage("stage1", 12)], 2: [Widen(BLOCK, 12)], 3: [Narrow(BLOCK, 12)]}
        return plan.get(len(history), [])


def settings_of(folder: Path, **changes: Any) -> Train:
    """Settings of a run of 22 steps, of 8, 4, 2 and 4 of the 35 batches of an epoch."""
    given = {"epochs": 1.9, "records": 4, "budget": "epochs", "batch_growth": 8, "ema": 0.9}
    given |= {
        "start": SMALL,
        "batch_size": 36,
        "grow_until": 1.0,
        "observe_every": 3,
        "validation_images": 20,
    }
    return short_run(folder, Scripted(), **{**given, **changes})


Seen = list[tuple[int, list[int], float, float]]


def trained(settings: Train, until: int | None = None) -> Seen:
    """Train; give each step's epoch and images, its learning rate and its weight in the average."""
    run, seen = open_run(settings), []
    with run.held, run.observer:
        while not run.ended and run.progress.step != until:
            factor, spent = run.factor, run.spent
            take_step(run)
            first = int(run.clock.position)
            images = run.batches.draws[first : first + factor, 0].flatten().tolist()
            assert len(images) == factor * settings.batch_size
            assert float(run.clock.rate) == pytest.approx(
                learning_rate(settings, spent) * factor, rel=1e-6
            )
            seen.append((run.batches.drawn, images, factor, float(run.clock.weight)))
            if run.record_due:
                record_and_grow(run, 0.0)
        write_losses(run)
        save(run)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(settings_of(folder))


def test_an_epoch_shows_no_image_twice_whatever_grows_in_it(whole):
    _, seen = whole
    factors = [factor for _, _, factor, _ in seen]
    assert [f for f, before in zip(factors, [0, *factors]) if f != before] == [8, 4, 2, 4]
    changed = [n for n in range(1, len(seen)) if factors[n] != factors[n - 1]]
    assert any(seen[n][0] == seen[n - 1][0] for n in changed)  # in the middle of an epoch
    for epoch in range(seen[-1][0]):
        images = [image for drawn, images, *_ in seen if drawn == epoch for image in images]
        assert len(set(images)) == len(images)
        assert 1260 - 7 * 36 <= len(images) <= 1260


def test_what_a_run_counts_is_what_it_did(whole):
    folder, seen = whole
    history, rows = read_history(folder), csv_rows(folder / "metrics.csv")
    step = flops = images = 0
    for record, row in zip(history, rows, strict=True):
        steps = seen[step : record.step]
        factors = {factor for *_, factor, _ in steps}
        assert {int(row["batch_size"])} == {36 * factor for factor in factors}
        images += sum(len(images) for _, images, *_ in steps)
        flops += sum(len(i) for _, i, *_ in steps) * train_flops(record.architecture)
        assert record.epoch == images / 1295
        assert record.learning_rate == pytest.approx(
            learning_rate(settings_of(folder), record.spent) * factors.pop()
        )
        step = record.step
    for old, new in pairwise(cost(record.architecture).flops for record in history):
        flops += CHECKED * (2 * old + 3 * new)  # what growing costs
    assert history[-1].train_flops == flops
    assert len(csv_rows(folder / "losses.csv")) == len(seen)
    assert [int(record.spent * 4) for record in history] == [1, 2, 3, 4]


def test_the_average_reaches_as_far_back_in_images(whole):
    for step, (*_, factor, weight) in enumerate(whole[1], start=1):
        assert weight == pytest.approx(weight_in_average(0.9**factor, step), rel=1e-6)


@pytest.mark.parametrize("stop", [2, 12])
def test_stopped_anywhere_it_goes_on_with_the_same_images(tmp_path, whole, stop):
    settings = settings_of(tmp_path, resume=True)
    seen = trained(settings, until=stop)
    seen += trained(settings)
    assert seen == whole[1]
    states = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (tmp_path, whole[0])]
    for part in ("weights", "ema", "optimizer"):
        assert not differences(states[0][part], states[1][part])


def test_with_a_growth_of_1_nothing_is_otherwise(tmp_path):
    texts = []
    for name, growth in (("a", 1), ("b", 16)):
        said: list[str] = []
        # the limit itself, which is never small
        settings = settings_of(tmp_path / name, start=Start(1, None), batch_growth=growth)
        train(settings_changed(settings), said.append)
        texts.append((tmp_path / name / "history.jsonl").read_bytes())
        assert any(line.startswith("batch 36 (1 x 36) at 1 times") for line in said) == (growth > 1)
        columns = csv_rows(tmp_path / name / "metrics.csv")[0]
        assert ("batch_size" in columns) == (growth > 1)
    assert texts[0] == texts[1]


def settings_changed(settings: Train) -> Train:
    return Train(**{**vars(settings), "policy": Never(), "epochs": 0.2, "records": 2})


def test_a_change_is_said(tmp_path):
    said: list[str] = []
    train(settings_of(tmp_path, optimizer="adam"), said.append)
    assert said[1] == "batch 288 (8 x 36) at 2.83 times the learning rate"
    told = [line for line in said if line.startswith("step") and " batch " in line]
    assert [line.partition("  batch ")[2][:12] for line in told] == [
        "144 (4 x 36)",
        "72 (2 x 36) ",
        "144 (4 x 36)",
    ]


def test_a_folder_of_an_earlier_version_has_no_growth_of_the_batch(tmp_path):
    settings = settings_changed(settings_of(tmp_path, batch_growth=1))
    train(settings, quiet)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("batch_growth: 1\n", ""))
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert state["identity"].pop("batch_growth") == 1
    torch.save(state, path)
    (tmp_path / "summary.json").unlink()
    assert read_config(tmp_path)["batch_growth"] == 1
    train(Train(**{**vars(settings), "resume": True}), quiet)
    assert (tmp_path / "summary.json").exists()
    with pytest.raises(ValueError, match=r"batch_growth must be 1 to resume the run in .*, got 2"):
        train(Train(**{**vars(settings), "resume": True, "batch_growth": 2}), quiet)


def test_branches_take_the_batch_and_rate_of_the_net_before_the_growth(tmp_path, monkeypatch):
    given = {"epochs": 0.3, "records": 3, "batch_growth": 4, "validation_images": 20}
    train(short_run(tmp_path, Periodic(share=0.1, every=1), start=SMALL, **given), quiet)
    record = next(record for record in read_history(tmp_path) if record.applied)
    seen, step = [], training.asking.branch.train_step
    wanted = {NONE: (), "done": record.applied}, []
    monkeypatch.setattr(training.asking.branch, "candidates", lambda *_: wanted)

    def stepped(net: Any, optimizer: Any, inputs: Any, *rest: Any) -> None:
        seen.append((len(inputs), optimizer.param_groups[0]["lr"]))
        step(net, optimizer, inputs, *rest)

    monkeypatch.setattr(training.asking.branch, "train_step", stepped)
    branch(tmp_path, steps=11, orders=1, say=quiet, budget="steps")  # into another epoch of 10
    assert {images for images, _ in seen} == {128}
    assert seen[0][1] == record.learning_rate == 4 * learning_rate(Train(), record.spent)


def test_a_row_of_a_comparison_has_its_own(tmp_path):
    cells = {"grown": Cell(Periodic(), batch_growth=8), "other": Cell(Periodic())}
    cells |= {"again": Cell(scratch="grown"), "small": Cell(Never(), Start(0.25), batch_growth=1)}
    settings = Compare(net="resnet8", cells=cells, batch_growth=2, out=str(tmp_path / "out"))
    found = {name: job_of(settings, name, 0).settings.batch_growth for name in cells}
    assert found == {"grown": 8, "other": 2, "again": 8, "small": 1}


def test_what_a_comparison_takes_is_measured_at_its_batches(tmp_path, monkeypatch):
    import training.comparing.dry_run as module

    sizes, step = [], module.train_step

    def stepped(net: Any, optimizer: Any, inputs: Any, *rest: Any) -> None:
        sizes.append(len(inputs))
        step(net, optimizer, inputs, *rest)

    monkeypatch.setattr(module, "train_step", stepped)
    cells = {"grown": Cell(Periodic(), SMALL, batch_growth=8), "other": Cell(Periodic())}
    given = {"net": "resnet8", "batch_size": 32, "device": "cpu", "threads": 1, "workers": 1}
    forecast(Compare(**given, cells=cells, seeds=[0], out=str(tmp_path / "out")))
    assert [size for size, before in zip(sizes, [0, *sizes]) if size != before] == [256, 32]


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_what_is_no_growth_is_refused(value):
    for kind in (Train, Compare, Cell):
        with pytest.raises(ValueError, match=r"batch_growth must be (at least 1|an integer)"):
            kind(batch_growth=value)


def test_the_command_line_refuses_it_in_a_line(tmp_path, capsys):
    words = ["train", "--out", tmp_path / "out", "--batch-growth", "0"]
    assert refusal_of(capsys, words) == "batch_growth must be at least 1, got 0"
