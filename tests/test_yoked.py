"""The yoked control: a recorded run's times, kinds and costs, at places of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import after_all, history_in_rounds, record_of, write_history

from analysis import Record
from nets import Action, Insert, Widen, WidenStage, cost, preset, seed_of
from policies import Yoked

LIMIT = preset("resnet20")
FIRST = seed_of(LIMIT, 0.5, 1)
RECORDS = 10
GROWTHS: dict[int, tuple[Action, ...]] = {
    2: (Widen("stage1.block1", 4),),
    3: (),
    5: (Insert("stage2.block1", 16), Widen("stage3.block1", 8)),
    7: (WidenStage("stage1", 4),),
}
"""What the recorded run did, by its record."""


def record(number: int, architecture=FIRST, shift: float = 0.0, seed: int = 0, **values) -> Record:
    spent = min(1.0, (number + 1 + shift) / RECORDS)
    return record_of(10 * number + 7, architecture, LIMIT, spent=spent, seed=seed, **values)


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """The folder of a recorded run."""
    rounds = [GROWTHS.get(number, ()) for number in range(RECORDS)]
    write_history(tmp_path, history_in_rounds(rounds, record, FIRST))
    return str(tmp_path)


def grown(policy: Yoked, seed: int = 0, shift: float = 0.0) -> list[Record]:
    """A run under the policy, in which all that is asked for is done."""
    history: list[Record] = []
    architecture = FIRST
    for number in range(RECORDS):
        now = record(number, architecture, shift, seed)
        applied = tuple(policy.decide([*history, now]))
        history.append(record(number, architecture, shift, seed, applied=applied))
        architecture = after_all(architecture, applied)
    return history


def added(history: list[Record]) -> int:
    last = history[-1].architecture
    return cost(last).flops - cost(FIRST).flops


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_times_kinds_and_costs_are_those_of_the_recorded_run(recorded, seed, shift):
    history = grown(Yoked(recorded), seed, shift)
    for number, one in enumerate(history):
        expected = [type(action) for action in GROWTHS.get(number, ())]
        assert [type(action) for action in one.applied] == expected
    target = FIRST
    for actions in GROWTHS.values():
        for action in actions:
            target = target.apply(action)
    goal = cost(target).flops - cost(FIRST).flops
    channel = max(  # the dearest channel there is: what an amount is rounded by
        cost(target.apply(WidenStage(stage, 1))).flops - cost(target).flops
        for stage in ("stage1", "stage2", "stage3")
    )
    assert goal - channel <= added(history) <= goal


@pytest.mark.parametrize("kept", [6, 10])
def test_a_run_that_stopped_or_has_other_records_grows_at_the_same_times(tmp_path, kept):
    """Whatever the number of its records: they may be far apart, or end early."""
    rounds = [GROWTHS.get(number, ()) for number in range(RECORDS)]
    history = history_in_rounds(rounds, record, FIRST)[:kept]
    write_history(tmp_path, history)
    times = [one.spent for one in history if one.applied]
    done: list[Record] = []
    architecture = FIRST
    for number in range(1, 61):
        now = record_of(number, architecture, LIMIT, spent=number / 60)
        applied = tuple(Yoked(str(tmp_path)).decide([*done, now]))
        done.append(record_of(number, architecture, LIMIT, spent=number / 60, applied=applied))
        architecture = after_all(architecture, applied)
    found = [one.spent for one in done if one.applied]
    assert found == pytest.approx([time - 0.05 + 1 / 60 for time in times], abs=1 / 60)


def test_sites_are_drawn_from_seed_and_step(recorded):
    def places(seed: int) -> list[str]:
        history = grown(Yoked(recorded), seed)
        actions = [action for one in history for action in one.applied]
        return [a.stage if isinstance(a, WidenStage) else getattr(a, "block", "") for a in actions]

    assert places(3) == places(3)
    assert len({tuple(places(seed)) for seed in range(8)}) > 3


def test_what_is_decided_is_a_function_of_the_history(recorded):
    policy = Yoked(recorded)
    history = grown(policy)
    for number in range(RECORDS):
        now = record(number, history[number].architecture)
        assert tuple(policy.decide([*history[:number], now])) == history[number].applied


def test_a_record_that_was_left_out_delays_its_growth_and_loses_none(recorded):
    policy = Yoked(recorded)
    history = [record(0), record(1)]  # the third record never comes
    assert [type(action) for action in policy.decide([*history, record(3)])] == [Widen]


def test_what_was_refused_is_not_asked_for_again(recorded):
    history = [record(number) for number in range(3)]  # the third asked, and nothing was applied
    assert list(Yoked(recorded).decide([*history, record(3)])) == []


def test_a_new_version_of_the_run_is_read(recorded):
    policy = Yoked(recorded)
    assert policy.decide([record(0), record(1), record(2)])
    path = Path(recorded) / "history.jsonl"
    path.write_text(path.read_text().replace('"Widen"', '"Never"', 1).splitlines()[0] + "\n")
    assert not policy.decide([record(0), record(1), record(2)])


def test_what_has_no_room_is_left_out(recorded):
    full = [record(number, LIMIT) for number in range(3)]
    assert list(Yoked(recorded).decide(full)) == []


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="cooldown must be at least 0, got -1"):
        Yoked("x", cooldown=-1)
    with pytest.raises(
        ValueError, match=r"policy.run must be the folder of a recorded run, got 'nowhere'"
    ):
        Yoked("nowhere").decide([record(0)])
