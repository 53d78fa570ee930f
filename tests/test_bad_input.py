"""Command lines, configs, policies, data and architectures that cannot be used: one line each."""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Trap, no_network, write_grey_images

import training.data.datasets
from nets import preset, seed_of

TRAIN = "train --net resnet8 --epochs 0.1 --records 3 --batch_size 32 --device cpu --out out "
COMPARE = "compare --net resnet8 --epochs 0.1 --workers 1 --device cpu --out out "
FILES = {
    "faulty_syntax.py": "def f(:\n",
    "faulty_import.py": "import nothing_of_this_name\n",
    "faulty_raise.py": "\nraise RuntimeError('first\\nsecond')\n",
    "faulty_exit.py": "import sys\nsys.exit(0)\n",
    "faulty_class.py": """
from dataclasses import dataclass
from policies import Policy

class Other: pass
number = 5

class Bare(Policy):
    def decide(self, history): return []

@dataclass(frozen=True)
class Fine(Policy):
    every: int = 1
    def decide(self, history): return []

class Unfinished(Policy): pass

@dataclass(frozen=True)
class Raising(Fine):
    def __post_init__(self): raise TypeError("so it goes")

@dataclass(frozen=True)
class Moon(Fine):
    needs = ("moon",)

@dataclass(frozen=True)
class Number(Fine):
    needs = 5
""",
    "empty.yaml": "",
    "comment.yaml": "# nothing\n",
    "null.yaml": "null\n",
    "text.yaml": "digits\n",
    "list.yaml": "- epochs: 1\n",
    "syntax.yaml": "epochs: [1\n",
    "tab.yaml": "\tepochs: 1\n",
    "tag.yaml": "data: !!python/object/apply:os.mkdir ['trap']\n",
    "object.yaml": "!!python/object/new:os.mkdir ['trap']\n",
    "latin.yaml": "data: digits # \xe9\n".encode("latin-1"),
    "binary.yaml": bytes(range(256)),
    "twice.yaml": "epochs: 1\nnet: resnet8\nepochs: 2\n",
    "within.yaml": "policy: {class_path: Plateau, init_args: {patience: 1, patience: 2}}\n",
    "misspelt.yaml": "epoch: 1\n",
    "argument.yaml": "policy: {class_path: Plateau, init_args: {pacience: 1}}\n",
    "type.yaml": "epochs: {a: 1}\n",
    "count.yaml": "batch_size: 1.5\n",
    "import.yaml": "policy: {class_path: faulty_raise.Mine}\n",
    "deep.yaml": "epochs: " + "[" * 500 + "]" * 500,
    "itself.yaml": "epochs: &a [*a]\n",
    "nan.yaml": "lr: .nan\n",
    "rows.yaml": "cells: [1]\n",
    "row.yaml": "cells: {a: {policy: {class_path: Plateau, init_args: {patience: x}}}}\n",
    "file": "mine",
    "text.json": "[" * 100_000,
    "cut.json": '{"stages": [',
    "bytes.json": b"\xff\xfe",
    "list.json": "[]",
}


def widened(width: object) -> Callable[[dict[str, Any]], None]:
    return lambda d: d["stages"][0]["blocks"][0].update(width=width)


ARCHITECTURES: dict[str, Callable[[dict[str, Any]], None]] = {
    "negative": widened(-1),
    "zero": widened(0),
    "nan": widened(float("nan")),
    "fraction": widened(8.5),
    "words": widened("eight"),
    "huge": widened(10**30),
    "key": lambda d: d.update(colour=1),
    "stages": lambda d: d.update(stages=[]),
    "image": lambda d: d.update(image=[3, 32, 32]),
    "classes": lambda d: d.update(classes=float("inf")),
    "stream": lambda d: d["stages"][0].update(width=10**6),
}

