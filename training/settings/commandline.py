"""The command line: its options, and refusals that take one line. Nothing here imports torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from analysis.recording.atomic_files import path_of
from nets.checks import meant
from policies import Policy
from training import __version__
from training.settings.hints import class_hint, nearest_option, settings_hint
from training.settings.places import hidden
from training.settings.settings import Cell, Compare, Train, settings_to_dict

EPILOG = """\
A first run, in seconds:
  python run.py train --data digits --net resnet8 --policy Plateau --epochs 5 --out runs/first
  python run.py inspect runs/first
  tensorboard --logdir runs
All policies on the same budget, as one table:
  python run.py compare --config experiments/digits.yaml"""


_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "dict": "a mapping"}
_BOOLEANS = ("true", "false", "yes", "no", "on", "off")
_UNKNOWN = r"unrecognized arguments: (?:.*? )??(-\S+)|not accept option '(\S+)'$"
_FLAGS = {
    "compile": "compile the network (torch.compile), anew after every growth; slower on a CPU",
    "final": "read the test set, once, at the end",
    "deterministic": "use what gives the same bits every time, and no TF32; slower on a GPU",
    "dry_run": "print the matrix and what it will take, and run nothing",
    "resume": "go on with the run in the folder, if there is one",
}


class Exit(SystemExit):
    """The parser's own end, after help or a refusal; a policy's module may end by another."""


class _Verbatim(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and epilogs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


class Parser(ArgumentParser):
    """Refuses wrong use with one line and exit code 2; in option names - and _ are the same.

    Options are given in full: `--policy` of a comparison is no short form of `--policy_errors`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside a parser: the outer one reports
            super().error(message, ex)
        self.exit(2, f"run.py: error: {one_line(message)}{self._meant(message)}\n")

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        words = None if args is None else self._with_values(list(args))
        return super().parse_args(words, *rest, **options)

    def _command(self, words: Sequence[str]) -> ArgumentParser | None:
        """Give the parser of the command that the words begin with."""
        commands = getattr(self._subcommands_action, "_name_parser_map", {})
        return commands.get(words[0]) if words else None

    def _with_values(self, words: list[str]) -> list[str]:
        """Say true for a flag before a positional argument, which it would take for its value."""
        command = self._command(words)
        actions = command._actions if command else []
        if all(action.option_strings for action in actions):
            return words
        flags = {name for each in actions if each.nargs == "?" for name in each.option_strings}
        following = [*words[1:], ""]
        return [
            f"{word}=true" if word in flags and after.lower() not in _BOOLEANS else word
            for word, after in zip(words, following)
        ]

    def _meant(self, message: str) -> str:
        """Give what an unknown command or option may have been."""
        found = re.search(_UNKNOWN, message)
        command = self._command(getattr(self, "args", None) or []) or self
        if found:
            known = command._option_string_actions
            rows = [item.name for item in fields(Cell)] if "--cells" in known else []
            return nearest_option((found[1] or found[2]).partition("=")[0], known, rows)
        found = re.search(r"invalid choice: '(.*?)' \(choose from", message)
        commands = getattr(self._subcommands_action, "_name_parser_map", {})
        return meant(found[1], commands) if found else ""

    def parse_path(self, path: Any, *rest: Any, **options: Any) -> Any:
        check_config(path_of("config", path))
        return super().parse_path(path, *rest, **options)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        raise Exit(status)


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
        known = ", ".join(known_policies())
        words = f"{known}, or an import path such as mine.Mine; got {path[1]!r}"
        hint = _or_hidden(path[1], meant(path[1], known_policies()))
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


def known_policies() -> list[str]:
    """Give the class names of the policies in the box."""
    import policies

    kinds = (getattr(policies, name) for name in policies.__all__)
    return [
        k.__name__
        for k in kinds
        if isinstance(k, type) and issubclass(k, Policy) and k is not Policy
    ]


def underscored(word: str) -> str:
    """Give an option with its dashes as underscores; other words stay."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def make_parser() -> Parser:
    """Give the parser of the whole command line."""
    parser = Parser(
        prog="run.py",
        description="Watch the layers of a residual network as it trains; grow it where they ask.",
        epilog=EPILOG,
        formatter_class=_Verbatim,
    )
    parser.add_argument("--version", action="version", version=f"growthrings {__version__}")
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    commands.add_subcommand("train", _parser_of(Train), help="train one network under one policy")
    commands.add_subcommand(
        "compare", _parser_of(Compare), help="train policies x seeds on one budget; one table"
    )
    inspect = Parser(description="What grew, when and why, and the statistics of the layers.")
    inspect.add_argument("run", help="a run folder")
    inspect.add_argument(
        "--record",
        type=int,
        default=-1,
        help="number of the record to show, from 0; -1 is the last",
    )
    inspect.add_argument(
        "--reference",
        help="a run folder whose last response curve is drawn beside this one's; in a comparison "
        "the largest static run of the same seed is the default",
    )
    inspect.add_argument("--out", help="folder of the pictures; by default RUN/pictures")
    text = "print every number of every record as one table instead: step,layer,statistic,value"
    _add_flag(inspect, "csv", text)
    commands.add_subcommand(
        "inspect", inspect, help="what grew, when and why, and the layers' statistics"
    )
    replay = Parser(
        description="What another policy would have decided, given the history as it was recorded: "
        "one step at a time, conditional on what was really done; it predicts no outcome."
    )
    replay.add_argument("runs", nargs="+", help="run folders, or comparisons: all runs in them")
    replay.add_subclass_arguments(Policy, "policy", required=True, help="the policy to ask")
    commands.add_subcommand(
        "replay", replay, help="what another policy would have decided on recorded runs"
    )
    branch = Parser(
        description="Train every growth that costs as much as a recorded one, and none, from the "
        "state before it: what each site brought, and which statistics would have told it."
    )
    branch.add_argument("run", help="a run folder; the results go to its branch/stepN/")
    text = "the step of a recorded growth; by default the first"
    branch.add_argument("--at", type=int, help=text)
    branch.add_argument("--steps", type=int, default=200, help="training steps of every branch")
    branch.add_argument(
        "--orders", type=int, default=3, help="data orders in which every branch is trained"
    )
    commands.add_subcommand("branch", branch, help="what growth at each other site would bring")
    return parser


def _add_flag(parser: Parser, name: str, text: str) -> None:
    """Add an option that may stand alone, or take true or false."""
    values: dict[str, Any] = {"type": bool, "default": False, "metavar": "true|false"}
    parser.add_argument(f"--{name}", nargs="?", const=True, help=text, **values)


def _parser_of(kind: type) -> Parser:
    parser = Parser(description=(kind.__doc__ or "").split("\n")[0], formatter_class=_Verbatim)
    parser.add_argument(
        "--config", action="config", help="a YAML file with any of the settings below"
    )
    parser.add_class_arguments(kind, skip=set(_FLAGS))
    for name, text in _FLAGS.items():
        if hasattr(kind, name):
            _add_flag(parser, name, text)
    if kind is Compare:
        parser.set_defaults(cells=settings_to_dict(Compare())["cells"])
    return parser
