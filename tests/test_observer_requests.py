"""What an Observer reads on request, against float64; of which layers, and in which steps."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from makers import CLASSES, CLIP, NETS, batch_of, differences, hooks_of, network_of, sgd, take_step
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from analysis import Observer
from analysis.examining.entry_histograms import BUCKETS, LIMITS
from analysis.examining.outliers import extremes, kurtosis, max_abs, powers
from analysis.examining.requests import ALSO
from nets import Insert, Network, Widen, build, grow

ALL = tuple(ALSO)
OWN = ("max_abs", "kurtosis", "activation_gradient_std", "activation_gradient_norm")


def slowly(net: nn.Module, observer: Observer, step: Callable[[], Any]) -> dict[str, Any]:
    """Take a step and give what was asked for by layer, from plain hooks, in float64."""
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    entries: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    handles = []

    def listen(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[path] = output.detach().double().clone()
            output.register_hook(lambda g: gradients.__setitem__(path, g.double().clone()))

        return hook

    for layer in observer.layers:
        module = net.get_submodule(layer.source or layer.path)
        handles.append(module.register_forward_hook(listen(layer.path)))

    def look(*_: Any) -> None:
        for name, parameter in net.named_parameters():
            before[name] = parameter.detach().double().clone()
            if parameter.grad is not None:
                entries[name] = parameter.grad.double().clone()

    assert observer.optimizer is not None
    handles.append(observer.optimizer.register_step_pre_hook(look))
    step()
    for handle in handles:
        handle.remove()
    after = {name: p.detach().double() for name, p in net.named_parameters()}
    found: dict[str, Any] = {"": sqrt(sum(g.square().sum().item() for g in entries.values()))}
    for layer in observer.layers:
        x, gradient = outputs[layer.path].flatten(), gradients[layer.path].flatten()
        centred = x - x.mean()
        owned = [n for n in entries if any(n.startswith(f"{m}.") for m in layer.modules)]
        grads = torch.cat([entries[name].flatten() for name in owned])
        steps = torch.cat([(after[name] - before[name]).flatten() for name in owned])
        found[layer.path] = {
            "max_abs": x.abs().max().item(),
            "kurtosis": (centred**4).mean().item() / centred.square().mean().item() ** 2,
            "activation_gradient_std": gradient.std(correction=0).item(),
            "activation_gradient_norm": gradient.norm().item(),
            "gradient_histogram": counted(grads),
            "update_histogram": counted(steps),
        }
    return found


def counted(entries: Tensor) -> list[int]:
    """Count entries by bucket; as the buckets mirror each other, a limit belongs outside."""
    limits = torch.tensor([limit for limit in LIMITS[:-1] if limit > 0], dtype=torch.float64)
    size = torch.bucketize(entries.abs(), limits, right=True)
    return (BUCKETS // 2 + entries.sign().long() * size).bincount(minlength=BUCKETS).tolist()


class Foreign(nn.Module):
    """A small net that is not ours; only a forward shows which norm takes what."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def foreign() -> Foreign:
    torch.manual_seed(0)
    return Foreign()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["basic", "bottleneck pre", "dense", "plain", "foreign"])
def test_all_that_can_be_asked_for_agrees_with_a_slow_computation(name):
    torch.manual_seed(0)
    ours = name in NETS
    net = network_of(name) if ours else foreign()
    image = NETS[name].image if ours else (3, 8, 8)
    optimizer, norms, slow = sgd(net), [], []
    with Observer(net, optimizer, also=ALL) as observer:
        for number in range(3 if ours else 1):
            inputs, targets = batch_of(image, number)

            def step(inputs: Tensor = inputs, targets: Tensor = targets) -> None:
                optimizer.zero_grad()
                cross_entropy(net(inputs), targets).backward()
                norms.append(nn.utils.clip_grad_norm_(net.parameters(), CLIP).item())
                optimizer.step()

            if not ours and not number:  # forwards show which norm takes what
                step()
                observer.readings()
                norms.clear()
            slow.append(slowly(net, observer, step))
        found, histograms = observer.readings(), observer.histograms()
    assert max(norms) > CLIP
    assert observer.gradient_norm == pytest.approx(mean([one[""] for one in slow]), rel=1e-5)
    assert observer.gradient_norm_before_clipping == pytest.approx(mean(norms), rel=1e-5)
    assert len(found) == len(observer.layers) > 2
    for path, reading in found.items():
        assert set(reading.extra) == set(OWN)
        for key in OWN:
            values = [one[path][key] for one in slow]
            expected = max(values) if key == "max_abs" else mean(values)
            assert reading.extra[key] == pytest.approx(expected, rel=2e-5), (path, key)
        for key in ("gradient_histogram", "update_histogram"):
            counts = [mean(column) for column in zip(*(one[path][key] for one in slow))]
            got = histograms[key][path].counts
            # one entry may have another bucket: float32's difference of two weights
            assert sum(abs(a - b) for a, b in zip(got, counts)) <= 0.01 * sum(counts), (path, key)
            assert sum(got) == pytest.approx(sum(counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5, 7, 7), (3000, 211), (3,)])
