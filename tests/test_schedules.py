"""Every policy on simulated histories of 20, 40 and 200 records: when it grows, how far, where."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import exp
from random import Random

import pytest
from histories import after_all, record_and_grow, record_of, write_history

from analysis import Record
from nets import Architecture, Insert, Widen, WidenStage, cost, preset, seed_of
from policies import (
    GrowAndPrune,
    LayerStatistic,
    Periodic,
    Plateau,
    Policy,
    RandomSite,
    StochasticDepth,
    WholeNet,
    Yoked,
)

LIMIT = preset("resnet20", classes=100)
FIRST = seed_of(LIMIT)
THIN = seed_of(LIMIT, 0.25, 1, 0.25)
GROWN = Widen | WidenStage | Insert
LATE = 0.01
"""Of the budget: how late a run's records are, a step or so."""


def place_of(architecture: Architecture, block: str) -> float:
    """A block's depth, from 0 to 1."""
    names = list(architecture.blocks)
    return names.index(block) / max(1, len(names) - 1)


RANKINGS = {
    "random": lambda net, block, random: random.random(),
    "deep": lambda net, block, random: place_of(net, block),
    "shallow": lambda net, block, random: -place_of(net, block),
    "equal": lambda net, block, random: 0.5,
}


def simulate(
    policy: Policy,
    records: int = 20,
    ranking: str = "random",
    first: Architecture = FIRST,
    limit: Architecture = LIMIT,
    late: float = 0.0,
    seed: int = 0,
) -> list[Record]:
    """A run without training, whose loss levels soon; what is done is what the loop would do."""
    history: list[Record] = []
    architecture, random = first, Random(seed)
    for number in range(1, records + 1):
        spent = min(1.0, (number + late) / records)
        loss = 1 + exp(-spent / 0.02) + random.gauss(0, 0.01)
        values = {
            name: RANKINGS[ranking](architecture, name, random) for name in architecture.blocks
        }
        given = {"spent": spent, "validation_loss": loss, "seed": seed}
        architecture = record_and_grow(policy, history, architecture, limit, values, **given)
    return history


@cache
def simulated(policy: Policy, records: int, **settings) -> tuple[Record, ...]:
    return tuple(simulate(policy, records, **settings))


def times(history) -> list[float]:
    """The parts of the budget at which it grew."""
    grown = [r.spent for r in history if any(isinstance(a, GROWN) for a in r.applied)]
    return [round(spent, 3) for spent in grown]


POLICIES = [
    Periodic(),
    RandomSite(),
    LayerStatistic(),
    LayerStatistic(when="plateau"),
    LayerStatistic(edit="widen"),
    LayerStatistic(edit="insert"),
    StochasticDepth(),
    Plateau(),
    WholeNet(),
]
COUNTS = pytest.mark.parametrize("records", [20, 40, 200])
EACH = pytest.mark.parametrize("policy", POLICIES, ids=repr)


@EACH
@COUNTS
@pytest.mark.parametrize("late", [0.0, 0.2])
def test_growth_reaches_the_limits_flops_near_the_end_of_the_allowed_part(policy, records, late):
    history = simulated(policy, records, late=late)
    left = cost(LIMIT).flops - cost(FIRST).flops
    reached = [(r.cost.flops - cost(FIRST).flops) / left for r in history]
    assert reached[-1] > 0.95
    assert not any(why for r in history for _, why in r.refused if "the limit is" in why)
    half = next(r.spent for r, part in zip(history, reached) if part > 0.5)
    assert 0.2 < half <= 0.5
    ended = next(r.spent for r, part in zip(history, reached) if part > 0.9)
    assert 0.4 <= ended <= 0.66


@EACH
@COUNTS
def test_no_growth_is_far_larger_than_another(policy, records):
    history = simulated(policy, records)
    flops = [r.cost.flops for r in history]
    steps = [after - before for before, after in pairwise(flops) if after > before]
    assert max(steps) <= 0.55 * sum(steps)
    assert len(steps) >= 2


@EACH
def test_growth_comes_at_the_same_parts_of_the_budget_whatever_the_records(policy):
    found = [times(simulated(policy, records)) for records in (20, 40, 200)]
    assert abs(len(found[0]) - len(found[2])) <= 1
    for few, many in ((found[0], found[2]), (found[1], found[2])):
        assert all(abs(a - b) <= 0.06 for a, b in zip(few, many))


@EACH
@COUNTS
def test_no_block_is_wider_than_twice_its_stream(policy, records):
    for first in (FIRST, THIN):
        for ranking in ("deep", "shallow", "random"):
            for record in simulated(policy, records if first is FIRST else 20, ranking=ranking):
                for width, stream in record.architecture.widths.values():
                    assert width <= 2 * stream


@pytest.mark.parametrize(
    "policy", [LayerStatistic(), LayerStatistic(edit="widen"), StochasticDepth()], ids=repr
)
@COUNTS
def test_statistics_that_rank_sites_differently_lead_to_different_nets(policy, records):
    ends = {
        ranking: simulated(policy, records, ranking=ranking)[-1].architecture
        for ranking in ("deep", "shallow", "random")
    }
    assert len(set(ends.values())) == 3
    if policy == LayerStatistic():  # and each grew most where its statistic is highest
        added = {
            ranking: [
                sum(block.width for block in stage.blocks) / stage.width for stage in end.stages
            ]
            for ranking, end in ends.items()
        }
        assert added["deep"][2] > added["shallow"][2]
        assert added["deep"][0] < added["shallow"][0]


