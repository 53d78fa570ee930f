"""The commands and their options. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from jsonargparse import DefaultHelpFormatter

from policies import Policy
from training.commandline.completion import SHELLS, PrintCompletion
from training.commandline.groups import arrange
from training.commandline.parser import Parser
from training.settings.compare_settings import Compare
from training.settings.config_yaml import settings_to_dict
from training.settings.train_settings import Train
from training.version import __version__

EPILOG = """\
A first run, in seconds:
  python run.py train --data digits --net resnet8 --policy Plateau --epochs 5 --out runs/first
  python run.py inspect runs/first
  tensorboard --logdir runs
All policies on the same budget, as one table:
  python run.py compare --config experiments/digits.yaml
Options completed by a shell, once growthrings[completion] is installed:
  eval "$(growthrings --print_completion bash)\""""
_FLAGS = {
    "compile": "compile the network (torch.compile), anew after every growth; slower on a CPU",
    "final": "read the test set, once, at the end",
    "deterministic": "use what gives the same bits every time, and no TF32; slower on a GPU",
    "dry_run": "print the matrix and what it will take, and run nothing",
    "resume": "go on with the run in the folder, if there is one",
}


class _Verbatim(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and epilogs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def make_parser() -> Parser:
    """Give the parser of the whole command line."""
    parser = Parser(
        prog="run.py",
        description="Watch the layers of a residual network as it trains; grow it where they ask.",
        epilog=EPILOG,
        formatter_class=_Verbatim,
    )
    parser.add_argument("--version", action="version", version=f"growthrings {__version__}")
    text = "print the script by which a shell completes the installed command, growthrings"
    parser.add_argument("--print_completion", action=PrintCompletion, choices=SHELLS, help=text)
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, command, text in (
        ("train", _settings_parser(Train), "train one network under one policy"),
        ("compare", _settings_parser(Compare), "train policies x seeds on one budget; one table"),
        ("judge", _judge_parser(), "one table of comparisons that were run apart; runs nothing"),
        ("inspect", _inspect_parser(), "what grew, when and why, and the layers' statistics"),
        ("replay", _replay_parser(), "what another policy would have decided on recorded runs"),
        ("branch", _branch_parser(), "what growth at each other site would bring"),
    ):
        commands.add_subcommand(name, command, help=text)
    return parser


def _settings_parser(kind: type) -> Parser:
    """Give the parser of a command that takes all fields of a class."""
    parser = Parser(
        description=(kind.__doc__ or "").split("\n")[0],
        usage=f"run.py {kind.__name__.lower()} [--config FILE] [--SETTING VALUE ...]",
        formatter_class=_Verbatim,
    )
    parser.add_argument(
        "--config", action="config", help="a YAML file with any of the settings below"
    )
    parser.add_class_arguments(kind, as_group=False, skip=set(_FLAGS))
    for name, text in _FLAGS.items():
        if hasattr(kind, name):
            _add_flag(parser, name, text)
    arrange(parser, kind)
    if kind is Compare:
        parser.set_defaults(cells=settings_to_dict(Compare())["cells"])
    return parser


def _judge_parser() -> Parser:
    parser = Parser(
        description="Judge comparisons of the same settings together, of other rows or seeds or "
        "from other machines, as if all runs lay in one folder. It runs nothing."
    )
    parser.add_argument("folders", nargs="+", help="folders of comparisons")
    text = "folder of comparison.csv, comparison.md and report.html"
    parser.add_argument("--out", required=True, help=text)
    return parser


def _inspect_parser() -> Parser:
    parser = Parser(description="What grew, when and why, and the statistics of the layers.")
    parser.add_argument("run", help="a run folder")
    text = "number of the record to show, from 0; -1, as by default, is the last"
    parser.add_argument("--record", type=int, help=text)
    text = "a run folder whose last response curve is drawn beside this one's; in a comparison "
    text += "the largest static run of the same seed is the default"
    parser.add_argument("--reference", help=text)
    parser.add_argument("--out", help="folder of the pictures; by default RUN/pictures")
    text = "print every number of every record as one table instead: step,layer,statistic,value"
    _add_flag(parser, "csv", text)
    text = "look closely instead: take the steps after this one again, from the state kept before "
    text += "it, and show what each did; all numbers go to RUN/closer/stepN.csv"
    parser.add_argument("--after", type=int, help=text)
    text = "how many steps --after looks at, by default 50"
    parser.add_argument("--steps", type=int, help=text)
    return parser


def _replay_parser() -> Parser:
    parser = Parser(
        description="What another policy would have decided, given the history as it was recorded: "
        "one step at a time, conditional on what was really done; it predicts no outcome."
    )
    parser.add_argument("runs", nargs="+", help="run folders, or comparisons: all runs in them")
    parser.add_subclass_arguments(Policy, "policy", required=True, help="the policy to ask")
    return parser


def _branch_parser() -> Parser:
    parser = Parser(
        description="Train every growth that costs as much as a recorded one, and none, from the "
        "state before it: what each site brought, and which statistics would have told it."
    )
    text = "run folders; the results go to branch/stepN/ of each"
    parser.add_argument("run", nargs="+", help=text)
    text = "the step of a recorded growth, several as in 61,122, or all; by default the first"
    parser.add_argument("--at", type=str, help=text)
    text = "training steps of the branch that does what was done"
    parser.add_argument("--steps", type=int, default=200, help=text)
    text = "data orders in which every branch is trained"
    parser.add_argument("--orders", type=int, default=3, help=text)
    text = "flops: all branches train for as many FLOPs; steps: for as many steps"
    parser.add_argument("--budget", default="flops", help=text)
    text = "of sites: blocks to widen, places to insert one, streams; separated by commas"
    parser.add_argument("--kinds", default="widen,insert,streams", help=text)
    text = "of each kind at the most, drawn by the run's seed; by default all"
    parser.add_argument("--sites", type=int, help=text)
    return parser


def _add_flag(parser: Parser, name: str, text: str) -> None:
    """Add an option that may stand alone, or take true or false."""
    values: dict[str, Any] = {"type": bool, "default": False, "metavar": "true|false"}
    parser.add_argument(f"--{name}", nargs="?", const=True, help=text, **values)
