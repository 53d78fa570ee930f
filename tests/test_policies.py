"""Each policy as a table of hand-made histories and the actions that they ask for."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from histories import after_all, history_in_rounds, record_of

import run
from analysis import LayerReading
from nets import Cost, Insert, SetSurvival, Widen, WidenStage, cost, preset, seed_of
from policies import (
    LayerStatistic,
    Never,
    Periodic,
    Plateau,
    RandomSite,
    StochasticDepth,
    WholeNet,
    insert,
    largest_by,
    sites,
    widen,
)

ROOT = Path(__file__).parents[1]
LIMIT = preset("resnet20", image=(3, 8, 8))
FIRST = seed_of(LIMIT)  # one block a stage, of widths 4, 8, 16 on streams of 16, 32, 64
MLP = preset("mlp-500", image=(1, 28, 28))
WIDE, NEW = "Widen", "Insert"
EACH: dict[str, Any] = {"every": 1, "share": 0.1, "cooldown": 1}
"""A tenth of the limit at every record, one record's rest."""
ONE, TWO, THREE = FIRST.blocks


def record(number, architecture=FIRST, limit=LIMIT, **values):
    """The record of that number, made after 10 steps each; growth begins at record 1."""
    given = {"epoch": number / 2, "spent": number / 100, **values}
    return record_of(10 * number, architecture, limit, **given)


def history_of(*rounds, first=FIRST, limit=LIMIT):
    """A record for every round, which ends with its actions, and the present one."""

    def numbered(number, architecture, applied):
        return record(number + 1, architecture, limit, applied=applied)

    return history_in_rounds([*rounds, ()], numbered, first)


def short(actions):
    """Kind and place of every action."""
    return [(type(a).__name__, a.after if isinstance(a, Insert) else a.block) for a in actions]


def custom_readings(architecture, values, statistic="residual_ratio", role="stream", edited=None):
    """One reading a block, of values by block name; None where nothing was read."""
    chosen = {name: values.get(name) for name in architecture.blocks}
    return {
        f"{name}.layer": LayerReading(
            name, role, **{statistic: value}, edited=(edited or {}).get(name)
        )
        for name, value in chosen.items()
    }


def random_record(number, architecture, limit, edited, seed):
    """A record with everything that a policy may look at, drawn from (seed, number, place)."""

    def draw(name):
        return Random(f"{seed}:{number}:{name}").random()

    layers = {}
    for name in architecture.blocks:
        both = {"gradient_norm": draw(name), "response_std": draw(name + "std")}
        mark = edited.get(name)
        layers[f"{name}.bn1"] = LayerReading(name, "inner", **both, edited=mark)
        ratio = {} if architecture.block == "plain" else {"residual_ratio": draw(name)}
        layers[name] = LayerReading(name, "stream", **both, **ratio, edited=mark)
    importance = {} if architecture.block == "plain" else {n: draw(n) for n in architecture.blocks}
    loss = 1 + 0.01 * draw("loss")
    return record(
        number, architecture, limit, layers=layers, importance=importance, validation_loss=loss
    )


def simulate(policy, first, limit, decisions=40, seed=0):
    """Do what the policy asks, time after time; all of it has to be legal and within the limit."""
    history, architecture, edited, most = [], first, {}, cost(limit)
    for number in range(1, decisions + 1):
        drawn = random_record(number, architecture, limit, edited, seed)
        present = replace(drawn, spent=number / (decisions + 1), grow_until=1.0)
        before = [*history, present]
        decided = policy.decide(before)
        assert before == [*history, present]
        assert policy.decide(tuple(before)) == decided
        for action in decided:
            after = architecture.apply(action)
            if isinstance(action, Widen | WidenStage | Insert):
                assert cost(after).flops <= most.flops
                assert cost(after).parameters <= most.parameters
                assert action.reason
            old = architecture.blocks
            changed = {
                n for n, b in after.blocks.items() if n not in old or b.width != old[n].width
            }
            edited = {**edited, **dict.fromkeys(changed, present.step)}
            architecture = after
        history.append(replace(present, decided=tuple(decided), applied=tuple(decided)))
    return history, architecture


SETTINGS = [
    Never(),
    Periodic(),
    Periodic(streams=True),
    WholeNet(),
    WholeNet(factor=1.3, streams=False),
    Periodic(every=2, share=0.02, cooldown=0),
    RandomSite(),
    RandomSite(share=0.03, cooldown=3),
    RandomSite(edit="widen", streams=True, widest=None),
    Plateau(),
    Plateau(when="slope", window=3, share=0.1),
    Plateau(patience=1, share=1.0),
    LayerStatistic(),
    LayerStatistic(pick="lowest", edit="insert", share=0.03),
    LayerStatistic(statistic="gradient_norm", trend=2, edit="widen"),
    LayerStatistic(statistic="response_std", when="plateau", patience=1),
    LayerStatistic(statistic="response_std", cooldown=0),
    StochasticDepth(),
    StochasticDepth(final=0.5, share=0.05, cooldown=0),
]


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
@pytest.mark.parametrize(
    "limit", [LIMIT, MLP, preset("resnet20", order="pre")], ids=["post", "plain", "pre"]
)
def test_forty_decisions_stay_legal_pure_and_within_the_limit(policy, limit):
    first = seed_of(limit)
    history, last = simulate(policy, first, limit)
    before = copy.deepcopy(history)
    policy.decide(history)
    assert history == before
    plain = limit.block == "plain"
    statistic = getattr(policy, "statistic", "")
    still = isinstance(policy, Never) or (
        plain and (isinstance(policy, StochasticDepth) or statistic == "residual_ratio")
    )
    assert (cost(last) == cost(first)) is still


