"""Stages that were starved on purpose are ranked first, and in balanced nets nothing tells."""

import json
from dataclasses import replace
from math import exp, log, sqrt
from statistics import stdev

import pytest
from histories import record_of
from runs import quiet, short_run

from analysis import Record, read_history
from analysis.capacity.missing_capacity import SEEDS, channel_flops, rank
from nets import SetSurvival, Widen, build, cost, preset, seed_of
from training import Train
from training.running.loop import train
from training.settings.start_settings import Start

BALANCED = seed_of(preset("resnet8", image=(1, 8, 8)), width=0.5, stream=0.5)  # 8, 16, 32
ONE, TWO, THREE = BALANCED.blocks


def starved(block):
    """The net with a quarter of the inner channels in one stage, on the same streams."""
    old = BALANCED.blocks[block]
    return BALANCED.with_block(replace(old, width=old.width // 4))


def trained(folder, architecture, seed, **changes) -> list[Record]:
    """The history of a run of about a second."""
    (folder.parent / f"{folder.name}.json").write_text(json.dumps(architecture.to_dict()))
    start = Start(architecture=f"{folder}.json")
    given = {"budget": "epochs", "epochs": 3, "records": 10, "batch_size": 64, "save_every": 1e9}
    settings: Train = short_run(folder, seed=seed, start=start, **{**given, **changes})
    train(settings, quiet)
    return read_history(folder)


def test_a_starved_middle_stage_is_first_in_most_runs(tmp_path):
    found = [rank(trained(tmp_path / f"{k}", starved(TWO), k)) for k in range(10)]
    assert sum(each.places[0].name == "stage2" for each in found) >= 8
    assert sum(each.verdict == "stage2" for each in found) >= 8


def test_nothing_tells_in_most_runs_of_a_balanced_net(tmp_path):
    found = [rank(trained(tmp_path / f"{k}", BALANCED, k)) for k in range(6)]
    assert sum(each.verdict == "nothing tells" for each in found) >= 4


def history_of(*rows, architecture=BALANCED, prices=True):
    """Records with these sensitivities a FLOP, by block, behind two young ones."""
    costs = channel_flops(architecture)
    rows = [dict.fromkeys(architecture.blocks, 1.0), dict.fromkeys(architecture.blocks, 1.0), *rows]
    return [
        record_of(step, architecture, sensitivity={b: v * costs[b] for b, v in row.items()})
        for step, row in enumerate(rows, start=1)
    ]


def row(one=1.0, two=1.0, three=1.0):
    return {ONE: one, TWO: two, THREE: three}


@pytest.mark.parametrize(
    ("two", "verdict"), [(1.0, "nothing tells"), (1.48, "nothing tells"), (1.5, "stage2")]
)
def test_the_first_is_named_from_two_standard_errors_on(two, verdict):
    found = rank(history_of(*[row(two=two)] * 4))
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(two)
    assert found.error == pytest.approx(exp(SEEDS))
    assert ("Nothing tells" in found.why) == (verdict == "nothing tells")
    assert verdict == "nothing tells" or "Capacity is missing in stage2" in found.why


def test_records_that_differ_widen_the_error():
    values = [1.2, 9.0, 1.2, 9.0]
    found = rank(history_of(*[row(two=value) for value in values]))
    error = sqrt(stdev(map(log, values)) ** 2 / 4 + SEEDS**2)
    assert found.ratio == pytest.approx(sqrt(1.2 * 9.0))
    assert found.error == pytest.approx(exp(error))
    assert found.verdict == "nothing tells"
    assert rank(history_of(*[row(two=9.0)] * 4)).verdict == "stage2"


def test_scores_are_per_flop_and_beside_the_mean_of_all_stages():
    found = rank(history_of(*[row(1.0, 2.0, 4.0)] * 3))
    assert [place.name for place in found.places] == ["stage3", "stage2", "stage1"]
    assert [place.score for place in found.places] == pytest.approx([2.0, 1.0, 0.5])
    assert [place.name for place in found.blocks] == [THREE, TWO, ONE]
    (first, *_) = found.places
    assert (first.width, first.low) == (32, pytest.approx(2.0 / exp(SEEDS)))
    assert sum(place.share for place in found.places) == pytest.approx(1.0)
    one, two = cost(BALANCED.apply(Widen(ONE, 1))), cost(BALANCED)
    assert channel_flops(BALANCED)[ONE] == one.flops - two.flops


def test_a_stage_has_the_mean_of_its_blocks():
    net = seed_of(preset("resnet14", image=(1, 8, 8)), blocks=None)
    values = dict.fromkeys(net.blocks, 1.0) | {"stage2.block1": 5.0}
    found = rank(history_of(*[values] * 3, architecture=net))
    assert found.ratio == pytest.approx(3.0)
    assert found.blocks[0].name == "stage2.block1"
    assert found.blocks[0].score / found.places[0].score == pytest.approx(5 / 3)


def test_blocks_are_compared_where_there_is_one_stage():
    net = build(preset("mlp-8", image=(1, 8, 8))).architecture
    assert rank(history_of(*[{"stage1.block1": 1.0}] * 4, architecture=net)).places == ()


def test_only_records_of_the_present_network_count():
    before = history_of(*[row(one=9.0)] * 9)
    grown = BALANCED.apply(Widen(ONE, 8))
    after = history_of(*[row(two=9.0)] * 3, architecture=grown)
    assert rank(before).verdict == "stage1"
    assert rank([*before, *after]).verdict == "stage2"
    young = rank([*before, *after[:4]])  # two of them show what initialization did
    assert (young.verdict, young.records) == ("nothing tells", 2)
    assert "3 records" in young.why


def test_a_changed_chance_of_survival_is_no_other_network():
    history = history_of(*[row(two=9.0)] * 3)
    other = BALANCED.apply(SetSurvival(ONE, 0.5))
    history[-1] = replace(history[-1], architecture=other)
    assert rank(history).verdict == "stage2"


def test_records_without_sensitivities_tell_nothing():
    found = rank([record_of(step, BALANCED) for step in range(1, 9)])
    assert (found.verdict, found.places, found.blocks) == ("nothing tells", (), ())
    assert "no sensitivities" in found.why