def test_outliers_of_outputs_of_any_shape_and_mean(shape, dtype):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = [x, 100 + x, x.transpose(0, -1), x**3]
    for output in (output.to(dtype) for output in outputs):
        wide = output.double()
        centred = wide - wide.mean()
        expected = (centred**4).mean() / centred.square().mean() ** 2
        assert kurtosis([powers(output)]).item() == pytest.approx(expected.item(), rel=1e-3)
        assert max_abs([extremes(output)]).item() == wide.abs().max().item()


def test_a_kurtosis_of_what_does_not_vary_is_none_and_breaks_nothing():
    net = network_of("basic")
    with torch.no_grad():
        net.get_submodule("stage1.block1.bn2").weight.zero_()  # pyright: ignore
        net.get_submodule("stage1.block1.bn2").bias.zero_()  # pyright: ignore
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Observer(net, optimizer, also="kurtosis") as observer:
        for step in range(2):
            optimizer.zero_grad()
            for part in range(2):  # the first is put aside
                inputs, targets = batch_of(net.architecture.image, 2 * step + part)
                cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        assert observer.first_broken() is None
        found = observer.readings()
    assert "kurtosis" not in found["stage1.block1.bn2"].extra
    assert found["stage1.block1.bn2"].response_std == 0
    assert found["stage1.block1.bn1"].extra["kurtosis"] > 1


@pytest.mark.parametrize("value", [0.1, 1e-3, -7.7, 3e4])
@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (1001,), (3000, 211)])
def test_a_constants_kurtosis_is_not_that_of_its_mean_s_rounding(value, shape):
    assert kurtosis([powers(torch.full(shape, value))]).isnan()
    varied = torch.full(shape, value)
    varied.flatten()[::2] *= 1 + 1e-4  # two values, half each
    assert kurtosis([powers(varied)]).item() == pytest.approx(1, abs=0.1)


def test_nothing_that_is_asked_for_is_read_on_the_host_within_a_step():
    with torch.device("meta"):
        for net in (*map(Network, (NETS["basic"], NETS["dense pre"])), foreign()):
            for known in (True, False):
                optimizer = sgd(net, foreach=True)
                image = net.architecture.image if isinstance(net, Network) else (3, 8, 8)
                with Observer(net, optimizer if known else None, also=ALL) as observer:
                    for _ in range(2):
                        inputs = torch.empty(3, *image)
                        take_step(net, optimizer, inputs, torch.empty(3, dtype=torch.int64))
                    with pytest.raises(NotImplementedError):
                        observer.readings()
                assert not hooks_of(net)


def test_training_is_bit_equal_and_nothing_stays_behind():
    net, twin = network_of("bottleneck"), network_of("bottleneck")
    optimizer, other = sgd(net), sgd(twin)
    with Observer(net, optimizer, every=2, also=ALL):
        for step in range(5):
            take_step(net, optimizer, *batch_of(net.architecture.image, step))
            take_step(twin, other, *batch_of(net.architecture.image, step))
            if step % 2:
                assert len(hooks_of(net, optimizer)) > 2  # the next step is read
    assert not differences(net.state_dict(), twin.state_dict())
    assert not hooks_of(net, optimizer)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_scaled_losses_give_the_same(fused, parts):
    def train(scaler: torch.amp.GradScaler) -> tuple[Any, ...]:
        net = network_of("basic")
        optimizer = sgd(net, fused=fused)
        with Observer(net, optimizer, also=ALL) as observer:
            for step in range(2):
                optimizer.zero_grad()
                inputs, targets = batch_of(net.architecture.image, step)
                for images, wanted in zip(inputs.chunk(parts), targets.chunk(parts)):
                    scaler.scale(cross_entropy(net(images), wanted) / parts).backward()
                if step:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                scaler.step(optimizer)
                scaler.update()
            readings = observer.readings()
            norms = observer.gradient_norm, observer.gradient_norm_before_clipping
            return readings, norms, observer.histograms()

    # a power of two changes no digit
    scaled, plain = (train(torch.amp.GradScaler("cpu", 2.0**9, enabled=e)) for e in (True, False))
    assert scaled[1] == pytest.approx(plain[1], rel=1e-6)
    assert plain[1][1] > plain[1][0] > 0
    for path, reading in plain[0].items():
        assert dict(scaled[0][path].extra) == pytest.approx(dict(reading.extra), rel=1e-5), path
    assert scaled[2].keys() == plain[2].keys()
    for name, rows in plain[2].items():
        for path, row in rows.items():
            moved = sum(abs(a - b) for a, b in zip(row.counts, scaled[2][name][path].counts))
            assert moved <= 0.05 * sum(row.counts), (name, path)


