"""Architectures and actions as data: round trips, names, and refusals that say what is wrong."""

import json
import math
import random
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
from makers import plain

from nets import (
    Action,
    Architecture,
    Block,
    Insert,
    SetSurvival,
    Stage,
    Widen,
    WidenStage,
    action_from_dict,
    action_to_dict,
    preset,
    preset_names,
    seed_of,
)

SMALL = seed_of(preset("resnet8", classes=4, image=(1, 8, 8)))


def through_json(architecture):
    return Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_json(name):
    architecture = preset(name, classes=7)
    read = through_json(architecture)
    assert read == architecture
    assert hash(read) == hash(architecture)
    assert read.to_dict() == architecture.to_dict()
    assert through_json(seed_of(architecture)) == seed_of(architecture)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_settings_of_a_preset_survive_json(order, stem, block):
    architecture = preset(
        "resnet14", order=order, stem=stem, block=block, image=(1, 28, 28), classes=3
    )
    assert (architecture.order, architecture.stem, architecture.block) == (order, stem, block)
    assert (architecture.image, architecture.classes) == ((1, 28, 28), 3)
    assert through_json(architecture) == architecture


def test_an_edited_architecture_survives_json():
    edited = SMALL
    for action in (
        Insert("stage1.block1", 3, 0.5),
        Widen("stage3.block1", 2),
        SetSurvival("stage2.block1", 0.25),
    ):
        edited = edited.apply(action)
        assert through_json(edited) == edited
    assert edited.blocks["stage1.block2"] == Block("stage1.block2", 3, 0.5)
    assert edited.blocks["stage2.block1"].survival == 0.25


def test_a_block_that_is_said_to_hold_nothing_is_one_that_holds_nothing():
    architecture = preset("resnet8")
    data = architecture.to_dict()
    data["stages"][0]["blocks"][0] |= {"frozen": 0, "held": [0, 0, 0], "whole": False}
    assert Architecture.from_dict(data) == architecture


def test_equality_and_hash_follow_the_data():
    assert preset("resnet20") == preset("resnet20")
    assert hash(preset("resnet20")) == hash(preset("resnet20"))
    others = [
        preset("resnet20", classes=11),
        preset("resnet20", order="pre"),
        preset("resnet20", stem="imagenet"),
        preset("resnet20", block="bottleneck"),
        preset("resnet20", image=(3, 16, 16)),
        preset("resnet20").apply(Widen("stage1.block1", 1)),
        preset("resnet20").apply(SetSurvival("stage1.block1", 0.5)),
    ]
    assert len({preset("resnet20"), *others}) == 8
    assert preset("resnet8", image=[3, 16, 16]) == preset("resnet8", image=(3, 16, 16))


def test_an_edit_leaves_the_old_architecture_alone():
    before = SMALL.to_dict()
    SMALL.apply(Widen("stage1.block1", 5))
    SMALL.apply(Insert("stage1.block1", 5))
    assert SMALL.to_dict() == before
    with pytest.raises(FrozenInstanceError):
        SMALL.classes = 5


def test_blocks_are_listed_in_the_order_of_the_forward_pass():
    grown = SMALL.apply(Insert("stage1.block1", 2)).apply(Insert("stage1.block1", 2))
    assert list(grown.blocks) == [
        "stage1.block1",
        "stage1.block3",
        "stage1.block2",
        "stage2.block1",
        "stage3.block1",
    ]


def test_a_name_is_never_given_twice():
    draw = random.Random(0)
    architecture, born = SMALL, set(SMALL.blocks)
    for _ in range(40):
        after = draw.choice(list(architecture.blocks))
        grown = architecture.apply(Insert(after, 2))
        new = set(grown.blocks) - set(architecture.blocks)
        assert len(new) == 1
        assert not new & born
        born |= new
        architecture = grown
        # a block disappears, as a removal will do it: its name must stay taken
        stage = architecture.stage_of(draw.choice(list(architecture.blocks)))
        if len(stage.blocks) > 2:
            place = draw.randrange(1, len(stage.blocks))
            blocks = (*stage.blocks[:place], *stage.blocks[place + 1 :])
            architecture = through_json(architecture.with_stage(replace(stage, blocks=blocks)))


def test_the_small_start_of_an_edited_net_can_grow():
    edited = preset("resnet14").apply(Insert("stage1.block1", 8))
    assert [block.name for block in edited.stages[0].blocks] == [
        "stage1.block1",
        "stage1.block3",
        "stage1.block2",
    ]
    start = seed_of(edited, width=0.5, blocks=2)
    assert [block.width for block in start.stages[0].blocks] == [8, 4]
    for _ in range(3):
        start = start.apply(Insert("stage1.block1", 4))
    assert len(start.stages[0].blocks) == 5


