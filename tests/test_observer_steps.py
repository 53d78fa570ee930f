"""Steps of every kind: closures, several optimizers, nets that change, copies, torch.func."""

import copy
import io
import pickle
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from analysis import Observer
from nets import Insert, build, grow, preset, seed_of

CLASSES = 4
LAYERS = {"1": ("0", "1"), "3": ("3",)}  # modules whose parameters are a layer's


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def loss_of(net, step=0):
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    inputs = inputs.to(next(net.parameters()).dtype)
    return functional.cross_entropy(net(inputs), torch.arange(16) % CLASSES)


class Slow:
    """What should be read, by hand: `before` and `after` every update."""

    def __init__(self, net, layers=None):
        self.net, self.layers, self.found, self.calls = net, layers or LAYERS, {}, {}

    @contextmanager
    def forwards(self):
        """Keep the std of every output."""
        handles = [
            self.net.get_submodule(path).register_forward_hook(
                lambda m, a, output, path=path: self.note(path, "response_std", spread(output))
            )
            for path in self.layers
        ]
        yield
        for handle in handles:
            handle.remove()

    def note(self, path, statistic, value):
        self.found.setdefault((path, statistic), []).append(float(value))

    def before(self, scale=1.0):
        named = [(n, p) for n, p in self.net.named_parameters() if p.grad is not None]
        self.gradients = {n: p.grad.double() / scale for n, p in named}
        self.weights = {n: p.detach().double().clone() for n, p in named}

    def after(self):
        now = {n: p.detach().double() for n, p in self.net.named_parameters()}
        for path, owners in self.layers.items():
            names = [n for n in self.gradients if n.rpartition(".")[0].startswith(owners)]
            if not names:
                continue
            gradient, weight, update = (
                torch.cat([part[n].flatten() for n in names])
                for part in (
                    self.gradients,
                    self.weights,
                    {n: now[n] - self.weights[n] for n in names},
                )
            )
            self.note(path, "gradient_norm", gradient.square().mean().sqrt())
            self.note(path, "weight_norm", weight.norm())
            self.note(path, "update_ratio", update.norm() / weight.norm())

    def agrees_with(self, readings, but=()):
        for (path, statistic), values in self.found.items():
            if statistic in but:
                continue
            expected = pytest.approx(sum(values) / len(values), rel=1e-5)
            assert getattr(readings[path], statistic) == expected, (path, statistic)


def spread(output):
    return output.detach().double().std(correction=0)


def plain_steps(net, optimizer, steps):
    """Take steps in the plainest way, and give what should be read of them."""
    slow = Slow(net)
    with slow.forwards():
        for step in steps:
            optimizer.zero_grad()
            loss_of(net, step).backward()
            slow.before()
            optimizer.step()
            slow.after()
    return slow


def sgd(parameters):
    return SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-2)


def closure_of(net, optimizer, step=0):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, step)
        loss.backward()
        return loss

    return closure


# Closures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("make", [sgd, Adam, lambda p: Adam(p, fused=True)])
def test_gradients_that_a_closure_makes_are_read(make, by_name):
    net = network()
    twin = copy.deepcopy(net)
    slow = plain_steps(twin, make(twin.parameters()), range(3))
    optimizer = make(net.parameters())
    with Observer(net, optimizer) as observer:
        for step in range(3):
            closure = closure_of(net, optimizer, step)
            optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert observer.step == 3
        slow.agrees_with(observer.readings())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters()))


def test_of_many_calls_of_a_closure_the_gradients_are_those_of_the_first():
    net = network()
    twin = copy.deepcopy(net)
    loss_of(twin).backward()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)
    slow, first = Slow(net), Slow(twin)
    first.before()
    with slow.forwards(), Observer(net, optimizer) as observer:
        optimizer.step(closure_of(net, optimizer))
        slow.gradients, slow.weights = first.gradients, first.weights
        slow.after()
        assert len(slow.found["3", "response_std"]) > 1
        slow.agrees_with(observer.readings())
        assert observer.step == 1


def test_a_closure_that_fails_or_is_not_called_leaves_nothing_behind():
    net = network()
    optimizer = sgd(net.parameters())

    class Heedless(SGD):
        def step(self, closure=None):
            return super().step()

    heedless = Heedless(net.parameters(), 0.1)

    def failing():
        raise KeyError("stop")

    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        with pytest.raises(KeyError, match="stop"):
            optimizer.step(failing)
        loss_of(net).backward()
        slow.before()
        heedless.step(lambda: None)
        slow.after()
        slow.agrees_with(observer.readings())
        slow = plain_steps(net, optimizer, [1])
        slow.agrees_with(observer.readings())
        assert observer.step == 2


