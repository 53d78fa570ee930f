"""Every command that README.md and docs/ print is run, in its order, with stand-ins for the large.

docs/policies.md has its fenced commands run by test_docs, the README's first ones by test_readme.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import script, write_images

import run

ROOT = Path(__file__).parents[1]
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
KINDS = r"(?:PYTHONPATH=\S+ )?(?:python|make|torchrun|pip|\.venv/bin/\S+)"
STAND_INS = {
    "torchrun --nproc-per-node 2": "python",  # test_distributed runs several processes
    "--data cifar100": "--data folder:PATH",
    "cifar100.npz": "tiny.npz",
    "npz:FILE": "npz:tiny.npz",
    "--net resnet20": "--net resnet8",
    # with two rows of its eight
    "--data folder:cifar10-jpeg": "--config experiments/cifar10.yaml --data folder:cifar10-jpeg",
    "wrn-28-10": "wrn-10-1",
    "branch runs/base --at 239": "branch runs/base",  # fewer steps in all
    "branch runs/branch-a --at 40,84,110": "branch runs/branch-a",
    "--net resnet32": "--net resnet14",
}
DIGITS = ["--epochs", "0.2", "--records", "4", "--batch_size", "64", "--device", "cpu"]
IMAGES = ["--epochs", "1", "--records", "8", "--batch_size", "6", "--device", "cpu"]
MORE = {
    "train": [],
    "branch": ["--steps", "2", "--orders", "1"],
    "compare": ["--workers", "1", "--seeds", "[0]", "--records", "2", "--epochs", "0.3"],
}
"""What makes commands small: options after those that are printed."""
LEFT_OUT = {
    "...": "it is short for those beside it",
    "pip install": "it changes the environment; the suite itself runs in what it made",
    "make demo": "as `compare --config experiments/digits.yaml`",
    "-m benchmarks.judging": "it has no arguments, and takes 20 seconds",
    "make docs": "it changes the environment; test_docs walks the pages' links, code and places",
}


def commands_of(page: str) -> list[str]:
    """Give the commands of a page's blocks and of its text, in their order, each once."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"^({KINDS} .*?)(?:\s+#.*)?$|`({KINDS} [^`]+)`", text, re.MULTILINE)
    fenced = page != "docs/policies.md"
    commands = [block * fenced or inline for block, inline in found]
    return [each for each in dict.fromkeys(commands) if each not in ("", "python run.py")]


COMMANDS = {page: commands_of(page) for page in ("README.md", *DOCS)}
for number, page in enumerate(COMMANDS):  # once is enough for those that stand on two pages
    before = {command for other in [*COMMANDS][:number] for command in COMMANDS[other]}
    COMMANDS[page] = [command for command in COMMANDS[page] if command not in before]
PAGES = [page for page, commands in COMMANDS.items() if commands]


def tiny_experiment(path: Path, target: Path) -> None:
    """Copy a configuration, on tiny images, with the rows of its claim and a static one alone."""
    config = yaml.safe_load(path.read_text())
    if not config["data"].startswith(("sine", "digits", "folder:cifar-quarter")):
        config["data"] = "folder:PATH"
    if config["data"] != "sine":
        config["net"] = "resnet8"
    cells = config.get("cells") or {
        name: {"policy": {"class_path": kind}}
        for name, kind in (("static-full", "Never"), ("periodic", "Periodic"))
    }
    static = next(name for name, cell in cells.items() if "Never" in str(cell["policy"]))
    primary = str(config.pop("primary", "")).split(" vs ")
    kept = {static, *primary} & set(cells) if any(primary) else {*list(cells)[:2], static}
    config["cells"] = {name: cell for name, cell in cells.items() if name in kept}
    config["seeds"] = config["seeds"][:1]
    target.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as the pages take it for granted: experiments/, images, a policy of one's own."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("PATH", "cifar10-jpeg"):
        write_images(folder / name, {"a": 16, "b": 16}, {"a": 4, "b": 4})
    parts = {
        f"{part}_{name}": values
        for part, count in (("train", 32), ("test", 8))
        for name, values in (
            ("images", np.zeros((count, 8, 8, 3), np.uint8)),
            ("labels", np.arange(count) % 2),
        )
    }
    np.savez(folder / "tiny.npz", **parts)
    (folder / "experiments").mkdir()
    for path in (ROOT / "experiments").glob("*.yaml"):
        tiny_experiment(path, folder / "experiments" / path.name)
    shutil.copy(ROOT / "experiments" / "growing.py", folder / "experiments")
    shutil.copy(ROOT / "examples" / "mine.py", folder)
    return folder


