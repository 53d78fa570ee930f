"""A comparison with rows that wait for others goes on wherever its folder lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import quiet, short_comparison
from test_judge_parts import FILES

from analysis import read_history
from policies import Never, Periodic
from training.asking.branch import branch
from training.asking.look_closer import look_closer
from training.comparing.comparison import compare
from training.comparing.judge_parts import judge_parts
from training.keeping.picture_files import reference_of
from training.keeping.run_folder import check_same_settings, read_config
from training.settings.compare_settings import Cell, Compare
from training.settings.named_runs import check_same_runs
from training.settings.start_settings import Start

pytestmark = pytest.mark.usefixtures("plain_reports")
CELLS = {
    "static": Cell(Never(), Start(0.25, None)),
    "growing": Cell(Periodic(0.2, share=0.1, cooldown=1)),
    "scratch": Cell(scratch="growing"),
    "yoked": Cell(yoked="growing"),
}


def waiting(folder: Path | str, **changes: Any) -> Compare:
    given = {"epochs": 0.1, "records": 5, "cells": CELLS, "seeds": [0, 1]}
    return short_comparison(Path(folder), **{**given, **changes})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, plain_reports: None) -> Path:
    """A finished comparison whose paths are as seen from the folder above it."""
    place = tmp_path_factory.mktemp("moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert not compare(waiting("first"), quiet).failures
    return place / "first"


@pytest.fixture
def second(kept, tmp_path, monkeypatch) -> Path:
    """A copy of it elsewhere, beside which nothing lies where it did."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kept, tmp_path / "second")
    return tmp_path / "second"


def test_it_goes_on_under_any_name(second):
    told = (second / "comparison.md").read_text()
    for name in ("second", "../" + second.parent.name + "/second", str(second)):
        assert not compare(waiting(name), quiet).failures
        assert (second / "comparison.md").read_text() == told
    assert not compare(waiting("second", final=True), quiet).failures
    assert "test accuracy %" in (second / "comparison.md").read_text()


def test_runs_that_were_cut_off_go_on_in_the_new_place(second, kept):
    for row in ("scratch", "yoked"):
        (second / row / "seed0" / "summary.json").unlink()
    assert not compare(waiting("second"), quiet).failures
    for row in ("scratch", "yoked"):
        assert (second / row / "seed0" / "summary.json").exists()
        names = [f"{place / row}/seed0/history.jsonl" for place in (second, kept)]
        assert Path(names[0]).read_bytes() == Path(names[1]).read_bytes()
    assert read_config(second / "yoked/seed0")["policy"]["init_args"]["run"] == (
        "second/growing/seed0"
    )
    shutil.move("second", "third")  # and once more
    assert not compare(waiting(Path("third").absolute()), quiet).failures


def test_its_runs_are_asked_in_the_new_place(second, kept):
    judge_parts([str(second)], "judged")
    for name in FILES:
        assert Path("judged", name).read_bytes() == (kept / name).read_bytes()
    assert "Controls against static, in validation accuracy" in Path("judged", name).read_text()
    for row in ("growing", "scratch", "yoked"):
        assert "the run's own steps" in look_closer(f"second/{row}/seed0", 2, 2)
    assert "Periodic" not in branch(second / "yoked/seed0", steps=2, orders=1, say=quiet)


def test_a_grown_net_from_fresh_weights_is_no_static_reference(kept):
    assert reference_of(kept / "growing/seed0") == read_history(kept / "static/seed0")


def test_another_run_to_wait_for_is_refused(second):
    settings = read_config(second / "scratch/seed0")
    settings["out"] = str(second / "scratch/seed0")
    wrong = str(second / "other/seed0/architecture.json")
    settings["start"] = {**settings["start"], "architecture": wrong}
    with pytest.raises(ValueError, match=r"start must be .*first/growing/seed0.*, got .*other"):
        check_same_settings(second / "scratch/seed0", settings)
    settings = read_config(second / "yoked/seed0")
    settings["policy"] = {"class_path": "policies.Yoked", "init_args": {"run": "x"}}
    with pytest.raises(ValueError, match=r"policy must be .*first/growing/seed0"):
        check_same_settings(second / "yoked/seed0", settings)


def test_beside_a_recorded_architecture_all_else_of_a_start_says_nothing(tmp_path):
    """A run of an earlier version may hold a width beside it, which is refused today."""
    given = {"data": "digits", "out": str(tmp_path)}
    start = {"width": 0.5, "blocks": 1, "stream": 1.0, "architecture": "a.json"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**given, "start": start}))
    check_same_settings(tmp_path, {**given, "start": {**start, "width": 0.25}})
    with pytest.raises(ValueError, match=r"^start must be"):
        check_same_settings(tmp_path, {**given, "start": {**start, "architecture": "b.json"}})


def test_what_was_made_after_another_run_than_lies_there_is_taken_out(second):
    """The row that they wait for was changed, its folder removed, and it ran again."""
    shutil.rmtree("second/growing")
    cells = {**CELLS, "growing": Cell(Periodic(0.4, share=0.05, cooldown=1))}
    Path("second/yoked/seed1/summary.json").unlink()  # cut off: nor does it go on
    for again in (False, True):
        failures = compare(waiting("second", cells=cells), quiet).failures
        assert [told.split()[0] for told in failures] == ["yoked", "scratch", "scratch", "yoked"]
        assert all("must be made after the run that" in told for told in failures), again
    assert "| scratch " not in Path("second/comparison.md").read_text()
    with pytest.raises(ValueError, match=r"second/scratch/seed0 must be made after the run that"):
        judge_parts(["second"], "judged")
    for row in ("scratch", "yoked"):
        shutil.rmtree(Path("second", row))
    assert not compare(waiting("second", cells=cells), quiet).failures
    judge_parts(["second"], "judged")


def test_the_same_run_made_again_is_still_the_one_they_were_made_after(second, kept):
    shutil.rmtree("second/growing/seed0")
    assert not compare(waiting("second"), quiet).failures


@pytest.mark.parametrize("text", ["{", "5", '["a"]'])
def test_a_damaged_note_of_the_run_before_is_named(tmp_path, text):
    (tmp_path / "named_runs.json").write_text(text)
    with pytest.raises(ValueError, match=r"^out: .*named_runs.json cannot be read$"):
        check_same_runs(tmp_path, {})