def test_the_small_start_keeps_the_streams():
    large = preset("resnet20")
    start = seed_of(large, width=0.25, blocks=1)
    assert [stage.width for stage in start.stages] == [16, 32, 64]
    assert [block.width for block in start.blocks.values()] == [4, 8, 16]
    assert seed_of(large, width=1.0, blocks=None) == large
    assert min(block.width for block in seed_of(large, width=0.001).blocks.values()) == 1


def test_the_small_start_may_have_thin_streams():
    start = seed_of(preset("resnet20"), width=0.25, blocks=None, stream=0.25)
    assert (start.stem_width, [stage.width for stage in start.stages]) == (4, [4, 8, 16])
    assert {name: block.width for name, block in start.blocks.items()}["stage3.block2"] == 16
    wide = seed_of(preset("wrn-16-4"), stream=0.5)  # its stem is no part of a stream
    assert (wide.stem_width, [stage.width for stage in wide.stages]) == (16, [32, 64, 128])
    deep = seed_of(preset("resnet50"), stream=0.25)
    assert [stage.width for stage in deep.stages] == [64, 128, 256, 512]
    assert seed_of(preset("resnet8"), stream=0.001).stem_width == 1
    for name in ("resnet20", "wrn-16-2"):
        limit = preset(name)
        thin = seed_of(limit, 1.0, None, 0.25)
        for stage, whole in zip(thin.stages, limit.stages):
            by = whole.width - stage.width
            thin = thin.apply(WidenStage(stage.name, by))
        assert thin == limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet21"},
            r"net must be one of resnet8, .*resnet110, .*resnet50, .*wrn-16-2, .*got 'resnet21'",
        ),
        ({"name": "wrn-17-2"}, "net must be one of"),
        ({"name": "wrn-16-0"}, "net must be one of"),
        ({"name": "mlp-0"}, "width of stage1.block1 must be at least 1, got 0"),
        ({"name": "mlp-5", "order": "pre"}, "do not apply to mlp-5"),
        ({"name": "resnet8", "classes": 0}, "classes must be at least 1, got 0"),
        ({"name": "resnet8", "order": "both"}, "order must be one of post, pre; got 'both'"),
        (
            {"name": "resnet8", "stem": "wide"},
            "stem must be one of cifar, imagenet, dense, none; got 'wide'",
        ),
        (
            {"name": "resnet8", "block": "tall"},
            "block must be one of basic, bottleneck, dense, plain; got 'tall'",
        ),
        ({"name": "resnet8", "block": "plain"}, "stem 'cifar' does not go with block 'plain'"),
        (
            {"name": "resnet8", "image": (8, 8)},
            r"image must be \(channels, height, width\), got \(8, 8\)",
        ),
        ({"name": "resnet8", "image": (3, 8, 0)}, "image must be at least 1, got 0"),
    ],
)
def test_an_impossible_preset_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        preset(**arguments)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"width": 0.0}, "width must be above 0 and at most 1, got 0.0"),
        ({"width": 1.5}, "width must be above 0 and at most 1, got 1.5"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"stream": 0}, "stream must be above 0 and at most 1, got 0"),
        ({"stream": True}, "stream must be above 0 and at most 1, got True"),
    ],
)
def test_an_impossible_start_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        seed_of(preset("resnet8"), **setting)


def test_a_plain_net_has_no_streams_to_thin():
    with pytest.raises(ValueError, match="stream must be 1 for a plain net, which has none, got"):
        seed_of(preset("mlp-8"), stream=0.5)


def test_a_stream_widens_with_all_that_share_it():
    first = preset("resnet8").apply(WidenStage("stage1", 8))
    assert (first.stem_width, [stage.width for stage in first.stages]) == (24, [24, 32, 64])
    later = preset("resnet8").apply(WidenStage("stage2", 8))
    assert (later.stem_width, [stage.width for stage in later.stages]) == (16, [16, 40, 64])
    projected = preset("wrn-16-2").apply(WidenStage("stage1", 8))
    assert (projected.stem_width, projected.stages[0].width) == (16, 40)
    with pytest.raises(ValueError, match="no residual stream to widen"):
        preset("mlp-500").apply(WidenStage("stage1", 8))


