"""The thesis' experiments: the sine runs, small, and ends with tables and pictures."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import csv_rows, script

import run
from nets import cost
from training.commandline.parser import underscored
from training.running.prepare import prepare
from training.settings.compare_settings import Compare
from training.settings.train_settings import Train

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
NAMES = ("sine", "sine-thesis")
PAGE = (ROOT / "docs" / "thesis.md").read_text()
COMMANDS = re.findall(r"^python run\.py (.*)$", PAGE, re.MULTILINE)
CIFAR = ("cifar-thesis-short", "cifar-thesis-long", "cifar100-thesis")


thesis = script(EXPERIMENTS / "thesis.py")


def settings_of(name: str) -> Compare:
    words = ["compare", "--config", str(EXPERIMENTS / f"{name}.yaml")]
    parser = run.make_parser()
    chosen = parser.instantiate(parser.parse_args(words)).compare
    return Compare(**{key: value for key, value in vars(chosen).items() if key != "config"})


@pytest.fixture(scope="module")
def sines(tmp_path_factory: pytest.TempPathFactory, plain_reports: None) -> Path:
    """A folder with both sine comparisons, one seed at a hundredth of the budget."""
    folder = tmp_path_factory.mktemp("sines")
    for name in NAMES:
        words = ["compare", "--config", str(EXPERIMENTS / f"{name}.yaml")]
        words += ["--out", str(folder / name), *["--epochs", "3", "--records", "12"]]
        assert run.main([*words, *["--seeds", "[3]", "--workers", "1"]]) == 0
    return folder


def test_draw_ends_with_the_tables_and_the_pictures(sines, capsys):
    assert thesis.main(["draw", *(str(sines / name) for name in NAMES)]) == 0
    told = capsys.readouterr().out
    for row in settings_of("sine").cells:
        assert len(re.findall(rf"^\| {row} .* 1 \|$", told, re.MULTILINE)) == 2
    for name in ("error.png", "fits.png"):
        assert told.splitlines()[-2:].count(str(sines / "sine" / name)) == 1
        assert (sines / "sine" / name).read_bytes().startswith(b"\x89PNG")


def test_the_fit_is_that_of_the_network_that_was_judged(sines):
    from training.data.splits import load

    runs = sines / "sine" / "dynamic" / "seed3"
    held = load("sine").validation
    loss = torch.nn.functional.mse_loss(thesis.outputs_of(runs, held.pixels), held.targets)
    summary = json.loads((runs / "summary.json").read_text())
    assert float(loss) == pytest.approx(summary["validation_loss"], rel=1e-4)


def test_the_thesis_way_differs_in_the_initializer_alone():
    ours, theirs = (yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text()) for name in NAMES)
    assert ours.pop("initializer") == "xavier"
    assert theirs.pop("initializer") == "xavier-outgoing"
    assert ours == theirs


def test_the_cifar_comparisons_have_the_same_rows():
    short, long, hundred = (settings_of(name) for name in CIFAR)
    assert short.cells == long.cells
    kinds = [
        {name: (type(cell.policy), cell.start) for name, cell in settings.cells.items()}
        for settings in (long, hundred)
    ]
    assert kinds[0] == kinds[1]
    assert long.epochs > short.epochs
    assert (short.data, long.data, hundred.data) == ("cifar10", "cifar10", "cifar100")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [underscored(word) for word in shlex.split(command)]
    assert run.make_parser().parse_args(words).subcommand == "compare"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_every_experiment_starts_within_its_limit(path):
    settings = settings_of(path.stem)
    image, classes = ((1,), 1) if settings.data == "sine" else ((3, 32, 32), 10)
    for name, cell in settings.cells.items():
        train = Train(net=settings.net, policy=cell.policy, start=cell.start)
        limit = train.limit(classes, image)
        assert cost(train.first(limit)).flops <= cost(limit).flops, name


def fake(folder: Path, runs: dict[str, list[tuple[float, float, float]]]) -> Path:
    """Write a comparison of one seed whose records are (train loss, train, validation accuracy)."""
    lines = [["run", "seed"], *([row, 0] for row in runs)]
    names = ["spent", "train_loss", "train_accuracy", "validation_accuracy", "validation_loss"]
    for row, records in runs.items():
        (folder / row / "seed0").mkdir(parents=True)
        with (folder / row / "seed0" / "metrics.csv").open("w", newline="") as file:
            table = [[k / len(records), *r, ""] for k, r in enumerate(records, start=1)]
            csv.writer(file).writerows([names, *table])
        summary = dict(zip(names[1:], records[-1])) | {"policy": row.split("-")[0]}
        (folder / row / "seed0" / "summary.json").write_text(json.dumps(summary))
    with (folder / "comparison.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder


def test_the_gap_stands_beside_that_of_a_static_net_of_equal_loss(tmp_path):
    ends = {
        "Never-small": (0.5, 0.8, 0.7),
        "Never-large": (1.0, 0.6, 0.58),
        "Plateau": (0.75, 0.7, 0.62),
        "Plateau-low": (0.25, 0.9, 0.75),
    }
    told = thesis.gap(fake(tmp_path, {row: [(2.0, 0.1, 0.1), end] for row, end in ends.items()}))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()[2:]]
    assert [line[4:6] for line in cells] == [
        ["+10.00", "-"],
        ["+2.00", "-"],
        ["+8.00", "+6.00"],
        ["+15.00", "-"],
    ]
    assert cells[2][:4] == ["Plateau", "0.750", "70.00", "62.00"]


def test_the_error_of_a_classifier_is_in_percent(tmp_path):
    folder = fake(tmp_path, {"row": [(1.0, 0.5, 0.5), (0.5, 0.8, 0.75)]})
    assert np.allclose(thesis.error(folder / "row" / "seed0"), [50, 25])


def test_a_quarter_of_the_training_images_and_all_others(tmp_path):
    for part, count in (("train", 8), ("test", 3)):
        for kind in ("cat", "dog"):
            (tmp_path / "all" / part / kind).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "all" / part / kind / f"{number}.jpg").write_bytes(b"image")
    assert thesis.quarter(tmp_path / "all", tmp_path / "less") == 4
    assert len(list((tmp_path / "less" / "train").glob("*/*"))) == 4
    assert len(list((tmp_path / "less" / "test").glob("*/*"))) == 6


def test_wrong_use_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert thesis.main(["draw", str(tmp_path)]) == 2
    assert "must be that of a finished comparison" in capsys.readouterr().err


def test_the_benchmark_prints_its_two_ratios(tmp_path):
    benchmark = script(ROOT / "benchmarks" / "thesis.py")
    settings = Train(
        data="digits", net="resnet8", epochs=10_000, policy=benchmark.Plateau(), precision="float32"
    )
    times, per_epoch = benchmark.times_of(settings, 1, str(tmp_path))
    assert per_epoch == prepare(settings).batches.per_epoch
    told = benchmark.table_of(times, per_epoch)
    assert {len(values) for values in times.values()} == {1}
    assert re.search(r"\| plain +\| .* 1\.000 \|", told)
    assert re.search(r"\| speed of the small phase \| +\d+\.\d\d \|", told)


@pytest.mark.usefixtures("plain_reports")
def test_pruned_and_grown_nets_end_with_equal_parameters(tmp_path):
    words = ["compare", "--config", str(EXPERIMENTS / "pruning.yaml"), "--out", str(tmp_path)]
    small = "--data digits --net resnet8 --epochs 1 --seeds [0] --workers 1 --threads 1"
    small += " --batch-size 64 --precision float32 --device cpu"
    words += small.split()
    assert run.main(words) == 0
    rows = csv_rows(tmp_path / "comparison.csv")
    parameters = {row["run"]: int(row["parameters"]) for row in rows}
    half = parameters["static-full"] / 2
    ends = [parameters[name] for name in parameters if not name.startswith("static")]
    assert len(ends) == 6
    assert 0.95 * half < min(ends) <= max(ends) <= half
