"""What a recorded run says of itself: what grew, when and why, its layers, rules of thumb."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from analysis import Record, read_history
from analysis.judging.rules_of_thumb import suggestions
from analysis.recording.atomic_files import path_of
from analysis.recording.phrases import no_growth
from analysis.recording.timeline import architectures, layer_values
from analysis.showing.capacity_page import capacity_text
from analysis.showing.tables import growth_table, layer_table
from nets import cost


def history_of(run: str, name: str = "run") -> list[Record]:
    """Read the history of one run, which errors call by that name.

    Raises:
        ValueError: it is no run folder with a record, but a comparison, say; it names a run there.
    """
    folder = path_of(name, run)
    runs = sorted(path.parent for path in folder.glob("*/seed*/history.jsonl"))
    if runs:
        raise ValueError(f"{name} must be one run of the comparison, such as {runs[0]}, got {run}")
    runs = sorted(path.parent for path in folder.glob("*/history.jsonl"))
    if runs and not (folder / "history.jsonl").exists():
        raise ValueError(
            f"{name} must be one of the runs in the folder, such as {runs[0]}, got {run}"
        )
    history = read_history(run, name=name)
    if not history:
        raise ValueError(
            f"{name} must be a folder with at least one record, got {run}: its train command with "
            "--resume goes on"
        )
    return history


def inspection(run: str, record: int, reference: str | None, out: str | None, as_csv: bool) -> str:
    """Give what grew and what the layers did at one record, and write the pictures of the run.

    Args:
        run: its folder.
        record: number of the record whose layers are shown, from 0 or, backwards, from -1.
        reference: a run whose last response curve is drawn beside this one's.
        out: folder of the pictures; by default `pictures` in the run's.
        as_csv: give every number of every record instead, and write no pictures.

    Raises:
        ValueError: there is no such run or record.
    """
    history = history_of(run)
    if not -len(history) <= record < len(history):
        raise ValueError(f"record must be from 0 to {len(history) - 1}, or negative, got {record}")
    if as_csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("step", "layer", "statistic", "value"), *layer_values(history)])
        return text.getvalue().removesuffix("\n")
    drawn = _draw(run, reference, out, history)
    first, last = history[0].cost, cost(architectures(history)[-1][1])
    still = no_growth(history)
    refusals = Counter(why for at in history for _, why in at.refused)
    until = history[: record % len(history) + 1]
    said = suggestions(until)
    rules = [f"- {path}: {words}" for path, all_words in said.items() for words in all_words]
    return "\n".join(
        [
            f"{run}: {len(history)} records, {history[-1].spent:.0%} of the budget",
            f"{first.parameters:,} parameters at first, {last.parameters:,} at the end\n",
            f"Where capacity is missing\n\n{capacity_text(until)}\n",
            f"Growth and other edits\n\n{growth_table(history)}\n",
            *([f"{still}\n"] if still else []),
            *(f"refused {times} times: {why}\n" for why, times in refusals.items()),
            f"Layers at step {history[record].step}\n\n{layer_table(history[record])}\n",
            "Rules of thumb\n",
            *(rules or ["nothing to say"]),
            "",
            drawn,
        ]
    )


def _draw(run: str, beside: str | None, out: str | None, history: Sequence[Record]) -> str:
    """Write the pictures of a run, and say where they are or why there are none."""
    from analysis.showing.history_pictures import draw
    from analysis.showing.matplotlib_figures import Undrawn, drawing
    from training.keeping.picture_files import reference_of, seconds_of, write_pictures

    folder = path_of("run", run)
    folder = folder if folder.is_dir() else folder.parent
    place = path_of("out", out) if out else folder / "pictures"
    reference = history_of(beside, "reference") if beside else reference_of(folder)
    try:
        with drawing():
            pictures = draw(history, reference, seconds_of(folder))
    except Undrawn as failure:
        return str(failure)
    write_pictures(place, pictures)
    return f"pictures in {place}"
