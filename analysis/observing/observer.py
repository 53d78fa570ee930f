"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from analysis.examining.entry_histograms import EntryHistogram
from analysis.examining.layer_choice import LayerChoice, check_choice_of_layers
from analysis.examining.requests import checked, statistics_asked
from analysis.observing.forward_hooks import Extra
from analysis.observing.reading import STATISTICS, LayerReading, tag_of
from analysis.observing.step_reader import StepReader
from analysis.observing.watched_layers import Layer, rows_of, unwrap
from analysis.summing.all_ranks import together
from nets.checks import check_count
from nets.growing.grow import Grown
from nets.modules.network import Network

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_SILENT = (
    "no response of {!r}{} was read: it has gradients, but did not run as a module or gave no "
    "floating-point tensor, so its response_mean and response_std are None"
)
_UNSEEN = (
    "{} training forwards, but no step of the optimizer was seen, so nothing was read; give the "
    "optimizer that updates the network, a torch.optim.Optimizer, or None"
)
_EVALUATING = (
    "no forward but in eval mode in the steps of the optimizer that were to be read, so nothing "
    "was read; call the network's train() before them (modules inside it may stay in eval mode)"
)
_OUTSIDE = (
    "nothing is read outside of its block: `with Observer(...) as observer:` around the steps"
)


def _changes(net: nn.Module) -> int:
    """Give how often parameters were written to, which training does."""
    made = [each for each in net.parameters() if not is_lazy(each)]
    return sum(each._version for each in made if not each.is_inference())


