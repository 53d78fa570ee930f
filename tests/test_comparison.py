"""Comparisons: every row with every seed once, one table, and what is finished is left as it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import bytes_of, csv_rows, quiet, short_comparison, short_run

import analysis.reporting.html_report
import run
import training.running.loop
import training.stepping.step
from analysis import read_history
from policies import Never, Periodic, Plateau
from training.comparing.comparison import Outcome, compare
from training.comparing.dry_run import forecast
from training.comparing.jobs import job_of
from training.running.loop import train
from training.settings.compare_settings import Cell, Compare
from training.settings.config_yaml import settings_to_dict
from training.settings.start_settings import Start
from training.settings.train_settings import Train

CELLS = {
    "static": Cell(Never(), Start(0.25, None)),
    "growing": Cell(
        Periodic(share=0.1), schedule="hold", lr=0.05, rates="cohort", initializer="net2net"
    ),
}
PICTURES = analysis.reporting.html_report._pictures

pytestmark = pytest.mark.usefixtures("plain_reports")


def small(folder: Path, **changes: Any) -> Compare:
    """Settings of a comparison of four runs, a fifth of a second each."""
    given = {"epochs": 0.1, "records": 3, "cells": CELLS, "seeds": [0, 1]}
    return short_comparison(folder, **{**given, **changes})


def rows_of(folder: Path) -> list[dict[str, str]]:
    return csv_rows(folder / "comparison.csv")


@dataclass
class Whole:
    """A finished comparison of four runs: tests read it, or take a copy."""

    folder: Path
    outcome: Outcome
    opened: list[Path]
    lines: list[str]
    parts: list[float]

    def copy(self, folder: Path) -> None:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plain_reports: None) -> Whole:
    folder, lines, parts = tmp_path_factory.mktemp("whole"), list[str](), list[float]()
    with pytest.MonkeyPatch.context() as patch:
        opened = counted(patch)
        outcome = compare(small(folder), lines.append, parts.append)
    return Whole(folder, outcome, opened, lines, parts)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the runs that are really run, in their order."""
    return counted(monkeypatch)


def counted(patch: pytest.MonkeyPatch) -> list[Path]:
    """Give a list that every run adds its folder to when it is opened."""
    folders: list[Path] = []
    open_run = training.running.loop.open_run

    def open_and_count(settings: Train) -> Any:
        folders.append(settings.folder)
        return open_run(settings)

    patch.setattr(training.running.loop, "open_run", open_and_count)
    return folders


def test_a_comparison_is_a_folder_of_runs_with_a_table(whole):
    assert not whole.outcome.failures
    table, lines, parts = whole.outcome.text, whole.lines, whole.parts
    folders = [whole.folder / name / f"seed{seed}" for name in CELLS for seed in (0, 1)]
    assert whole.opened == folders
    for folder in folders:
        kept = {path.name for path in folder.iterdir()}
        assert {
            "config.yaml",
            "history.jsonl",
            "metrics.csv",
            "checkpoint.pt",
            "summary.json",
        } < kept
    assert yaml.safe_load((whole.folder / "config.yaml").read_text()) == settings_to_dict(
        small(whole.folder)
    )
    assert (whole.folder / "comparison.md").read_text() == table + "\n"
    assert [line.split()[1] for line in table.splitlines()[2:4]] == ["static", "growing"]
    assert "Exploratory: fewer than 5 seeds" in table
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    rows = rows_of(whole.folder)
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
    assert len(lines) == 5
    assert lines[0] == "augmentation: crop (pad 1) (--augment auto)"
    assert lines[3].startswith("3/4  growing  seed 0  ")
    assert parts == sorted(parts)
    assert parts[-1] == 1


def test_a_run_of_a_comparison_is_the_run_that_train_makes(tmp_path):
    settings = small(tmp_path / "c", seeds=[3], cells={"growing": CELLS["growing"]})
    one = job_of(settings, "growing", 3).settings
    assert (one.schedule, one.lr, one.seed, one.policy) == (
        "hold",
        0.05,
        3,
        Periodic(share=0.1),
    )
    assert (one.rates, one.initializer) == ("cohort", "net2net")
    static = job_of(small(tmp_path), "static", 3).settings
    assert (static.schedule, static.initializer) == (settings.schedule, "he")
    assert static.rates == "shared"
    compare(settings, quiet)
    train(replace(one, out=str(tmp_path / "alone")), quiet)
    histories = [tmp_path / "c" / "growing" / "seed3", tmp_path / "alone"]
    assert len({(folder / "history.jsonl").read_bytes() for folder in histories}) == 1


