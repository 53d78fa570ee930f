"""Learning rates by cohort: what was born at one growth has a rate of its own, by its norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nets.growing.grow import Grown
from nets.modules.frozen_parts import Piece, split_entries
from nets.modules.network import Network
from nets.plan.layers import shapes_of


class CohortRates:
    """Lets the entries of parameters that were born at one growth share a learning rate.

    That of cohort c is the optimizer's times |W_c| / |W_0| (Yuan et al. 2023, arXiv 2306.12700, the
    rate adaptation, as growing_wiki gives it): the Frobenius norms of the cohort's weights in the
    whole network and of the first cohort's, those that it began with. Decided here: the norms are
    those at every step; there is one ratio for a cohort, not one for each layer, since a newborn
    block has no entry of the first; weights that are frozen count; entries of BatchNorm and biases
    do not, and follow the rate of their cohort; nothing bounds the ratio; it is 1 where a norm is
    0; if the first cohort was removed, the oldest left is the first. In the paper all layers grow
    at once: a growth of one block has few entries, a small norm, and hence a small rate.

    After each step every entry is moved to before + ratio * (after - before). That is what the
    optimizer would do with that learning rate, weight decay included, to the rounding of a weight:
    in SGD, Adam, AdamW and RMSprop an update is proportional to it. The first cohort's updates stay
    as they are, bit for bit. All is done on the device, in hooks of the optimizer, so that an
    Observer reads the updates that are made. Until something is born nothing is done.

        rates = CohortRates(net, optimizer)     # the network is on its device
        ...                                     # training steps
        grown = grow(net, actions, optimizer)
        rates.follow(grown)                     # before an Observer's first step with it

    Args:
        net: a network from `build` or `grow`; all that it has is the first cohort.
        optimizer: one whose updates are proportional to its learning rate.
    """

    stays_behind = True  # growing does not take the hooks along: `follow` does

    def __init__(self, net: Network, optimizer: torch.optim.Optimizer) -> None:
        self._net, self._optimizer = net, optimizer
        self._births: dict[str, tuple[Tensor, ...]] = {}
        """By entry, for rows and columns: their growth, (size,) int64 from 1; 0 where none is."""
        self._handles: list[RemovableHandle] = []
        self._back: list[Tensor] | None = None  # how far a step under way is taken back

    def follow(self, grown: Grown) -> None:
        """Go on with a grown network and optimizer; what is new in it is the next cohort.

        Raises:
            ValueError: it was grown without an optimizer.
        """
        if not isinstance(grown, Grown) or grown.optimizer is None:
            got = "none" if isinstance(grown, Grown) else f"a {type(grown).__name__}"
            raise ValueError(f"grown must come from grow with an optimizer, got {got}")
        known = self._births
        number = 1 + max((int(born.max()) for axes in known.values() for born in axes), default=0)
        self._births = {}
        for name in shapes_of(grown.network.architecture):
            old, sources = known.get(name, ()), grown.sources.get(name)
            axes = old if sources is None else _carried(old, sources, number)
            if any(born.any() for born in axes):
                self._births[name] = axes
        self._net, self._optimizer = grown.network, grown.optimizer
        self._listen()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Give which entries were born when, as data of the CPU."""
        return {name: list(axes) for name, axes in self._births.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Put back what `state_dict` gave for the same network.

        Raises:
            KeyError, RuntimeError: it is another network's.
        """
        shapes = shapes_of(self._net.architecture)
        for name, axes in state.items():
            _entry_births(axes, shapes[name])
        self._births = {name: tuple(axes) for name, axes in state.items()}
        self._listen()

    @torch.no_grad()
    def ratios(self) -> Tensor:
        """Give the ratio of each cohort that has weights, from the oldest, (cohorts,)."""
        if not self._births:
            return torch.ones(1, device=self._net.draw.device)
        every = torch.cat([_kernel_norms(weight).flatten() for weight in self._weights])
        parts = every.index_select(0, self._order).split(self._sizes)
        by_cohort = torch.stack(torch._foreach_norm(parts))  # adds in one order, unlike index_add
        none = (by_cohort == 0) | (by_cohort[0] == 0)
        return (by_cohort / by_cohort[0]).masked_fill(none, 1.0)

    def _listen(self) -> None:
        """Hook the optimizer's steps, if something was born."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._back = [], None
        if self._births:
            self._lay_out()
            self._handles = [
                self._optimizer.register_step_pre_hook(self._before),
                self._optimizer.register_step_post_hook(self._after),
            ]

    def _lay_out(self) -> None:
        """Find the weights that count, the parameters that get other rates, and their cohorts."""
        tensors, split = self._net.state_dict(keep_vars=True), split_entries(self._net)
        weights: list[tuple[Tensor, Tensor]] = []
        moved: list[tuple[Tensor, Tensor]] = []
        for name, shape in shapes_of(self._net.architecture).items():
            births = _entry_births(self._births.get(name, ()), shape)
            for piece in split.get(name, [Piece(name, (), False)]):
                value, own = tensors[piece.name], births[piece.place or ...]
                weights += [(value, own)] if value.dim() > 1 else []
                moved += [(value, own)] if isinstance(value, nn.Parameter) and own.any() else []
        device = weights[0][0].device
        every = torch.cat([own.flatten() for _, own in weights])
        cohorts, member = every.unique(return_inverse=True)
        self._weights = [value for value, _ in weights]
        self._order, self._sizes = (
            member.argsort(stable=True).to(device),
            member.bincount().tolist(),
        )
        self._moved = [value for value, _ in moved]
        self._kept = [torch.empty_like(value).detach() for value in self._moved]
        self._shapes = [own.shape + (1,) * (value.dim() - own.dim()) for value, own in moved]
        births = torch.cat([own.flatten() for _, own in moved] or [every[:0]])
        places = torch.searchsorted(cohorts, births).clamp_max(len(cohorts) - 1)
        self._places = places.to(device)  # in `cohorts`, of all rows and columns that move

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._moved:
            return
        back = (1 - self.ratios()).index_select(0, self._places)
        parts = back.split([shape.numel() for shape in self._shapes])
        self._back = [p.view(s).to(v.dtype) for p, s, v in zip(parts, self._shapes, self._moved)]
        torch._foreach_copy_(self._kept, self._moved)

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        back, self._back = self._back, None  # a step within a step ends twice
        if back is not None:
            torch._foreach_lerp_(self._moved, self._kept, back)  # exact where it is 0


def _carried(
    births: Sequence[Tensor], sources: Sequence[Tensor], number: int
) -> tuple[Tensor, ...]:
    """Give when the rows and columns of an entry were born, after a growth of that number."""
    olds = [old[index.clamp_min(0)] for old, index in zip(births, sources)]
    olds = olds or [torch.zeros_like(index) for index in sources]
    return tuple(torch.where(index < 0, number, old) for old, index in zip(olds, sources))


def _entry_births(axes: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Say when each row and column of an entry was born, (rows, columns) or (rows,) int64.

    What stands in a new row or in a new column is new: it is of the later growth of the two.
    """
    births = torch.zeros(shape[:2], dtype=torch.int64, device="cpu")
    for dimension, born in enumerate(axes):
        across = [1] * len(births.shape)
        across[dimension] = -1
        births = torch.maximum(births, born.view(across).expand(births.shape))
    return births


def _kernel_norms(weight: Tensor) -> Tensor:
    """Give (rows, columns) whose norm is that of the weight."""
    kernel = tuple(range(2, weight.dim()))
    return torch.linalg.vector_norm(weight, dim=kernel) if kernel else weight