class Observer(StepReader):
    """Reads the layers of any `torch.nn.Module` while it trains inside a `with` block.

    Nothing is read back from the device before `readings()`, which makes one copy. Forwards in eval
    mode or without gradients are ignored. Steps that are not read run without hooks on the layers,
    and nothing is left on the module at the end. `LayerReading` defines the statistics.

        with Observer(net, optimizer, every=10) as observer:
            ...  # training steps
            readings = observer.readings()
            grown = grow(net, actions, optimizer)
            observer.follow(grown)

    A BatchNorm's response is told by what it keeps for the backward pass, whatever its momentum: to
    1e-5 unless its inputs' variance is below eps / 100, and in half precision as it was before
    rounding (see `analysis/measuring/batchnorm_std.py`).

    Modules and parameters may be replaced: a layer that stays goes on with its window, a new one
    begins. Copies and pickles of the net have nothing of the observer. Forwards under torch.func,
    in forward-mode differentiation, of fake tensors and of DataParallel's replicas are not read.
    What is None for such a reason a UserWarning of `readings` tells, once.

    `layers` lists what is read. In a network that is not ours it is revised when a forward that is
    read shows which norm takes which layer's output.

    A net under `torch.compile` runs uncompiled in the steps that are read (and only in these: take
    `every=10` or more). Layers have the names that they have inside the wrapper.

    Around DistributedDataParallel `readings` are of all processes: their sums are added by one
    reduction, in which all of them must take part, and give every process what one process would
    read that takes their batches one after the other in each step: the mean of the processes' stds,
    say. Gradients of parameters are reduced already, and the same everywhere; those that arrive at
    outputs are of each process's own loss.

    Args:
        net: our network, or any module; a module's path is the name of its reading.
        optimizer: its steps are the steps that count, gradients are read as it sees them (after
            clipping and unscaling; of a closure's those of the first call) and update ratios
            become available. Steps of one made anew, over parameters of its own, count too; steps
            over others are read with the step they belong to. Without it every training forward
            counts as a step, and gradients are read as the backward pass leaves them.
        every: read every so many steps, the first step of every window among them.
        step: steps already taken, for a resumed run.
        edited: step of the last edit by block, for a resumed run.
        extra: statistics of one's own, by name: functions that take a layer's output (detached, not
            to be changed) and give a 0-d tensor on its device, without `.item()`. Their means over
            the window are in `LayerReading.extra`:

                Observer(net, optimizer, extra={"largest": lambda output: output.abs().amax()})

        layers: which layers are read: a name, or names, as `readings` has them; patterns
            ("stage1.*", as of `fnmatch`), which newborn layers meet too; or a function of name and
            module that says yes or no. All of them by default. The gradient norm of the whole
            network stays that of all its parameters.
        also: what else is read, by name (docs/benchmarks.md says what each costs):
            "max_abs": the largest absolute response, over the whole window: `extra["max_abs"]`.
            "kurtosis": that of the responses, 3 for normal ones, in `extra`; None where they do not
            vary.
            "activation_gradient": std over entries and L2 norm of the gradients that arrive at a
            layer's output, `extra["activation_gradient_std"]` and `["activation_gradient_norm"]`,
            in units of loss per response; a GradScaler's scale is taken out. Every backward pass
            through an output counts for itself, those of `torch.autograd.grad` too: their mean.
            "gradient_histogram", "update_histogram": of the entries of a layer's gradients, as the
            optimizer sees them, and of its steps; see `histograms`.
            "gradient_norm_before_clipping": see the property.
        from_step, to_step: only the steps that lead from the one count of steps to the other are
            read; the first of them is. To look closely at what came before a spike, load a
            checkpoint from before it and read every step from there on: `run.py inspect --after`.
        all_ranks: whether `readings` are of all processes; by default if the net is wrapped in
            DistributedDataParallel.

    Raises:
        ValueError: `net` is no module, `every` below 1 or `step` below 0, a name in `extra` that is
            taken or has no function, `layers` or `also` that are not known, `to_step` not above
            `from_step`, or a net compiled in place (`net.compile()`) without an optimizer.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 1,
        *,
        step: int = 0,
        edited: dict[str, int] | None = None,
        extra: Mapping[str, Extra] | None = None,
        layers: LayerChoice = None,
        also: Sequence[str] | str = (),
        from_step: int = 0,
        to_step: int | None = None,
        all_ranks: bool | None = None,
    ) -> None:
        check_count("every", every)
        check_count("step", step, 0)
        check_count("from_step", from_step, 0)
        if to_step is not None:
            check_count("to_step", to_step, from_step + 1)
        also = checked(also)
        if any(not callable(function) for function in dict(extra or {}).values()):
            raise ValueError(f"extra must give a function for each name, got {extra!r}")
        names = (*STATISTICS, *statistics_asked(also))
        taken = set(extra or {}).intersection(names)
        if taken:
            raise ValueError(f"extra must not be named {', '.join(names)}, got {min(taken)!r}")
        inner = unwrap(net)
        modules = {row.path: inner.get_submodule(row.path) for row in rows_of(inner)}
        choice = check_choice_of_layers(layers, modules)
        super().__init__(every, step, extra or {}, also, choice, (from_step, to_step))
        self.edited = dict(edited or {})
        wrapped = isinstance(net, DistributedDataParallel)
        self.all_ranks = wrapped if all_ranks is None else all_ranks
        self._unentered: int | None = _changes(inner)  # until the block begins
        self._last: dict[str, LayerReading] = {}
        self._logged: dict[str, LayerReading] | None = None  # those that `log` wrote last
        self._last_norms: tuple[float | None, float | None] = None, None
        self._last_histograms: dict[str, dict[str, EntryHistogram]] = {}
        self._aim(net, optimizer)

    @property
    def layers(self) -> list[Layer]:
        """What is read, in the order of definition."""
        return self._watched.layers

    def __enter__(self) -> Observer:
        self._unentered = None
        self._attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_step_without_optimizer()
        self._close()
        self._detach()

    def follow(
        self, grown: Grown | nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Go on with the network that replaces the one watched; what was not yet read is dropped.

        Args:
            grown: what `grow` gave (network and optimizer are taken from it), or a module.
            optimizer: with a module: its optimizer.
        """
        self._end_step_without_optimizer()
        attached = self._attached
        self._detach()
        if isinstance(grown, Grown):
            grown, optimizer = grown.network, grown.optimizer
        old, new = self._watched.net, unwrap(grown)
        if isinstance(old, Network) and isinstance(new, Network):
            before, now = old.architecture.widths, new.architecture.widths
            self.edited.update({n: self.step for n, w in now.items() if before.get(n) != w})
        self._aim(grown, optimizer)
        if self._unentered is not None:
            self._unentered = _changes(new)
        self._last, self._last_norms, self._last_histograms = {}, (None, None), {}
        if attached:
            self._attach()

    def readings(self) -> dict[str, LayerReading]:
        """Give what was read since the last call, by module path, and begin a new window.

        If nothing was read since then, give the same readings again. What could not be read is
        None, and a UserWarning says why, once. With `all_ranks` every process must call it.
        """
        if self._unentered not in (None, _changes(self._watched.net)) and not self._last:
            self._doubt("outside", _OUTSIDE)
        self._end_step_without_optimizer()
        self._close()
        if self.all_ranks and together():
            self._watched.window.take_in_all_ranks(next(self.net.parameters()).device)
        self._doubt_eval_mode()
        if self._watched.window or not self._last:
            self._last = self._watched.window.readings(self.edited)
            self._last_norms = self._watched.window.norms()
            self._last_histograms = self._watched.window.histograms()
            self._doubt_silent_layers()
            self._watched.window.begin()
        if self._forwards > 1 and self.step == self._window_start:
            self._doubt("unseen", _UNSEEN.format(self._forwards))
        self._window_start = self.step
        self._prepare()
        for kind, text in self._doubts.items():
            self._doubts[kind] = ""
            if text:
                warnings.warn(text, stacklevel=2)
        return self._last

    @property
    def gradient_norm(self) -> float | None:
        """L2 norm of all gradients together, as the optimizer saw them: after clipping.

        The mean over the steps of the last `readings`; of all parameters, those of no layer too.
        None without an optimizer.
        """
        return self._last_norms[0]

    @property
    def gradient_norm_before_clipping(self) -> float | None:
        """The same as the last backward pass before the update left them, a GradScaler's scale out.

        It is what `clip_grad_norm_` gives back: after the accumulation of parts, and the reduction
        of DistributedDataParallel. Read where it was asked for by `also`, and without an optimizer;
        else None, and where an update took a gradient that was not there when a pass had ended.
        """
        return self._last_norms[1]

    def histograms(self) -> dict[str, dict[str, EntryHistogram]]:
        """Give the histograms that were asked for, of the last `readings`, by name and by layer.

        Buckets are powers of two, the same for all layers; counts are means over the steps in which
        the layer had a gradient.
        """
        return self._last_histograms

    def log(self, writer: SummaryWriter, step: int | None = None) -> dict[str, LayerReading]:
        """Write what was read since the last call to TensorBoard, and begin a new window.

        Nothing is written if nothing was read since `log` last wrote (after `to_step`, say).
        Every number of a layer has the tag that `run.py train` gives it, which `tag_of` defines;
        the network's gradient norm is gradient_norm/after_clipping and /before_clipping. Histograms
        that were asked for are written too. `analysis.log_record` writes records and decisions.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or what has its methods.
            step: at which it is shown; by default the steps taken so far.

        Returns:
            What `readings` gives.
        """
        readings, step = self.readings(), self.step if step is None else step
        if readings is self._logged:
            return readings
        self._logged = readings
        for path, reading in readings.items():
            for name in (*STATISTICS, *reading.extra):
                value = reading.value(name)
                if value is not None:
                    writer.add_scalar(tag_of(name, path), value, step)
        for name, norm in zip(("after_clipping", "before_clipping"), self._last_norms):
            if norm is not None:
                writer.add_scalar(f"gradient_norm/{name}", norm, step)
        for name, found in self._last_histograms.items():
            for path, counted in found.items():
                writer.add_histogram_raw(tag_of(name, path), **counted.raw(), global_step=step)
        return readings

    def skip(self) -> None:
        """Count a step whose update was left out; what was read of it is dropped.

        For loops that leave an update out by themselves, and for a GradScaler that did (its
        optimizer's step is then not called, unless it is a fused one).
        """
        self._close()
        self._watched.hooks.take()
        self._begin_step()

    def first_broken(self) -> tuple[str, str, int] | None:
        """Say which statistic of this window was NaN or infinite first; None if all are finite.

        Gives the layer's path, the statistic, and how many more layers broke in the same reading.
        Of these it is the first whose response broke, if any did: what comes after follows from it.
        """
        self._close()
        return self._watched.window.first_broken()

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed observer of the same network needs to go on exactly."""
        self._close()
        window = {"start": self._window_start, **self._watched.window.state()}
        last = {path: {**asdict(r), "extra": dict(r.extra)} for path, r in self._last.items()}
        found = {"step": self.step, "edited": dict(self.edited), "window": window, "last": last}
        found["norms"] = self._last_norms
        return {**found, "pairs": dict(self._watched.hooks.pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        window, rows, names = state["window"], self._watched.rows, self._watched.statistics
        size = len(rows) * len(names)
        if len(window["counts"]) != size:
            raise ValueError(
                f"state must hold {size} counts, a layer's {len(names)} statistics for each "
                f"of {len(rows)} layers, got {len(window['counts'])}"
            )
        self._watched.hooks.take()  # what was read before is not of this window
        if state.get("pairs"):
            self._watched.hooks.listen(False)
            self._survey(state["pairs"])
        self._late = None
        self._watched.window.load(window, next(self.net.parameters()).device)
        self._window_start, self.edited = window["start"], dict(state["edited"])
        self._last = {path: LayerReading(**values) for path, values in state["last"].items()}
        self._last_norms, self._last_histograms = state.get("norms", (None, None)), {}
        if self._unentered is not None:
            self._unentered = _changes(self._watched.net)  # weights were loaded too
        self._begin_step()
        self.step = state["step"]
        self._prepare()

    def _doubt_eval_mode(self) -> None:
        """Tell of steps that were all made of forwards in eval mode."""
        modes, stepped = self._watched.hooks.modes, self.step > self._window_start
        if stepped and modes == {False} and not self._watched.window:
            self._doubt("eval", _EVALUATING)
        modes.clear()

    def _doubt_silent_layers(self) -> None:
        """Name layers that have gradients and no response, where others have one."""
        read = self._last.items()
        silent = [path for path, one in read if one.gradient_norm and one.response_std is None]
        if len(silent) < sum(one.gradient_norm is not None for _, one in read):
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            if silent:
                self._doubt("silent", _SILENT.format(silent[0] or "the network itself", more))
