"""Comparisons: every row with every seed once, one table, and what is finished is left as it is."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import run
import training.loop
from policies import Never, Periodic, Plateau
from training.cells import job_of
from training.comparison import compare
from training.loop import train
from training.settings import Cell, Compare, Start, Train, settings_to_dict

CELLS = {
    "static": Cell(Never(), Start(0.25, None)),
    "growing": Cell(Periodic(), schedule="hold", lr=0.05),
}


def small(folder: Path, **changes: Any) -> Compare:
    """Settings of a comparison of four runs, a fifth of a second each."""
    given = {"net": "resnet8", "epochs": 0.1, "records": 3, "batch_size": 32, "device": "cpu"}
    given |= {"workers": 1, "threads": 1}
    return Compare(**{**given, "cells": CELLS, "seeds": [0, 1], "out": str(folder), **changes})


def quiet(line: str) -> None:
    """Say nothing."""


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the runs that are really run, in their order."""
    folders: list[Path] = []
    open_run = training.loop.open_run

    def counted(settings: Train) -> Any:
        folders.append(settings.folder)
        return open_run(settings)

    monkeypatch.setattr(training.loop, "open_run", counted)
    return folders


def test_a_comparison_is_a_folder_of_runs_with_a_table(tmp_path, opened):
    lines: list[str] = []
    parts: list[float] = []
    settings = small(tmp_path / "c")
    outcome = compare(settings, lines.append, parts.append)
    assert not outcome.failures
    table = outcome.text
    folders = [tmp_path / "c" / name / f"seed{seed}" for name in CELLS for seed in (0, 1)]
    assert opened == folders
    for folder in folders:
        kept = {path.name for path in folder.iterdir()}
        assert {
            "config.yaml",
            "history.jsonl",
            "metrics.csv",
            "checkpoint.pt",
            "summary.json",
        } < kept
    assert yaml.safe_load((tmp_path / "c" / "config.yaml").read_text()) == settings_to_dict(
        settings
    )
    assert (tmp_path / "c" / "comparison.md").read_text() == table + "\n"
    assert [line.split()[1] for line in table.splitlines()[2:4]] == ["static", "growing"]
    assert "Exploratory: fewer than 5 seeds" in table
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    rows = rows_of(tmp_path / "c")
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("static", "0"),
        ("static", "1"),
        ("growing", "0"),
        ("growing", "1"),
    ]
    for row, summary in zip(rows, summaries, strict=True):
        assert float(row["validation_accuracy"]) == summary["validation_accuracy"]
        assert int(row["train_flops"]) == summary["train_flops"]
        assert (row["policy"], row["test_accuracy"]) == (summary["policy"], "")
    assert len(lines) == 4
    assert lines[2].startswith("3/4  growing  seed 0  ")
    assert parts == sorted(parts)
    assert parts[-1] == 1


def test_a_run_of_a_comparison_is_the_run_that_train_makes(tmp_path):
    settings = small(tmp_path / "c", seeds=[3], cells={"growing": CELLS["growing"]})
    one = job_of(settings, "growing", 3).settings
    assert (one.schedule, one.lr, one.seed, one.policy) == ("hold", 0.05, 3, Periodic())
    assert job_of(small(tmp_path), "static", 3).settings.schedule == settings.schedule
    compare(settings, quiet)
    train(replace(one, out=str(tmp_path / "alone")), quiet)
    histories = [tmp_path / "c" / "growing" / "seed3", tmp_path / "alone"]
    assert len({(folder / "history.jsonl").read_bytes() for folder in histories}) == 1


def test_what_is_finished_is_not_run_again(tmp_path, opened):
    table = compare(small(tmp_path), quiet)
    opened.clear()
    before = bytes_of(tmp_path)
    assert compare(small(tmp_path), quiet) == table
    assert not opened
    assert bytes_of(tmp_path) == before


def test_another_seed_or_row_runs_only_what_is_missing(tmp_path, opened):
    compare(small(tmp_path, seeds=[1]), quiet)
    before = {path: data for path, data in bytes_of(tmp_path).items() if "seed1" in path.parts}
    opened.clear()
    compare(small(tmp_path, seeds=[0, 1]), quiet)
    assert opened == [tmp_path / "static" / "seed0", tmp_path / "growing" / "seed0"]
    opened.clear()
    more = {"another": Cell(Plateau(patience=1)), **CELLS}
    compare(small(tmp_path, seeds=[1], cells=more), quiet)
    assert opened == [tmp_path / "another" / "seed1"]
    assert [(row["run"], row["seed"]) for row in rows_of(tmp_path)] == [
        ("another", "1"),
        ("static", "1"),
        ("growing", "1"),
    ]
    assert before.items() <= bytes_of(tmp_path).items()