# Which optimizer ----------------------------------------------------------------------------------


def held_of(observer):
    responses = observer._watched.hooks._responses
    parts = [t for sums in responses._read for t in (*sums.sums, *sums.norms)]
    return sum(t.numel() for t in [*parts, *responses._told])


def test_an_optimizer_made_anew_counts():
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        plain_steps(net, optimizer, range(2)).agrees_with(observer.readings())
        for number in range(3):
            again = sgd(net.parameters() if number else net[3].parameters())
            net[:3].requires_grad_(bool(number))
            net.zero_grad()
            plain_steps(net, again, range(2)).agrees_with(observer.readings())
        assert observer.step == 8
        observer.optimizer = again
        plain_steps(net, again, range(2)).agrees_with(observer.readings())
    assert not [name for name, value in vars(again).items() if name.endswith("_hooks") and value]


SPLITS = {
    "parts": lambda net: (net[:2].parameters(), net[3:].parameters()),
    "dimensions": lambda net: (
        [p for p in net.parameters() if p.dim() > 1],
        [p for p in net.parameters() if p.dim() == 1],
    ),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("every", [1, 2])
def test_two_optimizers_make_one_step(split, first, every):
    net = network()
    optimizers = [sgd(part) for part in SPLITS[split](net)]
    slow = Slow(net)
    with Observer(net, optimizers[first], every) as observer:
        for step in range(4):
            net.zero_grad()
            loss_of(net, step).backward()
            if step % every == 0:
                slow.before()
            for optimizer in optimizers:
                optimizer.step()
            if step % every == 0:
                slow.after()
        assert observer.step == 4
        slow.agrees_with(observer.readings())


def test_optimizers_that_step_in_the_backward_pass():
    net = network()
    optimizers = [sgd([parameter]) for parameter in net.parameters()]
    twin = copy.deepcopy(net)
    slow = plain_steps(twin, sgd(twin.parameters()), range(3))
    for optimizer, parameter in zip(optimizers, net.parameters()):

        def update(parameter, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(update)
    with Observer(net, optimizers[-1]) as observer:
        for step in range(3):
            loss_of(net, step).backward()
        slow.agrees_with(observer.readings())
        assert observer.step == 3
    with Observer(net) as observer:
        loss_of(net).backward()
        with pytest.warns(UserWarning, match=r"gradient of .* was gone"):
            found = observer.readings()
        assert found["1"].gradient_norm is None
        loss_of(net).backward()
        observer.readings()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
def test_an_optimizer_whose_step_is_compiled():
    torch._dynamo.reset()
    net = network()
    slow, optimizer = copy.deepcopy(net), sgd(net.parameters())
    update = torch.compile(optimizer.step, backend="eager")
    expected = plain_steps(slow, sgd(slow.parameters()), range(1))
    with Observer(net, optimizer, every=3) as observer:
        for step in range(3):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            update()
        assert observer.step == 3
        expected.agrees_with(observer.readings())
    torch._dynamo.reset()


def test_two_players_in_one_module():
    net = nn.ModuleDict({"maker": nn.Linear(8, 8), "judge": nn.Linear(8, CLASSES)})
    maker, judge = sgd(net["maker"].parameters()), sgd(net["judge"].parameters())
    slow = {name: Slow(net, {name: (name,)}) for name in net}
    targets = torch.arange(16) % CLASSES
    with Observer(net, maker) as observer:
        for step in range(3):
            real = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            for name, optimizer in (("judge", judge), ("maker", maker)):
                net.zero_grad()
                made = net["maker"](real) if name == "maker" else real
                functional.cross_entropy(net["judge"](made), targets).backward()
                slow[name].before()
                optimizer.step()
                slow[name].after()
        assert observer.step == 3
        found = observer.readings()
    for one in slow.values():
        one.agrees_with(found)


class SAM(Optimizer):
    """Foret et al. 2021, as it is widely copied: other names than `step`."""

    def __init__(self, params, rho=0.05):
        super().__init__(params, {"rho": rho})
        self.base = SGD(self.param_groups, lr=0.1)
        self.seen = None

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.data.clone()
            parameter.add_(0.05 * parameter.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.data = self.state[parameter]["old"]
        if self.seen:
            self.seen()
        self.base.step()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


@pytest.mark.parametrize("closed", [True, False])
def test_sharpness_aware_steps(closed):
    net = network()
    optimizer = SAM(net.parameters())
    slow = Slow(net)
    optimizer.seen = slow.before  # what the optimizer inside sees
    with slow.forwards(), Observer(net, optimizer) as observer:
        for step in range(3):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            if closed:
                optimizer.step(lambda step=step: loss_of(net, step).backward())
            else:
                optimizer.first_step()
                loss_of(net, step).backward()
                optimizer.second_step()
            slow.after()
        assert observer.step == 3
        slow.agrees_with(observer.readings())


class Lookahead(Optimizer):
    """Steps another optimizer, and goes half the way."""

    def __init__(self, inner):
        self.inner, self.held = inner, inner.param_groups[0]["params"]
        super().__init__(self.held, {})

    @torch.no_grad()
    def step(self, closure=None):
        before = [parameter.clone() for parameter in self.held]
        self.inner.step(closure)
        for parameter, old in zip(self.held, before):
            parameter.lerp_(old, 0.5)


class Decaying(SGD):
    """Does more than the step of its class."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


class Wrapper(Optimizer):
    """Wraps an optimizer without being one: it was never initialised."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def param_groups(self):
        return self.inner.param_groups

    def zero_grad(self):
        self.inner.zero_grad()

    def step(self):
        self.inner.step()


class Bare:
    """No torch.optim.Optimizer at all."""

    def __init__(self, inner):
        self.zero_grad, self.step = inner.zero_grad, inner.step


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Lookahead(SGD(p, 0.1)),
        lambda p: Decaying(p, 0.1),
        lambda p: Wrapper(SGD(p, 0.1)),
        lambda p: Bare(SGD(p, 0.1)),
        lambda p: SGD(p, 0.0),
    ],
)
def test_optimizers_around_optimizers_count_once(make):
    net = network()
    SGD(net.parameters(), 0.1)  # torch puts hooks into SGD.step where one is made
    optimizer = make(net.parameters())
    with Observer(net, optimizer) as observer:
        slow = plain_steps(net, optimizer, range(3))
        assert observer.step == 3
        slow.agrees_with(observer.readings())


def test_updates_that_are_no_optimizers_are_told_of_once_and_take_no_memory():
    net = network()
    with Observer(net, sgd(net.parameters())) as observer:
        sizes = []
        for step in range(40):
            net.zero_grad()
            loss_of(net, step).backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
            sizes.append(held_of(observer))
        with pytest.warns(UserWarning, match="no step of the optimizer was seen") as caught:
            found = observer.readings()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert found["1"].response_std is None
        loss_of(net).backward()
        observer.readings()
    assert max(sizes) == sizes[0]


def evaluate(net, optimizer):
    net.eval()
    loss_of(net, 9).backward()  # without no_grad
    optimizer.zero_grad()
    net.train()


def in_eval_mode(net, optimizer):
    net.eval()
    plain_steps(net, optimizer, range(2))
    net.train()


@torch.no_grad()
def validate(net, optimizer):
    net.eval()
    loss_of(net, 9)
    net.train()
    optimizer.step()


EVALUATIONS = {
    "steps in eval mode": ([in_eval_mode], True),
    "after steps that train": ([plain_steps, None, in_eval_mode], True),
    "beside steps that train": ([evaluate, plain_steps, evaluate, in_eval_mode], False),
    "an evaluation alone": ([plain_steps, None, evaluate], False),
    "without gradients": ([validate], False),
    "norms in eval mode": ([lambda net, o: net[1].eval(), plain_steps], False),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_steps_in_eval_mode_are_told_of_once(name, known):
    net, (calls, told) = network(), EVALUATIONS[name]
    optimizer = sgd(net.parameters())
    caught = []
    with Observer(net, optimizer if known else None) as observer:

        def told_of():
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                observer.readings()
            caught.extend(str(one.message) for one in found if "eval mode" in str(one.message))
            return len(caught)

        for call in calls:
            if call is None:
                assert told_of() == 0
            elif call is plain_steps:
                call(net, optimizer, range(2))
            else:
                call(net, optimizer)
        assert told_of() == (told and known)
        for _ in range(2):
            in_eval_mode(net, optimizer)
            assert told_of() == known
    assert all("Observer: no forward but in eval mode" in text for text in caught)


def test_parts_of_a_net_called_without_end_take_no_memory():
    net = network()
    with Observer(net, sgd(net.parameters())) as observer:
        for _ in range(1000):
            net[3](torch.ones(2, 8)).sum().backward()
        assert len(observer._watched.hooks._responses) < 200


@pytest.mark.parametrize("forwards", [2, 5, 40])
def test_steps_of_many_forwards_are_read_to_the_last_bit_alike(forwards):
    found = []
    for usual in (0, 100):  # how many forwards are kept as they are
        net = network()
        optimizer, slow = sgd(net.parameters()), Slow(net)
        with slow.forwards(), Observer(net, optimizer) as observer:
            for step in range(3):
                observer._usual = usual
                optimizer.zero_grad()
                for part in range(forwards):
                    (loss_of(net, 10 * step + part) / forwards).backward()
                optimizer.step()
            found.append(observer.readings())
        slow.agrees_with(found[-1])
    assert found[0] == found[1]


def test_what_no_optimizer_updates_has_a_gradient_but_no_update():
    net = network()
    optimizer = sgd(net[3:].parameters())
    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            net.zero_grad()
            loss_of(net, step).backward()
            slow.before()
            optimizer.step()
            slow.after()
        with pytest.warns(UserWarning, match=r"no optimizer .* holds 0\.weight"):
            found = observer.readings()
        assert found["1"].update_ratio is None
        del slow.found["1", "update_ratio"]
        slow.agrees_with(found)


def test_an_optimizer_of_another_net_changes_nothing():
    net, other = network(), network()
    optimizer, elsewhere = sgd(net.parameters()), sgd(other.parameters())
    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        for step in range(2):
            plain_steps(other, elsewhere, [step])
            slow = plain_steps(net, optimizer, [step])
            plain_steps(other, elsewhere, [step])
            slow.agrees_with(observer.readings())
        assert observer.step == 2


# Nets that change ---------------------------------------------------------------------------------


def assign(net):
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)


def new_head(net):
    net[3] = nn.Linear(8, CLASSES)


def new_norm(net):
    net[1] = nn.BatchNorm1d(8)


def new_weight(net):
    net[3].weight = nn.Parameter(torch.randn(CLASSES, 8))


CHANGES = {
    "assign": assign,
    "head": new_head,
    "norm": new_norm,
    "weight": new_weight,
    "double": lambda net: net.double(),
    "relu with a parameter": lambda net: net[2].register_parameter("a", None),
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net[0]),
    "frozen": lambda net: net[0].requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "within"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_net_that_changes_is_read_as_it_is(change, when, every):
    net = network()
    optimizer = sgd(net.parameters())
    observer = Observer(net, optimizer, every)

    def alter():
        CHANGES[change](net)
        optimizer.param_groups[0]["params"] = list(net.parameters())
        optimizer.state.clear()
        net.zero_grad()

    if when == "before":
        alter()
    with observer:
        if when == "within":
            plain_steps(net, optimizer, range(2))
            observer.readings()
            alter()
        slow = plain_steps(net, optimizer, [2])
        found = observer.readings()
        slow.agrees_with(found)
        assert found["1"].gradient_norm is not None
        assert observer.step == (3 if when == "within" else 1)


def test_layers_that_stay_go_on_with_their_window_and_new_ones_begin():
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        first = plain_steps(net, optimizer, range(2))
        new_head(net)
        net.append(nn.Linear(CLASSES, CLASSES))
        optimizer.param_groups[0]["params"] = list(net.parameters())
        second = plain_steps(net, optimizer, range(2, 4))
        found = observer.readings()
        assert list(found) == ["1", "3", "4"]
        for key, values in first.found.items():
            if key[0] == "1":
                second.found[key] = values + second.found[key]
        second.agrees_with(found)
        del net[4], net[1:3]
        optimizer.param_groups[0]["params"] = list(net.parameters())
        slow = Slow(net, {"0": ("0",), "1": ("1",)})
        optimizer.zero_grad()
        loss_of(net).backward()
        slow.before()
        optimizer.step()
        slow.after()
        slow.agrees_with(observer.readings())


def test_an_optimizer_of_parameters_that_are_gone_updates_nothing():
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        assign(net)
        loss_of(net).backward()
        optimizer.step()
        with pytest.warns(UserWarning, match=r"no optimizer .* holds 0\.weight"):
            found = observer.readings()
        assert observer.step == 1
        assert found["1"].update_ratio is None
        assert found["1"].gradient_norm > 0
        again = sgd(net.parameters())
        plain_steps(net, again, range(2)).agrees_with(observer.readings())
        assert observer.step == 3


# Copies, and what else is done with a net ---------------------------------------------------------


def hooks_of(net):
    return [hook for module in net.modules() for hook in module._forward_hooks.values()] + [
        hook for module in net.modules() for hook in module._forward_pre_hooks.values()
    ]


@pytest.mark.parametrize("known", [True, False])
def test_copies_and_pickles_have_nothing_of_the_observer(known):
    net = network()
    mine = []
    net[0].register_forward_hook(print_nothing)
    expected = pickle.dumps(net)
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer if known else None) as observer:
        assert pickle.dumps(net) == expected
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.copy(net[3])]
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        copies.append(torch.optim.swa_utils.AveragedModel(net))
        for other in copies:
            mine += [hook for hook in hooks_of(other) if hook is not print_nothing]
            assert all("__getstate__" not in vars(module) for module in other.modules())
            other(torch.randn(5, 8)).sum().backward()
        net.zero_grad()
        slow = plain_steps(net, optimizer, range(2))
        slow.agrees_with(observer.readings(), () if known else ("update_ratio", "weight_norm"))
        assert observer.step == 2
    assert mine == []
    assert pickle.loads(pickle.dumps(net))[0]._forward_hooks
    assert all("__getstate__" not in vars(module) for module in net.modules())