@pytest.mark.parametrize(
    "policy", [Periodic(), RandomSite(), LayerStatistic(), Plateau(1), WholeNet()], ids=repr
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forty_decisions_use_up_the_limit(policy, seed):
    _, last = simulate(policy, FIRST, LIMIT, seed=seed)
    now, most = cost(last), cost(LIMIT)
    assert now.flops / most.flops > 0.97


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_policies_are_frozen_and_can_be_pickled(policy):
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(replace(policy))
    for field in fields(policy):
        with pytest.raises(FrozenInstanceError):
            setattr(policy, field.name, getattr(policy, field.name))
    with pytest.raises(FrozenInstanceError):
        policy.memory = []


TIME = "an integer of at least 1 (records), or above 0 and below 1 (of the budget)"
RISING = "fractions of the budget in rising order, above 0 and below 1"
REFUSED = [
    (Periodic, {"every": 0}, "every must be at least 1, got 0"),
    (
        Periodic,
        {"every": 1.5},
        f"every must be {TIME}, got 1.5",
    ),
    (Periodic, {"share": 0}, "share must be above 0 and at most 1, got 0"),
    (Periodic, {"share": 1.1}, "share must be above 0 and at most 1, got 1.1"),
    (Periodic, {"every": 1.0}, f"every must be {TIME}, got 1.0"),
    (Periodic, {"every": 0.0}, f"every must be {TIME}, got 0.0"),
    (Periodic, {"every": float("nan")}, f"every must be {TIME}, got nan"),
    (Periodic, {"every": "0.5"}, f"every must be {TIME}, got '0.5'"),
    (Periodic, {"streams": 1}, "streams must be true, false or null, got 1"),
    (Periodic, {"widest": 0.5}, "widest must be at least 1 and finite, or null, got 0.5"),
    (RandomSite, {"edit": "cut"}, "edit must be one of widen, insert, both; got 'cut'"),
    (WholeNet, {"at": ()}, f"at must be {RISING}, got []"),
    (WholeNet, {"at": (0.2, 0.2)}, f"at must be {RISING}, got [0.2, 0.2]"),
    (WholeNet, {"at": (0.2, 1.0)}, f"at must be {RISING}, got [0.2, 1.0]"),
    (WholeNet, {"factor": 1}, "factor must be above 1 and finite, or null, got 1"),
    (WholeNet, {"multiple": 0}, "multiple must be at least 1, got 0"),
    (Periodic, {"cooldown": -1}, "cooldown must be at least 0, got -1"),
    (RandomSite, {"every": -3}, "every must be at least 1, got -3"),
    (RandomSite, {"share": float("nan")}, "share must be above 0 and at most 1, got nan"),
    (
        RandomSite,
        {"cooldown": True},
        f"cooldown must be {TIME.replace('1 (r', '0 (r')}, got True",
    ),
    (Plateau, {"patience": 0}, "patience must be at least 1, got 0"),
    (Plateau, {"min_delta": -0.5}, "min_delta must be at least 0, got -0.5"),
    (Plateau, {"min_delta": float("nan")}, "min_delta must be at least 0, got nan"),
    (Plateau, {"when": "soon"}, "when must be one of stall, slope; got 'soon'"),
    (Plateau, {"window": 2}, "window must be at least 3, got 2"),
    (Plateau, {"share": 2}, "share must be above 0 and at most 1, got 2"),
    (LayerStatistic, {"pick": "middle"}, "pick must be one of highest, lowest; got 'middle'"),
    (LayerStatistic, {"trend": -1}, "trend must be at least 0, got -1"),
    (LayerStatistic, {"edit": "cut"}, "edit must be one of widen, insert, both; got 'cut'"),
    (LayerStatistic, {"when": "slope"}, "when must be one of periodic, plateau; got 'slope'"),
    (LayerStatistic, {"patience": 0}, "patience must be at least 1, got 0"),
    (LayerStatistic, {"every": 0}, "every must be at least 1, got 0"),
    (LayerStatistic, {"share": -1}, "share must be above 0 and at most 1, got -1"),
    (LayerStatistic, {"cooldown": -2}, "cooldown must be at least 0, got -2"),
    (StochasticDepth, {"final": 0.0}, "final must be above 0 and at most 1, got 0.0"),
    (StochasticDepth, {"newborn": 1.5}, "newborn must be above 0 and at most 1, got 1.5"),
    (StochasticDepth, {"ramp": 0}, "ramp must be at least 1, got 0"),
    (StochasticDepth, {"every": 0}, "every must be at least 1, got 0"),
    (StochasticDepth, {"share": "0.1"}, "share must be above 0 and at most 1, got '0.1'"),
    (StochasticDepth, {"cooldown": -1}, "cooldown must be at least 0, got -1"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_bad_settings_are_refused_in_one_line(kind, settings, message):
    with pytest.raises(ValueError) as caught:
        kind(**settings)
    assert str(caught.value) == message


def test_policies_load_without_torch_and_draw_alike_in_every_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from policies import *;"
        "from nets import cost, preset, seed_of; from analysis import Record;"
        "limit = preset('resnet20'); first = seed_of(limit);"
        "records = [Record(step, 0.0, 0.0, 3, first, cost(limit)) for step in range(9)];"
        "print([RandomSite().decide([r]) for r in records]);"
        "assert not {'torch', 'scipy', 'numpy', 'tensorboard'} & set(sys.modules)"
    )
    said = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(ROOT)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1


# Never, Periodic, RandomSite --------------------------------------------------------------------


def test_never_does_nothing():
    assert Never().decide([record(1)]) == []
    assert Never().decide([record(n, validation_loss=1.0) for n in range(1, 30)]) == []


ROUND = [
    Widen("stage1.block1", 1),
    Widen("stage2.block1", 1),
    Widen("stage3.block1", 1),
    Insert("stage1.block1", 4),
    Insert("stage2.block1", 8),
    Insert("stage3.block1", 16),
]


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (0, (WIDE, "stage1.block1")),
        (1, (WIDE, "stage2.block1")),
        (2, (WIDE, "stage3.block1")),
        (3, (NEW, "stage1.block1")),
        (4, (NEW, "stage2.block1")),
        (5, (NEW, "stage3.block1")),
        (6, (WIDE, "stage1.block2")),  # the narrowest: block1 has 5, the newborn 4
    ],
)
def test_periodic_widens_every_stage_in_turn_then_inserts(done, expected):
    actions = Periodic(**EACH).decide(history_of(*[[action] for action in ROUND[:done]]))
    assert short(actions) == [expected]
    assert actions[0].reason == f"turn {done + 1}: {expected[1][:6]}"