def test_what_is_finished_is_not_run_again(whole, opened):
    before = bytes_of(whole.folder)
    assert compare(small(whole.folder), quiet) == whole.outcome
    assert not opened
    assert bytes_of(whole.folder) == before


def test_another_seed_or_row_runs_only_what_is_missing(tmp_path, opened):
    compare(small(tmp_path, seeds=[1]), quiet)
    before = {path: data for path, data in bytes_of(tmp_path).items() if "/seed1/" in path}
    opened.clear()
    text = compare(small(tmp_path, seeds=[0, 1]), quiet).text
    assert opened == [tmp_path / "static" / "seed0", tmp_path / "growing" / "seed0"]
    assert "Seed 0 was added after results were seen." in text
    opened.clear()
    more = {"another": Cell(Plateau(patience=1)), **CELLS}
    text = compare(small(tmp_path, seeds=[1], cells=more), quiet).text
    assert opened == [tmp_path / "another" / "seed1"]
    assert "Row another was added after results were seen." in text
    assert "Seed 0 was asked for too, and left out of this table." in text
    assert [(row["run"], row["seed"]) for row in rows_of(tmp_path)] == [
        ("another", "1"),
        ("static", "1"),
        ("growing", "1"),
    ]
    assert before.items() <= bytes_of(tmp_path).items()


def test_some_rows_are_run_and_a_later_call_runs_the_rest(tmp_path, opened):
    given = {"seeds": [0], "primary": "growing vs static"}
    outcome = compare(small(tmp_path, only="growing", **given), quiet)
    assert opened == [tmp_path / "growing" / "seed0"]
    assert not outcome.failures
    assert "Not run yet, or not to the end: static. Static sizes are among them" in outcome.text
    assert "**growing - static** in validation accuracy: static not run yet." in outcome.text
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (list(kept["cells"]), kept["only"]) == (list(CELLS), None)
    opened.clear()
    text = compare(small(tmp_path, **given), quiet).text
    assert opened == [tmp_path / "static" / "seed0"]
    assert "Not run yet" not in text
    assert "added after" not in text


def test_planned_seeds_may_be_run_in_parts(tmp_path):
    one = {"static": CELLS["static"]}
    text = compare(small(tmp_path, cells=one, seeds=[1]), quiet, planned=[0, 1]).text
    assert "Seed 0 was asked for too, and left out of this table." in text
    text = compare(small(tmp_path, cells=one), quiet, planned=[0, 1]).text
    assert "added after" not in text
    assert "1 thread(s) a run, 1 run at a time." in text


def test_a_row_is_not_run_without_the_one_it_waits_for(tmp_path, opened):
    cells = {**CELLS, "again": Cell(scratch="growing")}
    with pytest.raises(ValueError, match="only must hold growing beside again, which waits for it"):
        compare(small(tmp_path, cells=cells, only="again, static"), quiet)
    assert not opened
    assert not (tmp_path / "config.yaml").exists()


def test_a_comparison_that_was_stopped_goes_on_where_it_was(tmp_path, whole, opened, monkeypatch):
    class Crash(BaseException):
        pass

    step, calls = training.stepping.step.train_step, []

    def stepped(*values: Any) -> None:
        calls.append(1)
        if len(calls) == 40:
            raise Crash
        step(*values)

    with monkeypatch.context() as patch:
        patch.setattr(training.stepping.step, "train_step", stepped)
        with pytest.raises(Crash):
            compare(small(tmp_path), quiet)
    reached = len(opened)
    assert 1 < reached < 4
    assert len(rows_of(tmp_path)) == reached - 1
    opened.clear()
    compare(small(tmp_path), quiet)
    assert len(opened) == 4 - reached + 1
    for name in ("static/seed0", "static/seed1", "growing/seed0", "growing/seed1"):
        histories = [folder / name / "history.jsonl" for folder in (tmp_path, whole.folder)]
        assert len({path.read_bytes() for path in histories}) == 1
    first, second = (
        [{k: v for k, v in row.items() if "seconds" not in k} for row in rows_of(folder)]
        for folder in (tmp_path, whole.folder)
    )
    assert first == second