def test_a_comparison_that_was_stopped_goes_on_where_it_was(tmp_path, opened, monkeypatch):
    class Crash(BaseException):
        pass

    step, calls = training.loop.train_step, []

    def stepped(*values: Any) -> None:
        calls.append(1)
        if len(calls) == 40:
            raise Crash
        step(*values)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "train_step", stepped)
        with pytest.raises(Crash):
            compare(small(tmp_path / "stopped"), quiet)
    reached = len(opened)
    assert 1 < reached < 4
    assert len(rows_of(tmp_path / "stopped")) == reached - 1
    opened.clear()
    compare(small(tmp_path / "stopped"), quiet)
    assert len(opened) == 4 - reached + 1
    compare(small(tmp_path / "whole"), quiet)
    for name in ("static/seed0", "static/seed1", "growing/seed0", "growing/seed1"):
        histories = [tmp_path / folder / name / "history.jsonl" for folder in ("stopped", "whole")]
        assert len({path.read_bytes() for path in histories}) == 1
    first, second = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(tmp_path / folder)]
        for folder in ("stopped", "whole")
    )
    assert first == second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0.2}, "epochs must be 0.1 to resume the run in .*, got 0.2"),
        ({"net": "resnet14"}, "net must be 'resnet8' to resume"),
        ({"lr": 0.5}, "lr must be None to resume"),
        (
            {"cells": {**CELLS, "growing": Cell(Periodic(every=2))}},
            "to resume the run in .*growing",
        ),
        (
            {"cells": {**CELLS, "static": Cell(Never())}},
            "start must be .* to resume the run in .*static",
        ),
    ],
)
def test_a_comparison_with_other_settings_is_refused_and_nothing_is_touched(
    tmp_path, opened, changes, message
):
    compare(small(tmp_path, seeds=[0], epochs=0.1), quiet)
    before = bytes_of(tmp_path)
    opened.clear()
    with pytest.raises(ValueError, match=message):
        compare(small(tmp_path, **{"seeds": [0], **changes}), quiet)
    assert not opened
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "imagenet"}, "data must be one of digits, .*; got 'imagenet'"),
        ({"data": "folder:/nowhere"}, "must name an existing folder, got '/nowhere'"),
        ({"batch_size": 1296}, "batch_size must be at most 1295"),
        ({"device": "tpu"}, "device must be auto, cpu or an available GPU"),
        ({"data": "sine"}, "image must be"),
        ({"seeds": [0, -1]}, "seed must be at least 0, got -1"),
        ({"cells": {"a": Cell(Never(), lr=-1.0)}}, "lr must be above 0 and finite, got -1.0"),
        ({"cells": {"a": Cell(Never(), schedule="step")}}, "schedule must be one of"),
    ],
)
def test_a_comparison_that_cannot_run_writes_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(small(tmp_path / "c", **changes), quiet)
    assert not (tmp_path / "c").exists()


def test_a_comparison_does_not_write_into_a_training_run(tmp_path):
    train(Train(net="resnet8", epochs=0.01, batch_size=32, device="cpu", out=str(tmp_path)), quiet)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match="already holds a training run; choose another"):
        compare(small(tmp_path), quiet)
    assert bytes_of(tmp_path) == before


def test_a_regression_is_compared_by_its_loss(tmp_path):
    cells = {"static": Cell(Never()), "growing": Cell(Periodic())}
    lines: list[str] = []
    settings = small(tmp_path, data="sine", net="mlp-8", epochs=1, cells=cells, seeds=[0])
    table = compare(replace(settings, final=True), lines.append).text
    assert "validation loss" in table
    assert "accuracy %" not in table
    assert "  loss 0." in lines[0]
    assert [row["validation_accuracy"] for row in rows_of(tmp_path)] == ["", ""]


def test_the_command_prints_the_table_and_reads_its_own_config(tmp_path, capsys, opened):
    folder = tmp_path / "c"
    words = (
        "compare --net resnet8 --epochs 0.1 --records 3 --batch-size 32 --device cpu --seeds [0]"
    )
    cells = {name: settings_to_dict(cell) for name, cell in CELLS.items()}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"cells": cells}, sort_keys=False))
    given = [*words.split(), "--out", str(folder), "--config", str(tmp_path / "cells.yaml")]
    assert run.main(given) == 0
    output = capsys.readouterr().out
    assert (folder / "comparison.md").read_text() in output
    assert output.startswith("1/2  static  seed 0  ")
    assert f"tensorboard --logdir {folder}" in output
    opened.clear()
    assert run.main(["compare", "--config", str(folder / "config.yaml")]) == 0
    assert not opened
