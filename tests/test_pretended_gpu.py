"""What a GPU would refuse, wait for or do too early in a run, seen on a CPU that pretends."""

import pytest
import torch
from makers import sgd
from pretended_gpu import pretended_gpu
from test_captured_step import Recorder, Scripted, opened, train

import training.running.resume
from analysis import Observer
from analysis.examining.requests import ALSO
from analysis.measuring import update_ratios
from analysis.measuring.responses import Responses
from nets import Widen, build, grow, preset, seed_of
from training.computing.optimizer import make_optimizer
from training.settings.train_settings import Train


@pytest.fixture
def gpu(monkeypatch):
    with monkeypatch.context() as patch, pretended_gpu(patch) as pretended:
        yield pretended


def step(net, optimizer, probe):
    optimizer.zero_grad()
    net(probe).square().mean().backward()
    optimizer.step()


def observer(*args, **kwargs):
    return Observer(*args, **kwargs, also=tuple(ALSO))


@pytest.mark.parametrize(
    ("grows", "ways"),
    [
        (True, {"optimizer": "rmsprop", "precision": "bf16", "rates": "cohort"}),
        (True, {"optimizer": "adamw", "precision": "fp16", "accumulate": 2, "nonfinite": "skip"}),
        # the second record, too, captures what the first one did
        (False, {"observe_every": 1, "precision": "float32"}),
    ],
)
def test_a_run_waits_in_no_captured_step_and_mixes_no_memory(
    tmp_path, gpu, monkeypatch, grows, ways
):
    """Nor does one of its streams read or write what another has still to do with."""
    monkeypatch.setattr(training.running.resume, "Observer", observer)
    monkeypatch.setattr(update_ratios, "SMALL", 0)  # as in a net of millions of entries
    run = opened(tmp_path, device="cuda", graph="true", **ways)
    if not grows:
        monkeypatch.setattr(Scripted, "decide", lambda *_: ())
    train(run, until=7 if grows else 9)
    assert [bool(record.applied) for record in run.history] == ([True] if grows else [False] * 2)
    assert {x.device.type for x in [*run.net.parameters(), *run.net.buffers()]} == {"cuda"}
    (beside,) = gpu.beside.values()  # one stream, also after growth
    assert beside > 20
    assert not gpu.faults


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_steps_of_ones_own_loop_wait_for_nothing_before_and_after_growth(gpu, kind):
    net = build(preset("resnet8", image=(1, 8, 8))).to("cuda")
    optimizer = make_optimizer(net, Train(optimizer=kind))
    probe = torch.randn(4, 1, 8, 8, device="cuda")
    with observer(net, optimizer) as reader:
        for _ in range(2):
            step(net, optimizer, probe)
            with gpu.without_waiting():
                step(net, optimizer, probe)
            assert reader.readings()["stem"].response_std
            grown = grow(net, Widen("stage1.block1", by=4), optimizer, probe=probe)
            net, optimizer = grown.network, grown.optimizer
            assert optimizer is not None
            reader.follow(grown)
    assert not gpu.faults


def test_what_is_asked_for_starts_few_operations_for_each_layer_more(gpu):
    """Each is some microsecond of a step that takes one or two milliseconds."""

    def operations(width, watch):
        net = build(seed_of(preset("resnet20", image=(1, 8, 8)), blocks=width)).to("cuda")
        optimizer, probe = sgd(net), torch.randn(4, 1, 8, 8, device="cuda")
        with watch(net, optimizer) as reader:
            step(net, optimizer, probe)
            recorder = Recorder()
            recorder.record(lambda: step(net, optimizer, probe))
        names = [str(func) for func, *_ in recorder.operations if not func.is_view]
        return len(names), len(reader.layers)

    counts = {watch: [operations(k, watch) for k in (1, 2)] for watch in (Observer, observer)}
    (plain, more), (asked, all_) = ([b - a for a, b in zip(*pair)] for pair in counts.values())
    assert more == all_ == 9
    assert (asked - plain) / more < 16


def test_what_a_gpu_would_not_do_is_seen(tmp_path, gpu, monkeypatch):
    x = torch.ones(3, device="cuda")
    x += torch.ones(())  # is one of the operation's numbers
    assert not gpu.faults
    x += torch.ones(3)
    with gpu.without_waiting():
        for wait in (x.tolist, x.sum().item, lambda: x[x > 0], x.cpu):
            wait()
        torch.tensor([1], device="cuda")
    assert [fault.split(":")[0] for fault in gpu.faults] == [
        "memory of host and device",
        *["a wait for the device"] * 3,
        *["a copy between host and device"] * 2,
    ]
    monkeypatch.setattr(Responses, "look", Responses.end_forward)  # without waiting for the work
    train(opened(tmp_path, device="cuda", precision="float32"), until=2)
    seen = {fault.split(":")[0] for fault in gpu.faults}
    assert {"read before it is written", "written before it is read"} < seen
    assert "not waited for at the end" in seen
