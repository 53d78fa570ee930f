"""Of which layers an Observer reads: names, patterns, or a function that says yes or no."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from nets.checks import meant

LayerChoice = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""None is all of them; a pattern is one of `fnmatch`: "stage1.*", "*.bn[12]"."""
_SIGNS = "*?["


def as_predicate(layers: LayerChoice) -> Callable[[str, nn.Module], bool] | None:
    """Give the function of a layer's name and module that says whether it is read; None for all."""
    if layers is None or callable(layers):
        return layers
    patterns = _patterns(layers)
    return lambda name, module: any(_matches(name, pattern) for pattern in patterns)


def check_choice_of_layers(layers: LayerChoice, modules: Mapping[str, nn.Module]) -> LayerChoice:
    """Give the choice, an iterable of names as a tuple.

    Args:
        layers: as `Observer` takes it.
        modules: of the layers there are, by name.

    Raises:
        ValueError: a name or pattern that no layer has, or a choice that leaves none.
    """
    if layers is None:
        return None
    if callable(layers):
        if not any(layers(name, module) for name, module in modules.items()):
            raise ValueError(f"layers must choose at least one of {len(modules)} layers, got none")
        return layers
    patterns = _patterns(layers)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in modules):
            kind = "a pattern of" if _is_pattern(pattern) else "one of"
            known = _some(list(modules))
            near = "" if _is_pattern(pattern) else meant(pattern, modules)
            raise ValueError(f"layers must be {kind} {known}; got {pattern!r}{near}")
    if not patterns:
        raise ValueError("layers must name at least one layer, got none")
    return patterns


def _patterns(layers: str | Iterable[str]) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in _SIGNS)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or (_is_pattern(pattern) and fnmatchcase(name, pattern))


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
