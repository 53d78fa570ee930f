"""Short runs and what lies in their folders: settings, small images, tables, and a refusal."""

import csv
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import run
from policies import Never, Policy
from training import Compare, Train


def quiet(_: object) -> None:
    """Say nothing."""


def short_run(folder: Path | str, policy: Policy | None = None, **changes: Any) -> Train:
    """Settings of a run on the digits, whose length the changes give."""
    given = {"net": "resnet8", "batch_size": 32, "device": "cpu", "out": str(folder)}
    given["save_every"] = 0.0  # a checkpoint at every record
    return Train(**{**given, "policy": policy or Never(), **changes})


def short_comparison(folder: Path, **changes: Any) -> Compare:
    """Settings of a comparison of such runs, one after the other."""
    given = {"net": "resnet8", "batch_size": 32, "device": "cpu", "workers": 1, "threads": 1}
    return Compare(**{**given, "out": str(folder), **changes})


def refusal_of(capsys: pytest.CaptureFixture[str], words: Sequence[object]) -> str:
    """Run the command, see it refuse with one line and exit code 2, and give the line."""
    capsys.readouterr()
    try:
        code = run.main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    output, errors = capsys.readouterr()
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("run.py: error: ")
    assert "Traceback" not in line
    return line.removeprefix("run.py: error: ")


def script(path: Path) -> ModuleType:
    """Import a script that is in no package."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bytes_of(folder: Path, but: str = "") -> dict[str, bytes]:
    """Every file below a folder with its content, but those of one name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != but)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a table, by the names of its columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wait_until(condition: Callable[[], Any], seconds: float = 180) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def write_images(
    root: Path,
    train: dict[str, int],
    test: dict[str, int],
    shape: tuple[int, int, int] = (8, 8, 3),
    name: str = "{}.png",
) -> str:
    """Write random images, so many for each class, and give the folder as data."""
    generator = np.random.default_rng(0)
    for part, classes in (("train", train), ("test", test)):
        for kind, count in classes.items():
            (root / part / kind).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(256, size=shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / kind / name.format(index))
    return f"folder:{root}"


def write_grey_images(root: Path, layout: str, size: int = 8) -> None:
    """Write two small images for each PART/CLASS of the layout."""
    for place in layout.split():
        (root / place).mkdir(parents=True)
        for number in (0, 1):
            image = Image.fromarray(np.full((size, size, 3), 9, np.uint8))
            image.save(root / place / f"{number}.png")


def no_network(*_: Any, **__: Any) -> None:
    """Instead of a download."""
    raise OSError("no network here")


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)
