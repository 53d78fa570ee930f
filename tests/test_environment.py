"""What a machine and a user's folder bring with them: streams, home folders, modules, names."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

import run
from analysis.recording.atomic_files import path_of, write_whole
from training.commandline import console
from training.comparing.jobs import jobs_of
from training.settings.compare_settings import Cell, Compare
from training.settings.train_settings import Train

RUN = Path(run.__file__)
QUICK = "--net resnet8 --epochs 0.1 --records 2 --batch_size 32 --threads 1 --device cpu"


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    """The streams are as they were afterwards."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


class Full(io.TextIOWrapper):
    """A stream onto a full disk."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8")

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Gone(Full):
    """A stream that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("how", ["None", "closed"])
def test_a_closed_stream_goes_nowhere(monkeypatch, name, how):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, name, None if how == "None" else stream)
    console.open_streams()
    print("nothing", file=sys.stdout)
    assert not sys.stdout.isatty()
    getattr(sys, name).close()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"78.00 +- 0.30 \xfc \u7db2 \udcff"),
        ("latin-1", r"78.00 ± 0.30 ü \u7db2 \udcff"),
        ("cp1252", r"78.00 ± 0.30 ü \u7db2 \udcff"),
        ("utf-8", r"78.00 ± 0.30 ü 網 \udcff"),
    ],
)
def test_stdout_shows_what_it_can(monkeypatch, encoding, shown):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding, errors="strict"))
    console.open_streams()
    print("78.00 ± 0.30 ü 網 \udcff", flush=True)
    assert file.getvalue().decode(encoding) == shown + "\n"


@pytest.mark.parametrize(
    ("stream", "line"),
    [
        (Full, "run.py: error: stdout cannot be written: [Errno 28] No space left on device\n"),
        (Gone, ""),
    ],
)
def test_a_run_goes_on_without_anybody_who_hears_it(tmp_path, monkeypatch, capsys, stream, line):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream())
        code = run.main(["train", *QUICK.split(), "--out", str(tmp_path)])
    assert (code, capsys.readouterr().err) == (1, line)
    assert (tmp_path / "summary.json").exists()


def test_a_command_works_with_all_streams_closed(tmp_path):
    """In a process of its own, whose next file would be its stdout."""
    command = [sys.executable, str(RUN), "train", *QUICK.split(), "--out", "größe %\n\udcff"]
    closing = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", closing, "sh", *command], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "größe %\n\udcff" / "summary.json").exists()


def test_a_full_stderr_changes_no_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    assert run.main(["inspect", str(tmp_path)]) == 2


# Home folders -----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    (tmp_path / "work").mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_tilde_is_the_home_folder(home):
    assert path_of("out", "~") == home
    assert Train(out="~/runs/x").folder == home / "runs" / "x"
    assert Compare(out="~/c").folder == home / "c"
    assert path_of("out", "a/~/b") == Path("a/~/b")
    assert path_of("out", "$HOME/x") == Path("$HOME/x")
    assert path_of("out", "./~x") == Path.cwd() / "~x"


def test_a_comparisons_runs_lie_in_it(home):
    cells = {"a": Cell(), "b": Cell(yoked="a"), "c": Cell(scratch="a")}
    for out, folder in (("~/c", home / "c"), ("./~c", Path.cwd() / "~c"), ("c", Path("c"))):
        jobs = jobs_of(Compare(out=out, cells=cells, seeds=[0]))
        assert [job.settings.folder for job in jobs] == [folder / n / "seed0" for n in "abc"]
        assert jobs[1].after == folder / "a" / "seed0"


@pytest.mark.parametrize("out", ["", "~no_such_user/x", "a\0b"])
@pytest.mark.parametrize("kind", [Train, Compare])
def test_what_is_no_folder_is_refused_at_once(kind, out):
    with pytest.raises(ValueError, match=r"^out must b"):
        kind(out=out)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("train --out ~no_such_user/x", "out"),
        ("train --data folder:~no_such_user/x", "data"),
        ("train --data mnist --data_dir ~no_such_user/x", "data_dir"),
        ("train --start.architecture ~no_such_user/x", "start.architecture"),
        ("inspect ~no_such_user/x", "run"),
        ("replay ~no_such_user/x --policy Never", "runs"),
        ("branch ~no_such_user/x --at 3", "run"),
    ],
)
def test_a_user_that_is_not_there_is_named(home, refusal, words, name):
    line = refusal(words.split())
    assert line.startswith(f"{name} must begin with ~")
    assert line.endswith("got '~no_such_user/x'")


def test_every_command_knows_the_home_folder(home, finished_run, capsys):
    (home / "run").symlink_to(finished_run)
    for words in (
        "inspect ~/run --reference ~/run --out ~/pictures",
        "replay ~/run --policy Never",
        "replay ~/run/history.jsonl --policy.class_path Yoked --policy.init_args.run ~/run",
    ):
        assert run.main(words.split()) == 0, words
    assert (home / "pictures" / "architecture.png").exists()
    assert list(Path().iterdir()) == []


def test_a_name_that_is_no_utf8_ends_no_file(tmp_path):
    write_whole(tmp_path / "page.html", "a\udcff±")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == r"a\udcff±"
