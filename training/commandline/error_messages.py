"""Error messages of a command line: one line with the option, what it may be, and what came."""

from __future__ import annotations

import re

import policies
from nets.checks import meant
from policies import Policy
from training.commandline.did_you_mean import class_hint, settings_hint
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
