"""The front door: train, compare, inspect, replay.

Nothing here imports torch before a command needs it, so that `--help` appears at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from analysis import Record, read_history
from policies import Policy
from training.settings import Compare, Train, settings_to_dict

EPILOG = """\
A first run, in seconds:
  python run.py train --data digits --net resnet8 --policy Plateau --epochs 5 --out runs/first
  python run.py inspect runs/first
  tensorboard --logdir runs
All policies on the same budget, as one table:
  python run.py compare --config experiments/digits.yaml"""


_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "dict": "a mapping"}
_FLAGS = {
    "final": "read the test set, once, at the end",
    "resume": "go on with the run in the folder, if there is one",
}


class _Verbatim(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and epilogs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


class Parser(ArgumentParser):
    """Refuses wrong use with one line and exit code 2; in option names - and _ are the same."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside a parser: the outer one reports
            super().error(message, ex)
        self.exit(2, f"run.py: error: {one_line(message)}\n")


def one_line(message: str) -> str:
    """Give a parser's message as one line that names the option, what it may be, and what came."""
    line = " ".join(message.split())
    keys = re.findall(r'Parser key "([\w.]+)": ', line)
    name = ".".join(keys)
    path = re.search(r"Expected a dot import path string: (\S*)", line)
    if path and name.endswith("policy"):
        known = ", ".join(known_policies())
        return (
            f"{name} must be one of {known}, or an import path such as mine.Mine; got {path[1]!r}"
        )
    if path:
        return f"{name} must be a mapping, got {path[1]!r}"
    # Of several reasons the innermost and first counts: "... Errors: - this one - Expected a ...".
    reason = line.rpartition(f'Parser key "{keys[-1]}": ')[2] if keys else line
    value = re.search(r"G(?:ot|iven) value: (.*?)(?: - Expected a |$)", reason)
    reason = re.sub(r"^Does not validate .*? Errors: - ", "", reason).split(" - Expected a ")[0]
    expected = re.match(r"Expected a <class '([\w.]+)'>", reason)
    if expected and value:
        kind = _KINDS.get(expected[1], f"a {expected[1].rpartition('.')[2]}")
        return f"{name} must be {kind}, got {value[1]!r}"
    return f"{name}: {reason}" if name else reason


def known_policies() -> list[str]:
    """Give the class names of the policies in the box."""
    import policies

    kinds = (getattr(policies, name) for name in policies.__all__)
    return [
        k.__name__
        for k in kinds
        if isinstance(k, type) and issubclass(k, Policy) and k is not Policy
    ]


def make_parser() -> Parser:
    """Give the parser of the whole command line."""
    parser = Parser(
        prog="run.py",
        description="Watch the layers of a residual network as it trains; grow it where they ask.",
        epilog=EPILOG,
        formatter_class=_Verbatim,
    )
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
    commands.add_subcommand(
        "inspect", inspect, help="what grew, when and why, and the layers' statistics"
    )
    replay = Parser(
        description="What another policy would have decided, given the history as it was recorded."
    )
    replay.add_argument("run", help="a run folder")
    replay.add_subclass_arguments(Policy, "policy", required=True, help="the policy to ask")
    commands.add_subcommand(
        "replay", replay, help="what another policy would have decided on a recorded run"
    )
    return parser


