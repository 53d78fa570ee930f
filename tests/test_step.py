"""The training step and the evaluation: what they compute, and that a step asks no device."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import grey_images
from torch.nn import functional

from analysis import Observer
from nets import Network, SetSurvival, build, preset, seed_of
from training.computing.budget import Progress
from training.computing.clock import Clock
from training.computing.evaluation import (
    IN_CACHE,
    LOSSES,
    MOST,
    evaluate,
    images_at_once,
    means_of,
)
from training.computing.optimizer import DTYPES, UNSCALED, Precision, make_optimizer, slow_settings
from training.data.augmenting import Augment
from training.data.batches import Batches
from training.data.images import Images
from training.data.splits import channel_statistics, load
from training.settings.train_settings import Train
from training.stepping.step import average, take_step, train_step, weight_in_average

LIMIT = preset("resnet8", image=(1, 8, 8))
SMALL = seed_of(LIMIT).apply(SetSurvival("stage2.block1", 0.5))
CPU = Precision(torch.device("cpu"), torch.float32)
MEAN, STD = torch.tensor([100.0]), torch.tensor([50.0])


def some_images(count: int = 60) -> Images:
    return Images(*grey_images(count))


def some_batch(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    images = some_images(count)
    return (images.pixels.permute(0, 3, 1, 2).float() - 100) / 50, images.targets


def zeros(device: str = "cpu") -> torch.Tensor:
    return torch.zeros(3, dtype=torch.float64, device=device)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_observer_and_average_reads_nothing_from_the_device(accumulate):
    """On the meta device every read on the host raises."""
    with torch.device("meta"):
        net = Network(SMALL)
    images = some_images()
    batches = Batches(
        Images(images.pixels.to("meta"), images.targets),
        8,
        0,
        "meta",
        Augment(1, flip=True),
        MEAN,
        STD,
    )
    optimizer = torch.optim.SGD(
        net.parameters(), 0.1, momentum=0.9
    )  # fused ones refuse the meta device
    observer = Observer(net, optimizer)
    settings = Train(net="resnet8", batch_size=8, accumulate=accumulate)
    run: Any = SimpleNamespace(
        net=net,
        model=net,
        ema=copy.deepcopy(net).requires_grad_(False),
        optimizer=optimizer,
        observer=observer,
        scaler=UNSCALED,
        batches=batches,
        settings=settings,
        progress=Progress(),
        loss=LOSSES["classification"],
        precision=CPU,
        window=zeros("meta"),
        trace=torch.zeros(9, 3, dtype=torch.float64, device="meta"),
        clock=Clock("meta"),
        captured=None,
        untold=0,
        spent=0.25,
        factor=1,
        settled=False,
    )
    with observer:
        for _ in range(3):
            take_step(run)
    assert run.progress.step == observer.step == 3
    for read in (run.window.tolist, observer.readings):  # the check itself: reads do raise
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_step_is_a_plain_optimizer_step_and_adds_its_sums_to_the_window(task):
    inputs, targets = some_batch()
    net = build(
        LIMIT if task == "classification" else preset("resnet8", classes=1, image=(1, 8, 8))
    )
    if task == "regression":
        targets = targets.float()[:, None]
    other = copy.deepcopy(net)
    optimizer, plain = (make_optimizer(one, Train()) for one in (net, other))
    window, sums = zeros(), [0.0, 0, 0]
    for _ in range(2):
        train_step(net, optimizer, inputs, targets, LOSSES[task], CPU, window)
        outputs = other(inputs)
        value = LOSSES[task](outputs, targets)
        plain.zero_grad()
        value.backward()
        plain.step()
        sums[0] += value.item() * 16
        sums[1] += int((outputs.argmax(1) == targets).sum()) if task == "classification" else 0
        sums[2] += 16
    assert window.tolist() == sums
    for name, value in other.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


@pytest.mark.parametrize(
    ("sums", "classification", "means"),
    [
        ([30.0, 15.0, 60.0], True, (0.5, 0.25)),
        ([30.0, 0.0, 60.0], False, (0.5, None)),
        ([0.0, 0.0, 0.0], True, (None, None)),
    ],
)
def test_means_of_a_window(sums, classification, means):
    assert means_of(torch.tensor(sums, dtype=torch.float64), classification) == means


def test_evaluation_gives_loss_and_accuracy_over_all_images_and_changes_nothing(monkeypatch):
    images = some_images(303)  # three batches, the last of 53
    net = build(SMALL)
    net.stage1.block1.bn1.eval()  # a mode of its own, that must come back
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    loss, accuracy = evaluate(net, images, MEAN, STD, LOSSES["classification"], CPU)
    assert seen == [125, 125, 53]
    assert [module.training for module in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        outputs = copy.deepcopy(net).eval()((images.pixels.permute(0, 3, 1, 2).float() - 100) / 50)
    assert loss == pytest.approx(float(functional.cross_entropy(outputs, images.targets)), rel=1e-5)
    assert accuracy == float((outputs.argmax(1) == images.targets).double().mean())


def test_evaluation_of_a_regression_has_no_accuracy():
    net = build(preset("mlp-5", classes=1, image=(1,)))
    points = torch.linspace(-1, 1, 7)[:, None]
    loss, accuracy = evaluate(
        net, Images(points, points.sin()), torch.zeros(1), torch.ones(1), LOSSES["regression"], CPU
    )
    with torch.no_grad():
        assert loss == pytest.approx(float((net(points) - points.sin()).square().mean()), rel=1e-5)
    assert accuracy is None


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "fused": True}),
        ("adam", {"lr": 0.001, "fused": True}),
        ("adamw", {"lr": 0.001, "fused": True}),
        ("rmsprop", {"lr": 0.001, "foreach": True}),
    ],
)
def test_weights_decay_and_batchnorm_and_biases_do_not(optimizer, options):
    net = build(SMALL)
    made = make_optimizer(net, Train(optimizer=optimizer, weight_decay=0.25))
    assert type(made).__name__.lower() == optimizer
    names = {parameter: name for name, parameter in net.named_parameters()}
    decay = {
        names[p]: group["weight_decay"] for group in made.param_groups for p in group["params"]
    }
    assert decay.keys() == set(names.values())
    for name, value in decay.items():
        expected = 0 if ".bn" in name or name.endswith("bias") else 0.25
        assert value == expected, name
    for group in made.param_groups:
        assert {key: group[key] for key in options} == options


def test_sgd_without_momentum_is_no_nesterov():
    group = make_optimizer(build(SMALL), Train(momentum=0)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0, False)


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", "", "CPU"])
def test_a_device_that_cannot_train_is_refused(name):
    with pytest.raises(
        ValueError, match=f"device must be auto, cpu or an available GPU, got '{name}'"
    ):
        Precision.of(Train(device=name))


def test_precision_is_what_is_asked_for():
    assert Precision.of(Train(device="cpu", precision="float32")) == CPU
    assert Precision.of(Train(device="cpu", precision="fp16")).dtype == torch.float16
    assert Precision.of(Train(device="cpu", precision="bf16")).dtype == torch.bfloat16
    native = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    assert Precision.of(Train(device="cpu", precision="auto")).dtype == native


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_the_forward_pass_and_not_for_the_loss(dtype):
    net, seen = build(SMALL), []
    net.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.dtype)
        return functional.cross_entropy(outputs, targets)

    half = Precision(torch.device("cpu"), dtype)
    window = zeros()
    train_step(net, make_optimizer(net, Train()), *some_batch(), loss, half, window)
    evaluate(net, some_images(), *channel_statistics(some_images()), loss, half)
    assert seen == [dtype, torch.float32] * 2
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def close(net: torch.nn.Module, other: torch.nn.Module, relative: float) -> bool:
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=relative, atol=relative * 1e-2) for a, b in pairs)


@pytest.mark.parametrize(("accumulate", "count"), [(2, 16), (3, 16), (16, 16)])
def test_parts_of_a_batch_make_the_step_of_the_whole_but_for_batchnorm(accumulate, count):
    net = build(preset("mlp-20", image=(1, 8, 8))).double()  # without BatchNorm
    other = copy.deepcopy(net)
    inputs, targets = some_batch(count)
    windows = zeros(), zeros()
    for one, parts, window in ((net, accumulate, windows[0]), (other, 1, windows[1])):
        optimizer = make_optimizer(one, Train())
        for _ in range(3):
            batch = inputs.double(), targets
            train_step(one, optimizer, *batch, LOSSES["classification"], CPU, window, parts)
    assert close(net, other, 1e-12)
    assert torch.allclose(*windows, rtol=1e-12)
    assert windows[0][2] == 3 * count


def test_batchnorm_sees_one_part_at_a_time():
    net, inputs = build(SMALL), some_batch()[0]
    seen = []
    net.stem.bn.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    args = inputs, some_batch()[1], LOSSES["classification"], CPU, zeros()
    train_step(net, make_optimizer(net, Train()), *args, 3)
    assert seen == [6, 5, 5]
    assert net.stem.bn.num_batches_tracked == 3


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_a_scaled_step_is_the_step_and_an_infinite_gradient_is_no_step(kind):
    net = build(SMALL)
    other = copy.deepcopy(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [make_optimizer(one, Train(optimizer=kind)) for one in (net, other)]
    args = *some_batch(), LOSSES["classification"], CPU, zeros()
    for _ in range(3):
        train_step(net, optimizers[0], *args, 2, scaler)
        train_step(other, optimizers[1], *args, 2)
    assert close(net, other, 1e-6)
    assert scaler.get_scale() == 2.0**10
    weights = [value.clone() for value in net.parameters()]
    huge = torch.full((), 1e38)
    train_step(net, optimizers[0], *args[:2], lambda x, y: x.sum() * huge, *args[3:], 2, scaler)
    assert all(map(torch.equal, weights, net.parameters()))
    assert scaler.get_scale() == 2.0**9


def test_the_average_is_taken_over_weights_and_running_statistics():
    net = build(SMALL)
    ema = copy.deepcopy(net).requires_grad_(False)
    expected = {name: value.double() for name, value in net.state_dict().items()}
    optimizer = make_optimizer(net, Train())
    for step in range(1, 31):
        train_step(net, optimizer, *some_batch(), LOSSES["classification"], CPU, zeros())
        average(ema, net, torch.tensor(weight_in_average(0.6, step)))
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
        for name, value in ema.state_dict().items():  # at every step: it forgets how it began
            if value.is_floating_point():
                assert torch.allclose(value.double(), expected[name], rtol=1e-4, atol=1e-6), name
    for name, value in ema.state_dict().items():  # counts are copied
        assert torch.equal(value, net.state_dict()[name]) != value.is_floating_point(), name


@pytest.mark.parametrize("width", [50, 500, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regression_trains_with_the_default_learning_rate(width, dtype):
    settings = Train(data="sine", net=f"mlp-{width}")
    images = load("sine").train
    batches = Batches(images, 128, 0, "cpu", Augment(), *channel_statistics(images))
    net = build(settings.limit(1, (1,)), seed=0)
    optimizer, losses = make_optimizer(net, settings), []
    for epoch in range(4):
        for batch in batches.steps(epoch):
            window = torch.zeros(3, dtype=torch.float64)
            how = (LOSSES["regression"], Precision(torch.device("cpu"), dtype), window)
            train_step(net, optimizer, *batch, *how)
            losses.append(float(window[0] / window[2]))
    assert max(losses) <= 1.5 * losses[0]
    assert losses[-1] < 0.7 * losses[0]


def test_what_crawls_is_said_once_and_first(monkeypatch):
    cpu = torch.device("cpu")
    for name, native in (("bf16", False), ("bf16", True), ("fp16", False), ("fp16", True)):
        operation = f"_is_mkldnn_{name}_supported"
        monkeypatch.setattr(torch.ops.mkldnn, operation, lambda native=native: native)
        lines = slow_settings(Train(precision=name), Precision(cpu, DTYPES[name]))
        told = f"slow: this cpu emulates {name} (a CPU took ten times as long as for float32); "
        assert lines == (
            [] if native else [told + "--precision auto takes what it computes itself"]
        )
    assert not slow_settings(Train(), Precision(cpu, torch.float32))
    (line,) = slow_settings(Train(compile=True), Precision(cpu, torch.float32))
    assert line.startswith("slow: --compile takes ")


def test_a_gpu_judges_as_many_images_at_once_as_its_memory_holds(monkeypatch):
    def at_once(name: str, images: int, gib: int) -> int:
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(total_memory=gib * 2**30),
        )
        with torch.device("meta"):
            return images_at_once(Network(preset(name)), images, torch.device("cuda"))

    assert at_once("resnet20", 10_000, 80) == MOST
    assert at_once("resnet20", 300, 80) == 300
    assert at_once("resnet20", 0, 80) == MOST
    few = at_once("wrn-28-10", 10_000, 8)
    # 160 channels of 32 x 32 and 32 bytes for each entry, in an eighth of the memory
    assert few * 160 * 1024 * 32 <= 2**30 < (few + 20) * 160 * 1024 * 32
    assert at_once("resnet20", MOST + 1, 80) == MOST / 2 + 1  # parts of one size
    assert images_at_once(build(SMALL), 10_000, torch.device("cpu")) == IN_CACHE
