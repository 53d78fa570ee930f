"""The coordinate check: sizes and slopes of nets whose slopes are known."""

from __future__ import annotations

from math import log

import pytest
import torch
from makers import normal
from torch import nn

from analysis import coordinate_check
from nets import build, preset, seed_of

BATCH = normal(64, 20), torch.zeros(64, 1)


def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.square().mean() + 0 * targets.sum()


def chain(power: float):
    """A net whose second layer's weights have the std width ** -power."""

    def make(width: float) -> nn.Module:
        net = nn.Sequential(nn.Linear(20, int(width)), nn.Linear(int(width), 200))
        nn.init.normal_(net[0].weight, std=0.2)
        nn.init.normal_(net[1].weight, std=width**-power)
        for layer in net:
            nn.init.zeros_(layer.bias)
        return net

    return make


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_slopes_are_those_of_the_sums_of_independent_terms(power):
    found = coordinate_check(chain(power), [64, 256, 1024], BATCH, loss_of, steps=0)
    assert found.steps == 0
    assert found.widths == (64, 256, 1024)
    slopes = found.slopes()
    assert slopes["0"] == pytest.approx(0.0, abs=0.05)
    assert slopes["1"] == pytest.approx(0.5 - power, abs=0.05)


def test_the_same_net_for_every_seed_is_refused():
    def make(width: float) -> nn.Module:
        return build(seed_of(preset("mlp-8", image=(20,), classes=1), width=width / 8))

    coordinate_check(make, [8, 4], BATCH, loss_of, steps=0)
    with pytest.raises(ValueError, match="torch's global seed, got one net for 2"):
        coordinate_check(make, [8, 4], BATCH, loss_of, steps=0, seeds=2)


def test_sizes_are_the_stds_before_and_after_each_step():
    made = []

    def make(width: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        net = chain(0.5)(width)
        made.append(net)
        return net, torch.optim.Adam(net.parameters(), lr=0.01)

    found = coordinate_check(make, [8, 4], BATCH, loss_of, steps=2, seeds=2)
    assert len(made) == 4
    sizes: dict[str, list[list[float]]] = {"0": [], "1": []}
    for seed in range(2):
        torch.manual_seed(seed)
        net, optimizer = make(4)
        for _ in range(3):
            hidden = net[0](BATCH[0])  # pyright: ignore
            outputs = net[1](hidden)  # pyright: ignore
            for name, x in (("0", hidden), ("1", outputs)):
                sizes[name].append([x.double().std(correction=0).item()])
            optimizer.zero_grad()
            loss_of(outputs, BATCH[1]).backward()
            optimizer.step()
    for name, rows in found.sizes.items():
        assert len(rows) == 3
        for step, row in enumerate(rows):
            mean = (sizes[name][step][0] + sizes[name][3 + step][0]) / 2
            assert row[0] == pytest.approx(mean, rel=1e-4)
    for layer, slope in found.slopes(1).items():
        small, large = found.sizes[layer][1]
        assert slope == pytest.approx(log(large / small) / log(2))


def test_our_nets_of_several_widths_as_a_table_and_a_picture(tmp_path):
    def make(width: float) -> nn.Module:
        return build(seed_of(preset("resnet8", image=(3, 8, 8)), width=width, blocks=1))

    batch = normal(8, 3, 8, 8), torch.arange(8)
    state = torch.get_rng_state()
    found = coordinate_check(make, [0.25, 0.5, 1], batch, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.sizes) == {"stem", "head"} | {
        f"stage{stage}.block1{end}"
        for stage in (1, 2, 3)
        for end in ("", ".bn1", ".bn2", ".shortcut.bn")[: 3 + (stage > 1)]
    }
    assert found.slopes(0)["stage1.block1.bn1"] == pytest.approx(0, abs=1e-3)  # BatchNorm's size
    lines = found.table().splitlines()
    assert lines[0].split("|")[1].strip() == "layer"
    assert len(lines) == 2 + len(found.sizes)
    found.draw(tmp_path / "widths.svg")
    picture = (tmp_path / "widths.svg").read_text()
    assert picture.startswith("<svg xmlns")
    assert "stage3.block1.bn2 " in picture


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"widths": [1, 1]}, r"widths must be at least two numbers above 0, got \[1, 1\]"),
        ({"widths": [0, 1]}, "widths must be at least two numbers above 0"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_checked_is_refused(how, told):
    with pytest.raises(ValueError, match=told):
        coordinate_check(chain(0), **{"widths": [2, 4], "batch": BATCH, **how})


def test_nets_without_a_common_layer_are_refused():
    def make(width: float) -> nn.Module:
        return nn.Sequential(*[nn.Identity()] * int(width), nn.Linear(20, 1))

    with pytest.raises(ValueError, match="layers of the same names"):
        coordinate_check(make, [1, 2], BATCH, loss_of, steps=0)


def test_a_size_of_0_has_no_slope():
    def make(width: float) -> nn.Module:
        net = nn.Sequential(nn.Linear(20, int(width)))
        nn.init.zeros_(net[0].weight)
        nn.init.zeros_(net[0].bias)
        return net

    found = coordinate_check(make, [1, 2], BATCH, loss_of, steps=0)
    assert found.slopes() == {"0": None}
    assert found.table().splitlines()[-1].split("|")[-2].strip() == "-"
