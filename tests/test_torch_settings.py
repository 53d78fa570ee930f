"""A run leaves its process as it was; a deterministic one uses deterministic algorithms alone."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from runs import quiet
from test_resume import small
from torch.utils._python_dispatch import TorchDispatchMode

import training.computing.torch_settings
import training.computing.wrapped_model
import training.running.loop
import training.running.prepare
from policies import GrowAndPrune, LayerStatistic, Never, Plateau, RandomSite, StochasticDepth
from training.computing.torch_settings import own_process
from training.keeping.nonfinite import NonFinite
from training.running.loop import train
from training.settings.start_settings import Start

DETERMINISTIC = {
    "algorithms": True,
    "benchmark": False,
    "cudnn": True,
    "precision": ("ieee", "ieee", "ieee"),
}


def flags() -> dict[str, Any]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "benchmark": cudnn.benchmark,
        "cudnn": cudnn.deterministic,
        "precision": tuple(each.fp32_precision for each in (cudnn.conv, cudnn.rnn, matmul)),
    }


def process() -> dict[str, Any]:
    """All that a run could leave changed."""
    return flags() | {
        "threads": torch.get_num_threads(),
        "generator": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()),
    }


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("ends", ["well", "with a loss that broke", "with a refusal"])
def test_a_run_leaves_its_process_as_it_was(tmp_path, monkeypatch, deterministic, ends):
    settings = small(tmp_path, epochs=0.05, records=2, deterministic=deterministic)
    settings = replace(settings, threads=torch.get_num_threads() + 1)
    before, inside = process(), []
    if ends == "with a loss that broke":
        monkeypatch.setitem(
            training.running.prepare.LOSSES, "classification", lambda y, _: y.sum() * math.nan
        )
    if ends == "with a refusal":
        settings = replace(settings, batch_size=10**6)
    try:
        train(
            settings,
            quiet,
            lambda spent: inside.append(flags() | {"threads": torch.get_num_threads()}),
        )
    except (NonFinite, ValueError):
        assert ends != "well"
    assert process() == before
    if ends != "with a refusal":
        assert inside[0]["threads"] == settings.threads
        expected = DETERMINISTIC if deterministic else flags()
        assert {name: inside[0][name] for name in expected} == expected


def test_what_the_user_had_set_comes_back():
    mode = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        before = process()
        with own_process(small("unused", deterministic=True)):
            assert flags() == DETERMINISTIC
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert process() == before
    finally:
        torch.use_deterministic_algorithms(mode)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False


def test_a_compiled_run_takes_its_cache_folder_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    monkeypatch.setattr(training.computing.wrapped_model, "BACKEND", "eager")
    seen = []
    settings = small(tmp_path, epochs=0.05, records=1, compile=True, policy=Never())
    train(settings, quiet, lambda spent: seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    assert seen[0] == str(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ":4096:8"), (":16:8", ":16:8"), ("", ":4096:8")]
)
def test_the_workspace_of_cublas_is_fixed(monkeypatch, given, kept):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given or "")
    if given is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    training.computing.torch_settings._fix_workspace(torch.device("cpu"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == kept


def test_deterministic_after_another_use_of_cublas_is_refused_in_one_line(monkeypatch):
    def refuse(*_: Any) -> None:
        raise RuntimeError("Deterministic behavior was enabled with either ...")

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(
        ValueError, match=r"^deterministic comes too late: .*=:4096:8 before"
    ) as told:
        training.computing.torch_settings._fix_workspace(torch.device("cpu"))
    assert "\n" not in str(told.value)


WITHOUT = ("histc", "kthvalue", "median", "put_", "put", "bincount", "ctc_loss", "grid_sampler_2d")
WITHOUT += ("upsample", "adaptive_max_pool", "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d")
WITHOUT += ("reflection_pad", "fractional_max_pool", "max_unpool", "nll_loss2d", "embedding_bag")
WITHOUT += ("avg_pool3d_backward", "scatter_reduce")
"""Operations that have no deterministic form on a GPU, after torch.use_deterministic_algorithms."""


class Names(TorchDispatchMode):
    """Notes the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": Plateau(patience=1, min_delta=1.0, freeze=True), "optimizer": "adam"},
        {"policy": LayerStatistic(every=1), "optimizer": "rmsprop", "precision": "bf16"},
        {"policy": StochasticDepth(every=1, cooldown=1), "accumulate": 2, "optimizer": "adamw"},
        {"policy": GrowAndPrune(), "initializer": "gradmax", "nonfinite": "skip"},
        {"policy": RandomSite(every=1), "precision": "fp16", "initializer": "net2net"},
        {"policy": Never(), "data": "sine", "net": "mlp-20"},
        {"policy": Never(), "net": "resnet18"},
    ],
    ids=lambda changes: type(changes["policy"]).__name__ + changes.get("net", ""),
)
def test_all_of_a_deterministic_run_has_a_deterministic_form(tmp_path, monkeypatch, changes):
    names, measured = Names(), training.running.loop.record_and_grow
    if changes.get("net") == "resnet18":
        changes = {**changes, "epochs": 0.02, "start": Start(0.05, 1)}
    settings = small(tmp_path, **{"epochs": 0.25, **changes}, deterministic=True)
    # what the loop does, but not the loading of the data, which is the CPU's
    step = training.running.loop.take_step

    def watched(function: Any) -> Any:
        def called(*values: Any) -> Any:
            with names:
                return function(*values)

        return called

    monkeypatch.setattr(training.running.loop, "take_step", watched(step))
    monkeypatch.setattr(training.running.loop, "record_and_grow", watched(measured))
    train(settings, quiet)
    assert {"convolution", "addmm"} & names.seen
    assert {name for name in names.seen if name.startswith(WITHOUT)} == set()


def test_resume_keeps_it_and_takes_folders_that_are_older_than_it(tmp_path):
    settings = small(tmp_path, epochs=0.05, records=2, policy=Never())
    train(settings, quiet)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"^deterministic must be False to resume .*, got True$"):
        train(replace(settings, resume=True, deterministic=True), quiet)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config.pop("deterministic") is False
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["identity"]["deterministic"], state["cuda_generator"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"^deterministic must be False to resume .*, got True$"):
        train(replace(settings, resume=True, deterministic=True), quiet)
    train(replace(settings, resume=True), quiet)
