"""What a comparison was asked for, when its first results were there, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import run
import training.comparing.comparison
from training.comparing.comparison import Outcome
from training.keeping.asked import (
    Asked,
    Provenance,
    asked_before,
    finished_in,
    note_asked,
    read_provenance,
    static_in,
    told_of,
)
from training.keeping.row_settings import changed, settings_of

FIRST = Asked(("a", "b"), (0, 1), ("a", "b"))
ROWS = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("later", "rows", "seeds", "expected"),
    [
        ([], ROWS, (0, 1), []),
        ([replace(FIRST, seeds=(0, 1, 2), finished=0)], ROWS, (0, 1, 2), []),  # nothing was there
        (
            [replace(FIRST, seeds=(0, 1, 2, 3), finished=4)],
            ROWS,
            (0, 1, 2, 3),
            ["Seeds 2, 3 were added after results were seen."],
        ),
        (
            [replace(FIRST, rows=("a", "b", "c"), finished=1)],
            ROWS,
            (0, 1),
            ["Row c was added after results were seen."],
        ),
        ([replace(FIRST, rows=("a", "b", "c"), finished=1)], ("a", "b"), (0, 1), []),
        (
            [replace(FIRST, rows=("a", "b", "c", "d"), seeds=(0,), finished=1)],
            ROWS,
            (0,),
            [
                "Rows c, d were added after results were seen.",
                "Seed 1 was asked for too, and left out of this table.",
            ],
        ),
        (
            [replace(FIRST, primary=None, finished=1)],
            ROWS,
            (0, 1),
            ["The primary comparison was changed after results were seen; it was a - b."],
        ),
        (  # back again
            [replace(FIRST, rows=("a",), finished=2), replace(FIRST, finished=2)],
            ROWS,
            (0, 1),
            [],
        ),
        (
            [replace(FIRST, rows=("b",), finished=2)],
            ROWS,
            (0, 1),
            ["Row a was left out after results were seen."],
        ),
    ],
)
def test_what_was_changed_after_results_were_seen_is_said(later, rows, seeds, expected):
    assert told_of(Provenance((FIRST, *later)), rows, seeds) == expected


def set_as(every: int, finished: int = 0, **more: Any) -> Asked:
    """The rows a and b, b with a policy's setting, `published` and its kin in `more`."""
    policy = {"class_path": "policies.Periodic", "init_args": {"every": every, **more}}
    cells = {"a": {"policy": {"class_path": "policies.Never"}}, "b": {"lr": None, "policy": policy}}
    return replace(FIRST, finished=finished, settings=settings_of({"cells": cells}))


CHANGED = ["Row b was changed after results were seen."]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((set_as(2), set_as(3, finished=2)), CHANGED),
        ((set_as(2), set_as(3), set_as(3, finished=2)), []),  # nothing was there
        ((set_as(2), set_as(3, finished=2), set_as(2, finished=3)), []),  # back again
        ((FIRST, set_as(2, finished=1), set_as(3, finished=2)), CHANGED),  # first not known
        ((set_as(2), set_as(2, finished=2, newer=1)), []),  # another version's setting
        ((set_as(2), replace(FIRST, finished=2)), []),
        ((set_as(2, of={"x": 1}), set_as(2, finished=2, of={"y": 1})), CHANGED),
    ],
)
def test_a_row_that_was_changed_after_results_were_seen_is_said(asked, expected):
    assert told_of(Provenance(asked), ROWS, (0, 1)) == expected
    assert told_of(Provenance(asked), ("a",), (0, 1)) == []


def test_a_row_that_says_what_the_comparison_says_is_not_changed(tmp_path):
    common = {"net": "resnet8", "schedule": "cosine", "data": "digits", "lr": None}
    start = {"width": 0.5, "architecture": str(tmp_path / "old" / "base" / "architecture.json")}
    before = {"a": {"start": start, "net": None}, "b": {"start": None}}
    old = settings_of({**common, "cells": before, "out": str(tmp_path / "old" / "here")})
    moved = {"architecture": str(tmp_path / "new" / "base" / "architecture.json"), "width": 0.25}
    told = {"net": "resnet8", "schedule": "cosine"}
    after = {"a": {"start": moved, **told}, "b": {"start": None, "schedule": "hold"}}
    new = settings_of({**common, "cells": after, "out": str(tmp_path / "new" / "here")})
    assert changed(old, new) == ["b"]