def test_periodic_grows_by_its_share():
    # widening costs 2 * pixels * 3 * 3 * (stream + stream) FLOPs a channel
    (action,) = Periodic(**EACH).decide([record(1)])
    assert action == Widen("stage1.block1", int(0.1 * cost(LIMIT).flops) // (2 * 64 * 9 * 32))
    history = history_of(*[[action] for action in ROUND[:3]])
    (action,) = Periodic(1, 0.05, 1).decide(history)
    assert action == Insert("stage1.block1", int(0.05 * cost(LIMIT).flops) // (2 * 64 * 9 * 32))


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4])])
def test_periodic_and_random_site_grow_every_so_many_records(every, expected):
    for policy in (Periodic(every=every), RandomSite(every=every)):
        lengths = [n for n in range(1, 7) if policy.decide([record(k) for k in range(n)])]
        assert lengths == expected


def test_periodic_takes_the_narrowest_block_of_the_stage():
    first = FIRST.apply(Insert("stage1.block1", 3)).apply(Insert("stage1.block1", 3))
    assert [block.name[-6:] for block in first.stages[0].blocks] == ["block1", "block3", "block2"]
    seeded = [Periodic(**EACH).decide([record(1, first, seed=seed)]) for seed in range(20)]
    found = {short(actions)[0] for actions in seeded}
    assert found == {(WIDE, "stage1.block3"), (WIDE, "stage1.block2")}  # equal: drawn
    first = first.apply(Widen("stage1.block3", 1))
    assert short(Periodic(**EACH).decide([record(1, first)])) == [(WIDE, "stage1.block2")]


def test_periodic_leaves_cooling_blocks_alone():
    rounds = [[Widen("stage3.block1", 1)]]  # stage 1's insertion comes next
    history = history_of([Widen("stage1.block1", 1)], *rounds)
    assert short(Periodic(**EACH).decide(history)) == [(NEW, "stage1.block1")]
    assert short(Periodic(1, 0.1, 2).decide(history)) == [(NEW, "stage2.block1")]
    two = FIRST.apply(Insert("stage1.block1", 6))
    history = history_of([Widen("stage1.block1", 1)], *rounds, first=two)
    assert short(Periodic(**EACH).decide(history)) == [(NEW, "stage1.block1")]
    assert short(Periodic(1, 0.1, 2).decide(history)) == [(NEW, "stage1.block2")]


def test_periodic_skips_what_does_not_fit_and_goes_on_from_there():
    widened = [[action] for action in ROUND[:3]]
    policy = Periodic(
        every=1, share=36864 / cost(LIMIT).flops, cooldown=0
    )  # a channel of stage 1 a growth
    for done, expected in (
        (widened, Widen("stage1.block1", 1)),  # a block needs a quarter of its stream
        ([*widened, [Widen("stage1.block1", 1)]], Widen("stage2.block1", 2)),
        ([*widened, [Widen("stage1.block1", 1)], [Widen("stage2.block1", 2)]], Widen(THREE, 5)),
    ):
        assert policy.decide(history_of(*done)) == [expected]
    assert policy.decide(history_of(limit=FIRST)) == []


def test_random_site_depends_on_seed_and_step_alone():
    def asked(present, before=()):
        return RandomSite(**EACH).decide([*before, present])

    assert asked(record(1)) == asked(record(1, validation_loss=3.0, train_flops=5, spent=0.9))
    assert asked(record(2)) == asked(record(2), before=[record(0), record(1)])
    by_step = [short(asked(record(number)))[0] for number in range(200)]
    by_seed = [short(asked(record(1, seed=seed)))[0] for seed in range(200)]
    for found in (by_step, by_seed):
        counts = [found.count((edit, block)) for edit in (WIDE, NEW) for block in FIRST.blocks]
        assert sum(counts) == 200
        assert min(counts) > 15  # of 33 expected
    assert by_step != by_seed