def test_scratch_trains_a_rows_final_net_and_yoked_takes_its_times(tmp_path):
    cells = {
        "again": Cell(scratch="growing"),
        "elsewhere": Cell(yoked="growing"),
        "growing": CELLS["growing"],
        "static": CELLS["static"],
    }
    settings = small(tmp_path, cells=cells, epochs=0.2, records=4)
    outcome = compare(settings, quiet)
    assert not outcome.failures
    rows = {(row["run"], row["seed"]): row for row in rows_of(tmp_path)}
    for seed in ("0", "1"):
        grown, fresh = rows["growing", seed], rows["again", seed]
        assert fresh["parameters"] == grown["parameters"] != rows["static", seed]["parameters"]
        assert fresh["policy"] == "Never"
        assert fresh["validation_loss"] != grown["validation_loss"]
        records = [
            [len(record.applied) for record in read_history(tmp_path / name / f"seed{seed}")]
            for name in ("growing", "elsewhere")
        ]
        assert records[0] == records[1]
        assert sum(records[0]) > 0
    for name in ("again", "elsewhere"):
        run = job_of(settings, name, 1).settings
        assert (run.lr, run.schedule, run.initializer) == (0.05, "hold", "net2net")
        assert run.rates == "cohort"
    assert "Reference, the best static size on validation: **static**" in outcome.text
    before = bytes_of(tmp_path)
    compare(settings, quiet)
    assert bytes_of(tmp_path) == before


def test_rows_on_other_data_or_nets_are_judged_beside_their_own_kind(tmp_path, monkeypatch):
    # of every kind of row
    monkeypatch.setattr(analysis.reporting.html_report, "_pictures", PICTURES)
    cells = {
        **CELLS,
        "other static": Cell(Never(), net="resnet14"),
        "other growing": Cell(Periodic(), net="resnet14"),
        "line": Cell(Never(), data="sine", net="mlp-8"),
    }
    outcome = compare(small(tmp_path, cells=cells, seeds=[0]), quiet)
    titles = [line for line in outcome.text.splitlines() if line.startswith("## ")]
    assert titles == ["## digits, resnet8", "## digits, resnet14", "## sine, mlp-8"]
    second = outcome.text.split("## ")[2]
    assert "**other static**" in second
    assert "| growing" not in second
    assert [row["net"] for row in rows_of(tmp_path)] == ["resnet8"] * 2 + ["resnet14"] * 2 + [
        "mlp-8"
    ]


def test_a_failed_cell_runs_again(tmp_path, monkeypatch):
    step = training.stepping.step.train_step

    def broken(*values: Any) -> None:
        raise OSError("no\nspace")

    with monkeypatch.context() as patch:
        patch.setattr(training.stepping.step, "train_step", broken)
        outcome = compare(small(tmp_path, seeds=[0]), quiet)
    assert outcome.failures == (
        "static  seed 0  failed: OSError: no space",
        "growing  seed 0  failed: OSError: no space",
    )
    assert "raise OSError" in (tmp_path / "static/seed0/error.txt").read_text()
    assert rows_of(tmp_path) == []
    assert training.stepping.step.train_step is step
    assert not compare(small(tmp_path, seeds=[0]), quiet).failures
    assert not (tmp_path / "static/seed0/error.txt").exists()
    assert len(rows_of(tmp_path)) == 2


def test_the_test_set_is_read_when_it_is_asked_for(tmp_path, whole, opened):
    assert "in validation accuracy" in whole.outcome.text
    whole.copy(tmp_path)
    outcome = compare(small(tmp_path, final=True), quiet)
    assert not opened
    assert "in test accuracy" in outcome.text
    assert all(0 < float(row["test_accuracy"]) < 1 for row in rows_of(tmp_path))


def test_a_copy_that_lacks_files_is_judged_without_them(tmp_path, whole, opened):
    whole.copy(tmp_path)
    (tmp_path / "environment.json").unlink()
    run_of = tmp_path / "static" / "seed0"
    for text in ("{", "[]", '{"cores": [2]}'):
        (run_of / "environment.json").write_text(text)
        compare(small(tmp_path), quiet)
        page = (tmp_path / "report.html").read_text()
        assert f"not known: {tmp_path}/environment.json is missing or damaged" in page
    (run_of / "environment.json").unlink()
    assert "unknown processor" in compare(small(tmp_path), quiet).text
    before = bytes_of(tmp_path / "_comparison")
    (run_of / "config.yaml").unlink()
    text = compare(small(tmp_path), quiet).text
    assert text.endswith(f"_comparison is left as it was: {run_of / 'config.yaml'} is missing")
    assert bytes_of(tmp_path / "_comparison") == before
    assert not opened