@pytest.mark.parametrize("own", ["none", "steps", "unscales"])
def test_a_scaler_of_another_net_changes_nothing(own):
    def train(first: Any = None, scaler: Any = None) -> tuple[Any, ...]:
        other, net = nn.Linear(4, 2), network_of("basic")
        of_other, optimizer = sgd(other), sgd(net)
        inputs, targets = batch_of(net.architecture.image)
        with Observer(net, optimizer, also=ALL) as observer:
            if first is not None:
                first.scale(other(torch.ones(3, 4)).square().mean()).backward()
                first.step(of_other)
            loss = cross_entropy(net(inputs), targets)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if own == "unscales" and scaler is not None:
                scaler.unscale_(optimizer)
            if own == "steps" and scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.step()
            return observer.readings(), observer.gradient_norm_before_clipping

    alone = train()
    scales = (2.0**9,) if own == "none" else (2.0**9, 2.0**5)
    beside = train(*(torch.amp.GradScaler("cpu", scale) for scale in scales))
    assert beside[1] == pytest.approx(alone[1], rel=1e-5)
    for path, reading in alone[0].items():
        assert dict(beside[0][path].extra) == pytest.approx(dict(reading.extra), rel=1e-5), path


def test_a_step_that_a_scaler_left_out_has_no_norm_and_no_histogram():
    net = network_of("basic")
    optimizer, scaler = sgd(net, fused=True), torch.amp.GradScaler("cpu", 2.0**9)
    norms = []
    with Observer(net, optimizer, also=ALL) as observer:
        for step in range(3):
            optimizer.zero_grad()
            inputs, targets = batch_of(net.architecture.image, step)
            loss = scaler.scale(cross_entropy(net(inputs), targets))
            (loss * torch.inf if step == 1 else loss).backward()
            if step != 1:
                size = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None)
                norms.append(size.sqrt().item() / scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        observer.readings()
    assert observer.gradient_norm == pytest.approx(mean(norms), rel=1e-5)
    assert observer.gradient_norm_before_clipping == pytest.approx(mean(norms), rel=1e-5)
    sizes = {layer.path: layer for layer in observer.layers}
    for rows in observer.histograms().values():
        assert rows.keys() == sizes.keys()
        for path, row in rows.items():
            module = [net.get_submodule(m) for m in sizes[path].modules]
            assert sum(row.counts) == sum(p.numel() for m in module for p in m.parameters())


def test_without_an_optimizer_gradients_are_those_before_clipping():
    net = network_of("basic")
    optimizer, norms = sgd(net), []
    with Observer(net, also=("gradient_histogram", "activation_gradient")) as observer:
        for step in range(2):
            optimizer.zero_grad()
            inputs, targets = batch_of(net.architecture.image, step)
            cross_entropy(net(inputs), targets).backward()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), CLIP).item())
            optimizer.step()
        found = observer.readings()
    assert observer.gradient_norm is None
    assert observer.gradient_norm_before_clipping == pytest.approx(mean(norms), rel=1e-5)
    assert set(observer.histograms()["gradient_histogram"]) == set(found)
    assert all(reading.extra["activation_gradient_norm"] > 0 for reading in found.values())


def test_norms_before_clipping_are_of_all_parts_and_all_optimizers():
    net = network_of("basic")
    named = dict(net.named_parameters())
    halves = [
        [p for name, p in named.items() if name.startswith("stage") == first] for first in (1, 0)
    ]
    several = [torch.optim.SGD(half, lr=0.1) for half in halves]
    norms, after = [], []
    with Observer(net, several[0], also=ALL) as observer:
        for step in range(3):
            for part in range(2):
                inputs, targets = batch_of(net.architecture.image, 2 * step + part)
                cross_entropy(net(inputs), targets).backward()
            norms.append(nn.utils.clip_grad_norm_(net.parameters(), CLIP).item())
            after.append(sqrt(sum(p.grad.square().sum().item() for p in named.values())))
            for optimizer in several:
                optimizer.step()
                optimizer.zero_grad()
        observer.readings()
    assert observer.gradient_norm == pytest.approx(mean(after), rel=1e-5)
    assert observer.gradient_norm_before_clipping == pytest.approx(mean(norms), rel=1e-5)


