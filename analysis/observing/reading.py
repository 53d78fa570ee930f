"""What was read of a layer over a window of steps: plain data, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("inner", "branch", "stream", "stem", "head")
STATISTICS = (
    "response_mean",
    "response_std",
    "gradient_norm",
    "weight_norm",
    "update_ratio",
    "dead_fraction",
    "residual_ratio",
)
"""The numbers of a LayerReading, as `statistic` arguments name them."""


class ReadOnly(dict[str, Any]):
    """A mapping that nobody changes: a policy is shown the records that the run keeps."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("a record cannot be changed")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> Any:
        return ReadOnly, (dict(self),)


@dataclass(frozen=True)
class LayerReading:
    """What was read of one layer: means over a window's sampled steps, None where not applicable.

    A layer is the module at a path. The reading of a normalisation covers the convolution or
    linear layer whose very output it takes, if that feeds nothing but this normalisation: the
    response is what comes after both, before an activation that the normalisation carries; the
    parameters are theirs. In a network that is not ours the forward passes show it (what else takes
    the output, the autograd graph, once a gradient reaches it), and each module that holds
    parameters of its own is a layer: attention with its projections, a parametrized layer with its
    parametrization, a module with its lists of parameters, the network itself ("") with what it
    holds directly. A parameter that two modules share is read in both. Of an output
    of several parts the first is the response.
    Statistics of the forward pass are of training forwards, the mean of all calls in these steps;
    numbers without a unit are ratios.

    Args:
        block: the block that holds the layer, None outside of blocks.
        role: "inner" (between the layers of a block: what Widen adds to), "branch" (the end of a
            block's branch), "stream" (a block's output, or its shortcut), "stem" or "head"; in a
            network that is not ours always "inner".
        response_mean: mean of the output, over batch, channels and positions; in its units.
        response_std: standard deviation of the output over all of them, in its units (He et al.
            2015, arXiv 1512.03385, figure 7: after BatchNorm, before the non-linearity; a block's
            own output is after it). A BatchNorm's is sqrt(mean(weight^2) + var(bias)). Squares are
            of float32: below 1e-17 it may be too small, above 1e17 infinite.
        gradient_norm: root mean square of the gradient's entries, ||g|| / sqrt(size), so that large
            layers compare with small ones; in units of loss per weight, as the optimizer sees it:
            unscaled, after clipping.
        weight_norm: L2 norm of the parameters with a gradient, before the step. In front of a
            BatchNorm it sets the effective learning rate, rate / norm^2 (van Laarhoven 2017, arXiv
            1706.05350, section 3).
        update_ratio: L2 norm of the step over that of the parameters, weight decay and momentum
            included; None without an optimizer that updates them, and of steps from weights that
            are all 0 or that a GradScaler left out. LARS holds it equal over layers (You et al.
            2017, arXiv 1708.03888).
        dead_fraction: share of channels in [0, 1] whose relu gives 0 for the whole batch (Lu et al.
            2019, arXiv 1903.06733); None where no relu follows. In a network that is not ours it
            must take the response itself, each time; None also where a relu works in place on a
            view, until a gradient first reaches the response (not in frozen layers at the net's
            entrance), and of the last layer of a part that the network's graph does not hold: one
            that is called by itself, detached, or checkpointed with use_reentrant=True.
        residual_ratio: std(F(x)) / std(x), a block's branch, before any is dropped, against the
            shortcut it is added to (De and Smith 2020, arXiv 2002.10444, section 3: in deep nets
            with BatchNorm it falls with depth); None in a network that is not ours.
        edited: step of the last edit of the block, None if it is as it was at the start.
        extra: statistics of one's own, see Observer.
    """

    block: str | None
    role: str
    response_mean: float | None = None
    response_std: float | None = None
    gradient_norm: float | None = None
    weight_norm: float | None = None
    update_ratio: float | None = None
    dead_fraction: float | None = None
    residual_ratio: float | None = None
    edited: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", ReadOnly(self.extra))

    def value(self, statistic: str) -> float | None:
        """Give a statistic by name, from the fields or from `extra`; None where it is missing."""
        if statistic in STATISTICS:
            return getattr(self, statistic)
        return self.extra.get(statistic)


def tag_of(statistic: str, path: str) -> str:
    """Give the tag of a layer's number: stage1.response_std/block1.bn1, or head/response_std.

    TensorBoard groups by what stands before the slash: so a group is one statistic in one stage,
    and stands behind the losses and accuracies. A net that is one layer, whose path is empty, is
    called network.
    """
    stage, _, rest = (path or "network").partition(".")
    return f"{stage}.{statistic}/{rest}" if rest else f"{stage}/{statistic}"


def pattern_of(statistic: str) -> str:
    """Give the regular expression of every tag of a statistic."""
    return rf"[^/]+(\.{statistic}/.+|/{statistic}$)"
