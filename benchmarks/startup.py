"""How long a command takes to start: --help, and train and compare up to their first step.

python -m benchmarks.startup --rounds 5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from training.comparing.jobs import cores

ROOT = Path(__file__).parents[1]
RUN = [sys.executable, str(ROOT / "run.py")]
RECORDS = ["--records", "100000"]  # one after every step, the first included
TRAIN = [*RUN, "train", "--data", "digits", *RECORDS]
DEMO = [*RUN, "compare", "--config", str(ROOT / "experiments" / "digits.yaml"), *RECORDS]
DEMO += ["--data", "digits"]  # the plain ones, as the times that are published


def whole(words: Sequence[str]) -> float:
    """Give the seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step(words: Sequence[str]) -> float:
    """Give the seconds until a command has written the record of its first step; it is ended."""
    with TemporaryDirectory() as out:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*words, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not any(Path(out).rglob("metrics.csv")):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(words)} ended with exit code {process.returncode}")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.terminate()
        process.wait()
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = {
        "run.py --help": lambda: whole([*RUN, "--help"]),
        "import torch, nothing else": lambda: whole([sys.executable, "-c", "import torch"]),
        "run.py train --data digits: first step": lambda: first_step(TRAIN),
        "the demo: first step": lambda: first_step(DEMO),
    }
    seconds = {name: [row() for _ in range(rounds + 1)][1:] for name, row in rows.items()}
    print(f"{cores()} cores, torch {version('torch')}, {rounds} starts after one that is left out")
    print(f"{'':40} {'median s':>9} {'least':>6} {'most':>6}")
    for name, took in seconds.items():
        print(f"{name:40} {median(took):9.2f} {min(took):6.2f} {max(took):6.2f}")


if __name__ == "__main__":
    main()
