"""Unknown options, commands, settings and values come with the nearest known one; flags' values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import run
from nets.checks import check_choice, meant
from training.settings.train_settings import Train

TRAIN = "train --device cpu --out out "
UNKNOWN = [
    ("trian --net resnet8", "did you mean 'train'?"),
    ("Compare", "did you mean 'compare'?"),
    # options
    (TRAIN + "--epoch 3", "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
    (TRAIN + "--Epochs=3", "did you mean --epochs?"),
    (TRAIN + "-epochs 3", "did you mean --epochs?"),
    (TRAIN + "--batch 3", "did you mean --batch_size?"),
    (TRAIN + "--batchsize 3", "did you mean --batch_size?"),
    (TRAIN + "--learning-rate 3", "did you mean --lr?"),
    (TRAIN + "--dataset digits", "did you mean --data?"),
    (TRAIN + "--model resnet8", "did you mean --net?"),
    (TRAIN + "--polcy.patience 3", "did you mean --policy.patience?"),
    (TRAIN + "--strat.width 0.5", "did you mean --start.width?"),
    (TRAIN + "--resum", "did you mean --resume?"),
    (TRAIN + "--seeds 3", "did you mean --seed?"),
    (TRAIN + "--zzz 3", "unrecognized arguments: --zzz 3; --help lists the options"),
    ("inspect out --recrod 1", "did you mean --record?"),
    ("replay out --polcy Never", "did you mean --policy?"),
    ("branch out --order 1", "did you mean --orders?"),
    ("compare --seed 3", "did you mean --seeds?"),
    ("compare --policy Never", "; policy belongs to a row: cells of a --config file"),
    ("compare --start.width 1", "; start belongs to a row: cells of a --config file"),
    # policies and their settings
    (TRAIN + "--policy plateau", "got 'plateau' (did you mean 'Plateau'?)"),
    (TRAIN + "--policy Platau", "did you mean 'Plateau'?"),
    (TRAIN + "--policy random-site", "did you mean 'RandomSite'?"),
    (TRAIN + "--policy policies.Periodical", "did you mean 'Periodic'?"),
    (
        TRAIN + "--policy Plateau --policy.patiance 3",
        "Option 'patiance' is not accepted; Plateau takes patience, min_delta, when, window, "
        "share, freeze, thaw_after, thaw_at, latest (did you mean 'patience'?)",
    ),
    (TRAIN + "--policy.patience 3", "Never takes no settings (give a policy before its settings)"),
    (TRAIN + "--policy Plateau --policy.when stal", "(did you mean 'stall'?)"),
    (
        TRAIN + "--start.widht 1",
        "Start takes width, blocks, stream, architecture (did you mean 'width'?)",
    ),
    # values
    (TRAIN + "--schedule cos", "must be one of cosine, hold; got 'cos' (did you mean 'cosine'?)"),
    (TRAIN + "--optimizer Adam", "did you mean 'adam'?"),
    (TRAIN + "--precision fp32", "must be one of auto, float32, bf16, fp16; got 'fp32'"),
    (TRAIN + "--net resnet-20", "did you mean 'resnet20'?"),
    (TRAIN + "--net ResNet20", "did you mean 'resnet20'?"),
    (TRAIN + "--net resnet21", "did you mean 'resnet"),
    (TRAIN + "--net wrn16-2", "did you mean 'wrn-16-2'?"),
    (TRAIN + "--net wrn_40_4", "did you mean 'wrn-40-4'?"),
    (TRAIN + "--net mlp64", "did you mean 'mlp-64'?"),
    (TRAIN + "--net resnet8 --data cifar-10", "did you mean 'cifar10'?"),
    (TRAIN + "--net resnet8 --data CIFAR100", "did you mean 'cifar100'?"),
    (TRAIN + "--net resnet8 --data fashion_mnist", "did you mean 'fashion-mnist'?"),
    # files
    (TRAIN + "--config {epoch: 3}", "does not accept option 'epoch' (did you mean epochs?)"),
    (TRAIN + "--config {batch-size: 3}", "did you mean batch_size?"),
    (TRAIN + "--config {startt: {width: 1}}", "did you mean start.width?"),
    (TRAIN + "--config {start: {widht: 1}}", "did you mean 'width'?"),
    (TRAIN + "--config {policy: periodic}", "did you mean 'Periodic'?"),
    (
        TRAIN + "--config {policy: {class_path: Plateau, init_args: {patiance: 1}}}",
        "did you mean 'patience'?",
    ),
    (
        TRAIN + "--config {policy: {class_path: Plateau, patience: 1}}",
        "it must be a name, or class_path with all settings in init_args",
    ),
    (TRAIN + "--config {policy: {clas_path: Plateau}}", "it must be a name, or class_path"),
    ("compare --config {cels: {a: {policy: Never}}}", "did you mean cells.a.policy?"),
    ("compare --config {cells: {a: {polcy: Never}}}", "did you mean 'policy'?"),
    ("compare --config {cells: {a: {policy: never}}}", "did you mean 'Never'?"),
    ("compare --config {cells: {a: {start: {block: 1}}}}", "did you mean 'blocks'?"),
    ("compare --config {cells: {a: {scratch: b}, bb: {}}}", "did you mean 'bb'?"),
    (
        "compare --config {cells: {a: {policy: {class_path: Periodic, init_args: {evry: 1}}}}}",
        "Periodic takes every, share, cooldown, streams, widest (did you mean 'every'?)",
    ),
]


@pytest.mark.parametrize(("command", "hint"), UNKNOWN)
def test_what_is_unknown_comes_with_what_was_meant(refusal, tmp_path, monkeypatch, command, hint):
    monkeypatch.chdir(tmp_path)
    before, config, text = command.partition("--config ")
    if config:
        Path("config.yaml").write_text(text)
    words = [*before.split(), *(["--config", "config.yaml"] if config else [])]
    assert hint in refusal(words)


@pytest.mark.parametrize(
    ("value", "known", "expected"),
    [
        ("CIFAR-10", ("cifar100", "cifar10"), " (did you mean 'cifar10'?)"),
        ("wide", ("wide_resnet50_2", "x"), " (did you mean 'wide_resnet50_2'?)"),
        ("zebra", ("sgd", "adam"), ""),
        ("", ("sgd",), ""),
        ("--", ("sgd",), ""),
        (5, ("sgd",), ""),
        (None, ("none",), " (did you mean 'none'?)"),
        ("x", (), ""),
    ],
)
def test_the_nearest_word(value, known, expected):
    assert meant(value, known) == expected


def test_a_choice_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"^a must be one of b, see; got 'sea' \(did you mean 'see'"
    ):
        check_choice("a", "sea", ("b", "see"))


# Flags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compile", "final", "resume"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", False),
        ("--{0}", True),
        ("--{0} --lr 1", True),
        ("--{0} true", True),
        ("--{0} false", False),
        ("--{0}=false", False),
        ("--{0}=True", True),
        ("--{0} no", False),
        ("--{0} yes --lr 1", True),
        ("--{0} --{0} off", False),
    ],
)
def test_flags_take_a_value_too(parser, name, words, expected):
    chosen = parser.parse_args(["train", *words.format(name).split()])
    assert chosen.train[name] is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("no", False), ("'yes'", True), ("'false'", False), ("on", True)],
)
def test_flags_in_a_file(parser, tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(f"compile: {text}\n")
    assert parser.parse_args(["train", "--config", str(path)]).train.compile is expected
    words = ["train", "--config", str(path), "--compile", "false"]
    assert parser.parse_args(words).train.compile is False


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("runs/a --csv", True),
        ("--csv runs/a", True),  # the folder is no value of the flag
        ("--csv true runs/a", True),
        ("--csv=no runs/a", False),
        ("--csv off runs/a", False),
        ("runs/a --csv false", False),
        ("--csv --record 1 runs/a", True),
        ("runs/a", False),
    ],
)
def test_a_flag_leaves_the_folder_alone(parser, words, expected):
    chosen = parser.parse_args(["inspect", *words.split()]).inspect
    assert (chosen.run, chosen.csv) == ("runs/a", expected)


@pytest.mark.parametrize("value", ["maybe", "2", "null", "[]"])
def test_other_values_of_a_flag_are_refused(refusal, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refusal(["train", "--final", value])
    assert line.startswith("final must be true or false, got ")


def test_a_printed_config_gives_flags_back(parser, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.make_parser().parse_args(["train", "--final", "yes", "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["final"] is True
    (tmp_path / "config.yaml").write_text(printed)
    chosen = parser.parse_args(["train", "--config", str(tmp_path / "config.yaml")]).train
    assert chosen.final is True
    assert chosen.compile is Train().compile is False
