"""What only a GPU can show."""

import copy

import pytest
import torch

from analysis import Observer
from nets import Widen, build, grow, preset, seed_of
from training.data import Augment, Batches, channel_statistics, load
from training.settings import Common
from training.step import LOSSES, Precision, average, make_optimizer, train_step

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_step_with_observer_and_average_never_waits_for_the_host(precision):
    precision = Precision.of(Common(device="cuda", precision=precision))
    scaler = precision.scaler()
    images = load("digits").train
    batches = Batches(images, 64, 0, "cuda", Augment(pad=1), *channel_statistics(images))
    net = build(seed_of(preset("resnet8", image=(1, 8, 8)))).to("cuda")
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = make_optimizer(net, Common())
    window = torch.zeros(3, dtype=torch.float64, device="cuda")
    loss = LOSSES["classification"]
    with Observer(net, optimizer) as observer:
        for position in range(4):
            if position == 2:  # the first steps set things up
                torch.cuda.set_sync_debug_mode("error")
            try:
                batch = batches.batch(0, position)
                train_step(net, optimizer, *batch, loss, precision, window, 2, scaler)
                average(ema, net, 0.999, position + 1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert observer.readings()["stem"].response_std


def test_growing_keeps_device_and_outputs():
    net = build(seed_of(preset("resnet8"))).to("cuda", memory_format=torch.channels_last)
    probe = torch.randn(8, 3, 32, 32, device="cuda")
    grown = grow(net, [Widen("stage1.block1", by=4)], probe=probe)
    assert all(parameter.is_cuda for parameter in grown.network.parameters())
    assert grown.difference is not None
    assert grown.difference < 1e-3  # TF32 convolutions may be chosen anew for other widths
