"""Settings: what is refused and how, defaults that follow from others, the way to YAML and back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from functools import reduce
from inspect import getdoc
from math import inf, nan
from pathlib import Path

import pytest
import yaml

from nets import Architecture, Freeze, Insert, Remove, cost, preset, seed_of
from policies import Never, Periodic, Plateau, Policy, StochasticDepth
from training.settings.compare_settings import Cell, Compare, standard_cells
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.start_settings import Start
from training.settings.train_settings import Common, Train

ROOT = Path(__file__).parents[1]

REFUSED = [
    ("epochs", 0, "epochs must be above 0"),
    ("epochs", -1, "epochs must be above 0"),
    ("epochs", nan, "epochs must be above 0"),
    ("epochs", inf, "at most 1000000000, got inf"),
    ("epochs", 1e300, "at most 1000000000, got 1e[+]300"),
    ("budget", "steps", "budget must be one of flops, epochs, seconds; got 'steps'"),
    ("schedule", "step", "schedule must be one of cosine, hold; got 'step'"),
    ("optimizer", "lion", "optimizer must be one of sgd, adam, adamw, rmsprop; got 'lion'"),
    ("initializer", "zero", "initializer must be one of he, xavier, .*; got 'zero'"),
    ("precision", "fp8", "precision must be one of auto, float32, bf16, fp16; got 'fp8'"),
    ("rates", "own", "rates must be one of shared, cohort; got 'own'"),
    ("nonfinite", "ignore", "nonfinite must be one of stop, skip; got 'ignore'"),
    ("net", "resnet9", "net must be one of resnet8, .*; got 'resnet9'"),
    ("grow_until", 2, "grow_until must be from 0 to 1, got 2"),
    ("grow_until", nan, "grow_until must be from 0 to 1, got nan"),
    ("batch_size", 1, "batch_size must be at least 2, got 1"),
    ("batch_growth", 0, "batch_growth must be at least 1, got 0"),
    ("batch_growth", 1.5, "batch_growth must be an integer"),
    ("accumulate", 0, "accumulate must be at least 1, got 0"),
    ("accumulate", 65, "batch_size must be at least 130, got 128"),
    ("ema", 1, "ema must be at least 0 and below 1, got 1"),
    ("ema", nan, "ema must be at least 0 and below 1, got nan"),
    ("observe_every", 0, "observe_every must be at least 1, got 0"),
    ("validation_images", 0, "validation_images must be at least 1, got 0"),
    ("records", 0, "records must be at least 1, got 0"),
    ("records", 2.5, "records must be an integer"),
    ("threads", 0, "threads must be at least 1, got 0"),
    ("lr", 0, "lr must be above 0 and finite, got 0"),
    ("lr", nan, "lr must be above 0 and finite, got nan"),
    ("lr", inf, "lr must be above 0 and finite, got inf"),
    ("momentum", -0.1, "momentum must be at least 0 and finite, got -0.1"),
    ("momentum", nan, "momentum must be at least 0 and finite, got nan"),
    ("weight_decay", inf, "weight_decay must be at least 0 and finite, got inf"),
    ("save_every", -1.0, "save_every must be at least 0 and finite, got -1.0"),
    ("save_every", inf, "save_every must be at least 0 and finite, got inf"),
    ("save_every", nan, "save_every must be at least 0 and finite, got nan"),
    ("save_every", None, "save_every must be a number, got None"),
    ("seed", -1, "seed must be at least 0, got -1"),
    ("seed", 2**63, "seed must be below 2[*][*]63, got 9223372036854775808"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_a_setting_out_of_its_range_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        Train(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds must be at least one"),
        ({"seeds": [1, 2, 1]}, r"no two the same, got \[1, 2, 1\]"),
        ({"cells": {}}, "cells must be at least one row, got none"),
        ({"cells": {"../elsewhere": Cell(Never())}}, "names that a folder can have"),
        ({"cells": {"..": Cell(Never())}}, "names that a folder can have"),
        ({"cells": {"a/b": Cell(Never())}}, "names that a folder can have"),
        ({"cells": {"": Cell(Never())}}, "names that a folder can have"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Compare(**changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "start.width must be above 0 and at most 1, got 0"),
        ({"width": 2}, "start.width must be above 0 and at most 1, got 2"),
        ({"width": nan}, "start.width must be above 0"),
        ({"stream": 0}, "start.stream must be above 0 and at most 1, got 0"),
        ({"stream": 1.5}, "start.stream must be above 0 and at most 1, got 1.5"),
        ({"blocks": 0}, "start.blocks must be at least 1, got 0"),
        ({"blocks": 1.5}, "start.blocks must be an integer"),
        *(
            ({"architecture": "a", name: 0.5}, f"start.{name} must be left out with start.architec")
            for name in ("width", "stream")
        ),
        ({"architecture": "a", "blocks": None}, "start.blocks must be left out .*, got null"),
    ],
)
def test_a_start_out_of_its_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Start(**values)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (Train(), 0.1),
        (Train(optimizer="adam"), 0.001),
        (Train(optimizer="adamw"), 0.001),
        (Train(optimizer="rmsprop"), 0.001),
        (Train(optimizer="adamw", lr=0.5), 0.5),
    ],
)
def test_the_learning_rate_follows_the_optimizer(settings, rate):
    assert settings.learning_rate == rate


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (Train(epochs=5), 20),
        (Train(epochs=30), 30),
        (Train(epochs=30, records=7), 7),
        (Train(epochs=300, budget="seconds"), 20),
        (Train(epochs=40, budget="epochs"), 40),
    ],
)
def test_there_is_a_record_for_each_budgeted_epoch_and_at_least_twenty(settings, count):
    assert settings.record_count == count


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (Train(), "runs/digits-resnet20-never-seed0"),
        (Train(policy=Plateau(), seed=3, net="resnet8"), "runs/digits-resnet8-plateau-seed3"),
        (Train(data="folder:/some/photos"), "runs/photos-resnet20-never-seed0"),
        (Train(out="elsewhere/x"), "elsewhere/x"),
    ],
)
def test_the_run_folder_says_what_the_run_is(settings, folder):
    assert settings.folder == Path(folder)


def test_growing_policies_start_small_and_never_starts_from_the_limit():
    limit = preset("resnet14", image=(1, 8, 8))
    assert Train(net="resnet14").limit(10, (1, 8, 8)) == limit
    assert Train().first(limit) == limit
    small = Train(policy=Periodic()).first(limit)
    assert [block.width for block in small.blocks.values()] == [4, 8, 16]
    thin = Train(start=Start(0.5, None, 0.5)).first(limit)
    assert [stage.width for stage in thin.stages] == [8, 16, 32]
    half = Train(start=Start(0.5, None)).first(limit)
    assert len(half.blocks) == len(limit.blocks)
    assert cost(half).flops < cost(limit).flops


@dataclass(frozen=True)
class Tuples(Policy):
    stages: tuple[str, ...] = ("stage1", "stage3")

    def decide(self, history):
        return []


class Bare(Policy):
    def decide(self, history):
        return []


def test_settings_are_plain_data_that_yaml_gives_back():
    settings = Train(policy=Plateau(patience=4), start=Start(0.5, None), lr=1e-5, out="x")
    plain = settings_to_dict(settings)
    assert list(plain) == [item.name for item in fields(Train)]
    assert plain["policy"]["class_path"] == "policies.Plateau"
    assert plain["policy"]["init_args"]["patience"] == 4
    assert plain["start"] == {
        "width": 0.5,
        "blocks": None,
        "stream": 1.0,
        "architecture": None,
    }
    assert yaml.safe_load(settings_to_yaml(settings)) == plain


def test_a_policy_with_a_tuple_is_equal_to_itself_read_back():
    plain = settings_to_dict(Train(policy=Tuples()))
    assert plain["policy"]["init_args"] == {"stages": ["stage1", "stage3"]}
    assert yaml.safe_load(settings_to_yaml(Train(policy=Tuples()))) == plain


def test_a_policy_that_is_no_dataclass_is_refused():
    with pytest.raises(ValueError, match=r"policy must be a dataclass, .* got \S*Bare"):
        settings_to_dict(Train(policy=Bare()))


def test_a_comparison_is_plain_data_that_yaml_gives_back():
    settings = Compare(cells={"mine": Cell(StochasticDepth(), lr=0.2)}, seeds=[4])
    plain = settings_to_dict(settings)
    row = plain["cells"]["mine"]
    assert (row["policy"]["class_path"], row["lr"]) == ("policies.StochasticDepth", 0.2)
    assert yaml.safe_load(settings_to_yaml(settings)) == plain


def test_a_comparison_holds_static_sizes_the_controls_and_every_policy():
    rows = standard_cells()
    policies = {type(row.policy).__name__ for row in rows.values()}
    assert policies == {
        "Never",
        "Periodic",
        "RandomSite",
        "Plateau",
        "LayerStatistic",
        "StochasticDepth",
    }
    static = [row.start for row in rows.values() if isinstance(row.policy, Never)]
    assert static == [Start(0.25, None), Start(0.5, None), Start(1, None)]


def test_every_setting_is_explained():
    boxed = [kind for kind in Policy.__subclasses__() if kind.__module__.startswith("policies.")]
    assert len(boxed) == 9
    for kind in (Common, Train, Compare, Start, Cell, *boxed):
        own = [item.name for item in fields(kind) if item.name in kind.__annotations__]
        for name in own:
            assert f"\n    {name}: " in (getdoc(kind) or ""), f"{kind.__name__}.{name}"


def test_reading_settings_imports_no_torch():
    code = "import sys, run, training.settings; run.make_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=1200).returncode == 0


def test_fresh_weights_all_train_whatever_the_recorded_run_held_or_was_fading(tmp_path):
    whole = preset("resnet14", image=(1, 8, 8))
    edits = (Freeze("stem"), Freeze("stage1.block1"), Freeze("stage2.block1", 4))
    edits += (Freeze("head"), Remove("stage3.block2", 30))
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(reduce(Architecture.apply, edits, whole).to_dict()))
    assert Start(architecture=str(path)).within(whole) == whole


def test_a_run_may_start_from_a_recorded_architecture(tmp_path):
    limit = preset("resnet8", image=(1, 8, 8))
    grown = seed_of(limit, 0.5).apply(Insert("stage1.block1", 3))
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(grown.to_dict()))
    start = Start(architecture=str(path))
    assert Train(start=start).first(limit) == grown
    with pytest.raises(ValueError, match="start must cost at most the limit"):
        Train(start=start).first(seed_of(limit, 0.5))
    with pytest.raises(ValueError, match=r"start.architecture must be made for this data"):
        Train(start=start).first(preset("resnet8"))
    for text in ("", "{}", "[]", "null"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"start.architecture must be an architecture.json"):
            Train(start=start).first(limit)
    with pytest.raises(ValueError, match="got 'nowhere'"):
        Train(start=Start(architecture="nowhere")).first(limit)


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"net": "mlp-500"}, 0.001),
        ({"net": "mlp-2000", "initializer": "gradmax"}, 0.00025),
        ({"net": "mlp-3"}, 0.1),
        ({"net": "mlp-500", "initializer": "xavier-outgoing"}, 0.1),
        ({"net": "mlp-500", "optimizer": "adam"}, 0.001),
        ({"net": "mlp-500", "lr": 0.1}, 0.1),
        ({"net": "mlp-500", "data": "digits"}, 0.1),
        ({"net": "resnet8", "data": "digits"}, 0.1),
    ],
)
def test_the_default_learning_rate_is_one_that_is_stable(changes, rate):
    assert Train(**{"data": "sine", **changes}).learning_rate == pytest.approx(rate)
