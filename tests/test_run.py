"""The command line: what it leaves behind, what it prints, and how it refuses."""

from __future__ import annotations

import csv
import importlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import bytes_of, no_network, refusal_of, write_grey_images

import run
import training.running.finished
from analysis import read_history
from analysis.judging.rules_of_thumb import suggestions
from analysis.observing.reading import STATISTICS
from policies import Periodic
from training.settings.config_yaml import settings_to_dict
from training.settings.train_settings import Train

ROOT = Path(__file__).parents[1]
FIRST = "train --data digits --net resnet8 --policy Periodic --epochs 5 --seed 0"
FIRST += " --policy.share 0.02 --out"
"""The command of the design, with a policy that grows by the clock and asks to the end."""
SMALL = "train --net resnet8 --epochs 0.1 --records 3 --batch_size 32 --device cpu"
MINE = '''
"""A policy of the user's own."""
from dataclasses import dataclass

from policies import Policy, due, widen


@dataclass(frozen=True)
class Mine(Policy):
    every: int = 1
    share: float = 0.1
    stages: tuple[str, ...] = ("stage1", "stage3")

    def decide(self, history):
        if not due(history, self.every):
            return []
        return widen(history, f"{self.stages[-1]}.block1", self.share, "mine")


class Bare(Policy):
    def decide(self, history):
        return []


@dataclass(frozen=True)
class Wrong(Policy):
    def decide(self, history):
        return "widen"
'''


