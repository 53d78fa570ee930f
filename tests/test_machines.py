"""On which machine runs ran, and what is said of their seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import quiet, short_run

from analysis.judging.comparable_runs import Finished
from analysis.judging.machines import machine_notes, seconds_mark
from analysis.showing.comparison_tables import comparison_rows, comparison_table
from training.running.loop import train

HOST = {"processor": "EPYC", "cores": 2, "threads": 1, "gpu": None}


def run(folder: Path, at_a_time: int | None = 1, device: str = "auto", **changes: Any) -> Finished:
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({**HOST, **changes}))
    (folder / "config.yaml").write_text(f"data: digits\ndevice: {device}\n")
    return Finished(folder, {}, at_a_time)


@pytest.mark.parametrize(
    ("given", "told", "mark"),
    [
        ({}, "Machine: EPYC, 2 cores; 1 thread(s) a run, 1 run at a time.", ""),
        (
            {"at_a_time": 2},
            "Machine: EPYC, 2 cores; 1 thread(s) a run, 2 runs at a time. Seconds are those of "
            "runs that ran beside others.",
            "2 at a time",
        ),
        (
            {"at_a_time": None, "gpu": "H100"},
            "Machine: H100 (EPYC, 2 cores); 1 thread(s) a run, an unknown number of runs at a "
            "time.",
            "",
        ),
        (
            {"resumed": [HOST, {**HOST, "processor": "Xeon", "threads": 4}, 3]},
            "Machine: EPYC, 2 cores; 1 thread(s) a run, 1 run at a time, resumed on Xeon, 2 cores; "
            "4 thread(s) a run.",
            "mixed",
        ),
        ({"resumed": 3}, "Machine: EPYC, 2 cores; 1 thread(s) a run, 1 run at a time.", ""),
        (
            {"gpu": "H100", "device": "cpu"},
            "Machine: EPYC, 2 cores; 1 thread(s) a run, 1 run at a time.",
            "",
        ),
    ],
)
def test_one_machine_is_told_in_a_line(tmp_path, given, told, mark):
    row = {seed: run(tmp_path / str(seed), **given) for seed in (0, 1)}
    assert machine_notes({"a": row}, "flops") == [told]
    assert seconds_mark(row) == mark


def test_seconds_of_different_machines_are_not_mixed_without_a_word(tmp_path):
    rows = {
        "a": {0: run(tmp_path / "1"), 1: run(tmp_path / "2", processor="Xeon")},
        "b": {0: run(tmp_path / "3"), 1: run(tmp_path / "4")},
        "c": {0: run(tmp_path / "5", at_a_time=2)},
    }
    (told,) = machine_notes(rows, "flops")
    assert told == (
        "Machines: (1) EPYC, 2 cores; 1 thread(s) a run, 1 run at a time: a seed 0, b. (2) Xeon, 2 "
        "cores; 1 thread(s) a run, 1 run at a time: a seed 1. (3) EPYC, 2 cores; 1 thread(s) a "
        "run, 2 runs at a time: c. Their seconds cannot be compared with one another."
    )
    assert "the budget was in seconds" in machine_notes(rows, "seconds")[0]
    assert [seconds_mark(row) for row in rows.values()] == ["mixed", "", "2 at a time"]


def test_what_no_folder_tells_is_not_told(tmp_path):
    row = {0: Finished(tmp_path, {})}
    assert (machine_notes({"a": row}, "flops"), seconds_mark(row)) == ([], "")


def test_the_table_marks_seconds():
    summary = {"parameters": 1, "train_flops": 1, "seconds": 2.5, "validation_loss": 1.0}
    summary |= {"validation_accuracy": 0.5, "test_accuracy": None}
    table = comparison_table(
        comparison_rows({"a": [summary], "b": [summary]}, None, {"a": "2 at a time"})
    )
    assert "| 2.5 (2 at a time) |" in table
    assert "|               2.5 |" in table


def test_a_run_that_goes_on_elsewhere_says_where(tmp_path):
    path = tmp_path / "environment.json"

    def elsewhere() -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "processor": "Abacus"}))

    train(short_run(tmp_path, epochs=0.05, records=4), quiet)
    elsewhere()
    begun = path.read_bytes()
    train(short_run(tmp_path, epochs=0.05, records=4, resume=True, final=True), quiet)
    assert path.read_bytes() == begun  # only the test set was read there
    (tmp_path / "summary.json").unlink()
    for _ in range(2):  # the second time it goes on where it was
        train(short_run(tmp_path, epochs=0.05, records=4, resume=True), quiet)
        (tmp_path / "summary.json").unlink()
        (told,) = machine_notes({"a": {0: Finished(tmp_path, {}, 1)}}, "flops")
        assert told.startswith("Machine: Abacus, ")
        assert told.count("resumed on") == 1
    (tmp_path / "checkpoint.pt").unlink()  # it begins anew
    elsewhere()
    train(short_run(tmp_path, epochs=0.05, records=4, resume=True), quiet)
    assert "Abacus" not in path.read_text()