KNOWN = "block must be one of stage1.block1, stage2.block1, stage3.block1; got"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Widen("stage1.block1", 0), "by must be at least 1, got 0"),
        (Widen("stage1.block1", -3), "by must be at least 1, got -3"),
        (Widen("stage1.block1", 1.5), "by must be an integer of at least 1, got 1.5"),
        (Widen("stage1.block1", True), "by must be an integer of at least 1, got True"),
        (Widen("stage1.block9", 1), f"{KNOWN} 'stage1.block9'"),
        (Widen("stage1", 1), f"{KNOWN} 'stage1'"),
        (Widen(None, 1), f"{KNOWN} None"),
        (WidenStage("stage1", 0), "by must be at least 1, got 0"),
        (WidenStage("stem", 4), "stage must be one of stage1, stage2, stage3; got 'stem'"),
        (Insert("stage9.block1", 4), f"{KNOWN} 'stage9.block1'"),
        (Insert("stage1.block1", 0), "width must be at least 1, got 0"),
        (Insert("stage1.block1", 4, 0.0), "survival must be above 0 and at most 1, got 0.0"),
        (Insert("stage1.block1", 4, 1.01), "survival must be above 0 and at most 1, got 1.01"),
        (SetSurvival("stage1.block1", 0), "probability must be above 0 and at most 1, got 0"),
        (
            SetSurvival("stage1.block1", math.nan),
            "probability must be above 0 and at most 1, got nan",
        ),
        (
            SetSurvival("stage1.block1", "half"),
            "probability must be above 0 and at most 1, got 'half'",
        ),
        (SetSurvival("head", 0.5), f"{KNOWN} 'head'"),
        ("widen", "action must be an Action such as Widen or Insert, got 'widen'"),
        (None, "action must be an Action such as Widen or Insert, got None"),
        (Widen, "action must be an Action such as Widen or Insert, got <class"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        SMALL.apply(action)


def test_a_plain_net_refuses_what_it_cannot_do():
    net = plain(6, 4)
    with pytest.raises(
        ValueError, match=r"width must be at least 6, the width of stage1.block1 .*got 5"
    ):
        net.apply(Insert("stage1.block1", 5))
    assert [block.width for block in net.apply(Insert("stage1.block1", 6)).blocks.values()] == [
        6,
        6,
        4,
    ]
    assert [block.width for block in net.apply(Insert("stage1.block2", 5)).blocks.values()] == [
        6,
        4,
        5,
    ]
    with pytest.raises(ValueError, match="no residual branch to drop"):
        net.apply(SetSurvival("stage1.block1", 0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block("stage1.block1", 0), "width of stage1.block1 must be at least 1, got 0"),
        (lambda: Block("stage1.block1", 4, held=(3, 4, 4)), "must be Frozen or None, got \\(3"),
        (
            lambda: Block("stage1.block1", 4, 1.5),
            "survival of stage1.block1 must be above 0 and at most 1",
        ),
        (lambda: Stage("stage1", 4, ()), "stage1 must have at least one block"),
        (
            lambda: Stage("stage1", 4, (Block("stage1.block1", 4),)),
            "births of stage1 must be at least 1",
        ),
        (
            lambda: Stage("stage1", 4, (Block("stage1.block2", 4),), births=1),
            "block names of stage1 must be among",
        ),
        (
            lambda: Stage("stage1", 4, (Block("stage2.block1", 4),), births=1),
            "block names of stage1 must be among",
        ),
        (
            lambda: Stage("stage1", 4, (Block("stage1.block01", 4),), births=1),
            "block names of stage1 must be among",
        ),
        (lambda: replace(SMALL, stages=()), "stages must not be empty"),
        (lambda: replace(SMALL, stages=SMALL.stages[1:]), "name of stage 1 must be one of stage1"),
        (lambda: replace(SMALL, stem_width=0), "stem_width must be at least 1, got 0"),
        (
            lambda: SMALL.with_stage(replace(SMALL.stages[0], width=0)),
            "width of stage1 must be at least 1",
        ),
        (
            lambda: SMALL.with_stage(replace(SMALL.stages[0], width=8)),
            "projection of stage1 must be true",
        ),
        (
            lambda: SMALL.with_stage(replace(SMALL.stages[1], projection=False)),
            "projection of stage2 must be true",
        ),
        (
            lambda: SMALL.with_stage(
                replace(SMALL.stages[0], blocks=(Block("stage1.block1", 2),) * 2, births=2)
            ),
            "block names must be unique",
        ),
    ],
)
def test_a_description_that_builds_no_network_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("place", ["architecture", "stage", "block"])
def test_an_unknown_field_is_refused_by_name(place):
    data = SMALL.to_dict()
    target = {
        "architecture": data,
        "stage": data["stages"][1],
        "block": data["stages"][2]["blocks"][0],
    }
    target[place]["colour"] = "red"
    with pytest.raises(ValueError, match="unknown fields: colour"):
        Architecture.from_dict(data)


GARBAGE = (
    None,
    0,
    -1,
    1.5,
    math.nan,
    True,
    "",
    "x",
    [],
    [1],
    [[]],
    {},
    {"name": "x"},
    {1: 2},
    ["a", None],
)


