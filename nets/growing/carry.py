"""How values move to an edited network: old entries keep their place, new ones follow one rule.

The rule, entry by entry, that keeps outputs exactly: new output rows are drawn fresh, new input
columns of old rows are zero, new BatchNorm channels are the identity. A newborn residual block ends
in a zero (the last BatchNorm's weight in post-activation order, the last layer in pre-activation
order); a newborn plain layer is the identity. All of this is about joined entries
(nets.modules.held), on a network with nothing held fixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nets.growing.initializers import Initializer, he
from nets.modules.draws import generator_of
from nets.modules.layers import axes_of
from nets.modules.network import Network, PlainBlock, ResidualBlock

Sources = dict[str, tuple[Tensor, ...]]
"""By entry, for its rows and columns: where each came from, (size,) int64; -1 is new."""
Values = dict[str, Tensor]


def fresh_values(network: Network, seed: int, draw: Initializer = he) -> Values:
    """Give new values for every entry of `network`, which may be on the meta device."""
    with torch.device("cpu"):  # the generators', whatever the default device is
        values = {
            name: _fresh(name, empty, 0, draw, seed) for name, empty in network.state_dict().items()
        }
    device = torch.get_default_device()
    return {name: value.to(device) for name, value in values.items()}


def sources_of(old: Mapping[str, Tensor], network: Network, kept: Mapping[str, Tensor]) -> Sources:
    """Say where the rows and columns of every entry of `network` come from.

    Args:
        old: the values before the edit.
        network: the network after the edit; only its shapes are used.
        kept: by axis that lost channels, the old positions of those left, in order.
    """
    axes, sources = axes_of(network), {}
    for name, empty in network.state_dict().items():
        before = old[name].shape if name in old else torch.Size([0] * empty.dim())
        places = []
        for dimension, size in enumerate(empty.shape[:2]):
            axis = axes.get(name, ())[dimension : dimension + 1]
            if axis and axis[0] in kept and name in old:
                places.append(kept[axis[0]])
                continue
            place = torch.arange(size, device="cpu")
            place[before[dimension] :] = -1
            places.append(place)
        sources[name] = tuple(places)
    return sources


def chain(earlier: Sources, later: Sources) -> Sources:
    """Chain two edits: where entries come from across both."""
    chained = {}
    for name, places in later.items():
        before = earlier.get(name)
        chained[name] = tuple(
            torch.full_like(place, -1)
            if before is None
            else torch.where(place >= 0, before[dimension][place.clamp_min(0)], -1)
            for dimension, place in enumerate(places)
        )
    return chained


def is_same(value: Tensor, places: tuple[Tensor, ...], shape: torch.Size) -> bool:
    """Say whether an entry goes on unchanged."""
    return value.shape == shape and all(
        torch.equal(place, torch.arange(len(place), device="cpu")) for place in places
    )


def carry_values(
    old: Mapping[str, Tensor],
    network: Network,
    sources: Sources,
    *,
    born: frozenset[str],
    draw: Initializer,
    seed: int,
    silent: bool = True,
) -> Values:
    """Give values for every entry of `network` (which may be on the meta device).

    Args:
        old: the values before the edit.
        network: the network after the edit; only its shapes are used.
        sources: where its entries come from.
        born: names of the blocks that this growth has added so far.
        draw: initializer of new weights.
        seed: with the entry's name and the first new row it determines the new values.
        silent: whether old rows get zeros in their new columns, which keeps outputs.
    """
    zero = {name for block in born for name in _silent(network, block)}
    asleep = tuple(f"{name.rsplit('.', 2)[0]}." for name in zero)
    identity = {
        f"{block}.linear.weight"
        for block in born
        if isinstance(network.get_submodule(block), PlainBlock)
    }
    values = {}
    for name, empty in network.state_dict().items():
        kept, places = old.get(name), sources[name]
        if kept is not None and is_same(kept, places, empty.shape):
            values[name] = kept.clone()
            continue
        start = 0 if kept is None else kept.shape[0]
        with torch.device("cpu"):  # the generators', whatever the default device is
            value = _fresh(name, empty, start, draw, seed)
        if name in zero:
            value.zero_()
        if name in identity and kept is None:
            square = slice(value.shape[1])
            value[square, square] = torch.eye(value.shape[1], device=value.device)
        like = _sibling(old, empty) if kept is None else kept
        value = value.to(like.device, like.dtype if value.is_floating_point() else None)
        if kept is not None:
            # a residual block born in this growth ends in a zero; a second keeps it asleep longer
            if silent and kept.dim() > 1 and not name.startswith(asleep):
                value[old_positions(places[0]).to(value.device)] = 0
            place_old(value, kept, places)
        values[name] = value
    return values


def old_positions(place: Tensor) -> Tensor:
    """Give the positions whose rows (or columns) are not new."""
    return torch.nonzero(place >= 0).flatten()


def place_old(value: Tensor, old: Tensor, places: tuple[Tensor, ...]) -> None:
    """Write the old rows and columns of an entry where they now stand."""
    to = [old_positions(place) for place in places]
    of = [place[where] for place, where in zip(places, to)]
    to, of = ([index.to(value.device) for index in indices] for indices in (to, of))
    if len(places) == 1:
        value[to[0]] = old[of[0]]
    else:
        value[to[0][:, None], to[1]] = old[of[0][:, None], of[1]]


def _sibling(old: Mapping[str, Tensor], empty: Tensor) -> Tensor:
    """Give an old entry whose device and dtype a new one takes: a weight, or one of BatchNorm."""
    floating = [value for value in old.values() if value.is_floating_point()]
    alike = [value for value in floating if (value.dim() > 1) == (empty.dim() > 1)]
    return [*alike, *floating][0]


def _silent(network: Network, block: str) -> list[str]:
    """Name the entries that are zero in a newborn block, so that its branch starts at exactly 0."""
    module = network.get_submodule(block)
    if not isinstance(module, ResidualBlock):
        return []
    return [f"{block}.{module.norms[-1] if module.post else module.layers[-1]}.weight"]


def _fresh(name: str, empty: Tensor, start: int, draw: Initializer, seed: int) -> Tensor:
    shape, leaf = tuple(empty.shape), name.rsplit(".", 1)[-1]
    if leaf == "weight" and len(shape) > 1:
        value = draw(shape, generator_of(seed, name, start))
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"initializer must give a tensor of shape {shape} for {name}, got {got}"
            )
        return value.detach().to(torch.get_default_dtype(), copy=True)
    if not empty.is_floating_point():
        return torch.zeros(shape, dtype=empty.dtype)
    return torch.ones(shape) if leaf in ("weight", "running_var") else torch.zeros(shape)