POLICIES = "GrowAndPrune, LayerStatistic, Never, Periodic, Plateau, RandomSite, "
POLICIES += "StochasticDepth, WholeNet, Yoked, or an import path such as mine.Mine; got "
CASES = [
    # the command itself
    ("", "one of {train,compare,judge,inspect,replay,branch}"),
    ("grow", "invalid choice: 'grow'"),
    ("inspect", "required: inspect.run"),
    ("inspect nowhere", "run must be a history.jsonl file or a run folder, got nowhere"),
    ("inspect file", "file, line 1: "),
    ("replay nowhere --policy Never", "runs must be a history.jsonl file or a run folder"),
    ("replay file", "required: replay.policy"),
    ("replay file --policy faulty_syntax.Mine", "policy faulty_syntax.Mine cannot be loaded: "),
    ("replay file --policy faulty_raise.Mine", "cannot be loaded: first second"),
    ("branch nowhere --at 1", "run must be a history.jsonl file or a run folder"),
    ("branch file", "file, line 1: "),
    ("branch file --at x", "at must be an integer, got 'x'"),
    # options
    (TRAIN + "--policy ./mine.py", POLICIES + "'./mine.py'"),
    (TRAIN + "--polcy Plateau", "unrecognized arguments: --polcy Plateau"),
    (TRAIN + "--Epochs 3", "unrecognized arguments: --Epochs 3"),
    (TRAIN + "--epochs", "argument --epochs: expected one argument"),
    (TRAIN + "--epochs=", "epochs must be a number, got ''"),
    (TRAIN + "--epochs=1e400", "epochs must be above 0 and at most 1000000000, got inf"),
    (TRAIN + "--epochs true", "epochs must be a number, got 'True'"),
    (TRAIN + "--batch_size 1e3", "batch_size must be an integer, got '1000.0'"),
    (
        TRAIN + f"--batch_size {10**22}",
        f"batch_size must be at most 1295 (the training images), got {10**22}",
    ),
    (TRAIN + f"--accumulate {10**22}", f"batch_size must be at least {2 * 10**22}, got 32"),
    (TRAIN + "--weight_decay -1", "weight_decay must be at least 0 and finite, got -1.0"),
    (TRAIN + "--momentum .inf", "momentum must be at least 0 and finite, got inf"),
    (TRAIN + "--save_every -1", "save_every must be at least 0 and finite, got -1.0"),
    (TRAIN + "--ema 1", "ema must be at least 0 and below 1, got 1.0"),
    (TRAIN + "--threads 0", "threads must be at least 1, got 0"),
    (TRAIN + "--threads 100000", "threads must be at most 1024, got 100000"),
    (TRAIN + f"--threads {10**22}", f"threads must be at most 1024, got {10**22}"),
    (TRAIN + "--observe_every 0", "observe_every must be at least 1, got 0"),
    (TRAIN + "--policy_errors skip", "policy_errors must be one of stop, continue; got 'skip'"),
    (TRAIN + "--seed 1.5", "seed must be an integer, got '1.5'"),
    (TRAIN + "--final=maybe", "final must be true or false, got 'maybe'"),
    (TRAIN + "--start.width .nan", "start.width must be above 0 and at most 1, got nan"),
    (TRAIN + "--start nope", "start must be a mapping, got 'nope'"),
    (TRAIN + "--start.depth 2", "Option 'depth' is not accepted"),
    (TRAIN + "--device cuda:99", "device must be auto, cpu or an available GPU, got 'cuda:99'"),
    (TRAIN + "--net wrn-16-0", "net must be one of resnet8, "),
    (TRAIN + "--net mlp-0", "net must be mlp-W of at least 1 unit, got 'mlp-0'"),
    (TRAIN + f"--net mlp-{10**20}", f"net must have numbers below 100000, got 'mlp-{10**20}'"),
    (TRAIN + f"--net wrn-{10**9}-1", "net must have numbers below 100000"),
    (
        TRAIN + "--net wrn-16-99999",
        "net must have at most 100000000000 parameters, got 'wrn-16-99999'",
    ),
    # where it goes
    (TRAIN + "--out file", "out must be a folder, got the file file"),
    (TRAIN + "--out file/inside", "out: file/inside cannot be written: Not a directory"),
    (TRAIN + "--out /proc/here/run", "out: /proc/here/run cannot be written: "),
    (TRAIN + "--out " + "x" * 300, "cannot be written: File name too long"),
    # policies
    (TRAIN + "--policy Platau", POLICIES + "'Platau'"),
    (TRAIN + "--policy 5", POLICIES + "'5'"),
    (TRAIN + "--policy []", POLICIES + "'[]'"),
    (TRAIN + "--policy nowhere_at_all.Mine", "policy: .*No module named 'nowhere_at_all'"),
    (
        TRAIN + "--policy faulty_syntax.Mine",
        "policy cannot be loaded: SyntaxError: .*(faulty_syntax.py:1)",
    ),
    (TRAIN + "--policy faulty_import.Mine", "policy: .*No module named 'nothing_of_this_name'"),
    (
        TRAIN + "--policy faulty_raise.Mine",
        "policy cannot be loaded: RuntimeError: first second (faulty_raise.py:2)",
    ),
    (
        TRAIN + "--policy faulty_exit.Mine",
        "policy cannot be loaded: SystemExit: 0 (faulty_exit.py:2)",
    ),
    (TRAIN + "--policy faulty_class.Nobody", "module 'faulty_class' has no attribute 'Nobody'"),
    (
        TRAIN + "--policy faulty_class.Other",
        "faulty_class.Other does not correspond to a subclass of Policy",
    ),
    (TRAIN + "--policy faulty_class.number", "does not correspond to a subclass of Policy"),
    (TRAIN + "--policy faulty_class.Unfinished", "policy: .*abstract"),
    (
        TRAIN + "--policy faulty_class.Bare",
        "policy must be a dataclass, whose fields are its settings",
    ),
    (
        TRAIN + "--policy faulty_class.Raising",
        "policy cannot be loaded: TypeError: so it goes (faulty_class.py:",
    ),
    (
        TRAIN + "--policy faulty_class.Moon",
        "policy Moon must need probes of importance, .*, got 'moon'",
    ),
    (
        TRAIN + "--policy faulty_class.Number",
        "policy Number must need probes of importance, .*, got 5",
    ),
    (
        TRAIN + "--policy faulty_class.Fine --policy.every x",
        "policy.every must be an integer, got 'x'",
    ),
    (TRAIN + "--policy faulty_class.Fine --policy.evry 2", "Option 'evry' is not accepted"),
    (
        TRAIN + "--policy json.JSONDecoder",
        "json.JSONDecoder does not correspond to a subclass of Policy",
    ),
    (TRAIN + "--policy Yoked", "required: run"),
    (TRAIN + "--policy Yoked --policy.run nowhere", "run folder, got nowhere"),
    (TRAIN + "--policy Yoked --policy.run file", "file, line 1: "),
    # config files
    *(
        (f"{command} --config {name}.yaml --out out", message)
        for command in ("train",)
        for name, message in {
            "nowhere": "config: .*nowhere.yaml",
            "folder": "config: Path is not a file: '.*folder.yaml'",
            "empty": "config: empty.yaml must hold a mapping of settings, got nothing",
            "comment": "must hold a mapping of settings, got nothing",
            "null": "must hold a mapping of settings, got a single value",
            "text": "must hold a mapping of settings, got a single value",
            "list": "must hold a mapping of settings, got a list",
            "syntax": "config: syntax.yaml cannot be read: .*line 2, column 1",
            "tab": "config: tab.yaml cannot be read: ",
            "tag": "config: tag.yaml cannot be read: could not determine a constructor",
            "object": "config: object.yaml cannot be read: could not determine a constructor",
            "latin": "config: latin.yaml cannot be read: 'utf-8' codec can't decode",
            "binary": "config: binary.yaml cannot be read: 'utf-8' codec can't decode",
            "twice": "config: twice.yaml must hold every setting once, got epochs twice",
            "misspelt": "does not accept option 'epoch'",
            "type": "epochs must be a number, got .*a",
            "count": "batch_size must be an integer, got '1.5'",
            "deep": "config: deep.yaml cannot be read: maximum recursion depth",
            "itself": "epochs must be a number, got ",
            "nan": "lr must be above 0 and finite, got nan",
        }.items()
    ),
    (
        "train --config within.yaml --out out",
        "config: within.yaml must hold every setting once, got patience twice",
    ),
    ("train --config argument.yaml --out out", "Option 'pacience' is not accepted"),
    ("train --config import.yaml --out out", "policy cannot be loaded: RuntimeError: first second"),
    ("train --config rows.yaml --out out", "does not accept option 'cells'"),
    ("compare --config rows.yaml --out out", "cells must be a mapping, got '[1]'"),
    ("compare --config row.yaml --out out", "patience must be an integer or a number, got 'x'"),
    # comparisons
    (COMPARE + "--seeds [1,1]", "seeds must be at least one, and no two the same, got [1, 1]"),
    (COMPARE + "--seeds [x]", "seeds must be an integer, got 'x'"),
    (COMPARE + "--seeds [-1]", "seed must be at least 0, got -1"),
    (COMPARE + "--primary nope", "primary must be two of static-quarter, "),
    (COMPARE + "--engine slurm", "engine must be one of pool, ray; got 'slurm'"),
    (COMPARE + "--policy Never", "unrecognized arguments: --policy Never"),
    (COMPARE + "--out file", "out must be a folder, got the file file"),
    (COMPARE + "--cells {}", "cells must be at least one row, got none"),
    (COMPARE + "--cells 5", "cells must be a mapping, got '5'"),
    *(
        (f"{COMPARE} --cells|{{a: {row}}}", message)
        for row, message in {
            "5": "cells",
            "{polcy: Never}": "Option 'polcy' is not accepted",
            "{policy: faulty_syntax.Mine}": "policy cannot be loaded: SyntaxError",
            "{policy: faulty_raise.Mine}": "policy cannot be loaded: RuntimeError: first second",
            "{policy: {class_path: faulty_class.Moon}}": "policy Moon must need probes of",
            "{lr: -1}": "lr must be above 0 and finite, got -1",
            "{lr: .nan}": "lr must be above 0 and finite, got nan",
            "{schedule: nope}": "schedule must be one of cosine, hold; got 'nope'",
            "{net: nope}": "net must be one of resnet8, ",
            "{data: nope}": "data must be one of digits, ",
            "{start: {width: 9}}": "start.width must be above 0 and at most 1, got 9",
            "{scratch: b}": "scratch or yoked of a must be one of",
        }.items()
    ),
    (
        f"{COMPARE} --cells|{{../a: {{}}}}",
        "cells must have names that a folder can have, got '../a'",
    ),
    # data
    (TRAIN + "--data nowhere", "data must be one of digits, digits:SETTINGS, mnist, "),
    (
        TRAIN + "--data folder:nowhere",
        "data folder:PATH must name an existing folder, got 'nowhere'",
    ),
    (TRAIN + "--data npz:", "data npz:FILE must name an existing file, got ''"),
    (
        TRAIN + "--data npz:file",
        "data npz:FILE must be a complete npz, got file (File is not a zip",
    ),
    (TRAIN + "--data folder:file", "data folder:PATH must name an existing folder, got 'file'"),
    (TRAIN + "--data folder:hollow", "hollow/train is missing"),
    (TRAIN + "--data folder:lone", "train of lone must hold at least 2 classes, got 1 (a)"),
    (TRAIN + "--data folder:spoilt", "spoilt/train/b/1.png is no image that can be read"),
    (TRAIN + "--data folder:cut", "cut/test/b/1.png is no image that can be read"),
    (
        TRAIN + "--data folder:sizes",
        "images must all be of one size, got 9 x 9 in sizes/test/b/0.png and 8 x 8",
    ),
    (
        TRAIN + "--data folder:untested",
        "untested/test must hold a folder of images for every class, got none",
    ),
    (TRAIN + "--data folder:emptied", "emptied/test/a must hold at least one image, got none"),
    (
        TRAIN + "--data folder:differing",
        "must hold the same classes; only in train: b; only in test: c",
    ),
    (TRAIN + "--data folder:nested", "nested/train/a/deeper is no image that can be read"),
    (TRAIN + "--data folder:few", "batch_size must be at most 2 (the training images), got 32"),
    (COMPARE + "--data folder:spoilt", "spoilt/train/b/1.png is no image that can be read"),
    (
        TRAIN + "--data mnist --data_dir mnist",
        "mnist is not in mnist and cannot be downloaded: put MNIST/raw/",
    ),
    (TRAIN + "--data cifar10 --data_dir cifar", "cifar10 is not in cifar and cannot be downloaded"),
    (TRAIN + "--data cifar10 --data_dir file", "cifar10 is not in file and cannot be downloaded"),
    # architectures
    *(
        (f"{TRAIN} --start.architecture {name}", f"start.architecture must be .*{message}")
        for name, message in {
            "nowhere": "got 'nowhere': .*No such file",
            "hollow": "got 'hollow': .*Is a directory",
            "text.json": "an architecture.json, got 'text.json': maximum recursion depth",
            "cut.json": "an architecture.json, got 'cut.json': Expecting value",
            "bytes.json": "an architecture.json, got 'bytes.json': 'utf-8' codec",
            "list.json": "an architecture.json, got 'list.json': ",
            "negative.json": "width of stage1.block1 must be at least 1, got -1",
            "zero.json": "width of stage1.block1 must be at least 1, got 0",
            "nan.json": "width of stage1.block1 must be an integer of at least 1, got nan",
            "fraction.json": "must be an integer of at least 1, got 8.5",
            "words.json": "must be an integer of at least 1, got 'eight'",
            "key.json": "architecture has unknown fields: colour",
            "stages.json": "stages must not be empty",
            "classes.json": "classes must be an integer of at least 1, got inf",
            "stream.json": "projection of stage1 must be true",
            "image.json": "for this data (images (1, 8, 8) and 10 classes), got images (3, 32, 32)",
        }.items()
    ),
    (TRAIN + "--start.architecture huge.json", "start must cost at most the limit"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of what cannot be used."""
    place = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        data = content if isinstance(content, bytes) else content.encode()
        (place / name).write_bytes(data)
    (place / "folder.yaml").mkdir()
    (place / "hollow").mkdir()
    for name in ("spoilt", "cut", "few", "nested"):
        write_grey_images(place / name, "train/a train/b test/a test/b")
    (place / "spoilt/train/b/1.png").write_text("no image")
    image = place / "cut/test/b/1.png"
    image.write_bytes(image.read_bytes()[:50])
    (place / "nested/train/a/deeper").mkdir()
    write_grey_images(place / "lone", "train/a test/a")
    write_grey_images(place / "sizes", "train/a train/b test/a")
    write_grey_images(place / "sizes", "test/b", 9)
    write_grey_images(place / "untested", "train/a train/b")
    (place / "untested/test").mkdir()
    write_grey_images(place / "emptied", "train/a train/b test/b")
    (place / "emptied/test/a").mkdir()
    write_grey_images(place / "differing", "train/a train/b test/a test/c")
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = place / "mnist/MNIST/raw" / f"{part}-{kind}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x00\x00\x08\x03\x00")
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        path = place / "cifar/cifar-10-batches-py" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Trap()))  # never to be read: its checksum is wrong
    first = seed_of(preset("resnet8", image=(1, 8, 8)))
    for name, change in ARCHITECTURES.items():
        data = first.to_dict()
        change(data)
        (place / f"{name}.json").write_text(json.dumps(data))
    return place


@pytest.fixture
def unusable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as the working directory, and no network."""
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    monkeypatch.setattr(training.data.datasets, "read_digits", _digits)
    monkeypatch.chdir(place)


_digits = functools.cache(training.data.datasets.read_digits)


@pytest.mark.parametrize(("command", "message"), CASES, ids=[command for command, _ in CASES])
@pytest.mark.usefixtures("unusable")
def test_bad_input_is_refused_in_one_line_and_changes_nothing(refusal, command, message):
    words, _, last = command.partition("|")
    line = refusal([*words.split(), *([last] if last else [])])
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert re.search(pattern, line), line


def test_the_table_is_long_and_covers_every_command():
    assert len(CASES) > 100
    commands = {command.split()[0] for command, _ in CASES if command}
    assert commands > {"train", "compare", "inspect", "replay", "branch"}
