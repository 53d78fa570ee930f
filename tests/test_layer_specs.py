"""What layer_specs says of a network, against the network itself."""

from functools import partial

import pytest
import torch
from makers import NETS, batch_for, held_entries

from nets import Freeze, Insert, Remove, Widen, WidenStage, build, layer_specs
from nets.modules.frozen_parts import join_values
from nets.plan.layers import shapes_of

KINDS = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
FROZEN = [Freeze("stage1.block1", 2), Freeze("stage1.block2"), Freeze("head")]
FROZEN_RESIDUAL = [Freeze("stage1.block1", 2), Freeze("stage2.block1"), Freeze("stem")]


def frozen(architecture, wider=0):
    """Hold parts of a network, and widen it after if asked."""
    plain = architecture.block == "plain"
    for action in FROZEN if plain else FROZEN_RESIDUAL:
        architecture = architecture.apply(action)
    for name in architecture.blocks if wider else ():
        architecture = architecture.apply(Widen(name, wider))
    return architecture


def note(sizes, path, module, inputs, output):
    """Keep height and width of what a module gives, as a forward hook."""
    sizes[path] = tuple(output.shape[2:])


@pytest.mark.parametrize("name", NETS)
def test_specs_are_the_layers_of_the_network(name):
    architecture = NETS[name]
    net, sizes = build(architecture), {}
    for path, module in net.named_modules():
        module.register_forward_hook(partial(note, sizes, path))
    net.eval()(batch_for(architecture)[0])
    weighty = {path for path, module in net.named_modules() if isinstance(module, KINDS)}
    specs = layer_specs(architecture)
    assert {spec.name for spec in specs} == weighty
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        module = net.get_submodule(spec.name)
        assert tuple(module.weight.shape) == spec.shape
        assert spec.size == sizes[spec.name]
        assert getattr(module, "stride", (1,))[0] == spec.stride
        assert (module.bias is not None) == (spec.bias or spec.kind == "norm")
        assert spec.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("wider", [0, 3])
@pytest.mark.parametrize("name", NETS)
def test_what_is_held_is_what_the_network_holds(name, wider):
    architecture = frozen(NETS[name], wider)
    held = held_entries(build(architecture))
    for spec in layer_specs(architecture):
        expected = torch.zeros(spec.shape[:2], dtype=torch.bool)
        start = 0
        for rows, columns in spec.held:
            expected[start : start + rows, :columns] = True
            start += rows
        if spec.kind == "norm":
            expected[: spec.held_channels] = True
        assert torch.equal(held[f"{spec.name}.weight"], expected), spec.name
        assert spec.weight_trains == (not expected.all())
        if spec.bias:
            assert int(held[f"{spec.name}.bias"].sum()) == spec.held_channels


@pytest.mark.parametrize("name", NETS)
def test_shapes_are_those_of_the_joined_state(name):
    architecture = frozen(NETS[name], wider=1)
    if architecture.block != "plain":
        architecture = architecture.apply(Insert("stage2.block1", 3))
        architecture = architecture.apply(Remove("stage2.block2", steps=4))
    net = build(architecture)
    state = join_values(net, net.state_dict())
    assert {entry: tuple(value.shape) for entry, value in state.items()} == shapes_of(architecture)


def changed(before, after):
    """Give the axes whose size differs, and by how much."""
    sizes = [
        {axis: size for spec in layer_specs(each) for axis, size in zip(spec.axes, spec.shape)}
        for each in (before, after)
    ]
    return {axis: sizes[1][axis] - sizes[0][axis] for axis in sizes[0] if sizes[0] != sizes[1]}


@pytest.mark.parametrize("name", NETS)
def test_dimensions_of_one_axis_have_one_size_and_change_together(name):
    architecture = NETS[name]
    for each in (architecture, architecture.apply(Widen("stage1.block1", 2))):
        sizes = {}
        for spec in layer_specs(each):
            for axis, size in zip(spec.axes, spec.shape):
                assert sizes.setdefault(axis, size) == size
    differences = changed(architecture, architecture.apply(Widen("stage1.block2", 2)))
    inner = {axis for axis in differences if axis.startswith("stage1.block2:")}
    assert inner
    assert differences == {axis: 2 if axis in inner else 0 for axis in differences}
    if architecture.block != "plain":
        differences = changed(architecture, architecture.apply(WidenStage("stage2", 5)))
        assert differences == {axis: 5 if axis == "stage2" else 0 for axis in differences}