def print_nothing(module, args, output):
    """A hook of the user's own, which copies keep."""


class Closed(nn.Linear):
    """Has a way of its own to be pickled."""

    def __reduce__(self):
        return _opened, (self.__dict__,)


def _opened(state):
    module = Closed.__new__(Closed)
    module.__dict__.update(state)
    return module


def test_modules_with_a_way_of_their_own_to_be_copied_take_hooks_that_do_nothing():
    net = Closed(8, CLASSES)
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        pickled = pickle.dumps(net)
        assert b"analysis" not in pickled
        for other in (copy.deepcopy(net), pickle.loads(pickled)):
            other(torch.randn(5, 8)).sum().backward()
        assert held_of(observer) == 0
        assert observer.step == 0


def fake(net):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        net(mode.from_tensor(torch.randn(5, 8)))


def dual(net):
    with forward_ad.dual_level():
        net[3](net[0](forward_ad.make_dual(torch.randn(5, 8), torch.randn(5, 8))))


def inference(net):
    with torch.inference_mode():
        net(torch.randn(5, 8))


ELSEWHERE = {
    "deepcopy": copy.deepcopy,
    "export": lambda net: torch.export.export(net, (torch.randn(5, 8),)),
    "strict export": lambda net: torch.export.export(net, (torch.randn(5, 8),), strict=True),
    "fx": torch.fx.symbolic_trace,
    "trace": lambda net: torch.jit.trace(net, torch.randn(5, 8), check_trace=False),
    "script of a copy": lambda net: torch.jit.script(copy.deepcopy(net)),
    "meta": lambda net: copy.deepcopy(net).to("meta")(torch.empty(5, 8, device="meta")),
    "fake": fake,
    "jvp": lambda net: jvp(net[3], (torch.randn(5, 8),), (torch.randn(5, 8),)),
    "vmap": lambda net: vmap(net[3])(torch.randn(5, 8)),
    "dual numbers": dual,
    "inference mode": inference,
    "compiled": lambda net: torch.compile(copy.deepcopy(net), backend="eager")(torch.ones(5, 8)),
}


