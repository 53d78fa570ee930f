"""net2net: copies of old channels that divide the work unequally, so that they part."""

import pytest
import torch
from makers import CASES, batch_for, three_blocks, train, trained

from nets import Widen, WidenStage, grow
from nets.growing.grow import output_difference
from nets.initializing.net2net import SHARE


def originals_of(net, grown, name):
    """For every new row of a layer, the old row of which it is a copy."""
    old, new = net.get_submodule(name).weight, grown.get_submodule(name).weight
    found = []
    for row in new[len(old) :]:
        (place,) = [k for k, other in enumerate(old) if torch.equal(row[: len(other)], other)]
        found.append(place)
    return found


def test_a_copy_has_its_originals_row_and_statistics_and_takes_a_share_of_its_column():
    net = trained(three_blocks(), torch.float64, steps=5)
    grown = grow(net, [Widen("stage1.block2", 3)], initializer="net2net").network
    before, after = net.stage1.block2, grown.stage1.block2
    originals = originals_of(net, grown, "stage1.block2.conv1")
    assert len(originals) == 3
    for name in ("weight", "bias", "running_mean", "running_var"):
        old, new = getattr(before.bn1, name), getattr(after.bn1, name)
        assert torch.equal(new[:4], old)
        assert torch.equal(new[4:], old[originals])
    expected = torch.cat([before.conv2.weight, torch.zeros(4, 3, 3, 3)], 1).detach().clone()
    for copy, original in enumerate(originals, start=4):
        expected[:, copy] = SHARE * expected[:, original]
        expected[:, original] *= 1 - SHARE
    torch.testing.assert_close(after.conv2.weight.detach(), expected)


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_copies_keep_the_outputs_and_then_part(kind, order):
    net = trained(three_blocks(kind, order), torch.float64, steps=5)
    inputs, _ = batch_for(net.architecture, 9, dtype=torch.float64)
    actions = [Widen("stage1.block2", 5), Widen("stage1.block1", 1)]
    actions += [] if kind == "plain" else [WidenStage("stage1", 3), WidenStage("stage2", 2)]
    grown = grow(net, actions, initializer="net2net").network
    assert output_difference(net, grown, inputs) <= 1e-12
    name = "stage1.block2.linear" if kind == "plain" else "stage1.block2.bn1"
    name = name if order == "post" else "stage1.block2.bn2"
    start = grown.get_submodule(name).bias.detach().clone()
    train(grown, steps=10)
    bias = grown.get_submodule(name).bias.detach()
    awake = bias != start  # a unit without BatchNorm may be silent on every batch
    assert awake.all() or kind == "plain"
    assert len(bias[awake].unique()) == awake.sum() > 2


def test_statistics_of_copies_are_not_estimated_anew():
    net = trained(three_blocks(), torch.float64, steps=5)
    probe = batch_for(net.architecture, 9, dtype=torch.float64)[0] * 7
    grown = grow(net, [Widen("stage1.block2", 3)], initializer="net2net", probe=probe).network
    originals = originals_of(net, grown, "stage1.block2.conv1")
    old = net.stage1.block2.bn1.running_var
    assert torch.equal(grown.stage1.block2.bn1.running_var, torch.cat([old, old[originals]]))


def test_the_seed_chooses_the_originals():
    net = trained(three_blocks(), torch.float64, steps=5)
    first, again, other = (
        grow(net, [Widen("stage1.block2", 6)], initializer="net2net", seed=seed).network
        for seed in (0, 0, 1)
    )
    rows = [originals_of(net, grown, "stage1.block2.conv1") for grown in (first, again, other)]
    assert rows[0] == rows[1] != rows[2]
