"""The probe "gain": what growing a block would bring, tried on copies for a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from nets import Action, Architecture, Insert, Widen, cost
from nets.checks import check_choice, check_count, check_fraction
from policies.base import largest_by, largest_width

if TYPE_CHECKING:
    from torch import Tensor

    from nets import Network
    from nets.modules.probe_batch import Loss

CHECKED = 32
"""Images that initializers see."""


@dataclass(frozen=True)
class Gain:
    """By block, how much lower the loss is a few steps after growing there than without growing.

    For every block a copy of the network grows there, for about the same FLOPs everywhere, and is
    trained for some steps of plain SGD on the probe batch; so is one that does not grow. The gain
    is the difference of their losses on that same batch, in train mode, with nothing dropped: how
    fast new entries lower the training loss, by which Firefly chooses (Wu et al. 2020, arXiv
    2102.08574, there to first order). It is not what validation gains, which `run.py branch` asks.
    A policy names it in `needs` as "gain", or as an object for other settings or candidates; a
    class that derives from it may give other actions by `candidate`, under another `name`.

    It costs (blocks + 1) times `steps` training steps on the probe batch (128 images) at every
    record where it is needed, which a short run can hardly pay: see `Policy.needs_at`. New entries
    begin as `grow` makes them with the seed of the network, and nothing else is drawn: the same
    network gives the same gains.

    Args:
        kind: "widen" (the probe is called "gain"), or "insert" a block after it ("insert_gain").
        share: of the network's own FLOPs an image that a candidate may add, in (0, 1]; a widening
            adds a channel at least. Left out are blocks that fade, or behind which nothing fits.
        steps: training steps, at least 1. In the first one only a newborn's outgoing entries move.
        rate: of SGD, greater than 0. No momentum, no weight decay.
        initializer: of the new entries.
    """

    kind: str = "widen"
    share: float = 0.1
    steps: int = 3
    rate: float = 0.1
    initializer: str = "he"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("widen", "insert"))
        check_fraction("share", self.share)
        check_count("steps", self.steps)
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate must be greater than 0 and finite, got {self.rate}")

    @property
    def name(self) -> str:
        """The name under which records hold it."""
        return "gain" if self.kind == "widen" else "insert_gain"

    def candidate(self, architecture: Architecture, block: str) -> Sequence[Action]:
        """Give what is tried at a block; nothing leaves it out."""
        flops = self.share * cost(architecture).flops
        if architecture.blocks[block].fade:
            return ()
        if self.kind == "widen":
            return (Widen(block, max(1, largest_by(architecture, block, flops))),)
        width = largest_width(architecture, block, flops)
        return (Insert(block, width),) if width else ()

    def __call__(self, net: Network, batch: tuple[Tensor, Tensor], loss: Loss) -> dict[str, float]:
        """Give the gains by block; the network stays as it is.

        Raises:
            ValueError: a loss after the steps is not finite.
        """
        blocks = net.architecture.blocks
        tried = {block: self.candidate(net.architecture, block) for block in blocks}
        without = self._loss_after(net, (), batch, loss)
        return {
            block: without - self._loss_after(net, actions, batch, loss)
            for block, actions in tried.items()
            if actions
        }

    def _loss_after(
        self, net: Network, actions: Sequence[Action], batch: tuple[Tensor, Tensor], loss: Loss
    ) -> float:
        """Grow a copy, train it, and give its loss."""
        import torch  # late, as policies load without it

        from nets import grow
        from nets.modules.probe_batch import in_mode, without_hooks

        (inputs, targets), seed = batch, int(net.draw[0])
        seen = inputs[:CHECKED], targets[:CHECKED]
        probe = seen if actions else None  # a copy that does not grow is not compared
        grown = grow(net, actions, initializer=self.initializer, seed=seed, probe=probe, loss=loss)
        net = grown.network
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        with in_mode(net, training=True, survival=1.0), without_hooks(net):
            for _ in range(self.steps if trained else 0):
                with torch.enable_grad():
                    value = loss(net(inputs), targets)
                gradients = torch.autograd.grad(value, trained, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(trained, gradients):
                        if gradient is not None:
                            parameter.sub_(gradient, alpha=self.rate)
            with torch.no_grad():
                found = float(loss(net(inputs), targets))
        if not isfinite(found):
            at = ", ".join(map(str, actions)) or "no growth"
            raise ValueError(
                f"rate must be so small that losses stay finite, got {self.rate} and a loss of "
                f"{found} with {at}"
            )
        return found
