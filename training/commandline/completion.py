"""Shell completion, as jsonargparse and shtab make it. No torch here."""

from __future__ import annotations

from argparse import SUPPRESS, Action
from importlib.util import find_spec
from typing import Any

from training.commandline.parser import Exit

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(Action):
    """Prints the script for a shell: `eval "$(growthrings --print_completion bash)"`.

    It completes the installed command; what begins with `python` no script of ours can complete.
    """

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if find_spec("shtab") is None:
            raise ValueError(
                "print_completion needs the extra: pip install 'growthrings[completion]'"
            )
        parser.prog = "growthrings"
        print(parser.get_completion_script(f"shtab-{values}"))
        raise Exit(0)  # a parser that has made a script refuses all else
