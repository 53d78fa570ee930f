"""A write that is refused ends a run in one line; nothing is lost, and `--resume` goes on."""

from __future__ import annotations

import io
import os
import re
import resource
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from errno import ENOSPC
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences
from test_kill import all_of
from test_resume import PROCESSES, command, exit_code

import run
from analysis import read_history
from analysis.recording.atomic_files import Unwritten, append, to_disk, write_whole
from policies import Never
from training.comparing.comparison import compare
from training.settings.compare_settings import Cell, Compare

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


def run_on_a_full_disk(
    arguments: Sequence[str], pattern: str, count: int, limit: bool, pipe: Connection
) -> None:
    """Run the command; from the count-th flush of a file of that name on the disk is full.

    With `limit` the kernel refuses: no file may be longer than the half of that one.
    """
    calls, fsync, opened = 0, os.fsync, Path.open

    def full(number: int) -> None:
        nonlocal calls
        calls += re.search(pattern, os.readlink(f"/proc/self/fd/{number}")) is not None
        if calls >= count:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        fsync(number)

    def limited(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        nonlocal calls
        if mode in ("wb", "ab"):
            calls += re.search(pattern, str(path)) is not None
            if calls == count:
                size = path.stat().st_size if path.exists() else 0
                most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, most))
        return opened(path, mode, *rest, **options)

    if limit:
        Path.open = limited  # pyright: ignore
    else:
        os.fsync = full
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            code = run.main(arguments)
        except BaseException:
            code = None
            traceback.print_exc()
    pipe.send((code, said.getvalue()))


def on_a_full_disk(arguments: Sequence[str], *how: Any) -> tuple[int, str]:
    """Give the exit code and what the command said on stderr, in a process of its own."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=run_on_a_full_disk, args=(arguments, *how, theirs))
    process.start()
    answer = ours.recv()
    process.join(60)
    return answer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(command(folder)) == 0
    return all_of(folder)


WRITERS = [  # the name of a file, which of its writes is refused, and whether the kernel does it
    ("checkpoint.pt", 1, False),
    ("checkpoint.pt", 3, True),
    (r"growth/step\d+.pt", 2, False),
    ("history.jsonl", 2, True),
    ("metrics.csv", 1, False),
    ("losses.csv", 3, True),
    ("events.out", 3, True),
    ("architecture.json", 1, False),
    ("summary.json", 1, True),
]


@LINUX
@pytest.mark.parametrize(("name", "count", "limit"), WRITERS)
def test_a_refused_write_ends_a_run_in_one_line_and_it_resumes(tmp_path, whole, name, count, limit):
    code, said = on_a_full_disk(command(tmp_path), name, count, limit)
    (line,) = said.splitlines()
    reason = "File too large" if limit else "No space left on device"
    told = rf"^run\.py: error: {tmp_path}/{name}\S* cannot be written: {reason}$"
    assert re.search(told, line), line
    assert code == 1
    assert not list(tmp_path.rglob("*.part"))
    kept = tmp_path / "checkpoint.pt"
    if kept.exists():
        step = torch.load(kept, weights_only=True)["progress"]["step"]
        assert step <= read_history(tmp_path)[-1].step  # no line is torn
    assert exit_code(command(tmp_path, "Periodic", "--resume")) == 0
    assert not differences(all_of(tmp_path), whole)


@LINUX
def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path):
    code, said = on_a_full_disk(command(tmp_path), "config.yaml", 1, False)
    told = f"run.py: error: out: {tmp_path} cannot be written: No space left on device"
    assert (code, said) == (2, told + "\n")
    assert exit_code(command(tmp_path)) == 0


@LINUX
def test_a_cell_that_cannot_write_has_failed_and_the_others_go_on(tmp_path, monkeypatch):
    given = {"net": "resnet8", "epochs": 0.1, "records": 2, "batch_size": 32, "device": "cpu"}
    cells = {"a": Cell(Never()), "b": Cell(Never())}
    settings = Compare(**given, workers=1, seeds=[0], cells=cells, out=str(tmp_path))
    fsync = os.fsync
    failing = [f"{tmp_path}/a/seed0/history.jsonl", f"{tmp_path}/a/seed0/error.txt"]
    failing.append(f"{tmp_path}/comparison.csv.part")

    def full(number: int) -> None:
        if any(part in os.readlink(f"/proc/self/fd/{number}") for part in failing):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        fsync(number)

    def quiet(line: str) -> None:
        if line.startswith("2/2"):
            failing.pop()  # at the end the table can be written

    monkeypatch.setattr(os, "fsync", full)
    (line,) = compare(settings, quiet).failures
    told = f"a  seed 0  failed: {tmp_path}/a/seed0/history.jsonl cannot be written: "
    assert line == told + os.strerror(ENOSPC)
    assert (tmp_path / "comparison.csv").read_text().splitlines()[1].startswith("b,0,")


def test_a_write_that_fails_changes_nothing_and_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "first\n")

    def full(number: int) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (lambda: write_whole(path, "second\n"), lambda: to_disk(path)):
            with pytest.raises(Unwritten) as refused:
                write()
            assert str(refused.value) == f"{path} cannot be written: {os.strerror(ENOSPC)}"
            assert (refused.value.errno, refused.value.filename) == (ENOSPC, str(path))
            assert path.read_text() == "first\n"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, most[1]))
    try:
        for name, size in (("file", 6), ("new", 0)):
            with pytest.raises(Unwritten, match=f"{name} cannot be written: File too large"):
                append(tmp_path / name, "more than that\n")
            assert (tmp_path / name).stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    append(path, "second\n")
    assert path.read_text() == "first\nsecond\n"
    with pytest.raises(Unwritten, match="inside cannot be written: Not a directory"):
        write_whole(path / "inside", "")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "new"]