@COUNTS
def test_no_rhythm_locks_a_site_into_one_kind_of_edit(records):
    history = simulated(LayerStatistic(), records, ranking="deep")
    actions = [action for r in history for action in r.applied]
    done: dict[str, set[str]] = {}
    for action in actions:
        place = getattr(action, "block", "") or getattr(action, "after", "")
        done.setdefault(place, set()).add(type(action).__name__)
    counts = Counter(getattr(a, "block", "") or getattr(a, "after", "") for a in actions)
    often = [place for place, count in counts.items() if count > 1]
    assert len(often) >= 2
    assert all(done[place] == {"Widen", "Insert"} for place in often)


def test_ties_are_not_always_the_first_stage():
    stages = set()
    for seed in range(8):
        history = simulated(LayerStatistic(), 20, ranking="equal", seed=seed)
        first = next(a for r in history for a in r.applied if isinstance(a, GROWN))
        stages.add(getattr(first, "block", ""))
    assert len(stages) == 3


@pytest.mark.parametrize("policy", [Periodic(), RandomSite(), LayerStatistic()], ids=repr)
def test_streams_grow_in_turn_where_asked_for_or_thin_at_first(policy):
    def stretched(history):
        return any(isinstance(a, WidenStage) for r in history for a in r.applied)

    assert stretched(simulated(policy, 20, first=THIN))
    assert not stretched(simulated(replace(policy, streams=False), 20, first=THIN))
    assert stretched(simulated(replace(policy, streams=True), 20))
    assert not stretched(simulated(policy, 20))


@pytest.mark.parametrize("policy", [Periodic(), RandomSite(), LayerStatistic()], ids=repr)
def test_controls_grow_as_often_at_the_same_times_and_costs(policy):
    flops = [r.cost.flops for r in simulated(LayerStatistic(), 40)]
    other = [r.cost.flops for r in simulated(policy, 40)]
    assert times(simulated(policy, 40))[:11] == times(simulated(LayerStatistic(), 40))[:11]
    # each makes up what the one before missed: at most a quarter of a share
    part = (cost(LIMIT).flops - cost(FIRST).flops) / 11
    assert max(abs(a - b) for a, b in zip(flops, other)) < 0.5 * part


@pytest.mark.parametrize("first", [FIRST, THIN], ids=["narrow", "thin"])
def test_the_yoked_control_follows_a_run_with_wider_streams(tmp_path, first):
    source = simulated(RandomSite(streams=True), 20, first=first)
    write_history(tmp_path, source)
    history = simulate(Yoked(str(tmp_path)), 20, first=first, seed=1)
    assert set(times(history)) <= set(times(source))
    assert history[-1].cost.flops > (0.9 if first is FIRST else 0.7) * source[-1].cost.flops
    assert history[-1].architecture != source[-1].architecture


@COUNTS
def test_grow_and_prune_fills_the_limit_before_it_sheds(records):
    history = simulated(GrowAndPrune(), records)
    most = max(r.cost.flops for r in history)
    assert most > 0.95 * cost(LIMIT).flops
    assert max(times(history)) < 0.5
    assert min(r.spent for r in history if r.cost.flops == most) >= 0.45
    assert history[-1].cost.parameters <= 0.5 * cost(LIMIT).parameters


@EACH
def test_the_last_growth_says_which_limit_is_reached(policy):
    reasons = [a.reason for r in simulated(policy, 40) for a in r.applied if isinstance(a, GROWN)]
    assert "reaches the limit's FLOPs" in reasons[-1]
    assert "reaches" not in reasons[0]


@pytest.mark.parametrize("grow_until", [0.3, 0.9])
def test_growth_is_spread_over_what_the_run_allows(grow_until):
    history: list[Record] = []
    architecture = FIRST
    for number in range(1, 40):
        now = record_of(number, architecture, LIMIT, spent=number / 40, grow_until=grow_until)
        applied = tuple(Periodic().decide([*history, now])) if now.spent < grow_until else ()
        history.append(replace(now, applied=applied))
        architecture = after_all(architecture, applied)
    assert history[-1].cost.flops > 0.93 * cost(LIMIT).flops
    flops = [r.cost.flops for r in history]
    assert flops[round(20 * grow_until)] < 0.65 * cost(LIMIT).flops


def test_parameters_do_not_run_out_before_flops():
    """Always the last stage, whose sites take 16 times the parameters of the first's."""
    for seed in range(5):
        history = simulated(LayerStatistic(edit="insert"), 20, ranking="deep", seed=seed)
        assert history[-1].cost.flops > 0.97 * cost(LIMIT).flops


def test_a_resumed_or_replayed_run_decides_the_same():
    history = simulated(LayerStatistic(), 40, late=0.3)
    for number, record in enumerate(history[:-1]):
        present = replace(record, decided=(), applied=(), refused=())
        assert tuple(LayerStatistic().decide((*history[:number], present))) == record.decided
