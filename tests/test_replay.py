"""Replay over many runs: a summary, the records that matter, and runs that cannot be asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from histories import FIRST, history_in_rounds, record_of, write_history

import run
from analysis.recording.phrases import phrase
from nets import Insert, Widen, WidenStage
from policies import Never, Periodic, StochasticDepth
from training.asking.replay import places, replay_runs, replay_table, runs_of

ONE, TWO, THREE = FIRST.blocks


def write(folder: Path, *applied, records: int = 4, **values) -> Path:
    """A run's history; `applied` holds the actions of its first records."""

    def record(number, architecture, **more):
        place = {"step": 10 * (number + 1), "spent": 0.1 * (number + 1)}
        return record_of(architecture=architecture, **place, **values, **more)

    rounds = [*applied, *[()] * records][:records]
    return write_history(folder, history_in_rounds(rounds, record)).parent


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_a_comparison_stands_for_all_runs_in_it(workplace):
    for name in ("b/seed0", "b/seed1", "a/seed0"):
        write(Path("comparison", name))
    write(Path("alone"))
    (workplace / "comparison" / "c" / "seed0").mkdir(parents=True)  # not begun
    found = runs_of(["alone", "comparison", "comparison/b/seed1"])
    assert list(map(str, found)) == [
        "alone",
        "comparison/a/seed0",
        "comparison/b/seed0",
        "comparison/b/seed1",
    ]


def test_several_runs_give_a_summary_and_the_records_that_matter(workplace):
    write(Path("same"), [], [Widen(ONE, 3)])
    write(Path("elsewhere"), [], [Insert(ONE, 4)], [], [Widen(TWO, 1)])
    write(Path("still"))
    text = replay_table(Periodic(every=2), ["same", "elsewhere", "still"])
    summary, rows, *rest = text.split("\n\n")
    assert not rest
    assert cells_of(summary)[0] == [
        "run",
        "records",
        "grew",
        "would have grown",
        "when it was done",
        "and where",
    ]
    assert cells_of(summary)[2:] == [
        ["same", "4", "1", "2", "1", "1"],
        # at the second record it widened stage 1 where an insertion was done, at the fourth stage 2
        ["elsewhere", "4", "2", "2", "2", "0"],
        ["still", "4", "0", "2", "0", "0"],
    ]
    lines = cells_of(rows)
    assert lines[0] == ["run", "step", "spent", "done", "Periodic would have done"]
    assert [line[:2] for line in lines[2:]] == [
        [name, step] for name in ("same", "elsewhere", "still") for step in ("20", "40")
    ]
    assert lines[2][3] == f"Widen(block='{ONE}', by=3)"
    assert lines[-1][3] == "-"
    assert replay_table(Never(), ["still", "same", "still"]).count("still") == 1  # nothing there


def test_only_what_the_runs_rules_would_have_granted_counts(workplace):
    early, late = write(Path("early")), write(Path("late"))
    (early / "config.yaml").write_text("grow_until: 0.2\n")
    (late / "config.yaml").write_text("grow_until: 0.6\n")
    text = replay_table(Periodic(every=2), ["early", "late"])
    assert [row[3] for row in cells_of(text.split("\n\n")[0])[2:]] == ["1", "2"]
    # of a single run every wish is shown
    assert sum("Widen(" in line for line in replay_table(Periodic(2), ["early"]).splitlines()) == 2


def test_a_run_of_an_earlier_version_allows_growth_as_its_settings_say(workplace):
    """What a growth adds follows from the growths to come; the old records do not know the end."""
    early, late = write(Path("early")), write(Path("late"))
    (early / "config.yaml").write_text("grow_until: 0.2\n")
    (late / "config.yaml").write_text("grow_until: 1\n")
    widened = [
        asked[0].by
        for each in replay_runs(Periodic(every=1), [early, late])
        for asked in [each.answers[0][1]]
    ]
    assert widened[0] > 2 * widened[1]


def test_a_run_that_cannot_be_asked_takes_no_other_with_it(workplace):
    write(Path("bare"))
    write(Path("full"), importance=dict.fromkeys(FIRST.blocks, 0.1))
    text = replay_table(StochasticDepth(), ["bare", "full"])
    assert text.splitlines()[-1].startswith("bare: StochasticDepth needs the probe 'importance'")
    assert [row[0] for row in cells_of(text.split("\n\n")[0])[2:]] == ["full"]
    with pytest.raises(ValueError, match="StochasticDepth needs the probe"):
        replay_runs(StochasticDepth(), [Path("bare")])


def test_places_are_of_what_adds_capacity():
    actions = [Widen(ONE, 3), Insert(TWO, 4), WidenStage("stage1", 1)]
    assert places(actions) == {("Widen", ONE), ("Insert", TWO), ("WidenStage", "stage1")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "runs must be a history.jsonl file or a run folder, got nowhere"),
        ("full nowhere", "runs must be .*, got nowhere"),
        ("empty", "runs must be folders with at least one record, got empty"),
        ("", "required"),
    ],
)
def test_wrong_use_is_refused_in_one_line(workplace, capsys, arguments, message):
    write(Path("full"))
    write(Path("empty"), records=0)
    try:
        code = run.main(["replay", *arguments.split(), "--policy", "Periodic"])
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


def test_twenty_runs_are_replayed_in_one_table(workplace, capsys):
    for number in range(20):
        write(Path(f"comparison/row/seed{number}"), [], [Widen(ONE, 3)], records=20)
    assert run.main(["replay", "comparison", "--policy", "Periodic"]) == 0
    assert "comparison/row/seed19" in capsys.readouterr().out


def test_no_line_of_a_table_is_longer_than_a_hundred_characters(workplace, capsys):
    many = [Widen(ONE, 3), Insert(TWO, 4), WidenStage("stage2", 11), Insert(THREE, 12)]
    names = ["short", "a-comparison-with-a-long-name/a-row-with-a-long-name-too/seed12345"]
    for name in names:
        write(Path(name), [], many, [], [Widen(TWO, 1)])
    for folders in (names, names[1:], names[:1]):
        assert run.main(["replay", *folders, "--policy", "Periodic", "--policy.every", "2"]) == 0
        text = capsys.readouterr().out
        tables = [part for part in text.rstrip().split("\n\n") if part.startswith("|")]
        lengths = [set(map(len, table.splitlines())) for table in tables]
        assert max(map(max, lengths)) <= 100
        assert set(map(len, lengths)) == {1}  # they are tables still
    assert max(map(len, replay_table(Periodic(2), names).splitlines())) > 150  # one line a row
    rows = cells_of(tables[0])[2:]
    done = " ".join(row[2] for row in rows).split()
    assert done == ["-", *", ".join(map(phrase, many)).split(), "-", *phrase(Widen(TWO, 1)).split()]
    steps = [row[0] for row in rows]
    assert [step for step in steps if step] == ["10", "20", "30", "40"]
    assert steps.count("") > 2  # rows that go on are blank elsewhere
