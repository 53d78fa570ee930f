"""Nets that are compiled or wrapped, and statistics of one's own."""

import copy

import pytest
import torch
from makers import NETS, batch_of, clipped_step, hooks_of, in_double, network_of, sgd
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from analysis import Observer
from nets import Widen, grow


def compiled(net, way):
    """The net as it is called, and the counter of what was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    if way == "in place":
        net.compile(backend=counter)
        return net, counter
    return torch.compile(net, backend=counter), counter


def stance():
    return torch._dynamo.eval_frame._stance.stance


@pytest.mark.parametrize("way", ["wrapped", "in place", "elsewhere"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_compiled_net_is_read_at_every_sampled_step_and_compiled_once(way, every):
    batches = [batch_of(NETS["basic"].image, step) for step in range(7)]
    net, batches = in_double(network_of("basic"), batches)
    twin = copy.deepcopy(net)
    called, counter = compiled(net, way)
    optimizer, other = sgd(net), sgd(twin)
    watched = net if way == "elsewhere" else called
    frames = []
    with (
        Observer(watched, optimizer, every=every) as observer,
        Observer(twin, other, every=every) as expected,
    ):
        for batch in batches:
            clipped_step(called, optimizer, *batch)
            clipped_step(twin, other, *batch)
            frames.append(counter.frame_count)
        found, wanted = observer.readings(), expected.readings()
    assert list(found) == list(wanted)
    for path, reading in wanted.items():
        assert found[path].response_std == pytest.approx(reading.response_std, rel=1e-4), path
        assert found[path].update_ratio == pytest.approx(reading.update_ratio, rel=1e-3), path
    assert frames == ([0] * 7 if every == 1 else [0, 1, 1, 1, 1, 1, 1])
    assert stance() == "default"
    assert hooks_of(net, optimizer) == []


def test_a_compiled_net_without_an_optimizer():
    net = network_of("basic")
    called, counter = compiled(net, "wrapped")
    optimizer = sgd(net)
    with Observer(called, every=2) as observer:
        for step in range(5):
            clipped_step(called, optimizer, *batch_of(net.architecture.image, step))
        found = observer.readings()
        assert observer.step == 5
    assert counter.frame_count == 1
    assert all(reading.response_std is not None for reading in found.values())
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="optimizer must be given for a net compiled in place"):
        Observer(net)


def test_an_error_brings_the_compiled_code_back():
    net = network_of("basic")
    seen = []

    def fail(module, args):
        seen.append(stance())
        raise KeyError("stop")

    net.register_forward_pre_hook(fail)
    optimizer = sgd(net)
    with pytest.raises(KeyError, match="stop"), Observer(net, optimizer):
        clipped_step(net, optimizer, *batch_of(net.architecture.image))
    assert seen == ["force_eager"]
    assert stance() == "default"


def test_a_compiled_net_is_followed_by_its_grown_self():
    net = network_of("basic")
    called, _ = compiled(net, "wrapped")
    optimizer = sgd(net)
    with Observer(called, optimizer) as observer:
        clipped_step(called, optimizer, *batch_of(net.architecture.image))
        grown = grow(net, [Widen("stage1.block2", 2)], optimizer)
        again, _ = compiled(grown.network, "wrapped")
        observer.follow(again, grown.optimizer)
        clipped_step(again, grown.optimizer, *batch_of(net.architecture.image))
        found = observer.readings()
    assert found["stage1.block2.bn1"].edited == 1
    assert found["stage1.block1.bn1"].edited is None
    assert found["stage1.block2.bn1"].response_std > 0


def test_a_net_under_data_parallel_keeps_its_names(tmp_path):
    net = network_of("basic")
    twin = copy.deepcopy(net)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        optimizer, other = sgd(net), sgd(twin)
        batch = batch_of(net.architecture.image)
        with Observer(parallel, optimizer) as observer, Observer(twin, other) as expected:
            clipped_step(parallel, optimizer, *batch)
            clipped_step(twin, other, *batch)
            found, wanted = observer.readings(), expected.readings()
    finally:
        torch.distributed.destroy_process_group()
    assert list(found) == list(wanted)
    for path, reading in wanted.items():
        assert found[path].response_std == pytest.approx(reading.response_std, rel=1e-6)
        assert found[path].gradient_norm == pytest.approx(reading.gradient_norm, rel=1e-5)


# Statistics of one's own --------------------------------------------------------------------------


def positive(output):
    return (output > 0).float().mean()


@pytest.mark.parametrize("known", [True, False])
def test_statistics_of_ones_own_are_means_over_the_window(known):
    net = network_of("basic")
    twin = copy.deepcopy(net)
    optimizer, other = sgd(net), sgd(twin)
    extra = {"positive": positive, "largest": torch.amax}
    seen = {path: [] for path in ("stem", "stage1.block1.bn1", "stage1.block1", "head")}
    for path, outputs in seen.items():
        module = twin.get_submodule(path)
        module.register_forward_hook(lambda m, a, out, o=outputs: o.append(out.detach().clone()))
    with Observer(net, optimizer if known else None, every=2, extra=extra) as observer:
        for step in range(5):
            clipped_step(net, optimizer, *batch_of(net.architecture.image, step))
            clipped_step(twin, other, *batch_of(net.architecture.image, step))
        found = observer.readings()
        state = observer.state_dict()
    for path, outputs in seen.items():
        for name, function in extra.items():
            wanted = sum(function(output).item() for output in outputs[::2]) / 3
            assert found[path].extra[name] == pytest.approx(wanted, rel=1e-6)
            assert found[path].value(name) == found[path].extra[name]
    assert found["stage1.block1"].gradient_norm is not None
    resumed = Observer(net, optimizer, extra=extra)
    resumed.load_state_dict(state)
    assert resumed.readings() == found
    plain = Observer(net, optimizer)
    with pytest.raises(ValueError, match=r"state must hold \d+ counts, a layer's 7 statistics"):
        plain.load_state_dict(state)


def test_layers_that_were_not_read_have_no_statistics_of_ones_own():
    net = network_of("plain")
    observer = Observer(net, extra={"positive": positive})
    assert all(reading.extra == {} for reading in observer.readings().values())


def test_what_a_statistic_of_ones_own_gives_is_checked():
    net = network_of("plain")
    optimizer = sgd(net)
    with pytest.raises(ValueError, match=r"extra must not be named .*, got 'response_std'"):
        Observer(net, extra={"response_std": positive})
    for function, got in (
        (lambda output: 1.0, "float"),
        (lambda output: output.mean(0), r"shape \(6,\)"),
    ):
        message = rf"extra\['mine'\] must give a 0-d tensor, got {got}"
        observer = Observer(net, optimizer, extra={"mine": function})
        with pytest.raises(ValueError, match=message), observer:
            clipped_step(net, optimizer, *batch_of(NETS["plain"].image))
        assert hooks_of(net, optimizer) == []