def test_random_site_takes_what_fits():
    one_more = cost(FIRST.apply(Widen(THREE, 1)))  # cheaper than a channel of any other block
    history = [replace(record(1), limit=one_more)]
    for seed in range(20):
        seeded = [replace(history[0], seed=seed)]
        assert RandomSite(every=1, share=1).decide(seeded) == [Widen(THREE, 1)]
    assert RandomSite(every=1, share=1).decide([record(1, LIMIT)]) == []


def test_random_site_never_edits_what_cools():
    for cooldown in (1, 3):
        history, _ = simulate(RandomSite(every=1, share=0.02, cooldown=cooldown), FIRST, LIMIT)
        asked = [number for number, now in enumerate(history) if now.decided]
        assert len(asked) > 10
        for number in asked:
            places = {block for _, block in short(history[number].decided)}
            assert places <= set(sites(history[: number + 1], cooldown))


# Plateau ----------------------------------------------------------------------------------------


def losses_of(*losses, grown=(), first=FIRST, limit=LIMIT):
    history = [
        record(number, first, limit, validation_loss=loss)
        for number, loss in enumerate(losses, start=1)
    ]
    for position in grown:
        history[position] = replace(history[position], applied=(Widen("stage1.block1", 1),))
    return history


@pytest.mark.parametrize(
    ("settings", "losses", "grown", "expected"),
    [
        ({}, (3, 2, 1), (), False),
        ({}, (3, 3), (), False),
        ({}, (3, 3, 3), (), True),
        ({}, (3, 2.9, 2.85), (), True),  # by less than a tenth
        ({"min_delta": 0.0}, (3, 2.9, 2.85), (), False),  # a fall without noise
        ({}, (3, 2, 2.1, 1.9), (), False),
        ({}, (2, 1.4, 2.1, 1.3), (), True),  # by no more than the noise
        ({}, (3, 2, 2.1, 2, 2.1), (0,), True),
        ({}, (3, 2, 2.1, 2), (1,), False),  # two records since the growth
        ({"patience": 1}, (3, 2, 2.1, 2), (1,), False),
        ({"patience": 1}, (3, 2, 2, 2.1), (0,), True),
        ({"patience": 1}, (1, 0.9, 0.7), (), False),
        ({"patience": 1, "min_delta": 0.3}, (1, 0.9, 0.7), (), True),
        ({"patience": 0.04}, (9, 3, 3, 3, 3, 3), (), False),  # 4 records of 100
        ({"patience": 0.04}, (3, 3, 3, 3, 3, 3), (), True),
        ({"when": "slope", "window": 4}, (4, 3, 2, 1), (), False),
        ({"when": "slope", "window": 4}, (1, 1, 1), (), False),
        ({"when": "slope", "window": 4}, (1, 1, 1, 1), (), True),
        ({"when": "slope", "window": 4}, (3, 1, 1.1, 1, 1.1), (), True),
        ({"when": "slope", "window": 4}, (3, 1, 1.1, 1, 1.1), (1,), False),
        ({"when": "slope", "window": 3}, (3, 1, 1.1, 1, 1.1), (1,), True),
        ({"when": "slope", "window": 0.04}, (3, 1, 1.1, 1, 1.1), (), True),
    ],
)
def test_plateau_grows_when_the_loss_has_levelled(settings, losses, grown, expected):
    policy = Plateau(**{"patience": 2, **settings})
    actions = policy.decide(losses_of(*losses, grown=grown))
    assert bool(actions) is expected
    patience = 4 if policy.patience == 0.04 else policy.patience
    window = 4 if policy.window == 0.04 else policy.window
    because = (
        f"validation loss level over {patience} records"
        if policy.when == "stall"
        else f"no downward slope over {window} records"
    )
    assert {action.reason.partition(";")[0] for action in actions} <= {because}


def test_plateau_looks_at_the_running_average_where_all_records_have_it():
    falling, level = (3.0, 2.0, 1.0), (2.0, 2.0, 2.0)
    history = losses_of(*falling)
    both = [replace(now, ema_validation_loss=loss) for now, loss in zip(history, level)]
    assert not Plateau(2).decide(history)
    assert Plateau(2).decide(both)
    assert not Plateau(2).decide([history[0], *both[1:]])


@pytest.mark.parametrize(("spent", "parts"), [(0.15, 3), (0.3, 2), (0.45, 1), (0.55, 1)])
def test_plateau_divides_what_is_left_by_the_stalls_to_come(spent, parts):
    """Of 20 records and until 0.6 of the budget: one can be seen every three records."""
    number = round(20 * spent)
    history = [replace(now, spent=(n + 1) / 20) for n, now in enumerate(losses_of(*[1.0] * number))]
    left = cost(LIMIT).flops - cost(FIRST).flops
    last = after_all(FIRST, Plateau().decide(history))
    added = cost(last).flops - cost(FIRST).flops
    assert 0.85 * left / parts < added <= left / parts


STALLED = (1, 1, 1)


def test_plateau_grows_the_thesis_net_by_a_quarter():
    history = losses_of(*STALLED, first=seed_of(MLP), limit=MLP)
    assert Plateau(2, share=0.25).decide(history) == [Widen("stage1.block1", 125)]
    history, last = simulate(Plateau(2, share=0.25), seed_of(MLP), MLP)
    widths = [now.architecture.blocks["stage1.block1"].width for now in history]
    assert sorted(set(widths)) == [125, 250, 375, 500]
    assert last == MLP