@pytest.mark.parametrize("what", ELSEWHERE)
@pytest.mark.parametrize("known", [True, False])
def test_what_else_is_done_with_a_net_is_no_step(what, known):
    if what == "strict export" and torch.__version__ < (2, 14):
        pytest.skip("torch 2.9 exports no net with hooks strictly")
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer if known else None) as observer:
        slow = Slow(net)
        for step in range(2):
            state = copy.deepcopy(net.state_dict())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is deprecated
                ELSEWHERE[what](net)
            net.load_state_dict(state)
            one = plain_steps(net, optimizer, [step])
            for key, values in one.found.items():
                slow.found.setdefault(key, []).extend(values)
        slow.agrees_with(observer.readings(), () if known else ("update_ratio", "weight_norm"))
        assert observer.step == 2
    torch._dynamo.reset()


def test_a_script_of_a_net_that_is_read_is_refused_by_name():
    net = network()
    with Observer(net, sgd(net.parameters())), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AttributeError, match="while an Observer reads it"):
            torch.jit.script(net)


def test_gradients_by_sample_are_read_without_responses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES))
    optimizer = sgd(net.parameters())
    inputs, targets = torch.randn(16, 8), torch.arange(16) % CLASSES

    def loss(parameters, image, target):
        outputs = functional_call(net, parameters, (image[None],))
        return functional.cross_entropy(outputs, target[None])

    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        for _ in range(2):
            values = {name: p.detach() for name, p in net.named_parameters()}
            each = vmap(grad(loss), (None, 0, 0))(values, inputs, targets)
            for name, parameter in net.named_parameters():
                parameter.grad = each[name].mean(0)
            slow.before()
            optimizer.step()
            slow.after()
        assert observer.step == 2
        with pytest.warns(UserWarning, match=r"forwards under torch\.func are not read") as caught:
            found = observer.readings()
        assert len(caught) == 1
        assert found["1"].response_std is None
        slow.agrees_with(found)
        optimizer.step()
        observer.readings()


