"""What a user may have meant: the nearest known option, command or setting, for a refusal."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable

from nets.checks import meant, plain_word

_ELSEWHERE = {
    "learning_rate": "lr",
    "dataset": "data",
    "model": "net",
    "network": "net",
    "arch": "net",
    "output": "out",
    "output_dir": "out",
    "wd": "weight_decay",
    "bs": "batch_size",
    "amp": "precision",
    "n_epochs": "epochs",
    "gpu": "device",
    "num_workers": "workers",
}
"""What other tools call it."""


def nearest_option(name: str, known: Iterable[str], rows: Iterable[str] = ()) -> str:
    """Give " (did you mean --x?)" for an option that nobody knows, or where to find those known.

    Of `policy.patience` the part before the dot is looked up. `rows` are what the rows of a
    comparison have, and the comparison itself has not. A `name` without dashes is a file's.
    """
    options = [option[2:] for option in known if option.startswith("--")]
    head, dot, rest = name.lstrip("-").partition(".")
    if head in rows:
        return f"; {head} belongs to a row: cells of a --config file"
    word = {plain_word(key): value for key, value in _ELSEWHERE.items()}.get(plain_word(head), head)
    found = meant(word, options, ("--{}" if name.startswith("-") else "{}") + dot + rest)
    return found or "; --help lists the options"


def settings_hint(line: str) -> str:
    """Give what a class takes, for a parser's line about a setting that it does not take."""
    found = re.search(r"Problem with given class_path '([\w.]+)': Option '([\w.-]+)' is not", line)
    if not found:
        return ""
    path, option = found.groups()
    if meant(option, ("class_path", "init_args")):
        return "; it must be a name, or class_path with all settings in init_args"
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if kind is None:
        return ""
    takes = list(inspect.signature(kind).parameters)
    if not takes:
        return f"; {name} takes no settings (give a policy before its settings)"
    return f"; {name} takes {', '.join(takes)}{meant(option.partition('.')[0], takes)}"


def class_hint(line: str) -> str:
    """Give the nearest class of a module that has none of the name, for a parser's line."""
    found = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", line)
    names = vars(sys.modules[found[1]]) if found and found[1] in sys.modules else {}
    classes = [name for name, value in names.items() if isinstance(value, type)]
    return meant(found[2], classes) if found else ""
