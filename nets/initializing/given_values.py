"""What an initializer gives is checked, and taken where nothing is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nets.initializing.edit import Edit
from nets.initializing.initializer import Initializer
from nets.plan.layers import LayerSpec, layer_specs


def given_values(initializer: Initializer, edit: Edit) -> dict[str, Tensor]:
    """Ask an initializer for values, and give them as the network will hold them.

    Raises:
        ValueError: it failed, or gave something else than finite values of the right shapes.
    """
    who = f"initializer {edit.initializer}"
    given = asked(who, initializer.new_values, edit)
    if not isinstance(given, Mapping):
        raise ValueError(f"{who} must give a mapping of values by entry, got {given!r}"[:200])
    if not given:
        return {}
    layers = {
        f"{spec.name}.{leaf}": (spec, leaf)
        for spec in layer_specs(edit.after)
        for leaf in spec.entries
    }
    held = {spec.name: spec for spec in layer_specs(edit.before)}
    taken = {}
    for name, value in given.items():
        if name not in layers:
            raise ValueError(
                f"{who} must give values for entries after the action, as {next(iter(layers))}, "
                f"got {name!r}"
            )
        like = edit.new[name]
        if not isinstance(value, Tensor) or value.shape != like.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            shape = tuple(like.shape)
            raise ValueError(f"{who} must give a tensor of shape {shape} for {name}, got {got}")
        taken[name] = value.detach().to(like, copy=True)
        spec, leaf = layers[name]
        if spec.name in held:
            _hold(taken[name], edit.old[name], held[spec.name], leaf)
    _check_finite(who, taken)
    return taken


def asked(who: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what a user may have written; a failure that says nothing of itself is put into words.

    Raises:
        ValueError: it failed.
    """
    try:
        with torch.no_grad():
            return function(*arguments)
    except ValueError:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{who} failed: {told}") from error


def _hold(value: Tensor, old: Tensor, spec: LayerSpec, leaf: str) -> None:
    """Put back what is frozen."""
    if leaf != "weight" or spec.kind == "norm":
        value[: spec.held_channels] = old[: spec.held_channels]
        return
    start = 0
    for rows, columns in spec.held:
        band = slice(start, start + rows), slice(columns)
        value[band] = old[band]
        start += rows


def _check_finite(who: str, values: Mapping[str, Tensor]) -> None:
    if not values:
        return
    sound = torch.stack([value.isfinite().all() for value in values.values()])
    for name, good in zip(values, sound.tolist()):
        if not good:
            raise ValueError(f"{who} must give finite values for {name}, got NaN or infinite ones")
