"""Judgement: which of a policy's wishes is done, which refused and why; replaying histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from histories import record_of

from analysis import Record
from nets import Action, Cost, Freeze, Insert, SetSurvival, Unfreeze, Widen, cost, preset, seed_of
from policies import Never, Periodic, Policy, StochasticDepth
from training.asking.replay import replay
from training.deciding.call_policy import ask
from training.deciding.refusals import Decision, admit

LIMIT = preset("resnet8", image=(1, 8, 8))
SMALL = seed_of(LIMIT)
AMPLE = Cost(10**12, 10**12)


@dataclass(frozen=True)
class Answers(Policy):
    """Gives the same answer at every record."""

    answer: Any = ()

    def decide(self, history: Sequence[Record]) -> Any:
        return self.answer


@dataclass(frozen=True)
class Failing(Action):
    """An action of the user's own that refuses itself."""

    def edit(self, architecture):
        raise ValueError("not on a Sunday")


def record_at(spent: float, **changes: Any) -> Record:
    return record_of(round(100 * spent), SMALL, **{"epoch": spent, "spent": spent, **changes})


WIDER = Widen("stage1.block1", 2, reason="narrow")
DEEPER = Insert("stage2.block1", 8)
NEWBORN = Widen("stage2.block2", 4)
KEPT = SetSurvival("stage1.block1", 0.5)


@pytest.mark.parametrize(
    ("decided", "limit", "may_grow", "applied", "reasons"),
    [
        ([], AMPLE, True, (), ()),
        ([WIDER, DEEPER, KEPT], AMPLE, True, (WIDER, DEEPER, KEPT), ()),
        # a block is known from its birth on
        ([DEEPER, NEWBORN], AMPLE, True, (DEEPER, NEWBORN), ()),
        ([NEWBORN, DEEPER], AMPLE, True, (DEEPER,), ("block must be one of",)),
        # a refused action leaves the rest to be tried
        (
            [Widen("stage9.block1", 2), WIDER],
            AMPLE,
            True,
            (WIDER,),
            ("block must be one of stage1.block1, .*; got 'stage9.block1'",),
        ),
        ([Widen("stage1.block1", 0)], AMPLE, True, (), ("by must be at least 1, got 0",)),
        ([Widen("stage1.block1", "x")], AMPLE, True, (), ("by must be an integer",)),
        ([Insert("stage1.block1", 4, 1.5)], AMPLE, True, (), ("survival must be above 0",)),
        ([Failing(), KEPT], AMPLE, True, (KEPT,), ("not on a Sunday",)),
        ([Action()], AMPLE, True, (), ("does not say how",)),
        # growth has its time; what adds no capacity is always allowed
        (
            [WIDER, KEPT, DEEPER],
            AMPLE,
            False,
            (KEPT,),
            ("no growth after grow_until", "no growth after grow_until"),
        ),
        # the limit holds for FLOPs and for parameters, and for all actions together
        ([WIDER], cost(SMALL), True, (), (r"the limit is Cost\(.*\), this would cost Cost\(",)),
        ([WIDER], Cost(cost(SMALL).parameters, 10**12), True, (), ("the limit is",)),
        ([WIDER], Cost(10**12, cost(SMALL).flops), True, (), ("the limit is",)),
        ([KEPT], cost(SMALL), True, (KEPT,), ()),
        ([WIDER, WIDER], cost(SMALL.apply(WIDER)), True, (WIDER,), ("the limit is",)),
        ([Widen("stage1.block1", 999), WIDER], cost(LIMIT), True, (WIDER,), ("the limit is",)),
    ],
)
def test_what_is_done_and_what_is_refused(decided, limit, may_grow, applied, reasons):
    verdict = admit(SMALL, decided, limit, may_grow)
    assert verdict.decided == tuple(decided)
    assert verdict.applied == applied
    assert len(verdict.refused) == len(reasons)
    assert {*verdict.applied, *(action for action, _ in verdict.refused)} == set(decided)
    for (_, why), reason in zip(verdict.refused, reasons, strict=True):
        with pytest.raises(ValueError, match=reason):
            raise ValueError(why)
    after = SMALL
    for action in verdict.applied:
        after = after.apply(action)
    assert cost(after).flops <= limit.flops
    assert cost(after).parameters <= limit.parameters


@pytest.mark.parametrize("answer", [[], (), [WIDER], (WIDER, DEEPER)])
def test_any_sequence_of_actions_is_an_answer(answer):
    assert ask(Answers(answer), [record_at(0.1)]) == tuple(answer)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        WIDER,
        3,
        "widen",
        [None],
        [WIDER, "widen"],
        [Widen],
        {WIDER},
        {"a": WIDER},
        iter([WIDER]),
    ],
    ids=lambda answer: type(answer).__name__,  # an address in it differs between processes
)
def test_any_other_answer_is_refused_with_the_name_of_the_policy(answer):
    message = "policy Answers must return a sequence of actions, got "
    with pytest.raises(ValueError, match=message):
        ask(Answers(answer), [record_at(0.1)])


def test_a_policy_is_shown_the_history_and_nothing_decided_yet_in_its_present():
    seen: list[tuple[Record, ...]] = []

    @dataclass(frozen=True)
    class Watching(Policy):
        def decide(self, history: Sequence[Record]) -> Sequence[Action]:
            seen.append(tuple(history))
            return []

    done = {"decided": (WIDER, KEPT), "applied": (KEPT,), "refused": ((WIDER, "why"),)}
    history = [record_at(spent, **done) for spent in (0.2, 0.4, 0.6)]
    list(replay(Watching(), history))
    for index, shown in enumerate(seen):
        assert shown[:-1] == tuple(history[:index])
        assert shown[-1] == replace(history[index], decided=(), applied=(), refused=())
    assert len(seen) == 3


def test_replay_gives_each_record_with_the_answer_at_that_moment():
    history = [record_at(spent) for spent in (0.25, 0.5, 0.75, 0.9)]
    answers = list(replay(Periodic(every=2), history))
    assert [record for record, _ in answers] == history
    assert [bool(actions) for _, actions in answers] == [False, True, False, True]
    assert all(not actions for _, actions in replay(Never(), history))


def test_replay_does_not_ask_once_the_budget_is_spent():
    """The loop does not either, and measures no importance then."""
    history = [record_at(0.5, importance=dict.fromkeys(SMALL.blocks, 0.1)), record_at(1.0)]
    assert [bool(actions) for _, actions in replay(StochasticDepth(), history)] == [True, False]


def test_an_empty_verdict_does_nothing():
    assert Decision() == admit(SMALL, [], AMPLE, True)


HELD = [Freeze(part) for part in ("stem", "stage1", "stage2", "stage3", "head")]


def test_what_was_to_be_frozen_for_a_growth_is_refused_with_it():
    verdict = admit(SMALL, [*HELD, WIDER], AMPLE, may_grow=False)
    assert verdict.applied == ()
    assert [action for action, _ in verdict.refused] == [*HELD, WIDER]
    assert verdict.refused[0][1] == "nothing grew that it was to make room for"
    assert admit(SMALL, [*HELD, WIDER], AMPLE, may_grow=True).applied == (*HELD, WIDER)


def test_a_freeze_that_would_leave_nothing_to_train_is_refused():
    verdict = admit(SMALL, HELD, AMPLE, may_grow=True)
    assert verdict.applied == tuple(HELD[:-1])
    assert verdict.refused == ((HELD[-1], "nothing would train any more"),)
    thawed = [*HELD, Unfreeze("head")]
    assert admit(SMALL, thawed, AMPLE, may_grow=True).applied == tuple(thawed)