def called(arguments: Sequence[object]) -> int:
    """Run the command in this process; give its exit code."""
    try:
        return run.main([str(word) for word in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of the design's command in a process of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("first") / "run"
    words = [sys.executable, str(ROOT / "run.py"), *FIRST.split(), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and a module of policies beside it; tests take copies."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert called([*SMALL.split(), "--policy", "Periodic", "--out", folder]) == 0
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has written `mine.py`."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    return tmp_path


def test_the_first_command_leaves_all_files(first):
    folder, _ = first
    names = {path.name for path in folder.iterdir()}
    promised = "config.yaml history.jsonl metrics.csv checkpoint.pt summary.json environment.json"
    assert set(promised.split()) < names
    assert [name for name in names if name.startswith("events.out.tfevents")]
    assert not list(folder.rglob("*.part"))
    summary = json.loads((folder / "summary.json").read_text())
    keys = (
        "policy seed parameters flops train_flops seconds validation_accuracy test_accuracy growth"
    )
    assert set(keys.split()) < summary.keys()
    assert (summary["policy"], summary["seed"], summary["test_accuracy"]) == ("Periodic", 0, None)
    assert 0 < summary["validation_accuracy"] <= 1
    assert summary["growth"]
    for entry in summary["growth"]:
        assert entry.keys() == {"step", "spent", "action"}
    history = read_history(folder)
    assert len(history) == 20
    steps = [record.step for record in history if record.applied]
    kept = sorted((folder / "growth").iterdir())
    assert [path.name for path in kept] == [f"step{step:07d}.pt" for step in steps]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert next(iter(state)) == "architecture"
    assert state["progress"]["step"] == history[-1].step == summary["steps"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    settings = Train(policy=Periodic(share=0.02), net="resnet8", epochs=5, out=str(folder))
    assert config == settings_to_dict(settings)


def test_the_first_command_prints_plain_lines(first):
    folder, output = first
    first_line, *lines = output.splitlines()
    assert first_line == "augmentation: crop (pad 1) (--augment auto)"
    assert len(lines) == 22
    assert all(line.startswith("step ") for line in lines[:20])
    assert lines[20].startswith("validation accuracy ")
    assert lines[21] == f"{folder}; look at it with: tensorboard --logdir {folder}"
    assert "\x1b" not in output
    assert "\r" not in output
    grown = read_history(folder)
    refused: set[str] = set()
    for line, record in zip(lines, grown, strict=False):
        first = {why for _, why in record.refused} - refused
        refused |= first
        assert ("Widen(" in line) == bool(record.applied or first)
        assert all(f" refused: {why}" in line for why in first)


def test_a_written_config_gives_the_same_run(tiny, tmp_path):
    again = tmp_path / "again"
    assert called(["train", "--config", tiny / "config.yaml", "--out", again]) == 0
    assert (again / "history.jsonl").read_bytes() == (tiny / "history.jsonl").read_bytes()
    other = tmp_path / "other"
    assert called(["train", "--config", tiny / "config.yaml", "--out", other, "--seed", 1]) == 0
    assert (other / "history.jsonl").read_bytes() != (tiny / "history.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["train", "compare"])
def test_the_printed_config_is_the_command(tmp_path, capsys, kind):
    assert called([kind, "--net", "resnet8", "--lr", "0.25", "--print_config"]) == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert (config["net"], config["lr"], config["epochs"]) == ("resnet8", 0.25, 20)
    (tmp_path / "config.yaml").write_text(printed)
    assert called([kind, "--config", tmp_path / "config.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == config


def test_dashes_and_underscores_in_option_names_are_the_same(capsys):
    ways = [
        ["--batch-size", "64", "--grow_until=0.5", "--policy=Plateau", "--policy.min-delta=0.1"],
        ["--batch_size", "64", "--grow-until=0.5", "--policy=Plateau", "--policy.min_delta=0.1"],
    ]
    printed = []
    for words in ways:
        assert called(["train", *words, "--out", "a-b_c", "--print-config"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    config = yaml.safe_load(printed[0])
    assert (config["batch_size"], config["out"]) == (64, "a-b_c")
    assert config["policy"]["init_args"]["min_delta"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "compare", "inspect", "replay", "A first run, in seconds:"]),
        (["train", "--help"], ["--epochs", "--policy", "--start", "--resume", "--final"]),
        (["compare", "--help"], ["--seeds", "--cells", "--final"]),
        (["replay", "--help"], ["--policy"]),
    ],
)
def test_help_comes_without_torch(arguments, words):
    code = (
        f"import sys, run\ntry: run.main({arguments})\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout
    assert "\x1b" not in done.stdout


def test_what_takes_seconds_to_import_comes_after_the_first_step(tmp_path):
    code = (
        "import sys, run, training.running.loop\n"
        "def stop(*values):\n"
        "    late = {'matplotlib', 'PIL.ImageDraw', 'scipy', 'sklearn', 'torchvision'}\n"
        "    sys.exit(f'first step with {late & set(sys.modules)}')\n"
        "training.stepping.step.train_step = stop\n"
        f"run.main(['train', '--data', 'digits', '--out', {str(tmp_path)!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert (done.returncode, done.stderr) == (1, "first step with set()\n")


def test_final_reads_the_test_set_once_and_the_summary_counts_it(
    tiny, tmp_path, monkeypatch, capsys
):
    read: list[int] = []
    evaluate = training.running.finished.evaluate

    def counted(net: Any, images: Any, *rest: Any) -> Any:
        read.append(len(images))
        return evaluate(net, images, *rest)

    monkeypatch.setattr(training.running.finished, "evaluate", counted)
    folder = tmp_path / "run"
    shutil.copytree(tiny, folder)
    given = ["train", "--config", folder / "config.yaml", "--out", folder, "--resume", "--final"]
    summaries = []
    for _ in range(2):
        assert called(given) == 0
        assert "test accuracy " in capsys.readouterr().out
        summaries.append(json.loads((folder / "summary.json").read_text()))
    assert read == [359]
    assert summaries[0] == summaries[1]
    assert summaries[0]["test_readings"] == 1
    assert 0 < summaries[0]["test_accuracy"] < 1


def test_final_tells_a_regressions_test_loss(tmp_path, capsys):
    words = f"train --data sine --net mlp-8 --epochs 1 --records 1 --device cpu --out {tmp_path}"
    assert called(words.split()) == 0
    assert "test " not in capsys.readouterr().out
    assert called([*words.split(), "--resume", "--final"]) == 0
    loss = json.loads((tmp_path / "summary.json").read_text())["test_loss"]
    assert f"\ntest loss {loss:.4g}\n" in capsys.readouterr().out


def test_inspect_tells_what_grew_and_shows_the_layers(first, monkeypatch, capsys):
    folder, _ = first
    monkeypatch.setattr("analysis.showing.history_pictures.draw", lambda *histories: {})
    history = read_history(folder)
    for more, record in (([], history[-1]), (["--record", "2"], history[2])):
        assert called(["inspect", folder, *more]) == 0
        output = capsys.readouterr().out
        assert f"{folder}: 20 records, 100% of the budget" in output
        assert "| Widen(block='stage2.block1', by=" in output
        assert "turn 1: stage2 |" in output
        assert f"Layers at step {record.step}\n" in output
        for path, reading in record.layers.items():
            (row,) = [line for line in output.splitlines() if line.startswith(f"| {path} ")]
            assert f" {reading.response_std:.4g} |" in row
    refused = [why for record in history for _, why in record.refused]
    assert set(refused) == {"no growth after grow_until"}
    assert f"refused {len(refused)} times: no growth after grow_until\n" in output
    assert "\x1b" not in output


def test_inspect_draws_pictures_and_suggests(first, tmp_path, capsys):
    folder, _ = first
    for more, out in (([], folder / "pictures"), (["--out", tmp_path / "a/b"], tmp_path / "a/b")):
        assert called(["inspect", folder, *more]) == 0
        output = capsys.readouterr().out
        assert output.endswith(f"\npictures in {out}\n")
        names = {path.name for path in out.iterdir()}
        assert names > {"architecture.png", "response_std_by_layer.png"}
        assert names > {"heat_map_response_std.png", "heat_map_residual_ratio.png"}
        for path in out.iterdir():
            assert path.read_bytes().startswith(b"\x89PNG")
    rules = output.partition("Rules of thumb\n")[2]
    for path, words in suggestions(read_history(folder)).items():
        for line in words:
            assert f"- {path}: {line}\n" in rules
    assert called(["inspect", folder, "--record", "0", "--out", tmp_path]) == 0
    assert "Rules of thumb\n\n" in capsys.readouterr().out
    given = folder / "history.jsonl"
    assert called(["inspect", given, "--out", tmp_path / "c"]) == 0
    assert (tmp_path / "c" / "architecture.png").exists()


def test_inspect_compares_with_the_run_it_is_given(first, tiny, tmp_path):
    folder, _ = first
    for name, more in (("a", []), ("b", ["--reference", tiny])):
        assert called(["inspect", folder, *more, "--out", tmp_path / name]) == 0
    same, other = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("a", "b"))
    differing = {name for name in same if same[name] != other[name]}
    assert differing == {"how_well.png", "response_std_by_layer.png"}


def test_inspect_gives_every_number_as_one_tidy_table(tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "run")
    before = bytes_of(tmp_path)
    assert called(["inspect", tmp_path / "run", "--csv"]) == 0
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["step", "layer", "statistic", "value"]
    history = read_history(tiny)
    expected = []
    for record in history:
        numbers = [
            (path, name, reading.value(name))
            for path, reading in record.layers.items()
            for name in STATISTICS
        ]
        numbers += [(block, "sensitivity", value) for block, value in record.sensitivity.items()]
        expected += [(record.step, *each) for each in numbers if each[-1] is not None]
    assert [(int(a), b, c, float(d)) for a, b, c, d in rows] == expected
    assert bytes_of(tmp_path) == before


def test_inspect_asks_for_one_run_of_a_comparison(tiny, workplace, capsys):
    shutil.copytree(tiny, workplace / "all" / "row" / "seed1")
    shutil.copytree(tiny, workplace / "all" / "row" / "seed0")
    for words in (["inspect", "all"], ["branch", "all", "--at", "3"]):
        line = refusal_of(capsys, words)
        assert line == "run must be one run of the comparison, such as all/row/seed0, got all"


def replayed(output):
    """Give the header and the rows of a table, each with what goes on in the lines below it."""
    header, _, *lines = [[c.strip() for c in x.split("|")[1:-1]] for x in output.splitlines()]
    rows = []
    for line in lines:
        if line[0]:
            rows.append(line)
        else:
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], line)]
    return header, rows


def test_replay_shows_what_another_policy_would_have_asked_for(first, capsys):
    folder, _ = first
    assert called(["replay", folder, "--policy", "Periodic", "--policy.every", "2"]) == 0
    output = capsys.readouterr().out
    header, rows = replayed(output)
    assert header == ["step", "spent", "done", "Periodic would have asked for"]
    history = read_history(folder)
    assert [row[0] for row in rows] == [str(record.step) for record in history]
    asked = {number for number, row in enumerate(rows, start=1) if row[3] != "-"}
    assert asked == set(range(2, 20, 2))
    assert rows[1][3].startswith("Widen(block='stage3.block1', by=")  # the next in turn
    assert [row[2] != "-" for row in rows] == [bool(record.applied) for record in history]


@pytest.mark.parametrize("policy", ["Periodic", "StochasticDepth"])
def test_replay_of_a_run_on_its_own_policy_says_what_it_did(tmp_path, capsys, policy):
    folder = tmp_path / "run"
    assert called([*SMALL.split(), "--policy", policy, "--epochs", "0.3", "--out", folder]) == 0
    capsys.readouterr()
    assert called(["replay", folder, "--policy", policy]) == 0
    _, rows = replayed(capsys.readouterr().out)
    history = read_history(folder)
    assert any(record.decided for record in history)
    for cells, record in zip(rows, history, strict=True):
        assert cells[3].count("(") == len(record.decided)


def test_a_policy_from_the_users_own_file(workplace, capsys):
    given = [*SMALL.split(), "--policy", "mine.Mine", "--policy.every", "2", "--out", "own"]
    assert called(given) == 0
    config = yaml.safe_load((workplace / "own" / "config.yaml").read_text())
    assert config["policy"]["class_path"] == "mine.Mine"
    assert config["policy"]["init_args"] == {
        "every": 2,
        "share": 0.1,
        "stages": ["stage1", "stage3"],
    }
    history = read_history("own")
    assert [bool(record.decided) for record in history] == [False, True, False]
    assert history[1].decided[0].reason == "mine"
    assert json.loads((workplace / "own" / "summary.json").read_text())["policy"] == "Mine"
    assert called([*given, "--resume"]) == 0
    assert called(["train", "--config", "own/config.yaml", "--out", "again"]) == 0
    assert (
        bytes_of(workplace / "again")["history.jsonl"]
        == bytes_of(workplace / "own")["history.jsonl"]
    )
    assert called(["replay", "own", "--policy", "mine.Mine"]) == 0
    assert "Mine would have asked for" in capsys.readouterr().out


POLICIES = "GrowAndPrune, LayerStatistic, Never, Periodic, Plateau, RandomSite, "
POLICIES += "StochasticDepth, WholeNet, Yoked"
REFUSED = [
    (
        "--policy Foo",
        f"policy must be one of {POLICIES}, or an import path such as mine.Mine; got 'Foo'",
    ),
    ("--policy mine.Nobody", "policy: .*mine.Nobody"),
    ("--policy nowhere.Mine", "policy: .*No module named 'nowhere'"),
    (
        "--policy mine.Bare",
        "policy must be a dataclass, whose fields are its settings, got mine.Bare",
    ),
    (
        "--policy random.Random",
        "policy: .*random.Random does not correspond to a subclass of Policy",
    ),
    ("--policy Policy", "policy: .*abstract"),
    ("--policy Plateau --policy.patience 0", "patience must be at least 1, got 0"),
    ("--policy Plateau --policy.patience x", "patience must be an integer.*'x'"),
    ("--policy Plateau --policy.nope 1", "policy: .*Option 'nope' is not accepted"),
    ("--policy Periodic --policy.every 1.5", "every must be an integer.*1.5"),
    (
        "--data imagenet",
        "data must be one of digits, .*, mnist, .*, sine; got 'imagenet'",
    ),
    ("--net resnet9", "net must be one of resnet8, .*; got 'resnet9'"),
    ("--order side", "order must be one of post, pre; got 'side'"),
    ("--stem none", "stem must be one of cifar, imagenet; got 'none'"),
    ("--net mlp-8 --stem cifar", "order, stem and block do not apply to mlp-8"),
    ("--optimizer lion", "optimizer must be one of sgd, adam, adamw, rmsprop; got 'lion'"),
    ("--schedule step", "schedule must be one of cosine, hold; got 'step'"),
    ("--budget steps", "budget must be one of flops, epochs, seconds; got 'steps'"),
    ("--initializer zero", r"initializer must be one of he, xavier, .*; got 'zero'"),
    ("--precision fp8", "precision must be one of auto, float32, bf16, fp16; got 'fp8'"),
    ("--device tpu", "device must be auto, cpu or an available GPU, got 'tpu'"),
    ("--device meta", "device must be auto, cpu or an available GPU, got 'meta'"),
    ("--batch_size 1296", "batch_size must be at most 1295 .*, got 1296"),
    ("--batch_size 1", "batch_size must be at least 2, got 1"),
    ("--start.width 0", "start.width must be above 0 and at most 1, got 0"),
    ("--start.width 2", "start.width must be above 0 and at most 1, got 2"),
    ("--start.width x", "start.width must be a number, got 'x'"),
    ("--start.blocks 0", "start.blocks must be at least 1, got 0"),
    ("--start.blocks x", "start.blocks must be an integer, got 'x'"),
    ("--start 5", "start must be a mapping, got '5'"),
    ("--epochs 0", "epochs must be above 0"),
    ("--epochs -1", "epochs must be above 0"),
    ("--epochs nan", "epochs must be a number, got 'nan'"),
    ("--epochs .nan", "epochs must be above 0 .*, got nan"),
    ("--epochs inf", "epochs must be a number, got 'inf'"),
    ("--epochs .inf", "epochs must be above 0 and at most 1000000000, got inf"),
    ("--epochs 1e300", "epochs must be above 0 and at most 1000000000, got 1e[+]300"),
    ("--records 0", "records must be at least 1, got 0"),
    ("--records 1.5", "records must be an integer, got '1.5'"),
    ("--grow_until 2", "grow_until must be from 0 to 1, got 2"),
    ("--lr 0", "lr must be above 0 and finite, got 0"),
    ("--lr nan", "lr must be a number, got 'nan'"),
    ("--lr .nan", "lr must be above 0 and finite, got nan"),
    ("--seed -1", "seed must be at least 0, got -1"),
    ("--seed x", "seed must be an integer, got 'x'"),
    ("--seed 9223372036854775808", "seed must be below 2[*][*]63"),
    ("--nope 1", "unrecognized arguments: --nope"),
    ("stray", "unrecognized arguments: stray"),
    ("--config nowhere.yaml", "config: .*nowhere.yaml"),
    ("--config notes.yaml", "config"),
    ("--config list.yaml", "config: list.yaml must hold a mapping of settings, got a list"),
    ("--config unknown.yaml", "does not accept option 'nope'"),
    ("--config wrong.yaml", "epochs must be a number, got .*a"),
    ("--data folder:", "data folder:PATH must name an existing folder, got ''"),
    ("--data folder:nowhere", "data folder:PATH must name an existing folder, got 'nowhere'"),
    ("--data folder:hollow", "hollow/train is missing"),
    (
        "--data folder:classless",
        "classless/train must hold a folder of images for every class, got none",
    ),
    ("--data folder:empty", "empty/train/a must hold at least one image, got none"),
    ("--data folder:lone", "lone must hold at least 2 classes, got 1"),
    ("--data folder:differing", "must hold the same classes; only in train: b; only in test: c"),
    ("--data folder:spoilt", "spoilt/train/b/1.png is no image that can be read"),
    ("--data mnist --data_dir nowhere", "mnist is not in nowhere and cannot be downloaded"),
    (
        "--data sine",
        r"net must be mlp-W for sine, got 'resnet8': .* image must be .*, not [(]1,[)]",
    ),
]


@pytest.fixture
def unusable(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory full of what cannot be used, and no network."""
    (workplace / "notes.yaml").write_text("a: b: [")
    (workplace / "list.yaml").write_text("- 1\n")
    (workplace / "unknown.yaml").write_text("data: digits\nnope: 1\n")
    (workplace / "wrong.yaml").write_text("epochs: {a: 1}\n")
    (workplace / "hollow").mkdir()
    for part in ("train", "test"):
        (workplace / "classless" / part).mkdir(parents=True)
    write_grey_images(workplace / "empty", "train/b test/a test/b")
    (workplace / "empty/train/a").mkdir()
    write_grey_images(workplace / "lone", "train/a test/a")
    write_grey_images(workplace / "differing", "train/a train/b test/a test/c")
    write_grey_images(workplace / "spoilt", "train/a train/b test/a test/b")
    (workplace / "spoilt/train/b/1.png").write_text("no image")
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    return workplace


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[options for options, _ in REFUSED])
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(unusable, capsys, options, message):
    before = bytes_of(unusable)
    folders = {path for path in unusable.rglob("*") if path.is_dir()}
    line = refusal_of(capsys, [*SMALL.split(), "--out", "out", *options.split()])
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    assert bytes_of(unusable) == before
    assert {path for path in unusable.rglob("*") if path.is_dir()} == folders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of {train,compare,judge,inspect,replay,branch}"),
        (
            ["grow"],
            "invalid choice: 'grow' .choose from 'train', 'compare', 'judge', .*'branch'",
        ),
        (["inspect"], "required: .*run"),
        (
            ["inspect", "nowhere"],
            "run must be a history.jsonl file or a run folder, got nowhere",
        ),
        (["inspect", "tiny", "--record", "3"], "record must be from 0 to 2, or negative, got 3"),
        (["inspect", "tiny", "--record", "x"], "record must be an integer, got 'x'"),
        (["inspect", "tiny", "--steps", "5"], "steps must be left out without --after, got 5"),
        *(
            (["inspect", "tiny", *given, name, "0"], f"{name[2:]} must be left out with .*, got 0")
            for given in (["--after", "1"], ["--csv"])
            for name in ("--record", "--reference", "--out")
        ),
        (
            ["inspect", "tiny", "--after", "1", "--csv"],
            "csv must be left out with --after, got true",
        ),
        (["inspect", "tiny", "--reference", "nowhere"], "reference must be .*, got nowhere"),
        (
            ["inspect", "tiny", "--out", "tiny/config.yaml"],
            "out: tiny/config.yaml cannot be written: File exists",
        ),
        (["replay", "tiny"], "required: .*policy"),
        (["replay", "tiny", "--policy", "Foo"], f"policy must be one of {POLICIES}, .* got 'Foo'"),
        (["replay", "tiny", "--policy", "StochasticDepth"], "needs the probe 'importance'"),
        (["replay", "nowhere", "--policy", "Never"], "runs must be .*, got nowhere"),
        *(
            ([*words, "--policy", "Yoked", "--policy.run", "nope"], "policy.run must be .*nope")
            for words in (["train"], ["replay", "tiny"])
        ),
        (
            ["replay", "tiny", "--policy", "mine.Wrong"],
            "policy Wrong must return a sequence of actions",
        ),
        (["compare", "--out", "tiny"], "already holds a training run; choose another"),
        (["compare", "--seeds", "[]"], "seeds must be at least one"),
        (["compare", "--seeds", "x"], "seeds must be a list, got 'x'"),
        (["compare", "--data", "imagenet"], "data must be one of"),
        (
            ["compare", "--cells", "{a: {policy: Foo}}"],
            f"policy must be one of {POLICIES}, .*got 'Foo'",
        ),
    ],
    ids=str,
)
def test_other_wrong_use_is_refused_too(workplace, tiny, capsys, arguments, message):
    shutil.copytree(tiny, workplace / "tiny")
    before = bytes_of(workplace)
    line = refusal_of(capsys, arguments)
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    assert bytes_of(workplace) == before


def cut(length: float) -> Callable[[Path], None]:
    """Cut the checkpoint short: to a part of its length, or by so many bytes."""

    def change(folder: Path) -> None:
        whole = (folder / "checkpoint.pt").read_bytes()
        kept = round(length * len(whole)) if 0 <= length < 1 else len(whole) + int(length)
        (folder / "checkpoint.pt").write_bytes(whole[:kept])

    return change


def garbage(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(random.Random(0).randbytes(5000))

    return change


def of_another(**changes: Any) -> Callable[[Path], None]:
    """Put another run's settings or architecture into the checkpoint."""

    def change(folder: Path) -> None:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        state["identity"] |= {key: value for key, value in changes.items() if key != "width"}
        state["architecture"]["stages"][0]["blocks"][0]["width"] += changes.get("width", 0)
        torch.save(state, folder / "checkpoint.pt")

    return change


def untouched(folder: Path) -> None:
    """Change nothing."""


RESUMED = [
    (untouched, "", "already holds a run; choose another or add --resume"),
    (untouched, "--resume --epochs 0.2", "epochs must be 0.1 to resume the run in .*, got 0.2"),
    (untouched, "--resume --seed 1", "seed must be 0 to resume"),
    (untouched, "--resume --policy Never", "policy must be .*Periodic.* to resume"),
    (untouched, "--resume --policy.every 2", "policy must be .*'every': 0.05.* to resume"),
    *(
        (cut(length), "--resume", "checkpoint .* cannot be read: ")
        for length in (0, 0.01, 0.5, 0.9, -1)
    ),
    (garbage("checkpoint.pt"), "--resume", "checkpoint .* cannot be read: "),
    (garbage("config.yaml"), "--resume", "config.yaml cannot be read"),
    (of_another(net="resnet14"), "--resume", "is of another run: net is 'resnet14', not 'resnet8'"),
    (of_another(seed=5), "--resume", "is of another run: seed is 5, not 0"),
    (of_another(width=1), "--resume", "its weights are not those of its architecture"),
]


@pytest.mark.parametrize(("change", "options", "message"), RESUMED)
def test_a_run_that_cannot_go_on_is_refused_and_left_as_it_is(
    tiny, tmp_path, capsys, change, options, message
):
    folder = tmp_path / "run"
    shutil.copytree(tiny, folder)
    (folder / "summary.json").unlink()  # as if it had not finished
    change(folder)
    before = bytes_of(folder)
    given = [*SMALL.split(), "--policy", "Periodic", "--out", folder, *options.split()]
    line = refusal_of(capsys, given)
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    assert bytes_of(folder) == before


def test_an_out_that_is_a_file_is_refused(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "inside"):
        line = refusal_of(capsys, [*SMALL.split(), "--out", out])
        assert line.startswith("out")
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"stages"', '"steps"', 1),
        lambda text: "[]\n" + text,
        lambda text: text.replace('"width": 16', '"width": -16', 1),
        lambda text: text.replace('"learning_rate"', '"rate"', 1),
    ],
    ids=["cut short", "empty", "no stages", "a list", "a negative width", "an unknown field"],
)
def test_a_damaged_history_is_refused(tiny, tmp_path, capsys, damage):
    path = tmp_path / "history.jsonl"
    path.write_text(damage((tiny / "history.jsonl").read_text()))
    for words in (["inspect", path], ["replay", path, "--policy", "Never"]):
        line = refusal_of(capsys, words)
        assert "line " in line or "at least one record" in line
    (tmp_path / "history.jsonl").write_bytes(b"\xff\x00\xfe")
    refusal_of(capsys, ["inspect", path])


def test_a_wrong_answer_of_a_policy_ends_the_run_in_one_line(workplace, capsys):
    assert called([*SMALL.split(), "--policy", "mine.Wrong", "--out", "out"]) == 1
    told = r"policy Wrong failed at step \d+: must return a sequence of actions, got 'widen'\n"
    assert re.fullmatch(told, capsys.readouterr().err)
