"""GrowAndPrune as tables of histories and expected actions, and simulated to the end."""

from dataclasses import replace

import pytest

from nets import Freeze, Insert, Narrow, Remove, Widen, cost, preset, seed_of
from policies import GrowAndPrune, LayerStatistic
from policies.grow_and_prune import without_fading
from tests.test_policies import LIMIT, MLP, random_record, record

FULL = cost(LIMIT).parameters
NAMES = list(LIMIT.blocks)


def pruning(spent, architecture=LIMIT, importance=None, **values):
    """A record at which blocks are shed; the first block is the least important."""
    given = importance or {name: 1.0 + k for k, name in enumerate(architecture.blocks)}
    return record(1, architecture, importance=given, **{"spent": spent, **values})


def test_before_prune_from_it_grows_as_layer_statistic():
    settings = {"statistic": "gradient_norm", "pick": "lowest", "share": 0.05}
    for number in range(1, 6):
        history = [random_record(n, seed_of(LIMIT), LIMIT, {}, 0) for n in range(1, number + 1)]
        expected = LayerStatistic(**settings).decide(history)
        assert GrowAndPrune(**settings).decide(history) == expected


@pytest.mark.parametrize(
    ("spent", "parameters", "allowed"),
    [(0.5, 0.5, 1.0), (0.65, 0.5, 0.75), (0.8, 0.5, 0.5), (1.0, 0.5, 0.5), (0.65, 0.9, 0.95)],
)
def test_what_is_allowed_falls_in_a_straight_line(spent, parameters, allowed):
    decided = GrowAndPrune(parameters=parameters, fade=0).decide([pruning(spent)])
    left = LIMIT
    for action in decided:
        assert cost(left).parameters > allowed * FULL
        left = left.apply(action)
    assert cost(left).parameters <= allowed * FULL


@pytest.mark.parametrize(
    ("importance", "fade", "expected"),
    [
        ({"stage3.block2": -1.0}, 20, Remove("stage3.block2", 20)),
        ({"stage1.block2": -1.0}, 0, Remove("stage1.block2", 0)),
        # a block that must stay loses channels, by importance for each of its parameters
        ({"stage3.block1": -1e3}, 20, Narrow("stage3.block1", 16)),
        ({"stage3.block3": 2.0, "stage1.block2": 1.0}, 20, Remove("stage3.block3", 20)),
    ],
)
def test_the_least_important_for_its_size_goes_first(importance, fade, expected):
    given = {**dict.fromkeys(NAMES, 10.0), **importance}
    history = [pruning(0.53, importance=given)]
    decided = GrowAndPrune(fade=fade).decide(history)
    assert decided[0] == expected
    assert decided[0].reason == f"importance {importance[decided[0].block]:.3g}"


def test_what_still_fades_when_the_time_is_up_goes_at_once():
    policy, fading = GrowAndPrune(prune_until=0.6), LIMIT.apply(Remove("stage1.block2", 20))
    for spent, gone in ((0.59, []), (0.6, [Remove("stage1.block2")])):
        decided = policy.decide([pruning(0.51), pruning(spent, fading)])
        assert [action for action in decided if action.block == "stage1.block2"] == gone
        fades = {action.steps for action in decided if isinstance(action, Remove)}
        assert fades <= ({20} if spent < 0.6 else {0})


def test_what_fades_counts_as_gone():
    fading = LIMIT.apply(Remove("stage3.block2", 20))
    share = cost(without_fading(fading)).parameters / FULL
    policy = GrowAndPrune(parameters=share, prune_until=0.6)
    assert policy.decide([pruning(0.5), pruning(0.599, fading)]) == []
    assert policy.decide([pruning(0.5), pruning(0.599)])


def test_nothing_that_trains_is_asked_for_without_the_probe():
    with pytest.raises(ValueError, match="importance must be in the record: name it in `needs`"):
        GrowAndPrune().decide([record(1, spent=0.7)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": 0.0}, "parameters must be above 0 and at most 1, got 0.0"),
        ({"prune_from": 1.5}, "prune_from must be above 0 and at most 1, got 1.5"),
        ({"prune_until": 0.4}, "prune_until must be at least prune_from 0.5, got 0.4"),
        ({"fade": -1}, "fade must be at least 0, got -1"),
        ({"saliency": "luck"}, "saliency must be one of magnitude, activation, obd; got 'luck'"),
        ({"pick": "middle"}, "pick must be one of highest, lowest; got 'middle'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GrowAndPrune(**settings)


@pytest.mark.parametrize("held", [Freeze(NAMES[0]), Freeze("stage2"), Freeze(NAMES[-1], 3)])
def test_what_is_frozen_is_pruned_around(held):
    architecture = LIMIT.apply(held)
    actions = GrowAndPrune("gradient_norm", fade=0).decide([pruning(0.8, architecture)])
    assert actions
    for action in actions:
        architecture = architecture.apply(action)
    assert cost(architecture).parameters < FULL


@pytest.mark.parametrize(
    "limit", [LIMIT, MLP, preset("resnet20", order="pre", block="bottleneck")], ids=lambda _: ""
)
@pytest.mark.parametrize("fade", [0, 5, 25])
@pytest.mark.parametrize("parameters", [0.3, 0.6])
def test_it_ends_within_its_limit(limit, fade, parameters):
    statistic = "gradient_norm" if limit == MLP else "residual_ratio"
    policy = GrowAndPrune(statistic, share=0.3, parameters=parameters, fade=fade)
    architecture, history, edited, most = seed_of(limit), [], {}, 0
    for number in range(1, 21):
        made = random_record(number, architecture, limit, edited, 0)
        now = replace(made, spent=number / 20)
        decided = policy.decide([*history, now]) if now.spent < 1 else ()
        assert not decided or policy.decide((*history, now)) == decided
        for action in decided:
            assert isinstance(action, Widen | Insert) == (now.spent < 0.5)
            assert action.reason
            architecture = architecture.apply(action)
        history.append(replace(now, decided=tuple(decided), applied=tuple(decided)))
        most = max(most, cost(architecture).parameters)
    allowed = parameters * cost(limit).parameters
    assert cost(architecture).parameters <= allowed < most
    assert not any(block.fade for block in architecture.blocks.values())
    gone = [a for r in history for a in r.applied if isinstance(a, Remove | Narrow)]
    assert gone
