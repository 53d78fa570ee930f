"""WholeNet as tables: the schedules of GradMax and of Variance Transfer, and what bounds it."""

from dataclasses import replace

import pytest
from histories import after_all, record_of

from nets import Widen, WidenStage, cost, preset, seed_of
from policies import WholeNet

GRADMAX = tuple(step / 78 for step in (10 + 2.5 * number for number in range(12)))
EPOCHS = (8, 10, 12, 14, 17, 20, 24, 29)
TRANSFER = tuple(sum(EPOCHS[: number + 1]) / 160 for number in range(8))


def grown(policy, limit, first, records=200):
    """A run's architectures by record, all growth allowed."""
    history, architecture = [], first
    for number in range(1, records):
        now = record_of(number, architecture, limit, spent=number / records, grow_until=1.0)
        applied = tuple(policy.decide([*history, now]))
        history.append(replace(now, applied=applied))
        architecture = after_all(architecture, applied)
    return history, architecture


def test_gradmax_adds_a_sixteenth_of_the_full_inner_width_twelve_times():
    limit = preset("wrn-28-1")
    first = seed_of(limit, 0.25, None)
    history, last = grown(WholeNet(GRADMAX, streams=False), limit, first, records=156)
    assert last == limit
    asked = [record for record in history if record.applied]
    assert [record.spent for record in asked] == pytest.approx(GRADMAX)
    for record in asked:
        full = [Widen(name, block.width // 16) for name, block in limit.blocks.items()]
        assert list(record.applied) == full


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_variance_transfer_multiplies_all_widths_by_its_factor_to_even_numbers(name):
    limit = preset(name, stem="cifar")
    first = seed_of(limit, 0.25, None, 0.25)
    history, last = grown(WholeNet(TRANSFER, 1.2, multiple=2), limit, first, records=160)
    assert last == limit
    asked = [number for number, record in enumerate(history) if record.applied]
    for growth, number in enumerate(asked[:-1], start=1):
        net = history[number + 1].architecture
        for stage, start in zip(net.stages, first.stages):
            assert stage.width % 2 == 0
            assert abs(stage.width - start.width * 1.2**growth) <= 1
            assert {block.width for block in stage.blocks} == {stage.width}
        assert net.stem_width == net.stages[0].width
    assert any(isinstance(a, WidenStage) for a in history[asked[0]].applied)
    assert len(asked) == 8


def test_growth_comes_once_at_the_first_record_at_or_past_its_time():
    limit, policy = preset("resnet8"), WholeNet((0.1, 0.2), streams=False)
    first = seed_of(limit, 0.25, None)
    for records, expected in ((20, [2, 4]), (40, [4, 8]), (7, [1, 2])):
        history, _ = grown(policy, limit, first, records)
        assert [record.step for record in history if record.applied] == expected
    history, last = grown(policy, limit, first, 4)  # both have passed by the first record
    assert [record.step for record in history if record.applied] == [1]
    assert last == limit


def test_what_was_refused_is_made_up():
    limit = preset("resnet8")
    first = seed_of(limit, 0.25, None)
    policy = WholeNet((0.1, 0.2), streams=False)
    records = [record_of(n, first, limit, spent=n / 20) for n in range(1, 5)]
    assert after_all(first, policy.decide(records)) == limit


def test_proportions_stay_and_the_limit_is_kept():
    limit = preset("resnet20", classes=100)
    for first in (seed_of(limit), seed_of(limit, 0.5, 2, 0.5), seed_of(limit, 0.25, 1, 0.25)):
        for policy in (WholeNet(), WholeNet(factor=1.4), WholeNet(factor=3.0)):
            _, last = grown(policy, limit, first, 40)
            assert cost(last).flops <= cost(limit).flops
            assert cost(last).parameters <= cost(limit).parameters
            for name, (width, stream) in last.widths.items():
                before, narrow = first.widths[name]
                assert width / before == pytest.approx(stream / narrow, rel=0.15)
    assert cost(last).flops > 0.95 * cost(limit).flops


def test_inner_widths_alone_stop_at_twice_their_streams_unless_asked():
    limit = preset("resnet20", classes=100)
    _, last = grown(WholeNet(streams=False), limit, seed_of(limit), 40)
    assert {width / stream for width, stream in last.widths.values()} == {2}
    _, last = grown(WholeNet(streams=False, widest=None), limit, seed_of(limit), 40)
    assert cost(last).flops > 0.95 * cost(limit).flops


def test_a_plain_net_grows_to_its_limit():
    limit = preset("mlp-100", image=(1, 8, 8))
    _, last = grown(WholeNet(), limit, seed_of(limit, 0.1), 40)
    assert last == limit


def test_a_limit_is_needed():
    from analysis.recording.record import UNBOUNDED

    record = replace(record_of(1, spent=0.5), limit=UNBOUNDED)
    with pytest.raises(ValueError, match="limit must be given"):
        WholeNet().decide([record])
