"""Runs every benchmark and writes docs/benchmarks.md; on a machine that does nothing else.

    python -m benchmarks --data folder:PATH

Every figure is a ratio of things measured in turn in one process. `--only NAME ...` runs some of
them and keeps what the file says of the others.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Written by `make bench` (`python -m benchmarks`); every section is what was printed. All figures \
are ratios of things measured in turn in one process, best against best and in medians; a row \
that should be 1 says how much is noise. `PATH` is a folder of CIFAR-10 images, 15,000 of them \
for training. Nothing here was measured on a GPU; [gpu.md](gpu.md) says what to expect there.
"""
SECTIONS = {
    "loop": "The training loop beside a bare one, and beside the loop that most people write",
    "edits": "A growth step, a grown network, two hundred edits",
    "observer": "Observing every layer, beside other ways to do it",
    "freezing": "What freezing saves",
    "growth": "A growth step beside gromo's",
    "thesis": "The thesis' section 5.5",
    "startup": "Start-up",
    "sweep": "Two workers against one",
}
TAKES_DATA = ("loop", "observer")
MORE = {"growth": ["--batches", "10", "--rounds", "3"]}


def words_of(name: str, data: str, data_dir: str) -> list[str]:
    """Give the arguments of a benchmark."""
    given = ["--data", data, "--data-dir", data_dir] if name in TAKES_DATA else []
    given += ["--data", "mnist", "--data-dir", data_dir] if name == "thesis" else []
    return given + MORE.get(name, [])


def section_of(name: str, data: str, data_dir: str) -> str:
    """Run a benchmark and give its section; what it prints besides tables is text."""
    words = words_of(name, data, data_dir)
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"benchmarks.{name} failed:\n{result.stderr[-2000:]}")
    shown = " ".join(["python -m", f"benchmarks.{name}", *words])
    shown = shown.replace(data_dir, "data")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    made = f"`{shown}` ({date.today()}, {processor()}, {versions})"
    printed = result.stdout.strip()
    if "| --" not in printed:  # columns of text
        printed = f"```\n{printed}\n```"
    section = f"## {SECTIONS[name]}\n\n{made}\n\n{printed}\n"
    return re.sub(r"folder:[^\s,`]+", "folder:PATH", section)


def processor() -> str:
    """Give the processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def sections_in(page: str) -> dict[str, str]:
    """Give the sections that a page has, by name."""
    parts = {part.partition("\n")[0]: f"## {part}" for part in page.split("\n## ")[1:]}
    return {name: parts[title] for name, title in SECTIONS.items() if title in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10, or folder:PATH with its images")
    parser.add_argument("--data-dir", default="data", help="where torchvision's files are")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args()
    found = sections_in(PAGE.read_text()) if PAGE.exists() else {}
    for name in given.only:
        print(name, flush=True)
        found[name] = section_of(name, given.data, given.data_dir)
        ordered = [found[name].strip() for name in SECTIONS if name in found]
        PAGE.write_text("\n\n".join([HEAD.strip(), *ordered]) + "\n")


if __name__ == "__main__":
    main()