def called(words: list[str]) -> int:
    """Run one command of run.py in this process, small."""
    more = MORE.get(words[0], [])
    if words[0] in ("train", "compare"):
        more = [*(DIGITS if "digits" in " ".join(words) else IMAGES), *more]
    try:
        asks = any(word.endswith("help") for word in words)
        return run.main([*words, *([] if asks else more)])
    except SystemExit as stop:
        return int(stop.code or 0)


def printed_by_make(target: list[str]) -> list[str]:
    """Give the commands that a target would run, but for those that make the environment."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", *target], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.replace(".venv/bin/python", "python") for line in done.stdout.splitlines()]
    return [line for line in lines if line.startswith("python") and "-m venv" not in line]


class _Accepted(Exception):
    """A benchmark's command line was accepted; to run it takes minutes."""


def accepted(path: Path, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Give a benchmark its arguments, and stop it there."""
    plain = argparse.ArgumentParser.parse_args

    def parse(self, *given):
        plain(self, *given)
        raise _Accepted

    patch.setattr(argparse.ArgumentParser, "parse_args", parse)
    patch.setattr(sys, "argv", [str(path), *words])
    with pytest.raises(_Accepted):
        runpy.run_path(str(path), run_name="__main__")


def selected(words: list[str]) -> None:
    """See that what pytest is told selects tests."""
    words = words if any(word.endswith(".py") for word in words) else [*words, "tests/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", *words, "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout  # 5 where nothing is selected


def perform(command: str, patch: pytest.MonkeyPatch) -> None:
    """Run a command, or what stands for it."""
    for large, small in STAND_INS.items():
        command = command.replace(large, small)
    words = shlex.split(command)
    if words[0].startswith("PYTHONPATH="):
        patch.syspath_prepend(str(ROOT / words.pop(0).partition("=")[2]))
    program, *words = words
    if program == "make":
        for line in printed_by_make(words):
            perform(line, patch)
    elif words[0] == "run.py":
        assert called(words[1:]) == 0, command
    elif words[:2] == ["-m", "pytest"]:
        selected(words[2:])
    elif words[0] == "-m":
        path = ROOT.joinpath(*words[1].split("."))
        path = path / "__main__" if path.is_dir() else path
        accepted(path.with_suffix(".py"), words[2:], patch)
    elif words[0].startswith("benchmarks/"):
        accepted(ROOT / words[0], words[1:], patch)
    else:
        assert script(ROOT / words[0]).main(words[1:]) == 0, command


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, workplace, monkeypatch, capsys, parser):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(run, "make_parser", lambda: parser)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)  # test_compile compiles
    shutil.rmtree("runs", ignore_errors=True)
    for command in COMMANDS[page]:
        if any(part in command for part in LEFT_OUT):
            continue
        with pytest.MonkeyPatch.context() as patch:
            perform(command, patch)
        capsys.readouterr()


def test_the_pages_are_all_there_and_have_commands():
    without = {"data", "edits", "files", "own_loop", "related", "words"}
    without |= {f"api/{floor}" for floor in ("nets", "analysis", "policies")}
    assert set(DOCS) - set(PAGES) == {f"docs/{name}.md" for name in without}
    found = [command for page in PAGES for command in COMMANDS[page]]
    kinds = {word for command in found for word in shlex.split(command)[:3]}
    assert kinds >= {"train", "compare", "inspect", "replay", "branch", "make", "torchrun"}
    assert all(any(part in command for command in found) for part in (*LEFT_OUT, *STAND_INS))