def test_settings_of_rows_are_kept_as_json_gives_them_back(tmp_path):
    cells = {
        8: {"published": [90.0], "data": "npz:here.npz", "lr": 0.1},
        "b": {
            "policy": {"class_path": "mine.P", "init_args": {"most": float("inf"), "of": {1: 2}}}
        },
    }
    found = settings_of({"cells": cells})
    assert found["8"] == {"data": "npz:", "lr": 0.1}
    first = note_asked(tmp_path, Provenance(), replace(FIRST, settings=found, static=("a",)), {})
    again = read_provenance(tmp_path)
    assert (again, again.plan.settings, again.plan.static) == (first, found, ("a",))


def test_a_file_of_an_earlier_version_takes_settings_from_the_config(tmp_path):
    old = {"rows": ["a", "b"], "seeds": [0, 1], "primary": ["a", "b"], "finished": 0}
    (tmp_path / "provenance.json").write_text(json.dumps({"asked": [old], "at_a_time": {}}))
    cells = {"a": {"policy": {"class_path": "policies.Never"}}, "b": {"lr": 0.1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"cells": cells, "seeds": [0, 1]}))
    before = asked_before(tmp_path)
    assert static_in(before, cells) == ["a"]
    now = replace(
        FIRST, finished=3, settings=settings_of({"cells": {**cells, "b": {"lr": 0.2}}}), static=()
    )
    found = note_asked(tmp_path, before, now, {})
    assert told_of(found, ROWS, (0, 1)) == CHANGED
    assert static_in(found, {**cells, "c": cells["a"]}) == ["c"]
    kept = note_asked(tmp_path, before, replace(now, settings=settings_of({"cells": cells})), {})
    assert kept.asked == (FIRST,)
    assert read_provenance(tmp_path).plan.static == ()


def test_the_file_survives_reruns_and_holds_a_line_for_each_change(tmp_path):
    assert asked_before(tmp_path) == Provenance()
    first = note_asked(tmp_path, asked_before(tmp_path), FIRST, {"a/seed0": 2})
    path = tmp_path / "provenance.json"
    written = path.read_bytes()
    assert read_provenance(tmp_path) == first
    again = replace(FIRST, finished=3)
    assert note_asked(tmp_path, asked_before(tmp_path), again, {}) == first
    assert path.read_bytes() == written
    more = replace(FIRST, seeds=(0, 1, 2), finished=4)
    assert note_asked(tmp_path, first, more, {}).asked == (FIRST, more)
    assert read_provenance(tmp_path).plan == FIRST
    path.write_text('{"asked": [{}], "at_a_time": {}}')
    with pytest.raises(ValueError, match=r"provenance[.]json cannot be read"):
        read_provenance(tmp_path)


def test_a_run_that_has_begun_keeps_the_most_runs_at_a_time(tmp_path):
    found = note_asked(tmp_path, Provenance(), FIRST, {"a/seed0": 2, "a/seed1": 2})
    (tmp_path / "a" / "seed0").mkdir(parents=True)
    (tmp_path / "a" / "seed0" / "history.jsonl").touch()
    found = note_asked(tmp_path, found, FIRST, {"a/seed0": 1, "a/seed1": 1})
    assert [found.beside(Path(f"x/a/seed{seed}")) for seed in range(3)] == [2, 1, None]


def test_a_folder_of_an_earlier_version_tells_what_it_was_asked_last(tmp_path):
    config = {"cells": {"a": {}, "b": {}}, "seeds": [0, 1], "primary": "a vs b"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert asked_before(tmp_path).asked == (FIRST,)
    assert finished_in(tmp_path) == 0
    for name in ("a/seed0", "b/seed0", "b/seed1"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/seed0", "b/seed1"):
        (tmp_path / name / "summary.json").touch()
    assert finished_in(tmp_path) == 2


def test_seeds_of_a_config_file_are_the_plan_of_a_call_for_some(tmp_path, monkeypatch, parser):
    (tmp_path / "c.yaml").write_text("seeds: [3, 4, 5]\n")
    seen = []

    def compared(settings, say, advance, planned, running):
        seen.append(
            (
                settings.seeds,
                settings.only,
                training.comparing.comparison._asked(settings, planned).seeds,
            )
        )
        return Outcome("", ())

    monkeypatch.setattr(training.comparing.comparison, "compare", compared)
    monkeypatch.setattr(run, "make_parser", lambda: parser)
    words = ["compare", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "c.yaml")]
    for more in ([], ["--seeds", "[4]", "--only", "periodic"], ["--seeds", "[9]"]):
        assert run.main([*words, *more]) == 0
    assert (
        run.main(["compare", "--out", str(tmp_path / "out"), "--only", "[periodic, plateau]"]) == 0
    )
    assert seen == [
        ([3, 4, 5], None, (3, 4, 5)),
        ([4], "periodic", (3, 4, 5)),
        ([9], None, (9,)),
        ([0, 1, 2], ["periodic", "plateau"], (0, 1, 2)),
    ]
