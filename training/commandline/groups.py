"""The groups in which `--help` shows the settings of a run or a comparison. No torch here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

GROUPS = {
    "data": "data data_dir augment",
    "network": "net order stem start initializer",
    "budget": "epochs budget batch_size batch_growth accumulate seed",
    "optimizer": "optimizer lr schedule momentum weight_decay rates ema nonfinite",
    "growth": "policy grow_until policy_errors",
    "rows and seeds": "cells only seeds primary",
    "watching": "records observe_every validation_images",
    "device": "device precision threads deterministic graph compile",
    "many runs at a time": "engine workers per_gpu address dry_run",
    "folder": "out resume save_every final",
}
"""By title: names of fields; a command shows those that it has."""


def arrange(parser: ArgumentParser, kind: type) -> None:
    """Put the options of a class of settings into groups; what no group names comes last."""
    given: dict[str, list[Any]] = {item.name: [] for item in fields(kind)}
    options = parser._optionals._group_actions
    for action in list(options):
        name = action.option_strings[0].lstrip("-").partition(".")[0]
        if name in given:  # --start and --start.help both belong to start
            given[name].append(action)
            options.remove(action)
    named = {name for names in GROUPS.values() for name in names.split()}
    others = {"others": " ".join(name for name in given if name not in named)}
    for title, names in {**GROUPS, **others}.items():
        found = [action for name in names.split() for action in given.get(name, [])]
        if found:
            parser.add_argument_group(title)._group_actions.extend(found)
