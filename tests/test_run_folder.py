"""A run's files: whole or not at all, claimed once, cut back to what a checkpoint knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from runs import bytes_of, csv_rows

import training.keeping.run_folder
from analysis import Record, read_history
from analysis.recording.atomic_files import write_whole
from nets import cost, preset
from policies import Periodic, Plateau
from training.keeping.result_files import (
    append_metrics,
    append_record,
    cut_back,
    write_json,
)
from training.keeping.run_folder import claim, claim_comparison, environment
from training.settings.compare_settings import Cell, Compare
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.train_settings import Train


def some_record(step: int) -> Record:
    net = preset("resnet8", image=(1, 8, 8))
    return Record(step, step / 10, step / 100, 0, net, cost(net), train_loss=1 / 3)


def claim_as(folder: Path, settings: Train) -> None:
    claim(folder, settings_to_dict(settings), settings_to_yaml(settings), settings.resume)


def claim_comparison_as(folder: Path, settings: Compare) -> None:
    claim_comparison(folder, settings_to_dict(settings), settings_to_yaml(settings))


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.with_name("file.part").write_bytes(
        b"left by a run that was killed, and longer than the new one"
    )
    write_whole(path, "first\n")
    write_whole(path, b"second\n")
    assert bytes_of(tmp_path) == {"file": b"second\n"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "first\n")

    def full(number: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(training.keeping.run_folder.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "second\n")
    assert path.read_text() == "first\n"


def test_a_new_folder_gets_its_settings_and_its_environment(tmp_path):
    folder = tmp_path / "a" / "b"
    settings = Train(policy=Plateau(), out=str(folder))
    claim_as(folder, settings)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == settings_to_dict(settings)
    kept = json.loads((folder / "environment.json").read_text())
    assert kept.keys() == environment().keys()
    assert kept["torch"].startswith("2.")


@pytest.mark.parametrize("trace", ["config.yaml", "history.jsonl", "checkpoint.pt", "summary.json"])
def test_a_folder_that_holds_a_run_is_not_given_away(tmp_path, trace):
    (tmp_path / trace).write_text("something")
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match="already holds a run; choose another or add --resume"):
        claim_as(tmp_path, Train())
    assert bytes_of(tmp_path) == before


def test_a_folder_with_other_files_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim_as(tmp_path, Train())
    assert {"notes.txt", "config.yaml"} < bytes_of(tmp_path).keys()


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        claim_as(file, Train())
    with pytest.raises(ValueError, match=r"out: .*inside cannot be written: Not a directory"):
        claim_as(file / "inside", Train())

    def read_only(path: Path, content: str | bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(training.keeping.run_folder, "write_whole", read_only)
    with pytest.raises(ValueError, match=r"out: .*other cannot be written: Permission denied"):
        claim_as(tmp_path / "other", Train())
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"net": "resnet14"}, "net"),
        ({"epochs": 21}, "epochs"),
        ({"lr": 0.1}, "lr"),
        ({"policy": Plateau(patience=3)}, "policy"),
        ({"policy": Periodic()}, "policy"),
    ],
)
def test_resuming_with_another_setting_is_refused_and_names_it(tmp_path, changes, name):
    claim_as(tmp_path, Train(policy=Plateau()))
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=f"{name} must be .* to resume the run in .*, got "):
        claim_as(tmp_path, Train(**{"policy": Plateau(), "resume": True, **changes}))
    assert bytes_of(tmp_path) == before


def test_resuming_may_change_what_does_not_change_the_run(tmp_path):
    claim_as(tmp_path, Train())
    before = bytes_of(tmp_path)
    other = {"out": "elsewhere", "final": True, "device": "cpu", "threads": 1, "data_dir": "/data"}
    other["save_every"] = 5.0
    claim_as(tmp_path, Train(resume=True, **other))
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("text", [b"a: b: [", b"- 1\n", b"", b"\xff\xfe", None])
def test_resuming_with_a_damaged_config_is_refused(tmp_path, text):
    claim_as(tmp_path, Train())
    write_whole(tmp_path / "history.jsonl", "")
    path = tmp_path / "config.yaml"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=r"out: .*(config\.yaml cannot be read|no config\.yaml)"):
        claim_as(tmp_path, Train(resume=True))


def test_a_comparison_goes_on_with_other_rows_and_seeds_but_no_other_settings(tmp_path):
    claim_comparison_as(tmp_path, Compare(seeds=[0]))
    more = Compare(seeds=[0, 1], cells={"mine": Cell(Periodic())})
    claim_comparison_as(tmp_path, more)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == settings_to_dict(more)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=r"epochs must be 20 to resume the run in .*, got 5"):
        claim_comparison_as(tmp_path, Compare(epochs=5))
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("trace", ["", "history.jsonl", "checkpoint.pt"])
def test_a_comparison_does_not_take_the_folder_of_a_training_run(tmp_path, trace):
    claim_as(tmp_path, Train())  # killed before its first record, if there is no other trace
    if trace:
        (tmp_path / trace).write_text("something")
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match="already holds a training run; choose another"):
        claim_comparison_as(tmp_path, Compare())
    assert bytes_of(tmp_path) == before


def test_a_training_run_does_not_take_the_folder_of_a_comparison(tmp_path):
    claim_comparison_as(tmp_path, Compare())
    before = bytes_of(tmp_path)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"already holds a run|to resume the run"):
            claim_as(tmp_path, Train(resume=resume))
    assert bytes_of(tmp_path) == before


def test_records_and_metrics_are_appended_and_cut_back_to_the_same_bytes(tmp_path):
    kept: dict[int, dict[str, bytes]] = {}
    for step in range(5):
        kept[step] = bytes_of(tmp_path)
        append_record(tmp_path, some_record(step))
        append_metrics(tmp_path, {"step": step, "train_loss": 1 / 3, "none": None})
    assert [record.step for record in read_history(tmp_path)] == list(range(5))
    rows = csv_rows(tmp_path / "metrics.csv")
    assert rows[4] == {"step": "4", "train_loss": str(1 / 3), "none": ""}
    for records in (4, 3, 1):
        for name, torn in (("history.jsonl", b'{"step": 5, "ep'), ("metrics.csv", b"5,0.3")):
            with (tmp_path / name).open("ab") as file:
                file.write(torn)
        cut_back(tmp_path, records, 0)
        assert bytes_of(tmp_path) == kept[records]


def test_cutting_back_to_nothing_leaves_only_a_header(tmp_path):
    cut_back(tmp_path, 0, 0)
    assert not bytes_of(tmp_path)
    append_record(tmp_path, some_record(1))
    append_metrics(tmp_path, {"step": 1})
    cut_back(tmp_path, 0, 0)
    assert bytes_of(tmp_path) == {"history.jsonl": b"", "metrics.csv": b"step\r\n"}


def test_json_is_written_indented_and_whole(tmp_path):
    write_json(tmp_path / "file.json", {"a": [1, None]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [1, None]}
    assert list(bytes_of(tmp_path)) == ["file.json"]