def test_plateau_gives_every_stage_an_equal_part():
    history = losses_of(*STALLED)
    assert cost(LIMIT).flops == 5_102_848
    # of a twelfth, 425,237, a channel takes 36,864, 13,824 and 6,912; the streams have 12, 24 and
    # 48 free, and what is left is less than a quarter of a block
    assert Plateau(2, share=0.25).decide(history) == [
        Widen(ONE, 11),
        Widen(TWO, 24),
        Widen(THREE, 48),
    ]
    # of a sixth, 850,474, a channel of a new block takes 36,864, 18,432 and 9,216
    assert Plateau(2, share=0.5).decide(history) == [
        *[Widen(ONE, 12), Insert(ONE, 11)],
        *[Widen(TWO, 24), Insert(TWO, 28)],
        *[Widen(THREE, 48), Insert(THREE, 56)],
    ]
    # of all that is left, a third each: as many blocks as that pays for, as wide as their streams
    assert cost(LIMIT).flops - cost(FIRST).flops == 3 * 42 * 36_864
    assert Plateau(2, share=1.0).decide(history)[:4] == [
        *[Widen(ONE, 12), Insert(ONE, 16), Insert("stage1.block2", 14), Widen(TWO, 24)],
    ]


def test_plateau_fills_streams_before_it_inserts_and_keeps_to_its_share():
    architecture = FIRST
    for _ in range(4):
        actions = Plateau(2, share=0.25).decide(losses_of(*STALLED, first=architecture))
        total = cost(architecture).flops
        for stage in architecture.stages:
            mine = [action for action in actions if short([action])[0][1].startswith(stage.name)]
            kinds = [type(action) for action in mine]
            assert kinds == sorted(kinds, key=[Widen, Insert].index)
            before = cost(architecture).flops
            for action in mine:
                if isinstance(action, Insert):
                    widths = {block.width for block in architecture.stage_of(action.after).blocks}
                    assert widths == {stage.width}
                    assert action.after == architecture.stage_of(action.after).blocks[-1].name
                    assert stage.width / 4 <= action.width <= stage.width
                architecture = architecture.apply(action)
            assert cost(architecture).flops - before <= cost(LIMIT).flops / 12
        assert 0.2 < (cost(architecture).flops - total) / cost(LIMIT).flops <= 0.25 or (
            cost(architecture).flops > 0.9 * cost(LIMIT).flops
        )


