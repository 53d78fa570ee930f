"""Policies with state, of a notebook, or with fields that no file holds: right, told or refused."""

from __future__ import annotations

import enum
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from nets import Widen
from policies import Periodic, Policy
from training.commandline.user_modules import hidden, import_from
from training.comparing.job_queue import stays_here
from training.comparing.jobs import Job
from training.deciding.call_policy import is_frozen, own_copy, state_of
from training.running.resume import open_run
from training.settings.config_yaml import settings_to_yaml
from training.settings.train_settings import Train


@dataclass
class Once(Policy):
    """Widens once, and remembers that it did."""

    by: int = 2

    def __post_init__(self):
        self.done = False

    def decide(self, history):
        if self.done:
            return []
        self.done = True
        return [Widen(next(iter(history[-1].architecture.blocks)), self.by)]


def test_every_run_has_a_policy_of_its_own(tmp_path):
    policy = Once()
    for seed in (0, 1):
        settings = Train(net="resnet8", device="cpu", policy=policy, out=str(tmp_path / str(seed)))
        run = open_run(settings)
        with run.held:
            assert run.settings.policy == policy
            assert run.settings.policy is not policy


def test_a_change_of_state_is_seen(finished_run):
    from analysis import read_history

    history = read_history(finished_run)[:1]
    for policy, changes in ((Once(), True), (Periodic(), False)):
        own = own_copy(policy)
        before = state_of(own)
        own.decide(history)
        assert (state_of(own) != before) is changes
        assert is_frozen(policy) is not changes
    assert not vars(Once())["done"]


class Kind(enum.Enum):
    WIDE = 1


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    made: int = field(default=3, init=False)


@dataclass(frozen=True)
class Holding(Policy):
    """Holds anything."""

    value: Any = None
    made: int = field(default=3, init=False)

    def decide(self, history):
        return []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Kind.WIDE, "WIDE"),
        (Path("a/b"), "a/b"),
        (np.float64(0.5), 0.5),
        (np.str_("x"), "x"),
        ((1, 2), [1, 2]),
        ({"a": (1,)}, {"a": [1]}),
        (Inner(), {"share": 0.5}),
        (float("inf"), float("inf")),
        (None, None),
    ],
)
def test_a_field_is_kept_as_a_file_holds_it(value, kept):
    config = yaml.safe_load(settings_to_yaml(Train(policy=Holding(value))))
    assert config["policy"]["init_args"] == {"value": kept}
    assert type(config["policy"]["init_args"]["value"]) is type(kept)


def test_a_policy_in_a_policy_keeps_its_class():
    config = yaml.safe_load(settings_to_yaml(Train(policy=Holding(Periodic()))))
    assert config["policy"]["init_args"]["value"]["class_path"] == "policies.Periodic"


@pytest.mark.parametrize(
    "value",
    [print, object(), float("nan"), np.zeros(2), np.int64(3), {1, 2}, b"x", [float("nan")], Inner],
)
def test_a_field_that_no_file_holds_is_refused_at_the_start(tmp_path, value):
    settings = Train(policy=Holding(value), out=str(tmp_path / "run"), device="cpu")
    with pytest.raises(ValueError, match=r"Holding must have fields of numbers, text.*got value="):
        open_run(settings)
    assert not (tmp_path / "run").exists()


def test_a_policy_of_a_notebook_stays_in_its_process(monkeypatch):
    assert not stays_here(Job("a", Train(policy=Once())))
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(Once, "__module__", "__main__")
    main.Once = Once  # pyright: ignore
    assert pickle.dumps(Once())
    assert stays_here(Job("a", Train(policy=Once())))
    main.__file__ = "script.py"  # which a worker imports
    assert not stays_here(Job("a", Train(policy=Once())))

    @dataclass(frozen=True)
    class Local(Policy):
        def decide(self, history):
            return []

    assert stays_here(Job("a", Train(policy=Local())))


def test_the_working_folder_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/lib", "/site"])
    import_from(str(tmp_path), "/ours")
    assert sys.path == ["/lib", "/site", "/ours", str(tmp_path)]
    import_from(str(tmp_path), "/ours")
    assert sys.path == ["/lib", "/site", "/ours", str(tmp_path)]
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/lib"])
    import_from(str(tmp_path), str(tmp_path))
    assert sys.path == [str(tmp_path), "/lib"]


def test_what_hides_a_users_module_is_named(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    assert hidden("random.Mine") == ""
    Path("random.py").write_text("class Mine: pass\n")
    Path("policies.py").write_text("class Mine: pass\n")
    for path in ("random.Mine", "policies.Mine"):
        line = refusal(["train", "--policy", path])
        name = path.partition(".")[0]
        assert f"{name}.py is hidden by {sys.modules[name].__file__}" in line