def damaged(data):
    """Every copy of nested data with one value dropped or replaced by garbage."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield {name: kept for name, kept in data.items() if name != key}
            yield from ({**data, key: part} for part in damaged(value))
        yield {**data, 5: 5, "b": 1}
    if isinstance(data, list):
        for place, value in enumerate(data):
            yield from ([*data[:place], part, *data[place + 1 :]] for part in damaged(value))
        yield data * 2
    yield from GARBAGE


def read_or_refuse(read, data):
    try:
        return read(data)
    except ValueError:
        return None


def test_garbage_is_refused_with_a_value_error_or_read_as_a_sound_net():
    refused = 0
    for data in damaged(SMALL.to_dict()):
        read = read_or_refuse(Architecture.from_dict, data)
        refused += read is None
        if read is not None:
            assert through_json(read) == read
            assert isinstance(hash(read), int)
            read.apply(Insert("stage1.block1", 3))
    assert refused > 500


ACTIONS = [
    Widen("stage1.block1", 8),
    Widen("stage1.block1", 8, initializer="xavier", reason="gradient norm 3.1"),
    Insert("stage1.block1", 16),
    Insert("stage1.block1", 16, 0.5, initializer="he", reason="stalled"),
    SetSurvival("stage2.block1", 0.75),
    SetSurvival("stage2.block1", 1, reason="grown up"),
]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_survives_json(action):
    data = json.loads(json.dumps(action_to_dict(action)))
    read = action_from_dict(data)
    assert read == action
    assert type(read) is type(action)
    assert (read.reason, getattr(read, "initializer", None)) == (
        action.reason,
        getattr(action, "initializer", None),
    )


def test_a_reason_and_an_initializer_are_not_compared():
    assert Widen("stage1.block1", 8, reason="a") == Widen(
        "stage1.block1", 8, reason="b", initializer="he"
    )
    assert hash(Insert("stage1.block1", 8, reason="a")) == hash(Insert("stage1.block1", 8))
    assert SetSurvival("stage1.block1", 0.5, reason="a") == SetSurvival("stage1.block1", 0.5)
    assert Widen("stage1.block1", 8) != Widen("stage1.block1", 9)
    assert Widen("stage1.block1", 8) != Insert("stage1.block1", 8)


def test_an_action_begins_with_what_it_does():
    """Where it is printed, taken apart or written; what is for logs comes last."""
    action = Widen("stage1.block1", 8, initializer="he", reason="stalled")
    assert repr(action).startswith("Widen(block='stage1.block1', by=8, ")
    assert "reason='stalled'" in repr(action)
    assert "initializer='he'" in repr(action)
    assert list(action_to_dict(action))[:3] == ["action", "block", "by"]


def test_an_action_of_ones_own_says_its_reason_as_it_likes():
    @dataclass(frozen=True)
    class Halve(Action):
        block: str
        reason: str = ""

    class Keep(Action):
        reason = "as it is"

    class Wait(Action):
        def __init__(self, reason):
            self.reason = reason

    assert Halve("stage1.block1", "too\nwide").reason == "too wide"
    assert Keep().reason == "as it is"
    assert Wait("not yet").reason == "not yet"


def test_an_initializer_function_is_written_by_its_name():
    def mine(shape, generator):
        raise AssertionError

    data = action_to_dict(Widen("stage1.block1", 8, initializer=mine))
    assert data == {"action": "Widen", "block": "stage1.block1", "by": 8, "initializer": "mine"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"action": "Grow"},
            "action must be one of Widen, WidenStage, Insert, Remove, Narrow, .*; got 'Grow'",
        ),
        ({}, "action must be one of Widen, WidenStage, Insert, Remove, Narrow, .*; got None"),
        ({"action": ["Widen"]}, "action must be one of Widen"),
        (None, "action must be one of Widen, WidenStage, Insert, Remove, Narrow, .*; got None"),
        ([], "action must be one of Widen, WidenStage, Insert, Remove, Narrow, .*; got None"),
        ("Widen", "action must be one of Widen, WidenStage, Insert, Remove, Narrow, .*; got None"),
        ({"action": "Widen", "block": "stage1.block1"}, "Widen cannot be read: .*'by'"),
        (
            {"action": "Widen", "block": "stage1.block1", "by": 1, "speed": 2},
            "Widen has unknown fields: speed",
        ),
        (
            {"action": "Widen", "block": "stage1.block1", "by": 1, 5: 2, "a": 1},
            "Widen has unknown fields: 5, a",
        ),
    ],
)
def test_data_that_is_no_action_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        action_from_dict(data)
