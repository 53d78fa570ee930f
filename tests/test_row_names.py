"""Rows of a comparison and its settings as YAML reads them: they work as written, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.settings.compare_settings import Cell, Compare
from training.settings.train_settings import Train

HEAD = "net: resnet8\nepochs: 0.1\nrecords: 2\ndevice: cpu\nworkers: 1\nseeds: [0]\n"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["8", "16", "0.5", "2020", "'010'", "'on'", "größe", "a b", "2020-01-01"]
)
def test_a_row_may_be_called_so(parser, name):
    Path("c.yaml").write_text(f"{HEAD}cells: {{{name}: {{policy: Never}}, b: {{policy: Never}}}}\n")
    chosen = parser.parse_args(["compare", "--config", "c.yaml"])
    settings = parser.instantiate(chosen)["compare"]
    assert list(Compare(cells=settings.cells).cells) == [name.strip("'"), "b"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        *((f"{{{name}: {{policy: Never}}}}", f"put {name} in quotes, as YAML reads it as")
          for name in ("on", "off", "yes", "No", "true", "null", "~", "010", "1_000", "1.50")),
        ("{'': {policy: Never}}", "cells must have names that a folder can have, got ''"),
        ("{'~': {policy: Never}}", "cells must have names that a folder can have, got '~'"),
        ("{'~x': {policy: Never}}", "cells must have names that a folder can have, got '~x'"),
        ("{a/b: {policy: Never}}", "cells must have names that a folder can have, got 'a/b'"),
        ("{_comparison: {policy: Never}}", "cells must have other names than _comparison"),
        ("{_comparison.part: {policy: Never}}", "cells must have other names than _comparison"),
        ("{static-frontier: {}}", "cells must have other names than static-frontier"),
        ("{..: {policy: Never}}", "cells must have names that a folder can have, got '..'"),
        ('{"a\\nb": {policy: Never}}', "cells must have names that a folder can have"),
        (f"{{{'x' * 300}: {{policy: Never}}}}", "cells must have names that a folder can have"),
        ("{8: {policy: Never}, '8': {policy: Never}}", "must hold every setting once, got 8 twice"),
        ("{a: {policy: null}}", "policy must be a Policy, got null"),
        ("{a: {policy: false}}", "policy"),
        ("{a: {policy: 3}}", "policy"),
        ("{a: {policy: []}}", "policy"),
        ("{a: {published: [1, 2, 3]}}", "published must be [mean] or [mean, spread], of 0 to 100"),
        ("{a: {published: [101]}}", "published must be [mean] or [mean, spread], of 0 to 100 %"),
        ("{a: {published: []}}", "published must be [mean] or [mean, spread], of 0 to 100 %"),
        ("{a: {published: [.nan]}}", "published must be [mean] or [mean, spread], of 0 to 100 %"),
        ("{a: {published: 92.8}}", "published"),
        ("{a: {initializer: [he]}}", "initializer"),
        ("{a: {initializer: zero}}", "cells: a: initializer must be one of he, xavier"),
        ("{a: {lr: 0}}", "cells: a: lr must be above 0 and finite, got 0"),
        ("{a: {lr: -1}, b: {}}", "cells: a: lr must be above 0 and finite, got -1"),
        ("{a: {batch_growth: 0}}", "batch_growth must be at least 1, got 0"),
        ("{a: {net: ''}}", "cells: a: net must be one of resnet8, "),
        ("{a: {schedule: ''}}", "cells: a: schedule must be one of cosine, hold; got ''"),
        ("{a: {rates: ''}}", "cells: a: rates must be one of shared, cohort; got ''"),
        ("{a: {initializer: ''}}", "cells: a: initializer must be one of he, xavier"),
        ("{a: {data: ''}, b: {}}", "cells: a: data must be one of digits, "),
        ("{a: {scratch: ''}, b: {}}", "cells: scratch or yoked of a must be one of b; got ''"),
        ("{a: {yoked: ''}, b: {}}", "cells: scratch or yoked of a must be one of b; got ''"),
        ("{a: {yoked: b, scratch: ''}, b: {}}", "a must have one of scratch and yoked, got both"),
        ("{a: {initializer: mine.Missing}}", "initializer mine.Missing cannot be loaded: "),
        ("{a: null}", "cells"),
        ("{a: 3}", "cells"),
        ("{a: []}", "cells"),
        ("null", "cells must be at least one row, got none"),
        ("[]", "cells"),
        ("{}", "cells must be at least one row, got none"),
        ("3", "cells"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_are_refused_in_one_line(refusal, rows, words):
    Path("c.yaml").write_text(f"{HEAD}cells: {rows}\n")
    assert words in refusal(["compare", "--config", "c.yaml"])


@pytest.mark.parametrize("name", ["on", "null", "no"])
def test_a_row_on_the_command_line_too(refusal, name):
    line = refusal(["compare", "--cells", f"{{{name}: {{policy: Never}}}}"])
    assert line.startswith("cells must have names that are text, got ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: null", "policy must be a Policy, got null"),
        ("policy: false", "policy"),
        ("policy: 3", "policy"),
        ("policy: []", "policy"),
        ("net: 8", "net"),
        ("net: null", "net"),
        ("out: 5", "out"),
        ("data: no", "data"),
        ("data: null", "data"),
        ("seed: null", "seed"),
        ("seed: yes", "seed"),
        ("epochs: null", "epochs"),
        ("lr: no", "lr"),
        ("resume: 3", "resume"),
        ("start: 3", "start"),
    ],
)
def test_settings_of_other_kinds_are_refused_in_one_line(refusal, text, words):
    Path("c.yaml").write_text(f"{text}\n")
    assert words in refusal(["train", "--config", "c.yaml"])


@pytest.mark.parametrize("text", ["lr: 1e-3", "lr: 1.e-3", "start: null", "out: null", "lr: null"])
def test_settings_that_yaml_1_1_reads_otherwise_work(parser, text):
    Path("c.yaml").write_text(f"{text}\n")
    chosen = parser.instantiate(parser.parse_args(["train", "--config", "c.yaml"]))["train"]
    assert (chosen.lr, chosen.start, chosen.out) == (1e-3 if "1" in text else None, None, None)


@pytest.mark.parametrize("seeds", [[], [0, 0], [True], ["0"], [-1], [0.5], [None]])
def test_seeds_are_whole_numbers(seeds):
    with pytest.raises(ValueError, match=r"^seeds? must be"):
        Compare(seeds=seeds)


def test_numbers_are_names_in_python_too():
    assert list(Compare(cells={8: Cell(), 0.5: Cell()}).cells) == ["8", "0.5"]  # pyright: ignore
    wrong = [{8: Cell(), "8": Cell()}, {None: Cell()}, {True: Cell()}, {"a": None}]
    for cells in (*wrong, {"\udcff": Cell()}):
        with pytest.raises(ValueError, match=r"^cells"):
            Compare(cells=cells)  # pyright: ignore


@pytest.mark.parametrize("policy", [None, False, 3, "Never", []])
def test_what_is_no_policy_is_refused(policy):
    for kind in (Train, Cell):
        with pytest.raises(ValueError, match=r"^policy must be a Policy, got "):
            kind(policy=policy)