def test_other_tensors_that_stand_in_for_parameters_are_not_the_nets():
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        slow = Slow(net)
        with slow.forwards():
            fast = {name: p - 0.1 for name, p in net.named_parameters()}
            inputs = (torch.randn(16, 8),)
            functional.cross_entropy(
                functional_call(net, fast, inputs), torch.arange(16) % CLASSES
            ).backward()
        slow.before()
        optimizer.step()
        slow.after()
        slow.agrees_with(observer.readings())


# Scalers and newborns -----------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("unscaled", [True, False])
def test_steps_that_a_scaler_left_out_are_counted_and_not_read(fused, unscaled):
    net = network()
    optimizer = SGD(net.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, step)).backward()
            if step == 1:
                net[0].weight.grad[0, 0] = torch.inf
            if unscaled:
                scaler.unscale_(optimizer)
            if step != 1:
                slow.before(1.0 if unscaled else scaler.get_scale())
            scaler.step(optimizer)
            if step != 1:
                slow.after()
            elif not fused:
                observer.skip()
            scaler.update()
        assert observer.step == 3
        assert observer.first_broken() is None
        slow.agrees_with(observer.readings())


def test_a_newborns_update_ratio_blames_no_sound_layer():
    torch.manual_seed(0)
    image = (1, 8, 8)
    net = build(seed_of(preset("resnet8", order="pre", image=image), 0.5, 1))
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    inputs, targets = torch.randn(16, *image), torch.arange(16) % 10
    with Observer(net, optimizer, every=2) as observer:
        grown = grow(net, [Insert("stage1.block1", width=8)], optimizer)
        observer.follow(grown)
        ratios = []
        for _ in range(2):
            for _ in range(2):
                grown.optimizer.zero_grad()
                functional.cross_entropy(grown.network(inputs), targets).backward()
                grown.optimizer.step()
            assert observer.first_broken() is None
            state = observer.state_dict()
            again = Observer(grown.network, grown.optimizer)
            again.load_state_dict(state)
            found = observer.readings()
            assert again.readings() == found
            ratios.append(found["stage1.block2.conv2"].update_ratio)
        assert ratios[0] is None
        assert 0 < ratios[1] < 10