def _parser_of(kind: type) -> Parser:
    parser = Parser(description=(kind.__doc__ or "").split("\n")[0], formatter_class=_Verbatim)
    parser.add_argument(
        "--config", action="config", help="a YAML file with any of the settings below"
    )
    parser.add_class_arguments(kind, skip=set(_FLAGS))
    for name, text in _FLAGS.items():
        if hasattr(kind, name):
            parser.add_argument(f"--{name}", action="store_true", help=text)
    if kind is Compare:
        parser.set_defaults(cells=settings_to_dict(Compare())["cells"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the exit code (0 done, 2 wrong use, 130 and 143 interrupted)."""
    sys.path.insert(0, os.getcwd())  # a user's own policies
    parser = make_parser()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        chosen = parser.instantiate(parser.parse_args([_underscored(word) for word in given]))
        command = {"train": _train, "compare": _compare, "inspect": _inspect, "replay": _replay}
        return command[chosen.subcommand](chosen[chosen.subcommand])
    except ValueError as error:
        print(f"run.py: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its reader has gone
        return 1


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _settings(kind: Callable[..., Any], chosen: Namespace) -> Any:
    return kind(**{name: value for name, value in vars(chosen).items() if name != "config"})


@contextmanager
def _reporting():
    """Give (say, advance): a progress bar on a terminal, plain lines otherwise."""
    if not sys.stdout.isatty():
        yield lambda line: print(line, flush=True), None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("budget", total=1.0)
        yield (
            lambda line: bar.console.print(line, highlight=False, markup=False),
            (lambda spent: bar.update(task, completed=spent)),
        )


def _train(chosen: Namespace) -> int:
    from training.interrupts import Interrupted
    from training.loop import train

    settings = _settings(Train, chosen)
    try:
        with _reporting() as (say, advance):
            summary = train(settings, say, advance)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.code
    accuracy = summary["validation_accuracy"]
    result = (
        f"loss {summary['validation_loss']:.4g}" if accuracy is None else f"accuracy {accuracy:.2%}"
    )
    print(f"validation {result}, {summary['parameters']:,} parameters, {summary['seconds']:.1f} s")
    if summary["test_accuracy"] is not None:
        print(f"test accuracy {summary['test_accuracy']:.2%}")
    print(f"{settings.folder}; look at it with: tensorboard --logdir {settings.folder}")
    return 0


def _compare(chosen: Namespace) -> int:
    from training.comparison import compare
    from training.interrupts import Interrupted

    settings = _settings(Compare, chosen)
    try:
        with _reporting() as (say, advance):
            table = compare(settings, say, advance)
    except Interrupted as stop:
        print(f"stopped; the same command goes on ({stop})", file=sys.stderr)
        return stop.code
    print(f"\n{table}\n\nlook at it with: tensorboard --logdir {settings.out}")
    return 0


def _inspect(chosen: Namespace) -> int:
    from analysis.tables import growth_table, layer_table

    history = _history(chosen.run)
    if not -len(history) <= chosen.record < len(history):
        raise ValueError(
            f"record must be from 0 to {len(history) - 1}, or negative, got {chosen.record}"
        )
    record = history[chosen.record]
    first, last = history[0].cost, history[-1].cost
    print(f"{chosen.run}: {len(history)} records, {history[-1].spent:.0%} of the budget")
    print(f"{first.parameters:,} parameters at first, {last.parameters:,} at the end\n")
    print(f"Growth\n\n{growth_table(history)}\n")
    refusals = Counter(why for at in history for _, why in at.refused)
    for why, times in refusals.items():
        print(f"refused {times} times: {why}\n")
    print(f"Layers at step {record.step}\n\n{layer_table(record)}")
    return 0


def _replay(chosen: Namespace) -> int:
    from analysis.tables import markdown, phrase
    from training.judgement import replay

    rows = [
        [
            str(record.step),
            f"{record.spent:.0%}",
            _list(map(phrase, record.applied)),
            _list(map(phrase, decided)),
        ]
        for record, decided in replay(chosen.policy, _history(chosen.run))
    ]
    name = type(chosen.policy).__name__
    print(markdown(["step", "spent", "done", f"{name} would have asked for"], rows))
    return 0


def _history(run: str) -> list[Record]:
    history = read_history(run)
    if not history:
        raise ValueError(f"run must be a folder with at least one record, got {run}")
    return history


def _list(texts: Any) -> str:
    return ", ".join(texts) or "-"


if __name__ == "__main__":
    sys.exit(main())
