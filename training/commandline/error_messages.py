"""Error messages of a command line: one line with the option, what it may be, and what came."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable

import policies
from nets.checks import meant, plain_word
from policies import Policy
from training.commandline.user_modules import hidden

_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "dict": "a mapping"}


def one_line(message: str) -> str:
    """Give a parser's message as one line that names the option, what it may be, and what came."""
    line = " ".join(message.split())
    keys = re.findall(r'Parser key "([\w.]+)": ', line)
    name = ".".join(keys)
    module = re.search(r"Expected a path but (\S+) either .* Errors: - (.*)$", line)
    if module and "dot import path" not in line:
        return f"{name} {module[1]} cannot be loaded: {_or_hidden(module[1], module[2])}"
    path = re.search(r"Expected a dot import path string: (\S*)", line)
    path = path or re.search(r"Unexpected import path format: (\S*)", line)
    path = path or re.search(
        r"Not a valid subclass of Policy\. Got value: (.*) Subclass types", line
    )
    if path and name.endswith("policy"):
        known = _known_policies()
        words = f"{', '.join(known)}, or an import path such as mine.Mine; got {path[1]!r}"
        hint = _or_hidden(path[1], meant(path[1], known))
        return f"{name} must be one of {words}{hint}"
    if path:
        return f"{name} must be a mapping, got {path[1]!r}"
    # Of several reasons the innermost and first counts: "... Errors: - this one - Expected a ...".
    reason = line.rpartition(f'Parser key "{keys[-1]}": ')[2] if keys else line
    value = re.search(r"G(?:ot|iven) value: ?(.*?)(?: - Expected a |$)", reason)
    reason = re.sub(r"^Does not validate .*? Errors: - ", "", reason).split(" - Expected a ")[0]
    expected = re.match(r"Expected a <class '([\w.]+)'>", reason)
    if expected and value:
        kind = _KINDS.get(expected[1], f"a {expected[1].rpartition('.')[2]}")
        if expected[1] == "int" and "Expected a <class 'float'>" in line:  # a Time is either
            kind += " or a number"
        return f"{name} must be {kind}, got {value[1]!r}"
    reason += settings_hint(reason) + class_hint(reason)
    given = re.search(r"given class_path '([\w.]+)'", line)
    return _or_hidden(given[1] if given else "", f"{name}: {reason}" if name else reason)


def _or_hidden(path: str, words: str) -> str:
    """Give the words, and what hides the module of that import path if something does."""
    why = hidden(path.strip("'\""))
    return f"{words}; {why}" if why else words


def _known_policies() -> list[str]:
    """Give the class names of the policies in the box."""
    kinds = {name: getattr(policies, name) for name in policies.__all__}
    return [
        name
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Policy) and kind is not Policy
    ]


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