def test_the_defaults_read_the_norm_at_the_update_alone():
    net = network_of("basic")
    optimizer = sgd(net)
    with Observer(net, optimizer) as observer:
        assert observer.gradient_norm is None
        take_step(net, optimizer, *batch_of(net.architecture.image, 0), CLIP)
        assert all(not reading.extra for reading in observer.readings().values())
    assert observer.gradient_norm == pytest.approx(CLIP, rel=1e-3)
    assert observer.gradient_norm_before_clipping is None
    assert observer.histograms() == {}


# Which layers, and which steps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("stage1.block2", ["stage1.block2"]),
        (["head", "stage2.block1.bn1"], ["stage2.block1.bn1", "head"]),
        ("stage1.*.bn?", [f"stage1.block{b}.bn{n}" for b in (1, 2) for n in (1, 2)]),
        (lambda name, module: name == "head" and module.training, ["head"]),
        (iter(["stem"]), ["stem"]),
    ],
)
def test_the_layers_chosen_are_read_as_among_all(layers, expected):
    def train(**how: Any) -> tuple[Any, float | None]:
        net = network_of("basic")
        optimizer = sgd(net)
        with Observer(net, optimizer, also=ALL, **how) as observer:
            for step in range(2):
                take_step(net, optimizer, *batch_of(net.architecture.image, step))
            return observer.readings(), observer.gradient_norm

    found, norm = train(layers=layers)
    whole, same = train()
    assert list(found) == expected
    for path, reading in found.items():
        wanted = whole[path]
        assert dict(reading.extra) == pytest.approx(dict(wanted.extra), rel=1e-9)
        for name in ("response_mean", "response_std", "gradient_norm", "update_ratio"):
            assert reading.value(name) == pytest.approx(wanted.value(name), rel=1e-9, abs=1e-12)
        assert reading.residual_ratio == wanted.residual_ratio
        assert reading.dead_fraction == wanted.dead_fraction
    assert norm == same  # of all parameters


@pytest.mark.parametrize("layers", ["bn2", "conv2", ["bn?", "fc"]])
def test_layers_of_any_module_may_be_chosen_by_what_feeds_their_norms(layers):
    def train(**how: Any) -> Any:
        net = foreign()
        optimizer = sgd(net)
        with Observer(net, optimizer, **how) as observer:
            take_step(net, optimizer, *batch_of((3, 8, 8), 0, 4))
            return observer.readings()

    found, whole = train(layers=layers), train()
    assert "bn2" in found
    assert len(found) == (3 if isinstance(layers, list) else 1)
    for path, reading in found.items():
        assert reading == whole[path]


