"""What stands in a config.yaml: settings as plain data and text, and files that can be none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import yaml

from nets import Initializer
from policies import Policy


def settings_to_yaml(settings: Any) -> str:
    """Give the settings as the text of a complete config file."""
    return yaml.safe_dump(settings_to_dict(settings), sort_keys=False)


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """Give the settings as plain data, as a config file has them: what an object is made of."""
    return {i.name: _plain(getattr(settings, i.name)) for i in fields(settings) if i.init}


def seeds_in(paths: Iterable[Any]) -> tuple[int, ...]:
    """Give the seeds that config files name, whatever the command line says beside them.

    The last file that names some counts. They were read once without complaint.
    """
    seeds: list[int] = []
    for path in paths:
        found = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8"))
        seeds = (found or {}).get("seeds") or seeds
    return tuple(seeds)


def _plain(value: Any) -> Any:
    """Give a setting as what YAML knows; a policy or an initializer by its import path."""
    if isinstance(value, Enum):
        return value.name  # by which it is read again
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Policy):
        return _by_path("policy", value, "policies")
    if isinstance(value, Initializer):
        return _by_path("initializer", value, "nets")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return settings_to_dict(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)  # numpy's float is a float
    return value


def _by_path(what: str, value: Any, ours: str) -> dict[str, Any]:
    """Give an object's class and what it is made of; a ValueError names what no file could hold.

    Args:
        what: what it is, for the error.
        value: a policy or an initializer.
        ours: the package whose front has the class, where it is one of the box.
    """
    kind = type(value)
    module = ours if kind.__module__.startswith(f"{ours}.") else kind.__module__
    path = f"{module}.{kind.__qualname__}"
    if not is_dataclass(value):
        raise ValueError(f"{what} must be a dataclass, whose fields are its settings, got {path}")
    made = settings_to_dict(value)
    for name, setting in made.items():
        if not _storable(setting):
            words = "fields of numbers, text, lists and mappings"
            raise ValueError(f"{what} {path} must have {words}, got {name}={setting!r}"[:300])
    return {"class_path": path, "init_args": made}


def _storable(value: Any) -> bool:
    """Say whether a config file and a checkpoint hold the value and give it back the same."""
    if isinstance(value, list):
        return all(map(_storable, value))
    if isinstance(value, dict):
        return all(map(_storable, [*value, *value.values()]))
    kinds = (type(None), bool, int, float, str)
    return type(value) in kinds and value == value  # NaN is not


def check_config(path: Path) -> None:
    """Raise a TypeError, as a parser does, if a file is no YAML mapping or says a thing twice."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        twice = _said_twice(root)  # before merge keys are resolved
        if root is not None:
            loader.construct_document(root)  # refuses tags that would make other objects
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise TypeError(f"config: {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        kinds = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
        got = kinds.get(type(root), "nothing")
        raise TypeError(f"config: {path} must hold a mapping of settings, got {got}")
    if twice:
        raise TypeError(f"config: {path} must hold every setting once, got {twice} twice")
    _check_rows(path, root, loader)


def _check_rows(path: Path, root: yaml.MappingNode, loader: yaml.SafeLoader) -> None:
    """Raise a TypeError for a row's name that YAML reads as another: 010 is 8, on is true."""
    for key, cells in root.value:
        if key.value != "cells" or not isinstance(cells, yaml.MappingNode):
            continue
        for name, _ in cells.value:
            read = loader.construct_object(name, deep=True)
            if str(read) != name.value:
                raise TypeError(
                    f"config: {path} must hold names of rows that are text; put {name.value} in "
                    f"quotes, as YAML reads it as {read!r}"
                )


def _said_twice(root: yaml.Node | None) -> str:
    """Give a key that stands twice in one mapping, anywhere in the tree, or nothing."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            return next(name for name in names if names.count(name) > 1)
        waiting += [value for _, value in node.value]
    return ""


def made_initializer(plain: Any) -> Initializer:
    """Make the initializer that a config file has as its import path and settings.

    Its module is imported: what can be, from where the command runs or is installed.

    Raises:
        ValueError: it cannot be made, or is none; the message says why.
    """
    from jsonargparse import ArgumentParser

    if not isinstance(plain, Mapping) or "class_path" not in plain:
        raise ValueError(f"must be a name, or a mapping with a class_path, got {plain!r}"[:300])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--initializer", type=Initializer)
    try:
        return parser.instantiate(parser.parse_object({"initializer": plain})).initializer
    except (Exception, SystemExit) as error:  # a module of one's own raises what it likes
        why = " ".join(str(error).split()).removeprefix('Parser key "initializer": ')
        raise ValueError(f"cannot be made from its config.yaml: {why[:300]}") from None
