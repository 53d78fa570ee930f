"""How much faster a comparison is on two workers than on one: prints the ratio of wall times.

    python benchmarks/sweep.py

Both have one thread a run and start from nothing. Run it on a quiet machine with two cores or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]


def seconds(workers: int, epochs: float, seeds: int) -> float:
    """Run the digits comparison in a process of its own, and give its wall time."""
    chosen = f"--workers {workers} --threads 1 --epochs {epochs} --seeds {list(range(seeds))}"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(ROOT / "run.py"), "compare"]
        words += ["--config", str(ROOT / "experiments" / "digits.yaml"), "--out", f"{folder}/c"]
        words += ["--data", "digits"]  # the plain ones, as the times that are published
        words += chosen.replace(", ", ",").split()
        started = perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    one, more = (seconds(workers, given.epochs, given.seeds) for workers in (1, given.workers))
    print(f"1 worker: {one:.1f} s; {given.workers} workers: {more:.1f} s; {os.cpu_count()} cores")
    print(f"ratio {one / more:.2f} (aim: 1.7 with 2 workers on 2 cores)")


if __name__ == "__main__":
    main()