def test_patterns_choose_newborn_layers_too():
    net = build(NETS["basic"])
    optimizer = sgd(net)
    batch = batch_of(net.architecture.image, 0)
    with Observer(net, optimizer, layers=["stage1.*.bn1", "stage1.block1.bn1"]) as observer:
        take_step(net, optimizer, *batch)
        assert list(observer.readings()) == ["stage1.block1.bn1", "stage1.block2.bn1"]
        grown = grow(net, [Insert("stage1.block1", 4), Widen("stage2.block1", 2)], optimizer)
        observer.follow(grown)
        assert grown.optimizer is not None
        take_step(grown.network, grown.optimizer, *batch)
        names = [f"stage1.block{number}.bn1" for number in (1, 3, 2)]
        assert list(observer.readings()) == names


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            {"layers": "stage1.blok1"},
            "layers must be one of stem, .*'stage1.blok1' .did you",
        ),
        ({"layers": ["stem", "stage9.*"]}, r"layers must be a pattern of stem.*got 'stage9\.\*'$"),
        ({"layers": []}, "layers must name at least one layer, got none"),
        ({"layers": lambda name, module: False}, "layers must choose at least one of 12 layers"),
        (
            {"also": "kurtosiss"},
            "also must be of max_abs, .*'kurtosiss' .did you mean 'ku",
        ),
        ({"also": ["max_abs", "std"]}, "also must be of .*; got 'std'"),
        (
            {"also": "max_abs", "extra": {"max_abs": torch.amax}},
            "extra must not be .*'max_abs'",
        ),
        ({"from_step": -1}, "from_step must be at least 0, got -1"),
        ({"from_step": 5, "to_step": 5}, "to_step must be at least 6, got 5"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(how, told):
    with pytest.raises(ValueError, match=told):
        Observer(network_of("basic"), None, **how)


@pytest.mark.parametrize(
    ("how", "read"),
    [
        ({"from_step": 3}, [3, 4, 5, 6, 7]),
        ({"from_step": 2, "to_step": 4}, [2, 3]),
        ({"to_step": 2}, [0, 1]),
        ({"from_step": 1, "every": 3}, [1, 4, 7]),
        ({"step": 2, "from_step": 1, "to_step": 9, "every": 4}, [2, 6]),
        ({"step": 5, "to_step": 3}, []),
    ],
)
def test_only_the_steps_between_two_are_read(how, read):
    net = network_of("basic")
    optimizer, seen = sgd(net), []
    with Observer(net, optimizer, **how) as observer:
        while observer.step < 8:
            if observer.due:
                seen.append(observer.step)
            assert bool(hooks_of(net)) == observer.due
            take_step(net, optimizer, *batch_of(net.architecture.image, observer.step))
        found = observer.readings()["head"].response_std
    assert seen == read
    assert (found is None) == (not read)


# States ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_window_goes_on_with_what_was_asked_for(cut):
    def opened() -> tuple[Network, Any, Observer]:
        net = network_of("basic")
        optimizer = sgd(net)
        return net, optimizer, Observer(net, optimizer, also=ALL)

    def go_on(net: Network, optimizer: Any, observer: Observer, first: int, last: int) -> None:
        with observer:
            for step in range(first, last):
                take_step(net, optimizer, *batch_of(net.architecture.image, step), CLIP)

    whole, parts, later = opened(), opened(), opened()
    go_on(*whole, 0, 4)
    go_on(*parts, 0, cut)
    states: list[Any] = [part.state_dict() for part in parts]
    for part, state in zip(later, states):
        part.load_state_dict(state)
    go_on(*later, cut, 4)
    found, expected = later[2].readings(), whole[2].readings()
    assert found == expected
    assert later[2].histograms() == whole[2].histograms()
    assert later[2].gradient_norm == whole[2].gradient_norm
    assert later[2].gradient_norm_before_clipping == whole[2].gradient_norm_before_clipping


def test_the_sums_of_layers_that_stay_survive_a_change_of_the_net():
    def train(change: bool) -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        with Observer(net, optimizer, also=ALL) as observer:
            for step in range(4):
                if change and step == 2:
                    same = nn.Linear(4, 4).requires_grad_(False)
                    same.weight.copy_(torch.eye(4))
                    net.append(same)
                    same.bias.zero_()
                take_step(net, optimizer, *batch_of((5,), step))
            return observer.readings(), observer.histograms()

    (found, histograms), (plain, others) = train(True), train(False)
    assert list(found) == ["0", "2", "3"]
    assert found["0"].extra["max_abs"] == plain["0"].extra["max_abs"]
    for path in ("0", "2"):
        assert histograms["gradient_histogram"][path] == others["gradient_histogram"][path]


def test_a_layer_that_joins_within_a_window_has_the_mean_of_its_own_steps():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Observer(net, optimizer, also=ALL) as observer:
        for step in range(4):
            if step == 3:
                net[0].requires_grad_(True)
            take_step(net, optimizer, *batch_of((5,), step))
        state = observer.state_dict()
        observer.readings()
        found = observer.histograms()
    assert found
    for rows in found.values():
        assert {path: sum(rows[path].counts) for path in rows} == {"0": 36, "2": 28}
    # a window of an earlier version, which took the mean of all steps
    whole = state["window"]["whole"]
    for name in found:
        whole[name] = [row[:-1] for row in whole[name]]
    with Observer(net, optimizer, also=ALL) as later:
        later.load_state_dict(state)
        later.readings()
        assert sum(later.histograms()["gradient_histogram"]["0"].counts) == 9


def test_the_std_of_arriving_gradients_is_the_mean_of_each_arrivals():
    # a critic's: every entry of a batch has the same gradient, of another sign in the other batch
    critic, batches = nn.Linear(3, 2), torch.randn(2, 4, 3)
    optimizer = sgd(critic)
    with Observer(critic, optimizer, also="activation_gradient") as observer:
        (critic(batches[0]).sum() - 3 * critic(batches[1]).sum()).backward()
        optimizer.step()
        extra = observer.readings()[""].extra
    assert extra["activation_gradient_std"] == pytest.approx(0, abs=1e-6)
    assert extra["activation_gradient_norm"] == pytest.approx(2 * sqrt(8))