def test_a_state_from_before_readings_could_be_undefined_is_loaded():
    net = network()
    optimizer = sgd(net.parameters())
    with Observer(net, optimizer) as observer:
        plain_steps(net, optimizer, range(2))
        state = observer.state_dict()
        state["window"]["totals"] = state["window"]["totals"][0]
        again = Observer(net, optimizer)
        again.load_state_dict(state)
        assert again.readings() == observer.readings()


@pytest.mark.parametrize("momentum", [None, 1e-3, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_responses_of_batchnorms_of_any_momentum(momentum, eps, size):
    net = network()
    net[1] = nn.BatchNorm1d(8, eps=eps, momentum=momentum)
    net[0].weight.data *= size
    optimizer = SGD(net.parameters(), 1e-3)
    with Observer(net, optimizer) as observer:
        slow = plain_steps(net, optimizer, range(3))
        slow.agrees_with(observer.readings())


def test_the_hooks_on_an_optimizer_stay_behind_when_it_grows():
    net = build(preset("resnet8"), seed=0)
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with Observer(net, optimizer) as observer:
        for number in (1, 2):
            net(inputs).square().mean().backward()
            optimizer.step()
            assert len(optimizer._optimizer_step_post_hooks) == 1
            grown = grow(net, Insert("stage1.block1", 2 * number), optimizer)
            net, optimizer = grown.network, grown.optimizer
            assert not optimizer._optimizer_step_post_hooks  # before its first step
            observer.follow(grown)
