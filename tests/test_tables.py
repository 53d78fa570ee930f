"""Tables that line up, and the numbers in them by hand."""

import math
import statistics

import pytest
from histories import record_of

from analysis import LayerReading, Record
from analysis.recording.phrases import number, phrase
from analysis.reporting.html_report import html_of
from analysis.showing.comparison_tables import comparison_rows, comparison_table
from analysis.showing.tables import fitted, growth_table, layer_table, markdown
from nets import Freeze, Insert, Remove, SetSurvival, Widen, cost, preset, seed_of

LIMIT = preset("resnet8", image=(1, 8, 8))
FIRST = seed_of(LIMIT)


def record(step, architecture=FIRST, **values) -> Record:
    return record_of(step, architecture, spent=step / 100, **values)


def cells_of(table):
    """The cells of a table without its rule; every line has its bars at the same places."""
    lines = table.split("\n\n")[0].splitlines()
    bars = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def test_a_table_with_bars_is_as_narrow_as_asked():
    table = fitted(["step", "reason"], [["1", "a|b|c|d|e|f|g " * 12]], 60)
    assert max(map(len, table.splitlines())) <= 60
    assert r"a\|b\|c" in table


def test_a_word_that_is_too_long_is_parted_where_it_stays_readable():
    done = "Widen(block='stage1.block1', by=8)"
    lines = fitted(["run", "done"], [["runs/row/seed0", done], ["x" * 30, "-"]], 38).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]] == [
        ["runs/row/seed0", "Widen(block="],
        ["", "'stage1.block1',"],
        ["", "by=8)"],
        ["x" * 15, "-"],
        ["x" * 15, ""],
    ]


def test_markdown_lines_up():
    text = markdown(["name", "n"], [["a", "1,000"], ["a longer name", "2"]])
    assert text.splitlines() == [
        "| name          |     n |",
        "| ------------- | ----: |",
        "| a             | 1,000 |",
        "| a longer name |     2 |",
    ]
    assert markdown(["a", "b"], []).splitlines() == ["| a   |   b |", "| --- | --: |"]
    assert cells_of(text) == [["name", "n"], ["a", "1,000"], ["a longer name", "2"]]


def test_bars_and_line_ends_inside_cells_part_nothing():
    text = markdown(["a|b", "n"], [["|", "1"], ["x\ny", "|2|"]])
    assert text.splitlines() == [
        r"| a\|b |     n |",
        "| ---- | ----: |",
        r"| \|   |     1 |",
        r"| x y  | \|2\| |",
    ]
    cells = ["<th>a|b</th><th>n</th>", "<td>|</td><td>1</td>", "<td>x y</td><td>|2|</td>"]
    assert all(f"<tr>{row}</tr>" in html_of(text) for row in cells)
    assert html_of("| and more") == "<p>| and more</p>"
    table = growth_table([record(10, applied=(Widen("stage1.block1", 2, reason="a|b"),))])
    assert table.splitlines()[2].endswith(r" a\|b |")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0, "0"),
        (1 / 3, "0.3333"),
        (12345.6, "1.235e+04"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (3, "3"),
    ],
)
def test_numbers_have_four_digits(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Widen("stage1.block1", 3, reason="why"), "Widen(block='stage1.block1', by=3)"),
        (Insert("a", 4), "Insert(after='a', width=4, survival=1.0)"),
        (Widen("a", 3, initializer="he"), "Widen(block='a', by=3, initializer='he')"),
        (SetSurvival("a", 0.5, reason="x"), "SetSurvival(block='a', probability=0.5)"),
    ],
)
def test_actions_are_phrased_as_python_without_their_reason(action, expected):
    assert phrase(action) == expected


def test_the_layer_table_has_the_columns_that_some_layer_has():
    layers = {
        "stem": LayerReading(None, "stem", response_std=1.5, dead_fraction=0.0),
        "stage1.block1": LayerReading(
            "stage1.block1", "stream", response_std=0.123456, edited=123456, extra={"rank": 2.0}
        ),
    }
    assert cells_of(layer_table(record(1, layers=layers))) == [
        ["layer", "role", "response_std", "dead_fraction", "rank", "edited"],
        ["stem", "stem", "1.5", "0", "-", "-"],
        ["stage1.block1", "stream", "0.1235", "-", "2", "123456"],
    ]
    assert cells_of(layer_table(record(1))) == [["layer", "role", "edited"]]


