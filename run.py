"""The front door: train, compare, inspect, replay, branch.

Nothing here imports torch before a command needs it, so that `--help` appears at once.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__" and os.getcwd() != _HERE:  # `python -m` puts the working folder first
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
sys.path.insert(0, _HERE)  # ours, whatever PYTHONPATH calls `nets`, say

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jsonargparse import Namespace

from analysis import Record, read_history
from analysis.recording.atomic_files import path_of
from training.keeping.failures import PolicyFailed, told
from training.running.finite import NonFinite
from training.settings.commandline import Exit, Parser, make_parser, one_line, underscored
from training.settings.console import complain, lose_stdout, open_streams, say
from training.settings.places import hidden, import_from
from training.settings.settings import Compare, Train

sys.path.remove(_HERE)  # what else lies beside us has no precedence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0 done, 1 failed, 2 wrong use, 130, 143 interrupted."""
    try:
        open_streams()
        import_from(os.getcwd(), _HERE)  # a user's own policies
        parser = make_parser()
        given = sys.argv[1:] if arguments is None else arguments
        chosen = _chosen(parser, [underscored(word) for word in given])
        command = {"train": _train, "compare": _compare, "inspect": _inspect, "replay": _replay}
        command["branch"] = _branch
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


def _chosen(parser: Parser, words: list[str]) -> Namespace:
    """Read the command line; it imports and makes the policies that it names."""
    try:
        chosen = parser.instantiate(parser.parse_args(words))
    except (Exit, ValueError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"policy cannot be loaded: {told(error)}") from None
    given = chosen[chosen.subcommand]
    policies = [cell.policy for cell in (getattr(given, "cells", None) or {}).values()]
    for policy in (getattr(given, "policy", None), *policies):
        module = type(policy).__module__
        if not module.startswith("policies.") and (why := hidden(module)):
            raise ValueError(f"policy {module}.{type(policy).__name__}: {why}")
    return chosen


def _settings(kind: Callable[..., Any], chosen: Namespace) -> Any:
    return kind(**{name: value for name, value in vars(chosen).items() if name != "config"})


@contextmanager
def _reporting(first: bool = True):
    """Give (say, advance): a progress bar on a terminal, plain lines otherwise.

    Of several processes that train one network the first alone reports.
    """
    if not first:
        yield lambda line: None, None
        return
    if not sys.stdout.isatty():
        yield say, None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("budget", total=1.0)

        def above(line: str) -> None:
            with suppress(OSError):
                bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield above, lambda spent: bar.update(task, completed=spent)


def _train(chosen: Namespace) -> int:
    from analysis.recording.phrases import result_of
    from training.keeping.interrupts import Interrupted
    from training.keeping.ranks import joined
    from training.running.loop import train

    settings = _settings(Train, chosen)
    with joined() as first:
        try:
            with _reporting(first) as (say, advance):
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
    if summary["test_accuracy"] is not None:
        print(f"test accuracy {summary['test_accuracy']:.2%}")
    print(f"{settings.folder}; look at it with: tensorboard --logdir {settings.folder}")
    return 0


def _compare(chosen: Namespace) -> int:
    from training.comparing.comparison import compare
    from training.keeping.interrupts import Interrupted
    from training.keeping.ranks import started

    if started() > 1:
        raise ValueError(f"compare must run in 1 process (torchrun is for train), got {started()}")

    settings = _settings(Compare, chosen)
    if settings.dry_run:
        from training.comparing.forecast import forecast

        print(forecast(settings))
        return 0
    try:
        with _reporting() as (say, advance):
            outcome = compare(settings, say, advance)
    except Interrupted as stop:
        complain(f"stopped; the same command goes on ({stop})")
        return stop.code
    print(f"\n{outcome.text}\n")
    print(f"{settings.folder}/report.html; or: tensorboard --logdir {settings.folder}")
    for line in outcome.failures:
        complain(line)
    return 1 if outcome.failures else 0


def _inspect(chosen: Namespace) -> int:
    from analysis.judging.suggestions import suggestions
    from analysis.recording.phrases import no_growth
    from analysis.recording.timeline import architectures, layer_values
    from analysis.showing.tables import growth_table, layer_table
    from nets import cost

    history = _history(chosen.run)
    if not -len(history) <= chosen.record < len(history):
        raise ValueError(
            f"record must be from 0 to {len(history) - 1}, or negative, got {chosen.record}"
        )
    if chosen.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([("step", "layer", "statistic", "value"), *layer_values(history)])
        return 0
    drawn = _draw(chosen, history)
    record = history[chosen.record]
    first, last = history[0].cost, cost(architectures(history)[-1][1])
    print(f"{chosen.run}: {len(history)} records, {history[-1].spent:.0%} of the budget")
    print(f"{first.parameters:,} parameters at first, {last.parameters:,} at the end\n")
    print(f"Growth and other edits\n\n{growth_table(history)}\n")
    if still := no_growth(history):
        print(f"{still}\n")
    refusals = Counter(why for at in history for _, why in at.refused)
    for why, times in refusals.items():
        print(f"refused {times} times: {why}\n")
    print(f"Layers at step {record.step}\n\n{layer_table(record)}\n")
    said = suggestions(history[: chosen.record % len(history) + 1])
    lines = [f"- {path}: {words}" for path, all_words in said.items() for words in all_words]
    print("\n".join(["Rules of thumb\n", *(lines or ["nothing to say"]), ""]))
    print(drawn)
    return 0


def _draw(chosen: Namespace, history: Sequence[Record]) -> str:
    """Write the pictures of a run, and say where they are or why there are none."""
    from analysis.showing.history_pictures import draw
    from analysis.showing.matplotlib_figures import Undrawn, drawing
    from training.running.pictures import reference_of, write_pictures

    folder = path_of("run", chosen.run)
    folder = folder if folder.is_dir() else folder.parent
    out = path_of("out", chosen.out) if chosen.out else folder / "pictures"
    reference = _history(chosen.reference) if chosen.reference else reference_of(folder)
    try:
        with drawing():
            pictures = draw(history, reference)
    except Undrawn as failure:
        return str(failure)
    write_pictures(out, pictures)
    return f"pictures in {out}"


def _replay(chosen: Namespace) -> int:
    from training.asking.replaying import replay_table

    print(replay_table(chosen.policy, chosen.runs))
    return 0


def _branch(chosen: Namespace) -> int:
    from training.asking.branching import branch
    from training.keeping.ranks import started

    if started() > 1:
        raise ValueError(f"branch must run in 1 process (torchrun is for train), got {started()}")
    _history(chosen.run)  # refuses a comparison with a word on its runs
    with _reporting() as (say, advance):
        text = branch(
            path_of("run", chosen.run), chosen.at, chosen.steps, chosen.orders, say, advance
        )
    print(f"\n{text}")
    return 0


def _history(run: str) -> list[Record]:
    folder = path_of("run", run)
    runs = sorted(path.parent for path in folder.glob("*/seed*/history.jsonl"))
    if runs:
        raise ValueError(f"run must be one run of the comparison, such as {runs[0]}, got {run}")
    runs = sorted(path.parent for path in folder.glob("*/history.jsonl"))
    if runs and not (folder / "history.jsonl").exists():
        raise ValueError(f"run must be one of the runs in the folder, such as {runs[0]}, got {run}")
    history = read_history(run)
    if not history:
        raise ValueError(
            f"run must be a folder with at least one record, got {run}: its train command with "
            "--resume goes on"
        )
    return history


if __name__ == "__main__":
    sys.exit(main())
