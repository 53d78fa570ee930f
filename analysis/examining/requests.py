"""What can be asked of an Observer by name, and under which names the numbers are found."""

from __future__ import annotations

from collections.abc import Sequence

from nets.checks import meant

ALSO: dict[str, tuple[str, ...]] = {
    "max_abs": ("max_abs",),
    "kurtosis": ("kurtosis",),
    "activation_gradient": ("activation_gradient_std", "activation_gradient_norm"),
    "gradient_histogram": (),
    "update_histogram": (),
    "gradient_norm_before_clipping": (),
}
"""By what is asked for, its statistics in `LayerReading.extra`; the others are no single numbers
of a layer."""
HISTOGRAMS = ("gradient_histogram", "update_histogram")


def checked(also: Sequence[str] | str) -> tuple[str, ...]:
    """Give what was asked for, in the order of ALSO; a ValueError names what is not known."""
    asked = (also,) if isinstance(also, str) else tuple(also)
    for name in asked:
        if name not in ALSO:
            known = ", ".join(ALSO)
            raise ValueError(f"also must be of {known}; got {name!r}{meant(name, ALSO)}")
    return tuple(name for name in ALSO if name in asked)


def statistics_asked(also: Sequence[str]) -> tuple[str, ...]:
    """Give the names under which the numbers asked for are found."""
    return tuple(name for one in also for name in ALSO[one])