def test_the_growth_table_tells_every_edit_why_and_how_large():
    first = Widen("stage1.block1", 2, reason="narrow")
    second, third = Insert("stage2.block1", 8), Insert("stage1.block1", 4, reason="last")
    hold, gone = Freeze("stage1", reason="held"), Remove("stage2.block2", steps=3)
    one = FIRST.apply(first)
    two, three = one.apply(second), one.apply(second).apply(third)
    history = [
        record(10, applied=(first, SetSurvival("stage1.block1", 0.5), second)),
        record(20, two, refused=((first, "no"),), decided=(first,)),
        record(40, two, applied=(third, hold, gone)),
    ]
    assert cells_of(growth_table(history)) == [
        ["action", "step", "spent", "parameters after", "reason"],
        [phrase(first), "10", "10%", f"{cost(one).parameters:,}", "narrow"],
        [phrase(second), "10", "10%", f"{cost(two).parameters:,}", ""],
        [phrase(third), "40", "40%", f"{cost(three).parameters:,}", "last"],
        [phrase(hold), "40", "40%", f"{cost(three.apply(hold)).parameters:,}", "held"],
        [phrase(gone), "40", "40%", f"{cost(three.apply(hold)).parameters:,}", ""],
    ]
    assert growth_table(history[1:2]) == "none"
    assert growth_table([]) == "none"


def summary(seed, accuracy, test=None, loss=1.0):
    return {
        "parameters": 1000 + seed,
        "train_flops": 10**9 * (seed + 1),
        "seconds": 2.0 + seed,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "test_accuracy": test,
    }


def test_comparison_gives_means_and_sample_stds():
    accuracies = [0.5, 0.75, 0.625]
    runs = [summary(seed, accuracy, test=accuracy / 2) for seed, accuracy in enumerate(accuracies)]
    (row,) = comparison_rows({"periodic": runs, "none yet": []})
    assert (row.name, row.seeds) == ("periodic", 3)
    assert (row.parameters, row.train_flops, row.seconds) == (1001, 2e9, 3.0)
    assert row.loss == 1.0
    assert row.accuracy == 0.625
    assert row.spread == pytest.approx(math.sqrt((0.125**2 + 0.125**2) / 2))
    assert row.spread == pytest.approx(statistics.stdev(accuracies))
    assert row.test == 0.3125
    assert row.test_spread == pytest.approx(row.spread / 2)


def test_one_seed_has_no_std_and_regression_no_accuracy():
    (row,) = comparison_rows({"a": [summary(0, 0.5)]})
    assert (row.accuracy, row.spread, row.test, row.test_spread) == (0.5, None, None, None)
    (row,) = comparison_rows({"a": [summary(0, None, loss=2.0), summary(1, None, loss=4.0)]})
    assert (row.loss, row.accuracy, row.spread) == (3.0, None, None)
    (row,) = comparison_rows({"a": [summary(0, 0.5, loss=None), summary(1, 0.5)]})
    assert row.loss is None


def test_the_comparison_table():
    rows = comparison_rows(
        {
            "static": [summary(seed, 0.5, test=0.25) for seed in range(2)],
            "grown": [summary(0, 0.5), summary(1, 0.75)],
        }
    )
    table = comparison_table(rows)
    assert cells_of(table) == [
        [
            *("run", "parameters", "training FLOPs", "seconds", "validation loss"),
            *("validation accuracy %", "test accuracy %", "seeds"),
        ],
        ["static", "1,000", "1.5e+09", "2.5", "1", "50.00 ± 0.00", "25.00 ± 0.00", "2"],
        ["grown", "1,000", "1.5e+09", "2.5", "1", "62.50 ± 17.68", "-", "2"],
    ]
    without = comparison_table(comparison_rows({"a": [summary(0, None)]}))
    assert "accuracy %" not in without
    assert "ublished" not in without


def test_what_the_literature_gives_stands_beside_what_we_measured():
    runs = [summary(seed, 0.5, test=0.5) for seed in range(5)]
    published = {"grown": [92.8, 0.1], "large": [63.7]}
    rows = comparison_rows({"grown": runs, "large": runs, "ours": runs}, published)
    table = comparison_table(rows)
    header, *lines = cells_of(table)
    assert header[-3:] == ["test accuracy %", "published %", "seeds"]
    assert [line[-2] for line in lines] == ["92.80 ± 0.10", "63.70", "-"]
    assert table.endswith("the configuration says which.")


@pytest.mark.parametrize(("seeds", "noted"), [((5, 5), False), ((5, 4), True), ((1,), True)])
def test_under_five_seeds_a_comparison_is_exploratory(seeds, noted):
    rows = comparison_rows(
        {f"row{n}": [summary(seed, 0.5) for seed in range(count)] for n, count in enumerate(seeds)}
    )
    assert ("Exploratory: fewer than 5 seeds" in comparison_table(rows)) is noted
