"""Branches from a growth step: the same batches for all, resumed, repeated, refused in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from runs import bytes_of, csv_rows

import run
import training.asking.branch
from analysis import read_history
from analysis.judging.rank_correlation import NONE
from nets import Widen, cost
from nets.plan.actions import adds_capacity
from policies.plateau import grow_all_stages
from training.asking.branch import branch
from training.asking.branch_points import branch_point_of, candidates
from training.computing.optimizer import make_optimizer
from training.computing.torch_settings import own_process
from training.data.batches import Batches
from training.keeping.checkpoint import load_checkpoint, load_optimizer_state, network_of

TRAIN = "train --net resnet8 --epochs 0.5 --records 4 --batch_size 64 --device cpu --threads 1"

GROW = ["--policy", "Periodic", "--policy.share", "0.1"]


def called(*arguments: object) -> int:
    try:
        return run.main([str(word) for word in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that grew; tests take copies."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    assert called(*TRAIN.split(), *GROW, "--out", folder) == 0
    return folder


@pytest.fixture
def at(grown: Path) -> int:
    return next(r.step for r in read_history(grown) if any(map(adds_capacity, r.applied)))


@pytest.fixture(scope="module")
def branched(grown: Path, tmp_path_factory: pytest.TempPathFactory):
    """A copy with its branches at the first growth, the batches that each saw, and the text."""
    folder = tmp_path_factory.mktemp("branched") / "run"
    shutil.copytree(grown, folder)
    step = next(r.step for r in read_history(grown) if any(map(adds_capacity, r.applied)))
    seen: list[tuple[int, ...]] = []
    plain = Batches.batch

    def watched(self, epoch, position):
        inputs, targets = plain(self, epoch, position)
        seen.append((epoch, position, *targets.tolist()))
        return inputs, targets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batch", watched)
        text = branch(folder, step, steps=3, orders=2, say=lambda line: None)
    return folder, seen, text


def test_all_branches_of_an_order_see_the_same_batches(grown, branched, at):
    _, seen, _ = branched
    wanted, _ = candidates(branch_point_of(grown, at))
    assert len(seen) == 2 * 3 * len(wanted)
    one, two = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for order in (one, two):
        assert all(order[k : k + 3] == order[:3] for k in range(0, len(order), 3))
    assert one[0] != two[0]
    # the first order is the one in which the run went on
    settings = branch_point_of(grown, at).settings
    per_epoch = training.asking.branch.prepare(settings).batches.per_epoch
    assert one[0][:2] == divmod(at, per_epoch)
    batches = training.asking.branch.prepare(settings).batches
    assert one[0][2:] == tuple(batches.batch(*divmod(at, per_epoch))[1].tolist())


def test_every_growth_of_equal_cost_is_tried_and_none(branched, at):
    folder, _, text = branched
    fork = branch_point_of(folder, at)
    (done,) = fork.grown
    wanted, left_out = candidates(fork)
    added = cost(fork.record.architecture.apply(done)).flops - fork.record.cost.flops
    assert wanted[NONE] == ()
    assert (done,) in wanted.values()
    edits = [actions[0] for actions in wanted.values() if actions]
    places = {getattr(edit, "after", "") or getattr(edit, "block", "") for edit in edits}
    assert places == set(fork.record.architecture.blocks)
    for edit in edits:
        after = cost(fork.record.architecture.apply(edit))
        assert 0.75 * added <= after.flops - fork.record.cost.flops <= added
        assert after.parameters <= fork.record.limit.parameters
    assert len(wanted) - 1 + len(left_out) == 2 * len(places)
    rows = csv_rows(fork.out / "branches.csv")
    assert {(row["order"], row["growth"]) for row in rows} == {
        (order, name) for order in "01" for name in wanted
    }
    losses = {(row["order"], row["growth"]): float(row["loss"]) for row in rows}
    for row in csv_rows(fork.out / "gains.csv"):
        before, after = (losses[row["order"], name] for name in (NONE, row["growth"]))
        assert float(row["gain"]) == before - after
    assert any(row["gain"] != "0.0" for row in csv_rows(fork.out / "gains.csv"))
    assert (fork.out / "branch.md").read_text() == text + "\n"
    assert csv_rows(fork.out / "correlations.csv")
    assert "response_std, inner" in text


def test_a_branch_is_what_the_steps_by_hand_give(branched, at):
    """None, in the first order: the checkpoint's net, the run's batches, the falling rate."""

    folder, _, _ = branched
    fork = branch_point_of(folder, at)
    state = load_checkpoint(fork.state, {})
    net = network_of(state, fork.state).train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, fork.settings)
    load_optimizer_state(net, optimizer, state["optimizer"])
    ground = training.asking.branch.prepare(fork.settings)
    entropy = torch.nn.functional.cross_entropy
    with own_process(fork.settings):  # with as many threads
        for number in range(3):
            for group in optimizer.param_groups:
                group["lr"] = fork.record.learning_rate * (1 + cos(pi * number / 3)) / 2
            inputs, targets = ground.batches.batch(*divmod(at + number, ground.batches.per_epoch))
            optimizer.zero_grad()
            with ground.precision.autocast():
                outputs = net(inputs)
            entropy(outputs.float(), targets).backward()
            optimizer.step()
        read = training.asking.branch.evaluate(
            net, ground.splits.validation, *ground.statistics, entropy, ground.precision
        )
    (row,) = [
        row
        for row in csv_rows(fork.out / "branches.csv")
        if (row["order"], row["growth"]) == ("0", NONE)
    ]
    assert float(row["loss"]) == pytest.approx(read[0], rel=1e-4)


def test_what_is_finished_is_not_trained_again_and_what_is_missing_ends_the_same(
    branched, at, tmp_path, monkeypatch
):
    folder, _, text = branched
    before = bytes_of(folder, ".lock")
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    path = branch_point_of(copy, at).out / "branches.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[-2:]]))  # as after a stop, and in another order
    (path.parent / "gains.csv").unlink()
    trained = []
    plain = training.asking.branch._train

    def counted(*given):
        trained.append(given)
        return plain(*given)

    monkeypatch.setattr(training.asking.branch, "_train", counted)
    assert branch(copy, at, 3, 2, say=lambda line: None) == text.replace(str(folder), str(copy))
    assert len(trained) == len(lines) - 5
    assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())
    assert (path.parent / "gains.csv").read_bytes() == (
        branch_point_of(folder, at).out / "gains.csv"
    ).read_bytes()
    branch(folder, at, 3, 2, say=lambda line: None)
    assert len(trained) == len(lines) - 5
    assert bytes_of(folder, ".lock") == before
    # other steps and fewer orders stand beside them
    branch(copy, at, steps=1, orders=1, say=lambda line: None)
    assert len(csv_rows(path)) == (len(lines) - 1) * 3 // 2


def test_the_run_itself_is_left_as_it_was(grown, branched):
    folder, _, _ = branched
    files = bytes_of(folder, ".lock").items()
    after = {name: data for name, data in files if not name.startswith("branch")}
    assert after == bytes_of(grown, ".lock")


def test_growth_at_several_places_is_tried_as_it_was(grown, at):
    fork = branch_point_of(grown, at)
    many = grow_all_stages(fork.record, 0.2)
    assert len(many) > 1
    wide = replace(fork, record=replace(fork.record, applied=tuple(many)))
    wanted, _ = candidates(wide)
    (name,) = [name for name, actions in wanted.items() if len(actions) > 1]
    assert name.startswith("what was done: ")
    assert wanted[name] == tuple(many)


def test_growth_by_an_initializer_of_ones_own_is_left_out_where_its_name_is_all(grown, at):
    fork = branch_point_of(grown, at)
    many = [replace(a, initializer="Tiny()") for a in grow_all_stages(fork.record, 0.2)]  # pyright: ignore
    wide = replace(fork, record=replace(fork.record, applied=tuple(many)))
    wanted, left_out = candidates(wide)
    assert all(len(actions) <= 1 for actions in wanted.values())
    assert left_out[-1].startswith("what was done: ")
    assert left_out[-1].endswith("Tiny() is known by its name alone")


def test_a_run_with_an_initializer_of_ones_own_is_not_branched(grown, at, tmp_path, capsys):
    shutil.copytree(grown, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    own = "initializer: {class_path: tiny.Tiny, init_args: {}}"
    path.write_text(path.read_text().replace("initializer: he", own))
    assert called("branch", tmp_path / "run", "--at", at) == 2
    assert "must be one of he, xavier, " in capsys.readouterr().err


def test_what_does_not_fit_or_comes_to_less_is_left_out_with_a_reason(grown, at):
    fork = branch_point_of(grown, at)
    first, *_, last = fork.record.architecture.blocks
    fine = replace(fork, record=replace(fork.record, applied=(Widen(last, 1),)))
    _, left_out = candidates(fine)
    reason = "adds 36,864 FLOPs, not about 6,912"
    assert f"Widen(block='{first}', by=1): {reason}" in left_out
    coarse = replace(fork, record=replace(fork.record, applied=(Widen(last, 10),)))
    wanted, left_out = candidates(coarse)  # two channels cost too much, one little more than half
    reason = "adds 36,864 FLOPs, not about 69,120"
    assert f"Widen(block='{first}', by=1): {reason}" in left_out
    assert (Widen(last, 10),) in wanted.values()
    tight = replace(fork.record, limit=fork.record.cost)
    wanted, left_out = candidates(replace(fork, record=tight))
    assert set(wanted.values()) == {(), fork.grown}
    assert all("the limit is" in line or "not about" in line for line in left_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --at 3", "history must be a history.jsonl file or a run folder, got nowhere"),
        ("run --at 1", "at must be one of the growth steps {} of run, got 1"),
        ("run --at x", "at must be an integer, got 'x'"),
        ("run --at {} --steps 0", "steps must be at least 1, got 0"),
        ("run --at {} --orders 0", "orders must be at least 1, got 0"),
        ("still --at 1", "run must have a growth step whose state it kept in growth/, got still"),
        ("torn --at {}", "torn/branch/step{:07d}/branches.csv cannot be read; remove it"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    grown, at, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "still", "torn"):
        shutil.copytree(grown, name)
    shutil.rmtree("still/growth")
    torn = Path(f"torn/branch/step{at:07d}")
    torn.mkdir(parents=True)
    (torn / "branches.csv").write_text("steps,order\n200,0\n")
    steps = ", ".join(str(int(p.stem[4:])) for p in sorted(Path("run/growth").iterdir()))
    before = bytes_of(tmp_path, ".lock")
    assert called("branch", *arguments.format(at).split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    expected = message.format(steps if "growth steps" in message else at)
    assert line.startswith("run.py: error: ")
    assert expected in line
    assert bytes_of(tmp_path, ".lock") == before


def test_the_command_prints_its_table(branched, at, capsys):
    folder, _, text = branched
    assert called("branch", folder, "--at", at, "--steps", 3, "--orders", 2) == 0
    assert capsys.readouterr().out == f"\n{text}\n"


def test_without_at_the_first_growth_is_taken(branched, at, grown):
    assert (
        branch_point_of(grown).record.step
        == at
        == min(int(p.stem[4:]) for p in grown.glob("growth/*"))
    )
    folder, _, text = branched
    assert branch(folder, steps=3, orders=2, say=lambda line: None) == text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--policy Never", "the run never grew; it began at its limit: start smaller, such as"),
        ("--policy Never --start.width 0.5", "never grew; its policy asked for no growth: another"),
        ("--policy Periodic --grow_until 0", "what its policy asked for was refused: "),
    ],
)
def test_a_run_that_never_grew_is_told_so_and_why(tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    command = "train --net resnet8 --epochs 0.05 --records 2 --batch_size 32 --device cpu --out run"
    assert called(*command.split(), *words.split()) == 0
    capsys.readouterr()
    assert called("branch", "run") == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert "run must have a growth step whose state it kept in growth/, got run: " in line
    assert why in line
    for command in (("inspect", "run"), ("replay", "run", "--policy", "Never")):
        assert called(*command) == 0
        assert why in capsys.readouterr().out
    assert called("replay", "run", "--policy", "Never") == 0
    assert "Never would have asked for nothing" in capsys.readouterr().out
    assert called("inspect", ".") == 2
    assert (
        "run must be one of the runs in the folder, such as run, got ." in capsys.readouterr().err
    )
