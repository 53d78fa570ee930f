"""What a recorded run was told, as objects again: its settings, and initializers of its growth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analysis import Record
from nets import Action
from nets.plan.action_dicts import name_of
from nets.plan.actions import INITIALIZERS
from training.keeping.run_folder import binding, read_config
from training.settings.config_yaml import made_initializer
from training.settings.train_settings import Common, Train


@dataclass(frozen=True)
class Told:
    """A run's settings without its policy, and what its config.yaml holds of that.

    `identity` is what a kept checkpoint must hold of the settings.
    """

    settings: Train
    identity: dict[str, Any]
    policy: Any = None

    def done(self, record: Record, run: Path) -> tuple[Action, ...]:
        """Give all that the run did at a record, in order, with initializers as objects.

        Files name them; the run's settings, or its policy's as config.yaml has them, make them.

        Raises:
            ValueError: an initializer is known by its name alone.
        """
        return tuple(_whole(action, record, run, self) for action in record.applied)


def told_of(run: Path) -> Told:
    """Read a run's config.yaml.

    Raises:
        ValueError: it is missing or damaged, or its initializer cannot be made.
    """
    config = read_config(run)
    names = [item.name for item in fields(Common) if item.name in config]  # and no policy
    if "seed" not in config:
        raise ValueError(f"out: {run}/config.yaml cannot be read: it holds no seed")
    given = {name: config[name] for name in names}
    if not isinstance(given.get("initializer", ""), str):
        try:
            given["initializer"] = made_initializer(given["initializer"])
        except ValueError as error:
            raise ValueError(f"initializer of {run} {error}") from None
    settings = Train(**given, seed=config["seed"], out=str(run))
    identity = binding({name: config[name] for name in (*names, "seed")})
    return Told(settings, identity, config.get("policy"))


def _whole(action: Action, record: Record, run: Path, told: Told) -> Action:
    name = getattr(action, "initializer", None)
    if not isinstance(name, str) or name in INITIALIZERS:
        return action
    for made in (told.settings.initializer, *_initializers(told.policy, name)):
        if name_of(made) == name:
            return replace(action, initializer=made)  # pyright: ignore[reportCallIssue]
    raise ValueError(
        f"run: the growth at step {record.step} of {run} cannot be done again: its initializer "
        f"{name} is known by its name alone, and no setting of the run makes it"
    )


def _initializers(settings: Any, name: str) -> Iterator[Any]:
    """Give the initializers among a policy's settings whose class a name begins with."""
    if not isinstance(settings, Mapping):
        return
    path = settings.get("class_path")
    if isinstance(path, str) and name.startswith(path.rpartition(".")[2]):
        with suppress(ValueError):  # another class of that name
            yield made_initializer(settings)
    for value in settings.values():
        yield from _initializers(value, name)
