"""The front door: train, compare, judge, inspect, replay, branch.

Nothing here imports torch before a command needs it, so that `--help` appears at once.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__" and os.getcwd() != _HERE:  # `python -m` puts the working folder first
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
sys.path.insert(0, _HERE)  # ours, whatever PYTHONPATH calls `nets`, say

from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import Namespace

from analysis.recording.atomic_files import path_of
from nets import Initializer
from training.commandline.console import (
    complain,
    lose_stdout,
    open_streams,
    reporting,
    reporting_runs,
)
from training.commandline.error_messages import one_line
from training.commandline.options import make_parser
from training.commandline.parser import Exit, Parser
from training.commandline.process_memory import keep_memory
from training.commandline.user_modules import hidden, import_from, unloaded
from training.deciding.user_errors import PolicyFailed, told
from training.keeping.nonfinite import NonFinite
from training.settings.checks import named_initializers
from training.settings.compare_settings import Compare
from training.settings.config_yaml import seeds_in
from training.settings.train_settings import Train

sys.path.remove(_HERE)  # what else lies beside us has no precedence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0 done, 1 failed, 2 wrong use, 130, 143 interrupted."""
    if arguments is None:  # the process is ours
        keep_memory()
    try:
        open_streams()
        import_from(os.getcwd(), _HERE)  # a user's own policies
        chosen = _chosen(make_parser(), arguments)
        command = {"train": _train, "compare": _compare, "inspect": _inspect, "replay": _replay}
        command |= {"judge": _judge, "branch": _branch}
        code = command[chosen.subcommand](chosen[chosen.subcommand])
        sys.stdout.flush()
        return code
    except ValueError as error:
        complain(f"run.py: error: {one_line(str(error))}")
        return 2
    except PolicyFailed as failure:
        complain(str(failure))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError as error:  # its reader has gone
        lose_stdout(error)
        return 1
    except (OSError, NonFinite) as error:  # a full disk, say
        place = lose_stdout(error) if isinstance(error, OSError) else ""
        complain(f"run.py: error: {place}{' '.join(str(error).split())}")
        return 1


def _chosen(parser: Parser, words: Sequence[str] | None) -> Namespace:
    """Read the command line; it imports and makes the policies that it names."""
    try:
        chosen = parser.instantiate(parser.parse_args(words))
    except (Exit, ValueError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"policy cannot be loaded: {told(error)}") from None
    given = chosen[chosen.subcommand]
    rows = [given, *(getattr(given, "cells", None) or {}).values()]
    for what in ("policy", "initializer"):
        for made in (getattr(row, what, None) for row in rows):
            module = type(made).__module__
            if not module.startswith(("policies.", "nets.")) and (why := hidden(module)):
                raise ValueError(f"{what} {module}.{type(made).__name__}: {why}")
            texts = named_initializers(made) if what == "policy" else {what: made}
            for name, text in texts.items():
                if isinstance(text, str) and (why := unloaded(text, Initializer)):
                    place = name if what == name else f"{what}.{name}"
                    raise ValueError(f"{place} {text} cannot be loaded: {why}")
    return chosen


def _settings(kind: Callable[..., Any], chosen: Namespace) -> Any:
    return kind(**{name: value for name, value in vars(chosen).items() if name != "config"})


def _train(chosen: Namespace) -> int:
    from analysis.recording.phrases import result_of
    from training.computing.distributed import joined
    from training.computing.signals import Interrupted
    from training.running.loop import train

    settings = _settings(Train, chosen)
    with joined() as first:
        try:
            with reporting(first) as (say, advance):
                summary = train(settings, say, advance)
        except (Interrupted, PolicyFailed) as stop:
            if first:
                complain(str(stop))
            return stop.code
        except NonFinite:
            if first:
                raise
            return 1
    if not first:
        return 0
    print(f"validation {result_of(summary)}, {summary['parameters']:,} parameters")
    if summary["test_readings"]:
        print(f"test {result_of(summary, 'test')}")
    print(f"{settings.folder}; look at it with: tensorboard --logdir {settings.folder}")
    return 0


def _compare(chosen: Namespace) -> int:
    from training.comparing.comparison import compare
    from training.computing.signals import Interrupted

    _check_alone("compare")
    settings = _settings(Compare, chosen)
    if settings.dry_run:
        from training.comparing.dry_run import forecast

        print(forecast(settings))
        return 0
    try:
        with reporting_runs() as (say, advance, running):
            outcome = compare(settings, say, advance, seeds_in(chosen.config or ()), running)
    except Interrupted as stop:
        complain(f"stopped; the same command goes on ({stop})")
        return stop.code
    print(f"\n{outcome.text}\n")
    if (report := settings.folder / "report.html").exists():  # else no run has finished
        print(f"{report}; or: tensorboard --logdir {settings.folder}")
    for line in outcome.failures:
        complain(line)
    return 1 if outcome.failures else 0


def _judge(chosen: Namespace) -> int:
    from training.comparing.judge_parts import judge_parts

    print(f"{judge_parts(chosen.folders, chosen.out)}\n\n{chosen.out}/report.html")
    return 0


def _inspect(chosen: Namespace) -> int:
    if chosen.after is not None:
        from training.asking.look_closer import look_closer

        _check_left_out(chosen, "with --after", "record", "reference", "out", "csv")
        _check_alone("inspect --after")
        print(look_closer(chosen.run, chosen.after, 50 if chosen.steps is None else chosen.steps))
        return 0
    from training.asking.inspect_run import inspection

    _check_left_out(chosen, "without --after", "steps")
    if chosen.csv:
        _check_left_out(chosen, "with --csv", "record", "reference", "out")
    record = -1 if chosen.record is None else chosen.record
    print(inspection(chosen.run, record, chosen.reference, chosen.out, chosen.csv))
    return 0


def _replay(chosen: Namespace) -> int:
    from training.asking.replay import replay_table

    print(replay_table(chosen.policy, chosen.runs, width=100))
    return 0


def _branch(chosen: Namespace) -> int:
    from training.asking.branch import branch
    from training.asking.branch_points import numbers_of
    from training.asking.inspect_run import history_of

    _check_alone("branch")
    kinds = [word.strip() for word in chosen.kinds.split(",")]
    how: dict[str, Any] = {"budget": chosen.budget, "kinds": kinds, "sites": chosen.sites}
    numbers_of(chosen.at)
    for run in chosen.run:
        history_of(run)  # refuses a comparison with a word on its runs
    runs = [path_of("run", run) for run in chosen.run]
    try:
        with reporting() as (say, advance):
            text = branch(runs, chosen.at, chosen.steps, chosen.orders, say, advance, **how)
    except KeyboardInterrupt:
        complain("stopped; the same command goes on after the last branch that is finished")
        return 130
    print(f"\n{text}")
    return 0


def _check_left_out(chosen: Namespace, where: str, *names: str) -> None:
    """Raise a ValueError if one of the options was given, where it would do nothing."""
    for name in names:
        if chosen[name] is not None and chosen[name] is not False:
            got = "true" if chosen[name] is True else chosen[name]
            raise ValueError(f"{name} must be left out {where}, got {got}")


def _check_alone(command: str) -> None:
    """Raise a ValueError if the command runs in several processes at once."""
    from training.computing.distributed import started

    if started() > 1:
        alone = f"{command} must run in 1 process (torchrun is for train)"
        raise ValueError(f"{alone}, got {started()}")


if __name__ == "__main__":
    sys.exit(main())
