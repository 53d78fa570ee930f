"""Freed memory stays with a process of ours, and only with one."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

import run
from training.commandline.process_memory import keep_memory

ROOT = Path(__file__).parents[1]
PROBE = """
import sys
from pathlib import Path
from training.commandline.process_memory import keep_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "kept":
    keep_memory()
before = resident()
block = bytearray(b"x" * 2**24)
del block
print((resident() - before) // 2**20)
"""


def has_mallopt():
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallopt")
    except OSError:
        return False


@pytest.mark.skipif(not has_mallopt(), reason="not glibc")
def test_what_is_freed_stays():
    def left(how):
        words = [sys.executable, "-c", PROBE, how]
        return int(subprocess.run(words, cwd=ROOT, check=True, capture_output=True).stdout)

    assert left("kept") >= 16
    assert left("as it comes") < 8


class Libc:
    """A libc whose mallopt takes thresholds up to a size, and notes what it was asked."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def mallopt(self, what, size):
        self.asked.append((what, size))
        return int(what == -1 or size <= self.most)


@pytest.mark.parametrize(
    ("most", "asked"),
    [
        (2**30, [(-3, 2**30), (-1, 2**31 - 1)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, [(-3, 2**30), (-3, 2**25)]),  # trimming goes on where blocks come from the system
    ],
)
def test_a_glibc_is_asked_for_no_more_than_it_takes(monkeypatch, most, asked):
    libc = Libc(most)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    keep_memory()
    assert libc.asked == asked


@pytest.mark.parametrize("found", [object(), None])
def test_without_glibc_nothing_happens(monkeypatch, found):
    def library(name):
        if found is None:
            raise OSError(f"{name} is not here")
        return found

    monkeypatch.setattr(ctypes, "CDLL", library)
    keep_memory()


def test_a_command_asks_for_it_and_a_call_does_not(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(run, "keep_memory", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["run.py", "--no-such-option"])
    for arguments, wanted in (([], []), (None, [True])):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert asked == wanted
