"""The probes that a policy names in `needs`, and what they give, are checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import isclass, signature
from math import isfinite
from numbers import Real
from typing import Any

from analysis.observing.reading import STATISTICS
from analysis.recording.probed import holds, probe_name
from policies import Policy
from policies.base import History
from policies.gain import Gain

PROBES = ("importance", "effective_rank", "gradient_signal_to_noise", "gain")
"""The names in a policy's `needs`; beside them stand functions and objects of one's own."""


def check_needs(policy: Policy) -> None:
    """Raise a ValueError if the policy needs something that is no probe."""
    needs: Any = policy.needs
    wrong = "" if isinstance(needs, tuple | list) else f"got {needs!r}"
    names = []
    for probe in needs if not wrong else ():
        wrong = wrong or _wrong_probe(probe)
        names.append(probe_name(probe))
    twice = [name for name in names if names.count(name) > 1]
    if not wrong and twice:
        wrong = f"each under a name of its own, got {twice[0]!r} twice"
    if wrong:
        raise ValueError(
            f"policy {type(policy).__name__} must need probes of {', '.join(PROBES)}, or functions "
            f"of (network, probe batch, loss), {wrong}"
        )


def _wrong_probe(probe: Any) -> str:
    """Say why something is no probe; nothing if it is one."""
    if isinstance(probe, str):
        return "" if probe in PROBES else f"got {probe!r}"
    if isclass(probe):
        return f"got the class {probe.__name__} where an object must stand: {probe.__name__}()"
    if not callable(probe):
        return f"got {probe!r}"
    name = probe_name(probe)  # pyright: ignore[reportArgumentType]
    if not isinstance(name, str) or not name.isidentifier():
        return f"with a name of letters, digits and _, got {name!r}"
    if name in STATISTICS or (name in PROBES and not isinstance(probe, Gain)):
        return f"under names of their own, got one of yours called {name!r}"
    try:
        signature(probe).bind(None, None, None)
    except TypeError as error:
        return f"got {name}, which takes others: {error}"
    except ValueError:  # it does not tell what it takes
        pass
    return ""


def wrong_numbers(found: object, blocks: Collection[str], layers: Collection[str]) -> str:
    """Say why something is no numbers by block or by layer; nothing if it is."""
    if not isinstance(found, Mapping):
        return f"must give a mapping of blocks or layers to numbers, got {_short(found)}"
    for path, value in found.items():
        if path not in blocks and path not in layers:
            known = ", ".join(list(blocks)[:3])
            return f"must give numbers by block ({known}, ...) or by layer, got {_short(path)}"
        number = number_of(value)
        if number is None or not isfinite(number):
            return f"must give finite numbers, got {_short(value)} for {path}"
    return ""


def number_of(value: Any) -> float | None:
    """Give a number, numpy's or a tensor of one entry too, as a float; None if it is none."""
    if isinstance(value, Real) or getattr(value, "shape", None) == ():
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return None


def missing(policy: Policy, history: History) -> str:
    """Say which probe that the policy needs the present record is without; nothing if none."""
    for probe in policy.needs_at(history):
        if not holds(history[-1], probe):
            name, step = probe_name(probe), history[-1].step
            kind = type(policy).__name__
            return f"{kind} needs the probe {name!r}, got a record without it, of step {step}"
    return ""


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:200]
