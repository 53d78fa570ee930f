"""What only a GPU can show, and its tests' own logic on a CPU.

No test of the CPU's says anything about a GPU: there each test is seen to be able to pass.
"""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from makers import differences
from runs import short_run
from test_captured_step import WAYS, opened, same, spoil
from test_captured_step import train as train_as_told
from test_kill import all_of, killed
from test_resume import command

from analysis import Observer
from nets import Widen, build, grow, preset, seed_of
from policies import Periodic
from training.comparing.jobs import Job, run_job
from training.comparing.process_pool import let_go
from training.computing.evaluation import LOSSES
from training.computing.optimizer import Precision, make_optimizer
from training.computing.torch_settings import own_process
from training.data.augmenting import Augment
from training.data.batches import Batches
from training.data.splits import channel_statistics, load
from training.keeping.checkpoint import load_optimizer_state, optimizer_state
from training.settings.train_settings import Common, Train
from training.stepping.step import average, take_step, train_step

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@contextmanager
def alarm(device):
    """Raise an error at every wait for the device; a CPU has none."""
    with warnings.catch_warnings():
        # torch says so at every call; all other warnings stay errors
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


@on_both
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_step_with_observer_and_average_never_waits_for_the_host(device, precision):
    precision = Precision.of(Common(device=device, precision=precision))
    scaler = precision.scaler()
    images = load("digits").train
    batches = Batches(images, 16, 0, device, Augment(pad=1), *channel_statistics(images))
    net = build(seed_of(preset("resnet8", image=(1, 8, 8)))).to(device)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = make_optimizer(net, Common())
    window = torch.zeros(3, dtype=torch.float64, device=device)
    loss = LOSSES["classification"]

    def step(position):
        batch = batches.batch(0, position)
        train_step(net, optimizer, *batch, loss, precision, window, 2, scaler)
        average(ema, net, torch.full((), 0.01, device=device))

    with Observer(net, optimizer) as observer:
        for position in range(2):  # the first steps set things up
            step(position)
        with alarm(device):
            for position in range(2, 4):
                step(position)
        assert observer.readings()["stem"].response_std


@on_both
def test_growing_keeps_device_and_outputs(device):
    net = build(seed_of(preset("resnet8"))).to(device, memory_format=torch.channels_last)
    probe = torch.randn(8, 3, 32, 32, device=device)
    with own_process(Train(device=device, deterministic=True)):  # else TF32 in both
        grown = grow(net, [Widen("stage1.block1", by=4)], probe=probe)
    assert {value.device.type for value in grown.network.parameters()} == {device}
    assert grown.difference is not None
    assert grown.difference < 1e-5


@on_both
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop"])
def test_the_optimizers_state_lies_where_it_lay(device, kind):
    """After a step, after growth, and after a way through a file, read on the CPU."""
    net = build(seed_of(preset("resnet8", image=(1, 8, 8)))).to(device)
    optimizer = make_optimizer(net, Train(optimizer=kind))

    def step(net, optimizer):
        x = torch.linspace(-1, 1, 256, device=device).view(4, 1, 8, 8)
        net(x).square().mean().backward()
        optimizer.step()

    def places(optimizer):
        found = [each.items() for each in optimizer.state.values()]
        return {(key, value.device.type) for items in found for key, value in items}

    step(net, optimizer)
    before = places(optimizer)
    if kind in ("adam", "adamw"):
        assert ("step", device) in before
    saved = optimizer_state(net, optimizer)
    for values in saved["state"].values():
        values.update({key: value.cpu() for key, value in values.items()})
    again = make_optimizer(net, Train(optimizer=kind))
    load_optimizer_state(net, again, saved)
    assert places(again) == before
    step(net, again)
    grown = grow(net, [Widen("stage1.block1", by=4)], again)
    assert places(grown.optimizer) == before
    step(grown.network, grown.optimizer)
    assert places(grown.optimizer) == before


@pytest.mark.parametrize(
    ("device", "kind", "precision"),
    [
        ("cpu", "adam", "float32"),
        *[
            pytest.param("cuda", kind, precision, marks=pytest.mark.gpu)
            for kind in ("sgd", "adam", "adamw", "rmsprop")
            for precision in ("float32", "bf16")
        ],
    ],
)
def test_killed_and_resumed_a_deterministic_run_ends_as_one_that_was_not(
    tmp_path, device, kind, precision
):
    def words(name):
        how = f"--optimizer {kind} --precision {precision} --device {device} --deterministic"
        return command(tmp_path / name, "Periodic", "--resume", *how.split())

    assert not killed(words("whole"))
    assert killed(words("parts"), "replace", 8)
    assert killed(words("parts"), "write", 15)
    assert not killed(words("parts"))
    assert not differences(all_of(tmp_path / "parts"), all_of(tmp_path / "whole"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_gpus_checkpoint_goes_on_on_a_cpu_and_back(tmp_path, kind):
    words = command(tmp_path, "Periodic", "--resume", "--optimizer", kind, "--precision", "float32")
    assert killed([*words, "--device", "cuda"], "replace", 8)
    assert killed([*words, "--device", "cpu"], "replace", 8)
    assert not killed([*words, "--device", "cuda"])


@pytest.mark.gpu
def test_the_gpus_generator_is_saved(tmp_path):
    assert not killed(command(tmp_path, "Never", "--device", "cuda"))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["cuda_generator"].dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.parametrize("options", WAYS, ids=lambda ways: "-".join(map(str, ways.values())))
def test_a_run_of_replays_is_a_run_of_steps_bit_for_bit(tmp_path, options):
    """Over 200 steps and more, through three growths, a freeze, a thaw, a fade and a resume."""
    ways = {"device": "cuda", "deterministic": True, "epochs": 52, **options}
    change = spoil if options.get("nonfinite") else None
    steps = opened(tmp_path / "steps", graph="false", **ways)
    assert steps.captured is None
    train_as_told(steps, change)
    replays = opened(tmp_path / "replays", graph="true", **ways)
    assert replays.captured is not None
    train_as_told(replays, change, until=83)
    replays = opened(tmp_path / "replays", graph="true", **ways)
    train_as_told(replays, change)
    assert steps.progress.step > 200
    same(steps, replays)


@pytest.mark.gpu
def test_a_user_s_hook_keeps_a_run_from_being_captured(tmp_path):
    run, called = opened(tmp_path, device="cuda"), []
    run.net.stem.register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="steps are not captured: stem has a hook"):
        train_as_told(run, until=3)
    assert len(called) >= 3
    run = opened(tmp_path / "true", device="cuda", graph="true")
    run.net.stem.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="graph must be auto or false here, got true: stem has a"):
        train_as_told(run, until=3)


@pytest.mark.gpu
def test_replays_wait_for_nothing(tmp_path):
    run = opened(tmp_path, device="cuda")
    with run.held, run.observer:
        for _ in range(8):
            take_step(run)
        with alarm("cuda"):
            for _ in range(4):
                take_step(run)
        assert run.progress.step == run.observer.step == 12


@on_both
def test_a_process_holds_no_more_of_the_gpu_after_its_third_run_than_after_its_first(
    tmp_path, device
):
    held = []
    for number in range(3):
        run = short_run(tmp_path / f"{number}", Periodic(), device=device, epochs=1, records=6)
        assert run_job(Job("row", run)) is None
        let_go()
        held.append(torch.cuda.memory_reserved() if device == "cuda" else 0)
    assert held[2] <= held[0]
