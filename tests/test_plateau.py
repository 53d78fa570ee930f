"""Plateau's freezing as tables: what it holds when it grows, and when all trains again."""

from dataclasses import replace
from random import Random

import pytest
from histories import after_all

from nets import Freeze, Unfreeze, Widen, cost, preset, seed_of
from policies import Plateau
from tests.test_policies import FIRST, LIMIT, MLP, losses_of, record

STALLED = (1.0, 1.0, 1.0)
PARTS = ["stem", "stage1", "stage2", "stage3", "head"]
FREEZE = [Freeze(part) for part in PARTS]
UNFREEZE = [Unfreeze(part) for part in PARTS]
FROZEN = after_all(FIRST, FREEZE)
GROWN = Plateau(2, share=0.1).decide(losses_of(*STALLED))


def history_of(ages, spent=0.3, architecture=FROZEN, losses=None):
    """A growth at the first record, then `ages` records, the last of them the present."""
    first = record(1, applied=(*FREEZE, Widen("stage1.block1", 1)), validation_loss=2.0)
    # a loss that falls: nothing has stalled since
    losses = losses or [1 - 0.1 * age for age in range(ages)]
    rest = [record(2 + age, architecture, validation_loss=loss) for age, loss in enumerate(losses)]
    history = [first, *rest]
    return [*history[:-1], replace(history[-1], spent=spent)]


@pytest.mark.parametrize(
    ("settings", "history", "expected"),
    [
        ({}, losses_of(*STALLED), GROWN),
        ({"freeze": True}, losses_of(*STALLED), [*FREEZE, *GROWN]),
        ({"freeze": True}, losses_of(1.0, 0.9, 0.8), []),
        # after so many records
        ({"freeze": True, "thaw_after": 2}, history_of(1), []),
        ({"freeze": True, "thaw_after": 2}, history_of(2), UNFREEZE),
        ({"freeze": True, "thaw_after": 2}, history_of(3), UNFREEZE),
        ({"freeze": True, "thaw_after": 2}, history_of(3, architecture=FIRST), []),
        ({"freeze": True, "thaw_after": 0.29}, history_of(2, spent=0.3), UNFREEZE),  # 2 records
        ({"freeze": True, "thaw_after": 0.29}, history_of(1, spent=0.155), []),
        ({"freeze": True}, history_of(9), []),
        # near the end
        ({"freeze": True, "thaw_at": 0.5}, history_of(3, spent=0.49), []),
        ({"freeze": True, "thaw_at": 0.5}, history_of(3, spent=0.5), UNFREEZE),
        ({"freeze": True, "thaw_at": 0.5}, history_of(3, spent=0.9, architecture=FIRST), []),
        ({"freeze": True, "thaw_at": 0.9, "thaw_after": 1}, history_of(1), UNFREEZE),
    ],
)
def test_what_is_held_and_when_it_trains_again(settings, history, expected):
    assert Plateau(2, share=0.1, **settings).decide(history) == expected


def test_a_late_growth_freezes_nothing_and_thaws_what_is():
    policy = Plateau(2, share=0.1, freeze=True, thaw_at=0.5)
    late = losses_of(*STALLED)
    late[-1] = replace(late[-1], spent=0.7)
    assert policy.decide(late) == GROWN
    late[-1] = replace(late[-1], architecture=FROZEN)
    assert policy.decide(late) == [*UNFREEZE, *GROWN]


def test_a_second_growth_holds_what_came_with_the_first():
    policy = Plateau(2, share=0.05, freeze=True)
    architecture = FIRST
    for _ in range(2):
        decided = policy.decide(losses_of(*STALLED, first=architecture))
        assert decided[: len(PARTS)] == FREEZE
        before = after_all(architecture, FREEZE)
        architecture = after_all(architecture, decided)
        for name, block in before.blocks.items():
            assert block.whole
            assert architecture.blocks[name].frozen == block.width
    assert architecture != architecture.thawed()
    assert after_all(architecture, UNFREEZE) == architecture.thawed()


def test_a_plain_net_has_no_stem_to_hold():
    history = losses_of(*STALLED, first=seed_of(MLP), limit=MLP)
    decided = Plateau(2, share=0.25, freeze=True).decide(history)
    assert decided == [Freeze("stage1"), Freeze("head"), Widen("stage1.block1", 125)]


def test_nothing_freezes_where_nothing_fits():
    assert Plateau(2, share=0.25, freeze=True).decide(losses_of(*STALLED, first=LIMIT)) == []


def test_a_net_that_takes_no_blocks_is_widened():
    limit = preset("resnet8", activation="gelu")
    assert not limit.repeatable
    history = losses_of(*STALLED)
    shape = {"architecture": seed_of(limit), "limit": cost(limit)}
    actions = Plateau(2, share=0.5).decide([replace(one, **shape) for one in history])
    assert {type(action) for action in actions} == {Widen}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thaw_after": 0}, "thaw_after must be at least 1, got 0"),
        ({"thaw_at": 0}, "thaw_at must be above 0 and at most 1, got 0"),
        ({"latest": 0}, "latest must be above 0 and at most 1, got 0"),
        ({"latest": 1.5}, "latest must be above 0 and at most 1, got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Plateau(**settings)


FALLING = (2.0, 1.5, 1.1, 0.8, 0.6)


def at_latest(*spent, losses=FALLING, applied=()):
    """Records at these parts of the budget; the first has done `applied`."""
    history = losses_of(*losses[: len(spent)])
    history = [replace(now, spent=part) for now, part in zip(history, spent)]
    return [replace(history[0], applied=applied), *history[1:]]


@pytest.mark.parametrize(
    ("settings", "history", "reason"),
    [
        ({}, at_latest(0.45, 0.49), None),
        ({}, at_latest(0.45, 0.5), "no stall by 50% of the budget"),
        ({}, at_latest(0.45, 0.52), "no stall by 50% of the budget"),
        ({}, at_latest(0.7), "no stall by 50% of the budget"),  # the first record of all
        ({}, at_latest(0.45, 0.52, 0.57), None),  # asked once
        ({}, at_latest(0.3, 0.52, applied=(Widen("stage1.block1", 1),)), None),  # it has grown
        ({}, at_latest(0.3, 0.52, applied=(Freeze("stem"),)), "no stall by 50% of the budget"),
        ({"latest": None}, at_latest(0.45, 0.5), None),
        ({"latest": 0.3}, at_latest(0.25, 0.3), "no stall by 30% of the budget"),
        (
            {"when": "slope", "window": 4},
            at_latest(0.35, 0.4, 0.45, 0.5),
            "no stall by 50% of the budget",
        ),
        # a stall comes first, and says so
        ({}, at_latest(0.4, 0.45, 0.5, losses=STALLED), "validation loss level over 2 records"),
    ],
)
def test_a_loss_that_never_stalls_grows_once_at_the_latest(settings, history, reason):
    actions = Plateau(2, share=0.1, **settings).decide(history)
    assert actions == (GROWN if reason else [])
    assert {action.reason for action in actions} == ({reason} if reason else set())


@pytest.mark.parametrize("noise", range(5))
def test_a_run_of_20_records_grows_whatever_its_noise(noise):
    """The README's first run has 20 records and may grow until 0.6 of its budget."""
    random = Random(noise)
    losses = [2.3 * 0.75**n * random.uniform(0.7, 1.3) for n in range(12)]
    history = losses_of(*losses)
    history = [replace(now, spent=(n + 1.04) / 20) for n, now in enumerate(history)]
    grows = [n for n in range(1, 13) if Plateau().decide(history[:n])]
    assert any(history[n - 1].spent <= 0.6 for n in grows)
