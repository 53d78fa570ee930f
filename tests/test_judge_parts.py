"""Comparisons that were run apart are judged as one folder with all of their runs would be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from runs import bytes_of, csv_rows, quiet
from test_comparison import CELLS, small

import run
from analysis import read_comparison, read_history
from policies import Never, Periodic
from training.comparing.comparison import compare
from training.comparing.judge_parts import judge_parts
from training.keeping.picture_files import reference_of
from training.settings.compare_settings import Cell

pytestmark = pytest.mark.usefixtures("plain_reports")
CLAIM = "growing vs static"
FILES = ("comparison.csv", "comparison.md")


@dataclass(frozen=True)
class OwnNever(Never):
    """A policy of one's own that never grows."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plain_reports: None) -> Path:
    """A finished comparison of two rows and two seeds; tests take copies of parts of it."""
    folder = tmp_path_factory.mktemp("whole") / "all"
    compare(small(folder, primary=CLAIM), quiet)
    return folder


def part(whole: Path, folder: Path, *left_out: str) -> str:
    """Copy a comparison without some of its runs, as a machine that had not those leaves it."""
    shutil.copytree(whole, folder)
    for name in (*left_out, *FILES, "report.html"):
        path = folder / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    return str(folder)


@pytest.mark.parametrize(
    "parts",
    [
        [["static"], ["growing"]],
        [["static/seed1", "growing/seed1"], ["static/seed0", "growing/seed0"]],
        [["growing"], ["static/seed1"], ["growing/seed0", "static"]],  # one run twice
        [[]],
    ],
)
def test_parts_are_judged_as_one_folder_would_be(whole, tmp_path, parts):
    folders = [part(whole, tmp_path / str(k), *gone) for k, gone in enumerate(parts)]
    before = bytes_of(tmp_path)
    text = judge_parts(folders, str(tmp_path / "out"))
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert text + "\n" == (whole / "comparison.md").read_text()
    assert before.items() <= bytes_of(tmp_path).items()
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"<h2>{folder}</h2>" in page for folder in folders)
    assert judge_parts(folders, str(tmp_path / "out")) == text
    with pytest.raises(ValueError, match=r"^comparison must be a folder that holds its runs, got"):
        read_comparison(tmp_path / "out")


def test_a_static_row_by_a_policy_of_ones_own_is_the_reference_of_both(tmp_path):
    cells = {"own": Cell(OwnNever(), CELLS["static"].start), "growing": CELLS["growing"]}
    text = compare(small(tmp_path / "all", cells=cells), quiet).text
    assert "Reference, the best static size on validation: **own**." in text
    assert judge_parts([str(tmp_path / "all")], str(tmp_path / "out")) == text
    found = reference_of(tmp_path / "all" / "growing" / "seed0")
    assert found == read_history(tmp_path / "all" / "own" / "seed0")


