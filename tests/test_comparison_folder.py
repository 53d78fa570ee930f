"""A comparison is read back: its runs, lazily their histories, and columns for a data frame."""

from __future__ import annotations

import json

import pytest
from runs import quiet, short_comparison

from analysis import read_comparison, read_history
from analysis.recording import comparison_folder
from analysis.recording.timeline import layer_values
from policies import Never, Periodic
from training import Cell, Start, compare

ROWS = {"8": Cell(Never(), Start(0.5, None)), "grows": Cell(Periodic(every=1))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of two rows, one of them named by a number, over two seeds."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    compare(short_comparison(out, cells=ROWS, seeds=[0, 3], epochs=0.1, records=4), quiet)
    return out


def test_the_runs_of_a_comparison_are_read_in_its_order(folder):
    found = read_comparison(folder)
    assert [(run.row, run.seed) for run in found] == [
        ("8", 0),
        ("8", 3),
        ("grows", 0),
        ("grows", 3),
    ]
    for run in found:
        assert run.summary == json.loads((run.folder / "summary.json").read_text())
        assert run.summary["seed"] == run.seed
        assert set(run.judged) >= {"regret", "flops_to_reference", "transient"}
        assert not set(run.judged) & set(run.summary)
    assert all(isinstance(run.judged["regret"], float) for run in found)


def test_a_history_is_read_when_it_is_asked_for_and_once(folder, monkeypatch):
    asked = []
    read = lambda path: asked.append(path) or read_history(path)  # noqa: E731
    monkeypatch.setattr(comparison_folder, "read_history", read)
    found = read_comparison(folder)
    assert not asked
    assert found[2].history == found[2].history == read_history(found[2].folder)
    assert asked == [found[2].folder]


@pytest.mark.parametrize("of", ["runs", "records", "layers"])
def test_tables_are_columns_of_one_length_with_plain_values(folder, of):
    """What pandas.DataFrame takes as it is: a dict of lists."""
    table = read_comparison(folder).table(of)
    assert list(table)[:2] == ["row", "seed"]
    assert len({len(column) for column in table.values()}) == 1
    assert set(table["row"]) == {"8", "grows"}
    for column in table.values():
        assert {type(value) for value in column} <= {str, int, float, bool, type(None)}


def test_tables_hold_what_the_files_hold(folder):
    found = read_comparison(folder)
    runs, records, layers = (found.table(of) for of in ("runs", "records", "layers"))
    assert runs == found.table()
    assert runs["validation_loss"] == [run.summary["validation_loss"] for run in found]
    assert runs["regret"] == [run.judged["regret"] for run in found]
    steps = [record.step for run in found for record in run.history]
    losses = [record.validation_loss for run in found for record in run.history]
    assert (records["step"], records["validation_loss"]) == (steps, losses)
    names = [layers[name] for name in ("row", "seed", "step", "layer", "statistic", "value")]
    expected = [(r.row, r.seed, *values) for r in found for values in layer_values(r.history)]
    assert list(zip(*names, strict=True)) == expected


def test_what_cannot_be_read_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder with comparison\.csv"):
        read_comparison(tmp_path)
    with pytest.raises(ValueError, match="of must be one of runs, records, layers, got 'rows'"):
        read_comparison(folder).table("rows")
    table = tmp_path / "comparison.csv"
    for line in ("../8,0", "8,x", ",0", "8"):
        table.write_text(f"run,seed\n{line}\n")
        with pytest.raises(ValueError, match="line 2: must have a run and its seed"):
            read_comparison(tmp_path)
    table.write_text("run,seed\n8,0\n")
    with pytest.raises(ValueError, match=r"summary.json cannot be read"):
        read_comparison(tmp_path)
    table.write_bytes(b"run,seed\n\xff,0\n")
    with pytest.raises(ValueError, match=r"comparison.csv cannot be read"):
        read_comparison(tmp_path)