def test_a_dry_run_prints_the_matrix_and_writes_nothing(tmp_path, capsys):
    cells = {**CELLS, "again": Cell(scratch="growing"), "elsewhere": Cell(yoked="growing")}
    plain = {name: settings_to_dict(cell) for name, cell in cells.items()}
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"cells": plain, "net": "resnet8"}, sort_keys=False)
    )
    words = ["compare", "--config", str(tmp_path / "c.yaml"), "--dry-run", "--device", "cpu"]
    words += ["--threads", "1", "--workers", "2", "--seeds", "[0,1]", "--epochs", "2"]
    assert run.main([*words, "--out", str(tmp_path / "c")]) == 0
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()[2:6]]
    assert [row[0] for row in rows] == list(cells)
    assert [row[4] for row in rows] == ["22,290", "22,290 - 77,754", "77,754", "22,290 - 77,754"]
    assert len({row[6] for row in rows}) == 1
    assert all(float(row[8]) > 0 for row in rows)
    assert "8 runs, about " in output
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("only", "seeds", "workers", "told"),
    [
        (["static"], [0], 2, "5 s of work, 5 s on 1 at a time"),
        (["static"], [0, 1], 4, "10 s of work, 5 s on 2 at a time"),
        (["static", "growing"], [0], 2, "25 s of work, 20 s on 2 at a time"),
        (["static", "growing"], [0, 1, 2, 3], 2, "100 s of work, 50 s on 2 at a time"),
        (["growing", "again"], [0, 1], 4, "80 s of work, 40 s on 4 at a time"),
        (["again"], [0], 4, "20 s of work, 20 s on 1 at a time"),
    ],
)
def test_a_dry_run_divides_no_run(tmp_path, monkeypatch, only, seeds, workers, told):
    seconds = {"static": 5.0, "growing": 20.0, "again": 20.0}
    row = "training.comparing.dry_run._row"
    monkeypatch.setattr(row, lambda _, job, *rest: ([""] * 9, seconds[job.row]))
    cells = {**CELLS, "again": Cell(scratch="growing")}
    how = {"cells": cells, "only": only, "seeds": seeds, "workers": workers}
    assert told in forecast(small(tmp_path, **how))

    @dataclass(frozen=True)
    class Local(Never):
        """No other process could make it: its runs follow one another."""

    how |= {"cells": {"static": Cell(Local())}, "only": None}
    total = 5 * len(seeds)
    assert f"{total} s of work, {total} s on 1 at a time" in forecast(small(tmp_path, **how))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": "growing"}, "primary must be two of static, growing, as 'a vs b'; got"),
        ({"primary": ["growing", "nobody"]}, "primary must be two of static, growing"),
        ({"primary": "growing vs growing"}, "primary must be two of"),
        ({"only": "growin"}, r"static, growing; got 'growin' \(did you mean 'growing'\?\)"),
        ({"only": ["static", "x"]}, "only must be rows of static, growing; got 'x'"),
        ({"only": []}, "only must be at least one row, got none"),
        ({"engine": "slurm"}, "engine must be one of pool, ray; got 'slurm'"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"per_gpu": 0}, "per_gpu must be at least 1, got 0"),
        ({"cells": {"a": Cell(scratch="b")}}, "scratch or yoked of a must be one of ; got 'b'"),
        (
            {"cells": {**CELLS, "a": Cell(scratch="b"), "b": Cell(yoked="growing")}},
            "scratch or yoked of a must be one of static, growing; got 'b'",
        ),
        (
            {"cells": {**CELLS, "a": Cell(scratch="growing", yoked="growing")}},
            "a must have one of scratch and yoked, got both",
        ),
        (
            {"cells": {**CELLS, "a": Cell(Periodic(), scratch="growing")}},
            "a must have no policy or start: growing gives it",
        ),
        (
            {"cells": {**CELLS, "a": Cell(scratch="growing", net="resnet14")}},
            "a must have the data and net of growing",
        ),
        (
            {"cells": {**CELLS, "a": Cell(net="resnet14")}, "primary": "a vs static"},
            "primary must be rows on the same data and net",
        ),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **changes)