def test_parts_of_other_rows_and_seeds_and_from_another_machine_say_so(whole, tmp_path, capsys):
    first, second = part(whole, tmp_path / "a"), tmp_path / "b"
    more = {"static": CELLS["static"], "another": Cell(Periodic(every=2))}
    compare(small(second, cells=more, seeds=[2]), quiet)
    path = second / "another" / "seed2" / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor": "Abacus"}))
    words = ["judge", first, str(second), "--out", str(tmp_path / "out")]
    assert run.main(words) == 0
    text = capsys.readouterr().out
    assert "**growing - static** in validation accuracy: " in text  # the one claim of the two
    assert "Not run yet, or not to the end: growing seed 2; another seeds 0, 1." in text
    assert "(2) Abacus, " in text
    assert "run at a time: another. Their seconds cannot be compared" in text
    told = (
        f"The parts were asked for apart: {first} (2 rows, seeds 0, 1); {second} (2 rows, seeds 2)"
    )
    assert f"{told}. Whether results of one were seen" in text
    compare(small(second, cells=more, seeds=[2, 3], only=["static"]), quiet)
    assert "asked for apart" not in judge_parts([str(second)], str(tmp_path / "one"))
    rows = [(row["run"], row["seed"]) for row in csv_rows(tmp_path / "out" / "comparison.csv")]
    assert rows == [
        *(("static", seed) for seed in "012"),
        *(("growing", seed) for seed in "01"),
        ("another", "2"),
    ]


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def shuffled(folder: Path) -> None:
    path = folder / "growing" / "seed0" / "data.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "content": {**data["content"], "train": "0"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("config.yaml", "epochs: 0.1", "epochs: 0.2"), "epochs must be the same in all"),
        (replaced("config.yaml", "budget: flops", "budget: epochs"), "budget must be the same"),
        (replaced("config.yaml", "lr: 0.05", "lr: 0.06"), "cells: growing: lr must be the same"),
        (replaced("config.yaml", CLAIM, "static vs growing"), "primary must be the same"),
        (shuffled, "data of .*/b/growing/seed0 must be those of .*/a/static/seed0, got .*train"),
        (
            replaced("growing/seed0/summary.json", '"steps": ', '"steps": 1'),
            "growing, seed 0: .* must hold what .* does, got another result",
        ),
        (
            replaced("growing/seed0/history.jsonl", "0.", "1."),
            "growing, seed 0: .* must hold what .* does, got another result",
        ),
        (replaced("provenance.json", "{", "["), r"provenance[.]json cannot be read"),
        (replaced("growing/seed0/data.json", '"images"', '"i"'), r"data[.]json .* cannot be read"),
        (replaced("config.yaml", "cells:", "cells: []\nx:"), "folders of comparisons, got .*/b"),
    ],
)
def test_parts_that_contradict_each_other_are_refused_by_name(whole, tmp_path, change, message):
    folders = [part(whole, tmp_path / name) for name in "ab"]
    change(tmp_path / "b")
    with pytest.raises(ValueError, match=message):
        judge_parts(folders, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_holds_no_comparison_or_no_runs_is_refused(whole, tmp_path):
    first = part(whole, tmp_path / "a")
    empty = part(whole, tmp_path / "b", "static", "growing")
    for folders, out, message in (
        ([first, str(tmp_path)], "out", "must be folders of comparisons, got .*, which holds none"),
        ([f"{first}/growing/seed0"], "out", "seed0, which holds none"),
        ([first, str(tmp_path / "no")], "out", "must be folders of comparisons, got .*/no"),
        ([empty], "out", "must hold a finished run, got .*/b"),
        ([first], "a", "out must be a folder that holds no runs, got .*/a"),
        ([first], "a/in", "out must be a folder that holds no runs"),
        ([empty], "a", "out must be a folder that holds no runs"),
    ):
        with pytest.raises(ValueError, match=message):
            judge_parts(folders, str(tmp_path / out))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_rows_of_parts_whose_images_lie_elsewhere_are_judged_together(whole, tmp_path):
    folders = []
    for name, row in (("a", "growing"), ("b", "static")):
        folders.append(part(whole, tmp_path / name, row))
        path = tmp_path / name / "config.yaml"
        config = yaml.safe_load(path.read_text())
        del config["cells"][row], config["primary"]
        path.write_text(yaml.safe_dump({**config, "data": f"npz:{name}.npz"}))
    text = judge_parts(folders, str(tmp_path / "out"))
    assert "the best static size on validation: **static**" in text
    assert "| growing " in text
    assert "##" not in text  # one table
    assert {row["data"] for row in csv_rows(tmp_path / "out" / "comparison.csv")} == {"npz:a.npz"}


def test_a_folder_is_the_same_by_another_name(whole, tmp_path, monkeypatch):
    first = part(whole, tmp_path / "a")
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    for folder, out in (("a", f"{first}/in"), (first, "a/in"), ("a", "link/in"), ("link", "a/in")):
        with pytest.raises(ValueError, match="out must be a folder that holds no runs"):
            judge_parts([folder], out)
    with pytest.raises(ValueError, match="out must be the name of a folder, got ''"):
        judge_parts([first], "")  # not the working folder
    judge_parts(["a", first, "link"], "out")
    assert (tmp_path / "out" / "report.html").read_text().count("<h2>a</h2>") == 1
    assert "<h2>link</h2>" not in (tmp_path / "out" / "report.html").read_text()
