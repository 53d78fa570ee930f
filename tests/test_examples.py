"""Policies from the literature in examples/policies/: tables of histories, and a short run each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from histories import history_in_rounds, record_of

import run
from analysis import LayerReading, read_history
from nets import Insert, Widen, cost, preset, seed_of
from policies import widen

EXAMPLES = Path(__file__).parents[1] / "examples" / "policies"
NAMES = ("ash.Ash", "autogrow.AutoGrow", "firefly.Firefly", "gradmax.GradMax", "north.North")
NAMES += ("largest_gain.LargestGain",)
LIMIT = preset("resnet20", image=(3, 8, 8))
FIRST = seed_of(LIMIT)
ONE, TWO, THREE = FIRST.blocks  # of widths 4, 8, 16


def history_of(*rounds, **series):
    """A record for each round of applied actions; `series` has a value a record."""

    def record(number, architecture, applied):
        values = {name: values[number] for name, values in series.items()}
        given = {"spent": number / 100, "applied": applied}
        return record_of(10 * number, architecture, LIMIT, **given, **values)

    return history_in_rounds(rounds, record, FIRST)


def inner(**values):
    """Readings of two inner layers a block: the second has nothing."""
    return {
        f"{block}.bn{number}": LayerReading(
            block,
            "inner",
            gradient_norm=values.get("gradients", {}).get(block) if number == 1 else None,
            extra={"effective_rank": values["ranks"][block]} if "ranks" in values else {},
        )
        for block in (ONE, TWO, THREE)
        for number in (1, 2)
    }


def short(actions):
    return [
        (type(a).__name__, getattr(a, "after", "") or getattr(a, "block", ""), a.initializer)
        for a in actions
    ]


# GradMax ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradients", "rounds", "expected"),
    [
        ({ONE: 1, TWO: 3, THREE: 2}, [[], []], TWO),
        ({ONE: 4, TWO: 3, THREE: 2}, [[], []], ONE),
        ({ONE: 4, TWO: 3, THREE: 2}, [[Widen(ONE, 1)], []], TWO),  # the widest cools
        ({TWO: 3}, [[], []], TWO),
        ({}, [[], []], None),
        ({ONE: 1, TWO: 3, THREE: 2}, [[], [], []], None),  # not due
    ],
)
def test_gradmax_widens_where_the_gradient_is_largest(example, gradients, rounds, expected):
    layers = [inner(gradients=gradients)] * len(rounds)
    policy = example("gradmax.GradMax")(every=2, share=0.05)
    history = history_of(*rounds, layers=layers)
    decided = policy.decide(history)
    assert short(decided) == ([("Widen", expected, "gradmax")] if expected else [])
    if expected:
        assert decided == widen(history, expected, 0.05)


def test_gradmax_goes_on_to_the_next_where_nothing_fits(example):
    history = history_of([], layers=[inner(gradients={ONE: 3, THREE: 1})])
    # a channel of stage 1 costs 2 * 64 * 9 * 32 FLOPs, one of stage 3 a fifth of that
    tight = [replace(history[0], limit=replace(cost(FIRST), flops=cost(FIRST).flops + 8000))]
    tight = [replace(tight[0], limit=replace(tight[0].limit, parameters=10**9))]
    assert short(example("gradmax.GradMax")(share=1.0).decide(tight)) == [
        ("Widen", THREE, "gradmax")
    ]


# AutoGrow ---------------------------------------------------------------------------------------

GROWN = Insert(ONE, 8)


@pytest.mark.parametrize(
    ("rounds", "accuracies", "expected"),
    [
        ([[]], [0.1], None),
        ([[], []], [0.1, 0.2], ONE),
        # it helped: the next stage's turn
        ([[GROWN], [], []], [0.1, 0.2, 0.3], TWO),
        ([[GROWN], []], [0.1, 0.2], None),
        # in a later round stage 1 goes on at its end if the block helped, and else is left out
        (
            [[GROWN], [Insert(TWO, 8)], [Insert(THREE, 8)], [], []],
            [0.1, 0.2, 0.3, 0.3, 0.4],
            "stage1.block2",
        ),
        (
            [[GROWN], [Insert(TWO, 8)], [Insert(THREE, 8)], [], []],
            [0.1, 0.1, 0.3, 0.3, 0.4],
            "stage2.block2",
        ),
        # no block helped: it has found its depth
        ([[GROWN], [Insert(TWO, 8)], [Insert(THREE, 8)], [], []], [0.1] * 5, None),
    ],
)
def test_autogrow_deepens_stages_in_turn_while_it_helps(example, rounds, accuracies, expected):
    history = history_of(*rounds, validation_accuracy=accuracies)
    decided = example("autogrow.AutoGrow")(every=2).decide(history)
    assert short(decided) == ([("Insert", expected, None)] if expected else [])


def test_autogrow_judges_a_regression_by_its_loss(example):
    policy = example("autogrow.AutoGrow")(every=1)
    for losses, expected in (([0.5, 0.4], TWO), ([0.5, 0.6], TWO)):
        decided = policy.decide(history_of([GROWN], [], validation_loss=losses))
        assert short(decided) == [("Insert", expected, None)]
    rounds = [[GROWN], [Insert(TWO, 8)], [Insert(THREE, 8)], []]
    worse = policy.decide(history_of(*rounds, validation_loss=[0.5, 0.6, 0.5, 0.4]))
    better = policy.decide(history_of(*rounds, validation_loss=[0.5, 0.4, 0.3, 0.2]))
    assert [short(worse)[0][1], short(better)[0][1]] == ["stage2.block2", "stage1.block2"]


# NORTH* -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        # of 4, 8 and 16 channels 1, 4 and 8 directions were filled at first
        ((1, 4, 8), (1, 4, 8), []),
        ((1, 4, 8), (1, 6, 8), [(TWO, 2)]),
        ((1, 4, 8), (3.9, 3, 9.9), [(ONE, 2), (THREE, 1)]),
        ((1, 4, 8), (0.5, 2, 4), []),
    ],
)
def test_north_widens_by_the_directions_that_came_to_be_filled(example, first, last, expected):
    ranks = [dict(zip((ONE, TWO, THREE), values)) for values in (first, last)]
    history = history_of([], [], layers=[inner(ranks=values) for values in ranks])
    policy = example("north.North")(threshold=1.0, share=1.0)
    assert policy.decide(history) == [Widen(block, by) for block, by in expected]
    assert policy.needs == ("effective_rank",)


def test_north_has_a_threshold_a_share_and_a_cooldown(example):
    ranks = [dict(zip((ONE, TWO, THREE), values)) for values in ((2, 4, 8), (3, 8, 16))]
    layers = [inner(ranks=values) for values in ranks]
    policy = example("north.North")(threshold=0.5, share=1.0)
    history = history_of([], [], layers=layers)
    assert policy.decide(history) == [Widen(ONE, 2), Widen(TWO, 6), Widen(THREE, 12)]
    little = example("north.North")(threshold=0.5, share=0.001)
    assert all(action.by < 6 for action in little.decide(history))
    cooling = history_of([Widen(TWO, 1)], [], layers=layers)
    assert [action.block for action in policy.decide(cooling)] == [ONE, THREE]
    full = [replace(record, limit=record.cost) for record in history]
    assert policy.decide(full) == []
    # what the first takes is not there for the next
    both = cost(FIRST.apply(Widen(ONE, 2)).apply(Widen(TWO, 3)))
    tight = [replace(record, limit=replace(both, parameters=10**9)) for record in history]
    assert policy.decide(tight) == [Widen(ONE, 2), Widen(TWO, 3)]


def test_north_says_what_it_needs(example):
    with pytest.raises(ValueError, match="North needs the probe 'effective_rank'"):
        example("north.North")().decide(history_of([], layers=[inner()]))


# Firefly ----------------------------------------------------------------------------------------


def test_firefly_shares_the_growth_between_the_best_half_copied_half_new(example):
    layers = [inner(gradients={ONE: 1, TWO: 3, THREE: 2})]
    history = history_of([], layers=layers)
    decided = example("firefly.Firefly")(every=1, share=0.2, count=2).decide(history)
    assert short(decided) == [
        ("Widen", TWO, "net2net"),
        ("Widen", TWO, "gradmax"),
        ("Widen", THREE, "net2net"),
        ("Widen", THREE, "gradmax"),
    ]
    for block, pair in ((TWO, decided[:2]), (THREE, decided[2:])):
        (whole,) = widen(history, block, 0.1)
        assert pair[0].by == whole.by // 2
        assert sum(action.by for action in pair) == whole.by
    one = example("firefly.Firefly")(every=1, count=1).decide(history)
    assert {action.block for action in one} == {TWO}


def test_firefly_waits_cools_and_adds_a_single_channel_as_a_new_one(example):
    layers = [inner(gradients={ONE: 3, TWO: 2, THREE: 1})]
    policy = example("firefly.Firefly")(every=2, count=1)
    assert policy.decide(history_of([], layers=layers)) == []
    cooling = history_of([Widen(ONE, 1)], [], layers=layers * 2)
    assert {action.block for action in policy.decide(cooling)} == {TWO}
    tiny = example("firefly.Firefly")(every=1, count=1, share=50_000 / cost(LIMIT).flops)
    decided = tiny.decide(history_of([], layers=layers))
    assert short(decided) == [("Widen", ONE, "gradmax")]  # 36,864 FLOPs
    assert example("firefly.Firefly")(every=1).decide(history_of([], layers=[{}])) == []


# The largest gain -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "rounds", "expected"),
    [
        ({ONE: 0.1, TWO: 0.3, THREE: 0.2}, [[], []], TWO),
        ({ONE: -0.1, THREE: -0.2}, [[], []], ONE),
        ({ONE: 0.1, TWO: 0.3, THREE: 0.2}, [[Widen(TWO, 1)], []], THREE),  # the widest cools
        ({}, [[], []], None),
        ({ONE: 0.1}, [[], [], []], None),  # not due
    ],
)
def test_largest_gain_widens_where_trying_has_helped_most(example, gains, rounds, expected):
    policy = example("largest_gain.LargestGain")(every=2, share=0.05, steps=3)
    assert [(probe.name, probe.steps) for probe in policy.needs] == [("gain", 3)]
    history = history_of(*rounds, probes=[{"gain": gains}] * len(rounds))
    assert policy.decide(history) == (widen(history, expected, 0.05) if expected else [])


def test_largest_gain_tries_where_it_may_grow_and_nowhere_else(example):
    policy = example("largest_gain.LargestGain")(every=2)
    assert [bool(policy.needs_at(history_of(*[[]] * n))) for n in (1, 2, 3, 4)] == [
        False,
        True,
        False,
        True,
    ]
    late = [replace(record, spent=0.7) for record in history_of([], [])]
    assert policy.needs_at(late) == ()
    assert policy.decide(late) == []
    with pytest.raises(ValueError, match="record must hold the probe 'gain'"):
        policy.decide(history_of([], []))


def test_a_probe_goes_through_config_files_replays_and_workers(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    example("largest_gain.LargestGain")
    words = "train --net resnet8 --epochs 2 --records 6 --batch_size 64 --device cpu --threads 1"
    words += " --policy largest_gain.LargestGain --policy.every 2 --policy.steps 2 --out run"
    assert run.main(words.split()) == 0
    assert run.main(["train", "--config", "run/config.yaml", "--out", "again"]) == 0
    whole = (tmp_path / "run" / "history.jsonl").read_bytes()
    assert b'"gain"' in whole
    assert (tmp_path / "again" / "history.jsonl").read_bytes() == whole
    capsys.readouterr()
    asks = "replay run --policy largest_gain.LargestGain --policy.every"
    assert run.main([*asks.split(), "2"]) == 0
    done = [row.split("|")[3:5] for row in capsys.readouterr().out.splitlines() if "Widen(" in row]
    assert done
    assert all(did == wished for did, wished in done)
    assert run.main([*asks.split(), "1"]) == 2
    assert "LargestGain needs the probe 'gain', got a record without" in capsys.readouterr().err
    Path("rows.yaml").write_text(
        "cells:\n  gain:\n    policy:\n      class_path: largest_gain.LargestGain\n"
        "      init_args: {every: 2, steps: 2}\n"
    )
    both = "compare --config rows.yaml --net resnet8 --epochs 2 --records 6 --batch_size 64"
    both += " --device cpu --threads 1 --seeds [0,1] --workers 2 --out both"
    assert run.main(both.split()) == 0
    assert Path("both/gain/seed0/history.jsonl").read_bytes() == whole


# Ash --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "errors", "expected"),
    [
        ([[], []], [1.0, 1.0], None),  # the window is not full
        ([[], [], []], [1.0, 0.99, 0.97], ONE),  # fell by 3 % of the first error
        ([[], [], []], [1.0, 0.99, 0.9], None),
        ([[], [], [], []], [4.0, 1.0, 0.9, 0.81], ONE),  # the first error is the measure
        # after a growth the window begins anew, and its error is the measure
        ([[], [], [Widen(ONE, 1)], []], [1.0, 1.0, 1.0, 1.0], None),
        ([[], [], [Widen(ONE, 1)], [], []], [1.0, 1.0, 0.5, 0.5, 0.5], TWO),
        ([[], [], [Widen(ONE, 1)], [], []], [1.0, 1.0, 0.5, 0.5, 0.47], None),
        ([[Widen(ONE, 1)], [Widen(TWO, 1)], [], []], [1.0] * 4, THREE),
        ([[Widen(ONE, 1)], [Widen(TWO, 1)], [Widen(THREE, 1)], [], []], [1.0] * 5, ONE),
    ],
)
def test_ash_adds_a_node_when_the_error_has_flattened(example, rounds, errors, expected):
    policy = example("ash.Ash")(window=2, trigger=0.05)
    decided = policy.decide(history_of(*rounds, train_loss=errors))
    assert decided == ([Widen(expected, 1)] if expected else [])


def test_ash_stops_at_its_goal_and_at_the_limit(example):
    flat = history_of([], [], [], train_loss=[0.1] * 3)
    assert example("ash.Ash")(by=3).decide(flat) == [Widen(ONE, 3)]
    assert example("ash.Ash")(goal=0.1).decide(flat) == []
    full = [replace(record, limit=record.cost) for record in flat]
    assert example("ash.Ash")().decide(full) == []


# All --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NAMES)
def test_each_is_short_cites_its_paper_and_says_how_it_deviates(path):
    text = (EXAMPLES / f"{path.split('.')[0]}.py").read_text()
    said, code = text.split('"""')[1:]
    assert "Deviations:" in said
    assert "arXiv" in said or "Connection Science" in said
    assert len(code[code.index("@dataclass") :].strip().splitlines()) <= 40
    imports = [line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))]
    assert {name.split(".")[0] for name in imports} <= {
        "dataclasses",
        "itertools",
        "nets",
        "policies",
    }


@pytest.mark.parametrize("path", NAMES)
def test_each_grows_a_net_on_digits(example, tmp_path, capsys, path):
    settings = {"ash.Ash": ["--policy.trigger", "1e9"], "north.North": ["--policy.threshold", "0"]}
    settings["largest_gain.LargestGain"] = ["--policy.every", "2", "--epochs", "2"]
    words = "train --net resnet8 --epochs 0.3 --records 6 --batch_size 64 --device cpu --threads 1"
    words += f" --policy {path} --out {tmp_path / 'run'}"
    assert run.main([*words.split(), *settings.get(path, [])]) == 0
    history = read_history(tmp_path / "run")
    applied = [action for record in history for action in record.applied]
    assert applied
    assert all(action.reason for action in applied)
    last = history[-1].cost
    assert last.flops <= history[-1].limit.flops
    assert last.parameters > history[0].cost.parameters
    assert str(history[-1].step) in capsys.readouterr().out
