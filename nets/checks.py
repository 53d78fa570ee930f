"""Checks of what users give, each a ValueError that names the argument, the range and the value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

_KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "text"),
    "int": (int, "an integer"),
    "float": (int | float, "a number"),
    "bool": (bool, "true or false"),
}
"""By how a field is annotated: what it may hold, and that in words."""


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the known values unless `value` is one of them."""
    if value not in known:
        words = f"{', '.join(known)}; got {value!r}{meant(value, known)}"
        raise ValueError(f"{name} must be one of {words}")


def meant(value: object, known: Iterable[str], as_given: str = "{!r}") -> str:
    """Give " (did you mean 'x'?)" for the known word nearest to `value`, or nothing.

    Case and punctuation do not count: `CIFAR-10` is `cifar10`. `as_given` formats the word.
    """
    words = {plain_word(word): word for word in reversed(list(known))}
    word = plain_word(str(value))
    longer = [other for other in words if len(word) > 2 and other.startswith(word)]
    found = get_close_matches(word, words, n=1) or longer
    return f" (did you mean {as_given.format(words[found[0]])}?)" if word and found else ""


def plain_word(word: str) -> str:
    """Give a word without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise a ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_fraction(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is a number above 0 and at most 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")


def check_kinds(settings: Any) -> None:
    """Raise a ValueError unless a dataclass holds text, numbers and flags where it says so."""
    for item in fields(settings):
        kinds, value = str(item.type).split(" | "), getattr(settings, item.name)
        if kinds[0] not in _KINDS or (value is None and "None" in kinds):
            continue
        if not any(_is_a(value, kind) for kind in kinds):
            raise ValueError(f"{item.name} must be {_KINDS[kinds[0]][1]}, got {value!r}")


def _is_a(value: object, kind: str) -> bool:
    allowed, _ = _KINDS.get(kind, ((), ""))
    return isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))


def in_one_line(value: object, most: int) -> str:
    """Give a value as one line that any file and terminal can hold, of at most `most` characters.

    What cannot be shown, such as a control character or half of a surrogate pair, is escaped.
    """
    line = " ".join(str(value).split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."