def test_the_primary_comparison_cannot_be_changed_afterwards(tmp_path):
    given = {"seeds": [0], "primary": "growing vs static"}
    text = compare(small(tmp_path, **given), quiet).text
    assert "**growing - static**" in text
    with pytest.raises(ValueError, match="primary must be 'growing vs static' to resume"):
        compare(small(tmp_path, seeds=[0], primary="static vs growing"), quiet)
    for primary in (["growing", "static"], "growing  vs  static", ["growing ", " static"]):
        assert compare(small(tmp_path, seeds=[0], primary=primary), quiet).text == text


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
    tmp_path, whole, opened, changes, message
):
    whole.copy(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=message):
        compare(small(tmp_path, **changes), quiet)
    assert not opened
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "imagenet"}, "data must be one of digits, .*; got 'imagenet'"),
        ({"data": "folder:/nowhere"}, "must name an existing folder, got '/nowhere'"),
        ({"batch_size": 1296}, "batch_size must be at most 1295"),
        ({"device": "tpu"}, "device must be auto, cpu or an available GPU"),
        ({"data": "sine"}, "net must be mlp-W for sine, got 'resnet8'"),
        ({"seeds": [0, -1]}, "seed must be at least 0, got -1"),
        ({"cells": {"a": Cell(Never(), lr=-1.0)}}, "lr must be above 0 and finite, got -1.0"),
        ({"cells": {"a": Cell(Never(), schedule="step")}}, "schedule must be one of"),
        ({"cells": {"a": Cell(initializer="zero")}}, "initializer must be one of he, .*'zero'"),
    ],
)
def test_a_comparison_that_cannot_run_writes_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(small(tmp_path / "c", **changes), quiet)
    assert not (tmp_path / "c").exists()


def test_a_comparison_does_not_write_into_a_training_run(tmp_path):
    train(short_run(tmp_path, epochs=0.01), quiet)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match="already holds a training run; choose another"):
        compare(small(tmp_path), quiet)
    assert bytes_of(tmp_path) == before


def test_a_regression_is_compared_by_its_loss(tmp_path):
    cells = {"static": Cell(Never()), "growing": Cell(Periodic())}
    lines: list[str] = []
    settings = small(tmp_path, data="sine", net="mlp-8", epochs=1, cells=cells, seeds=[0])
    assert "test set" not in compare(settings, lines.append).text
    table = compare(replace(settings, final=True), quiet).text
    assert "validation loss" in table
    assert "accuracy %" not in table
    assert lines[0] == "augmentation: none (--augment auto)"
    assert "  loss 0." in lines[1]
    assert [row["validation_accuracy"] for row in rows_of(tmp_path)] == ["", ""]
    assert "2 of 2 runs have read the test set: its losses are in comparison.csv; a regr" in table
    for row in rows_of(tmp_path):
        summary = json.loads((tmp_path / row["run"] / "seed0" / "summary.json").read_text())
        assert float(row["test_loss"]) == summary["test_loss"]


def test_the_command_prints_the_table_and_reads_its_own_config(tmp_path, capsys, opened):
    folder = tmp_path / "c"
    words = "compare --net resnet8 --epochs 0.1 --records 3 --batch-size 32 --device cpu"
    words += " --seeds [0] --workers 1 --threads 1"
    cells = {name: settings_to_dict(cell) for name, cell in CELLS.items()}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"cells": cells}, sort_keys=False))
    given = [*words.split(), "--out", str(folder), "--config", str(tmp_path / "cells.yaml")]
    assert run.main(given) == 0
    output = capsys.readouterr().out
    assert (folder / "comparison.md").read_text() in output
    assert output.splitlines()[1].startswith("1/2  static  seed 0  ")
    assert f"tensorboard --logdir {folder}" in output
    opened.clear()
    assert run.main(["compare", "--config", str(folder / "config.yaml")]) == 0
    assert not opened


def test_the_command_names_no_report_before_there_is_one(tmp_path, monkeypatch, capsys):
    def stuck(*_: Any) -> None:
        raise OSError("no space")

    words = f"compare --net resnet8 --epochs 0.1 --seeds [0] --only periodic --out {tmp_path / 'c'}"
    with monkeypatch.context() as patch:
        patch.setattr(training.stepping.step, "train_step", stuck)
        assert run.main([*words.split(), "--workers", "1", "--device", "cpu"]) == 1
    output, errors = capsys.readouterr()
    assert "OSError: no space" in errors
    assert "Not run yet, or not to the end: " in output
    assert "report.html" not in output


def test_a_row_that_is_named_twice_is_planned_once(tmp_path):
    for only in ("static,growing, static", ["static", "growing", "static"]):
        assert small(tmp_path, only=only).chosen == ["static", "growing"]
