"""How far a comparison is, within its runs: what is told, to whom, and where."""

from __future__ import annotations

import io
import sys

import pytest
from runs import quiet, short_comparison

import training.commandline.console as console
from policies import Never
from training.comparing.comparison import compare
from training.comparing.job_queue import Progress, run_jobs, spent_in
from training.comparing.jobs import Job
from training.settings.compare_settings import Cell
from training.settings.start_settings import Start
from training.settings.train_settings import Train

SMALL = {"epochs": 0.1, "records": 2, "seeds": [0]}


@pytest.mark.parametrize(
    ("text", "spent"),
    [
        (None, 0),
        ("", 0),
        ("step,spent\n", 0),
        ("step,spent\n5,0.25\n10,0.5\n", 0.5),
        ("step,spent\n5,0.25\n1", 0),  # half of a line is there
        ("step,spent\n5,0.25\n10,nan\n", 0),
        ("step,spent\n5,1.02\n", 1),
        ("step\n5\n", 0),
        ("\0\n", 0),
    ],
)
def test_what_a_run_has_spent_is_read_from_its_folder(tmp_path, text, spent):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert spent_in(tmp_path) == spent


class Slow:
    """An engine whose two jobs end at the third question; they write how far they are meanwhile."""

    room = True

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.asked = 0

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        job.settings.folder.mkdir(parents=True)

    def ended(self):
        self.asked += 1
        for number, job in enumerate(self.jobs, start=1):
            text = f"step,spent\n1,{self.asked * number / 8}\n"
            (job.settings.folder / "metrics.csv").write_text(text)
        return [(job, None) for job in self.jobs] if self.asked == 3 else []

    def stop(self) -> None:
        pass


def test_runs_in_other_processes_are_followed_by_their_folders(tmp_path):
    heard, fractions = [], []
    progress = Progress(4, 2, fractions.append, heard.append)
    jobs = [Job(row, Train(out=str(tmp_path / row))) for row in "ab"]
    for _ in run_jobs(jobs, Slow(), progress):
        progress.done += 1
    assert heard == [
        {"a  seed 0": 0.125, "b  seed 0": 0.25},
        {"a  seed 0": 0.25, "b  seed 0": 0.5},
        {},
    ]
    assert fractions == [(2 + 0.375) / 4, (2 + 0.75) / 4, 1.0]


@pytest.mark.usefixtures("plain_reports")
def test_a_run_in_this_process_is_followed_step_by_step(tmp_path):
    heard, fractions = [], []
    cells = {"a": Cell(Never(), Start(0.25)), "b": Cell(Never(), Start(0.5))}
    settings = short_comparison(tmp_path / "c", cells=cells, **SMALL)
    compare(settings, quiet, fractions.append, running=heard.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    within = [spent for told in heard for spent in told.values()]
    assert any(0 < spent < 1 for spent in within)
    assert max(within) <= 1
    assert list(dict.fromkeys(name for told in heard for name in told)) == [
        "a  seed 0",
        "b  seed 0",
    ]
    again: list[float] = []
    compare(settings, quiet, again.append)  # all is finished
    assert again == []


def test_elsewhere_than_on_a_terminal_a_silent_minute_says_what_goes_on(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    with console.reporting_runs() as (say, advance, running):
        assert advance is None
        for seconds in (1, 59, 61, 62, 125):
            now[0] = seconds
            running({"a  seed 0": seconds / 200, "b  seed 1": 0.0})
        say("a run has ended")
        now[0] = 180
        running({"a  seed 0": 0.9})
        now[0] = 190
        running({})
        running({"a  seed 0": 0.95})
    assert capsys.readouterr().out.splitlines() == [
        "running: a  seed 0 30%, b  seed 1 0%",
        "running: a  seed 0 62%, b  seed 1 0%",
        "a run has ended",
        "running: a  seed 0 95%",
    ]


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_bar_names_the_runs(monkeypatch):
    for name, value in (("COLUMNS", "100"), ("TERM", "xterm"), ("LINES", "20")):
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with console.reporting_runs() as (say, advance, running):
        running({"[red] row  seed 3": 0.5})
        advance(0.25)
        say("1/4  [b]row  seed 2")
    text = terminal.getvalue()
    assert "[red] row  seed 3 50%" in text
    assert "25%" in text
    assert "1/4  [b]row  seed 2" in text


def test_only_the_first_process_reports(capsys):
    with console.reporting_runs(first=False) as (say, advance, running):
        say("nothing")
    assert (advance, running, capsys.readouterr().out) == (None, None, "")