def test_plateau_never_exceeds_the_limit_in_parameters_either():
    most = cost(LIMIT)
    for parameters in (most.parameters // 2, cost(FIRST).parameters + 100, cost(FIRST).parameters):
        limit = replace(most, parameters=parameters)
        history = [replace(now, limit=limit) for now in losses_of(*STALLED)]
        last = after_all(FIRST, Plateau(2, share=1).decide(history))
        assert cost(last).parameters <= parameters
    assert last == FIRST


def test_plateau_leaves_a_net_at_its_limit_alone():
    assert Plateau(2, share=0.25).decide(losses_of(*STALLED, first=LIMIT)) == []


# LayerStatistic ---------------------------------------------------------------------------------


def statistics_of(*rows, **given):
    """A history of one record a row; a row gives the statistic of the three blocks."""
    return [
        record(n, layers=custom_readings(FIRST, dict(zip(FIRST.blocks, row)), **given))
        for n, row in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize(
    ("settings", "rows", "expected"),
    [
        ({}, [(1, 3, 2)], TWO),
        ({"pick": "lowest"}, [(1, 3, 2)], ONE),
        ({}, [(9, 0, 0), (1, 3, 2)], TWO),  # the level is the present one
        ({"trend": 1}, [(0, 3, 1), (1, 3, 4)], THREE),
        ({"trend": 1, "pick": "lowest"}, [(0, 3, 1), (1, 2, 4)], TWO),
        ({"trend": 2}, [(0, 0, 0), (5, 0, 0), (6, 7, 8)], THREE),
        ({"trend": 1}, [(0, 0, 0), (5, 0, 0), (6, 7, 8)], THREE),
        ({"trend": 1}, [(0, 0, 8), (5, 0, 0), (6, 7, 8)], THREE),
        ({"trend": 1}, [(0, 9, 8), (5, 0, 8), (6, 7, 8)], TWO),
        ({"trend": 1}, [(1, 3, 2)], None),  # one record is no change
        ({"trend": 2}, [(1, 3, 2), (2, 3, 2)], None),
        ({}, [(None, None, 2)], THREE),
        ({}, [(1, 5, 2), (1, None, 2)], THREE),  # what is missing now is not taken from before
        ({}, [(None, None, None)], None),
        ({"every": 2}, [(1, 3, 2)], None),
        ({"every": 2}, [(1, 3, 2), (1, 3, 2)], TWO),
    ],
)
def test_layer_statistic_picks_the_extreme(settings, rows, expected):
    found = LayerStatistic(edit="widen", **{**EACH, **settings}).decide(statistics_of(*rows))
    assert short(found) == ([(WIDE, expected)] if expected else [])


def test_layer_statistic_refuses_a_name_that_nothing_has():
    message = "statistic must be one that layers have: .*; got 'response_sdt' .did you mean"
    with pytest.raises(ValueError, match=message):
        LayerStatistic(statistic="response_sdt", every=9).decide(statistics_of((1, 2, 3)))
    assert LayerStatistic(statistic="mine").decide([record(1)]) == []  # nothing was read yet


def test_layer_statistic_says_why():
    (action,) = LayerStatistic(**EACH).decide(statistics_of((1, 3.14159, 2)))
    assert action.reason == "highest residual_ratio, 3.14"
    policy = LayerStatistic(statistic="mine", pick="lowest", **EACH)
    history = [record(1, layers={"a": LayerReading(TWO, "inner", extra={"mine": -0.5})})]
    assert policy.decide(history)[0].reason == "lowest mine, -0.5"


@pytest.mark.parametrize(
    ("edit", "done", "expected"),
    [
        ("widen", [], WIDE),
        ("widen", [Widen(TWO, 1)], WIDE),
        ("insert", [], NEW),
        ("insert", [Insert(TWO, 8)], NEW),
        ("both", [], WIDE),
        ("both", [Widen(TWO, 1)], NEW),
        ("both", [Widen(TWO, 1), Insert(TWO, 8)], WIDE),
        ("both", [Widen(ONE, 1)], WIDE),  # what is done elsewhere takes no turn of this site
        ("both", [Widen(TWO, 1), Widen(ONE, 1), Insert(ONE, 4)], NEW),
    ],
)
def test_layer_statistic_widens_inserts_or_both_in_turn(edit, done, expected):
    before = history_of(*[[action] for action in done])[:-1]
    now = after_all(FIRST, done)
    layers = custom_readings(now, {**dict.fromkeys(now.blocks, 1), TWO: 3})
    history = [*before, record(len(done) + 1, now, layers=layers)]
    actions = LayerStatistic(edit=edit, every=1, share=0.1, cooldown=0).decide(history)
    grow_here = widen if expected == WIDE else insert
    assert short(actions) == [(expected, TWO)]
    assert actions == grow_here(history, TWO, 0.1)


def test_layer_statistic_draws_among_equal_blocks():
    found = [
        LayerStatistic(**EACH).decide([replace(statistics_of((1, 1, 1))[0], seed=seed)])
        for seed in range(30)
    ]
    counts = [[short(actions)[0][1] for actions in found].count(name) for name in FIRST.blocks]
    assert min(counts) > 3  # of 10 expected


def test_layer_statistic_waits_for_a_plateau():
    history = [
        replace(now, validation_loss=loss)
        for now, loss in zip(statistics_of(*[(1, 3, 2)] * 6), (3, 2, 1, 1, 1, 1))
    ]
    policy = LayerStatistic(when="plateau", patience=2, share=0.1)
    asked = [short(policy.decide(history[:n])) for n in range(1, 7)]
    assert asked == [*[[]] * 5, [(WIDE, TWO)]]
    history[3] = replace(history[3], applied=(Widen(ONE, 1),))
    assert policy.decide(history) == []


def test_layer_statistic_leaves_cooling_blocks_alone():
    now = FIRST.apply(Insert(TWO, 8))
    newborn = "stage2.block2"
    layers = custom_readings(now, {ONE: 1, TWO: 3, newborn: 4, THREE: 2})
    grown = record(1, FIRST, applied=(Insert(TWO, 8),))
    policy = LayerStatistic(edit="widen", **EACH)
    history = [grown, record(2, now, layers=layers)]
    assert short(policy.decide(history)) == [(WIDE, THREE)]
    history.append(record(3, now, layers=layers))
    assert short(policy.decide(history)) == [(WIDE, newborn)]
    assert short(replace(policy, cooldown=2).decide(history)) == [(WIDE, THREE)]


def test_layer_statistic_takes_the_next_where_nothing_fits():
    # what is left of the limit is one channel of stage 3, which is cheaper than one of stage 2
    limit = FIRST.apply(Widen(THREE, 1))
    history = [replace(now, limit=cost(limit)) for now in statistics_of((1, 3, 2))]
    assert largest_by(FIRST, TWO, cost(limit).flops - cost(FIRST).flops) == 0
    assert LayerStatistic(every=1, share=1).decide(history) == [Widen(THREE, 1)]
    assert LayerStatistic(every=1, share=1, edit="insert").decide(history) == []


def test_layer_statistic_does_the_other_edit_where_its_turn_fits_nowhere():
    history = statistics_of((1, 3, 2), (1, 3, 2), (1, 3, 2))
    history[0] = replace(history[0], applied=(Widen(ONE, 1),))
    history = [replace(now, limit=cost(FIRST.apply(Widen(TWO, 1)))) for now in history]
    assert LayerStatistic(every=1, share=1, edit="both").decide(history) == [Widen(TWO, 1)]
    assert LayerStatistic(every=1, share=1, edit="insert").decide(history) == []


def test_layer_statistic_compares_layers_inside_blocks_if_they_have_it():
    def read(block, role, value):
        return LayerReading(block, role, gradient_norm=value)

    layers = {
        "stem": read(None, "stem", 99),
        "a1": read(ONE, "inner", 1),
        "a2": read(ONE, "inner", 6),  # a bottleneck has two: the more extreme one counts
        "a": read(ONE, "stream", 50),
        "b1": read(TWO, "inner", 4),
        "b2": read(TWO, "inner", 3),
        "b.branch": read(TWO, "branch", 70),
        "b": read(TWO, "stream", 2),
    }
    policy = LayerStatistic(statistic="gradient_norm", edit="widen", **EACH)
    history = [record(1, layers=layers)]
    assert short(policy.decide(history)) == [(WIDE, ONE)]
    assert short(replace(policy, pick="lowest").decide(history)) == [(WIDE, ONE)]
    layers = {path: reading for path, reading in layers.items() if reading.role != "inner"}
    assert short(policy.decide([record(1, layers=layers)])) == [(WIDE, ONE)]
    layers["b"] = read(TWO, "stream", 51)
    assert short(policy.decide([record(1, layers=layers)])) == [(WIDE, TWO)]


def test_a_trend_is_broken_at_an_edit():
    history = statistics_of((1, 1, 1), (1, 1, 1), (2, 9, 1))
    marked = custom_readings(FIRST, {ONE: 2, TWO: 9, THREE: 1}, edited={TWO: 20})
    history[2] = replace(history[2], layers=marked)
    policy = LayerStatistic(trend=2, edit="widen", **EACH)
    assert short(policy.decide(history)) == [(WIDE, ONE)]


@pytest.mark.parametrize("cooldown", [1, 2])
@pytest.mark.parametrize("edit", ["insert", "both"])
def test_the_lowest_statistic_does_not_pick_a_newborn_twice_running(edit, cooldown):
    policy = LayerStatistic(pick="lowest", edit=edit, every=1, share=0.03, cooldown=cooldown)
    history, architecture, picked = [], FIRST, []
    for number in range(1, 31):
        # the younger a block, the lower its ratio: a newborn's is 0
        ages = {
            name: sum(name in past.architecture.blocks for past in history)
            for name in architecture.blocks
        }
        layers = custom_readings(architecture, {name: float(age) for name, age in ages.items()})
        present = record(number, architecture, layers=layers)
        decided = policy.decide([*history, present])
        picked += [block for _, block in short(decided)]
        assert all(ages[block] >= cooldown for _, block in short(decided) if number > cooldown)
        architecture = after_all(architecture, decided)
        history.append(replace(present, applied=tuple(decided)))
    assert len(picked) > 8
    assert all(one != other for one, other in pairwise(picked))


# StochasticDepth --------------------------------------------------------------------------------


def depth_history(*rounds, importance=None, first=FIRST):
    """A history with importances in every record: 1, 2, 3 ... from the last block to the first."""
    return [
        replace(
            now,
            importance=importance
            or {n: float(k) for k, n in enumerate(reversed(now.architecture.blocks))},
        )
        for now in history_of(*rounds, first=first)
    ]


def test_survival_falls_linearly_from_the_stem_to_the_last_block():
    for final, expected in ((0.9, (0.9667, 0.9333, 0.9)), (0.5, (0.8333, 0.6667, 0.5))):
        decided = StochasticDepth(final=final).decide(depth_history())
        line = [SetSurvival(n, p) for n, p in zip(FIRST.blocks, expected)]
        assert list(decided[:3]) == line
    deep = LIMIT
    decided = StochasticDepth(final=0.1, every=2).decide(depth_history(first=deep))
    reached = [block.survival for block in after_all(deep, decided).blocks.values()]
    assert reached == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_survival_is_set_only_where_it_differs():
    there = after_all(FIRST, StochasticDepth(every=9).decide(depth_history()))
    assert StochasticDepth(every=9).decide(depth_history(first=there)) == []
    assert StochasticDepth(every=9, final=1.0).decide(depth_history()) == []


def test_a_newborn_rises_to_its_place():
    policy = StochasticDepth(
        final=0.6, newborn=0.3, ramp=3, every=1, share=0.1, cooldown=99
    )  # inserts three blocks
    history = depth_history(importance={ONE: 1.0, TWO: 3.0, THREE: 2.0})
    for number in range(2, 9):
        decided = policy.decide(history)
        history[-1] = replace(history[-1], applied=tuple(decided))
        now = after_all(history[-1].architecture, decided)
        history.append(record(number, now, importance=dict.fromkeys(now.blocks, 0.0)))
    newborn, counts = "stage2.block2", [len(now.architecture.blocks) for now in history]
    assert counts == [3, 4, 5, 6, 6, 6, 6, 6]
    assert [name for name in history[1].architecture.blocks if name not in FIRST.blocks] == [
        newborn
    ]
    assert history[1].architecture.blocks[newborn].survival == 0.3
    # then a third, two thirds and all of the way to where the line is by then
    for age, now in enumerate(history[1:-1], start=1):
        blocks = list(now.architecture.blocks)
        line = 1 - (blocks.index(newborn) + 1) / len(blocks) * 0.4
        expected = 0.3 + (line - 0.3) * min(age / 3, 1)
        found = history[age + 1].architecture.blocks[newborn].survival
        assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [((0.1, 0.3, 0.2), TWO), ((0.1, -0.3, 0.2), THREE), ((-0.1, -0.3, -0.2), ONE)],
)
def test_stochastic_depth_inserts_next_to_the_most_important_block(importance, expected):
    given = dict(zip(FIRST.blocks, importance))
    decided = StochasticDepth(newborn=0.4, **EACH).decide(depth_history(importance=given))
    (born,) = [action for action in decided if isinstance(action, Insert)]
    (alike,) = insert(depth_history(), expected, 0.1, survival=0.4)
    assert born == alike
    assert born.survival == 0.4
    assert born.reason == f"most important, {given[expected]:.3g}"
    assert decided[-1] is born


def test_stochastic_depth_lets_the_young_and_their_neighbours_rest():
    rounds = [[Insert(ONE, 4)]]
    policy = StochasticDepth(final=1.0, newborn=1.0, every=1, share=0.1, cooldown=2)
    given = {ONE: 9.0, "stage1.block2": 8.0, TWO: 1.0, THREE: 2.0}
    for age in (1, 2, 3):
        history = depth_history(*rounds, *[[]] * (age - 1), importance=given)
        assert short(policy.decide(history)) == [(NEW, THREE if age < 3 else ONE)]


def test_stochastic_depth_inserts_every_so_many_records():
    policy = StochasticDepth(final=1.0, every=3)
    asked = [bool(policy.decide(depth_history(*[[]] * n))) for n in range(6)]
    assert asked == [False, False, True, False, False, True]


def test_stochastic_depth_needs_its_probe():
    assert StochasticDepth().needs == ("importance",)
    assert Never().needs == Periodic().needs == LayerStatistic().needs == Plateau().needs == ()
    with pytest.raises(ValueError, match="StochasticDepth needs the probe 'importance'"):
        StochasticDepth().decide([record(1)])


def test_stochastic_depth_leaves_plain_nets_alone():
    assert StochasticDepth().decide([record(1, seed_of(MLP), MLP)]) == []


# The examples -----------------------------------------------------------------------------------

EXAMPLES = ROOT / "examples" / "policies"


def std_history(*rows):
    return statistics_of(*rows, statistic="response_std", role="inner")


def test_falling_std_grows_the_layer_whose_response_std_fell_most(example):
    policy = example("falling_std.FallingStd")(window=10, share=0.1)
    rows = [(3 - 0.1 * n, 2 - 0.1 * n if n < 5 else 1.0, 1.0) for n in range(10)]
    history = std_history(*rows)
    assert policy.decide(history[:9]) == []
    decided = policy.decide(history)
    assert decided == widen(history, TWO, 0.1)
    assert decided[0].reason == "response std fell by 1"
    assert policy.decide(std_history((9, 9, 9), *rows)) == decided  # 10 records, no more
    assert policy.decide(std_history(*[(1 + n, 1, 1) for n in range(10)])) == []
    policy = example("falling_std.FallingStd")(window=2)
    assert short(policy.decide(std_history((5, 3, 1), (4, 3, 1)))) == [(WIDE, ONE)]
    cooling = std_history((5, 3, 1), (4, 3, 1))
    cooling[0] = replace(cooling[0], architecture=FIRST.apply(Widen(ONE, 1)))
    assert policy.decide(cooling) == []


def test_allowance_widens_and_inserts_within_its_flops(example):
    allowance = example("allowance.Allowance")
    history = history_of(first=FIRST)
    # a channel of stage 3 costs 2 * 4 * 9 * (32 + 64) FLOPs and is the cheapest
    assert allowance(100_000).decide(history) == [Widen(THREE, 100_000 // 6912)]
    history = history_of([Widen(THREE, 1)], [])
    # a channel of a new block costs 2 * 4 * 9 * (64 + 64) there, 9216 FLOPs
    assert allowance(100_000).decide(history) == [Insert(THREE, 10)]
    assert allowance(5_000).decide(history) == []
    history = history_of([Widen(THREE, 1)], [Insert(THREE, 16)], [])
    assert short(allowance(100_000).decide(history)) == [(WIDE, THREE)]
    assert allowance(10**9).decide(history_of(first=LIMIT)) == []
    tight = replace(record(1), limit=Cost(10**9, cost(FIRST).flops + 13_824))
    assert allowance(10**9).decide([tight]) == [Widen(THREE, 2)]


@pytest.mark.parametrize("path", ["falling_std.FallingStd", "allowance.Allowance"])
def test_the_examples_stay_within_the_limit(example, path):
    kind = example(path)
    policy = kind(window=2) if path.startswith("falling") else kind(flops=100_000)
    for limit in (LIMIT, MLP):
        _, last = simulate(policy, seed_of(limit), limit)
        assert cost(last).flops > cost(seed_of(limit)).flops
        assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize("name", ["falling_std.py", "allowance.py"])
def test_the_examples_are_whole_policies_of_at_most_15_lines(name):
    lines = (EXAMPLES / name).read_text().splitlines()
    code = [line for line in lines[lines.index("@dataclass(frozen=True)") :] if line.strip()]
    assert len(code) <= 15
    imported = [line.split()[1] for line in lines if line.startswith(("import", "from"))]
    assert set(imported) <= {"dataclasses", "nets", "policies"}


@pytest.mark.parametrize(
    ("path", "setting"),
    [("falling_std.FallingStd", ("window", 2)), ("allowance.Allowance", ("flops", 50_000))],
)
def test_the_examples_run_on_the_command_line_from_their_own_folder(
    tmp_path, monkeypatch, capsys, path, setting
):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, path.partition(".")[0], raising=False)
    words = ["train", "--data", "digits", "--net", "resnet8", "--epochs", "1", "--records", "5"]
    words += ["--policy", path, f"--policy.{setting[0]}", str(setting[1]), "--threads", "1"]
    assert run.main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"class_path: {path}" in (tmp_path / "run" / "config.yaml").read_text()
    assert "Widen(" in said.out
