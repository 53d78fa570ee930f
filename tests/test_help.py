"""What helps at a prompt: settings in groups, and the completion of a shell."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from importlib.util import find_spec

import pytest
from runs import refusal_of

import run
from training.commandline.groups import GROUPS
from training.settings.compare_settings import Compare
from training.settings.train_settings import Train


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Give the options of a command's help by the titles of their groups."""
    with pytest.raises(SystemExit):
        run.main([*words, "--help"])
    found: dict[str, list[str]] = {}
    for part in re.split(r"\n\n(?=\S[^\n]*:\n)", capsys.readouterr().out)[1:]:
        found[part.partition(":")[0]] = re.findall(r"^  --(\w+)(?= |,|$)", part, re.MULTILINE)
    return found


@pytest.mark.parametrize(("command", "kind"), [("train", Train), ("compare", Compare)])
def test_every_setting_stands_in_one_named_group(capsys, command, kind):
    own, *titles = groups = help_of([command], capsys)
    assert own == "options"
    assert titles == [title for title in GROUPS if title in titles]
    shown = [name for title in titles for name in groups[title]]
    assert sorted(shown) == sorted(item.name for item in fields(kind))
    assert groups["options"] == ["config", "print_config"]
    assert groups["data"] == ["data", "data_dir", "augment"]


def test_what_no_group_names_comes_last(capsys, monkeypatch):
    monkeypatch.setitem(GROUPS, "optimizer", "optimizer")
    groups = help_of(["train"], capsys)
    assert groups["optimizer"] == ["optimizer"]
    assert list(groups)[-1] == "others"
    assert {"lr", "momentum"} < set(groups["others"])


def test_the_usage_is_one_line(capsys):
    with pytest.raises(SystemExit):
        run.main(["train", "--help"])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, second) == ("usage: run.py train [--config FILE] [--SETTING VALUE ...]", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_without_the_extra_completion_says_what_to_install(capsys, monkeypatch, shell):
    monkeypatch.setattr("training.commandline.completion.find_spec", lambda name: None)
    line = refusal_of(capsys, ["--print-completion", shell])
    assert line == "print_completion needs the extra: pip install 'growthrings[completion]'"


@pytest.mark.skipif(find_spec("shtab") is None, reason="needs growthrings[completion]")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tr", {"train"}),
        ("train --ep", {"--epochs"}),
        ("inspect --re", {"--record", "--reference"}),
        ("compare --see", {"--seeds", "--seeds+"}),
    ],
)
def test_bash_completes_the_installed_command(capsys, words, found):
    with pytest.raises(SystemExit) as stop:
        run.main(["--print_completion", "bash"])
    assert not stop.value.code
    typed = ["growthrings", *words.split()]
    given = f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; COMPREPLY=()"
    script = f'{capsys.readouterr().out}\n{given}\n_shtab_growthrings; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == found
