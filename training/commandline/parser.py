"""How a command line is read: flags that stand alone, - as _, and refusals that take one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from analysis.recording.atomic_files import path_of
from nets.checks import meant
from training.commandline.error_messages import nearest_option, one_line
from training.settings.compare_settings import Cell
from training.settings.config_yaml import check_config

_BOOLEANS = ("true", "false", "yes", "no", "on", "off")
_UNKNOWN = r"unrecognized arguments: (?:.*? )??(-\S+)|not accept option '(\S+)'$"


class Exit(SystemExit):
    """The parser's own end, after help or a refusal; a policy's module may end by another."""


class Parser(ArgumentParser):
    """Refuses wrong use with one line and exit code 2; in option names - and _ are the same.

    Options are given in full: `--policy` of a comparison is no short form of `--policy_errors`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside a parser: the outer one reports
            super().error(message, ex)
        every = f"{{{','.join(self._commands())}}}"  # jsonargparse leaves out the last of many
        told = re.sub(r"\{[^{}]*, \.\.\.\}", every, one_line(message))
        self.exit(2, f"run.py: error: {told}{self._meant(message)}\n")

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        words = [underscored(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_args(self._with_values(words), *rest, **options)

    def _commands(self) -> dict[str, ArgumentParser]:
        """Give the parsers of the commands by their names."""
        return getattr(self._subcommands_action, "_name_parser_map", {})

    def _with_values(self, words: list[str]) -> list[str]:
        """Say true for a flag before a positional argument, which it would take for its value."""
        command = self._commands().get(words[0]) if words else None
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
        if found:
            words = getattr(self, "args", None) or [""]
            known = self._commands().get(words[0], self)._option_string_actions
            rows = [item.name for item in fields(Cell)] if "--cells" in known else []
            return nearest_option((found[1] or found[2]).partition("=")[0], known, rows)
        found = re.search(r"invalid choice: '(.*?)' \(choose from", message)
        return meant(found[1], self._commands()) if found else ""

    def parse_path(self, path: Any, *rest: Any, **options: Any) -> Any:
        check_config(path_of("config", path))
        return super().parse_path(path, *rest, **options)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        raise Exit(status)


def underscored(word: str) -> str:
    """Give an option with its dashes as underscores; other words stay."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word
