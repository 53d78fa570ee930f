"""Branches from a growth step: the same batches for all, resumed, repeated, refused in one line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from runs import bytes_of, csv_rows, quiet

import run
import training.asking.branch
from analysis import read_history
from analysis.recording.record import UNBOUNDED
from analysis.showing.tables import to_csv
from nets import (
    Freeze,
    Insert,
    Remove,
    SetSurvival,
    Unfreeze,
    Widen,
    WidenStage,
    cost,
    train_flops,
)
from nets.plan.actions import adds_capacity
from policies.plateau import grow_all_stages
from training.asking.branch import branch
from training.asking.branch_candidates import DONE, NONE, base_of, candidates
from training.asking.branch_cost import Plan, work
from training.asking.branch_points import branch_point_of, points_of
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
        text = branch(folder, step, steps=3, orders=2, say=quiet, budget="steps")
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
    names = ("after", "block", "stage")
    places = {next(getattr(edit, n) for n in names if hasattr(edit, n)) for edit in edits}
    for edit in edits:
        after = cost(fork.record.architecture.apply(edit))
        assert 0.75 * added <= after.flops - fork.record.cost.flops <= added
        assert after.parameters <= fork.record.limit.parameters
    stages = len(fork.record.architecture.stages)
    assert places - {"stage1", "stage2", "stage3"} == set(fork.record.architecture.blocks)
    assert len(wanted) - 1 + len(left_out) == 2 * len(fork.record.architecture.blocks) + stages
    rows = csv_rows(fork.out / "branches.csv")
    assert {(row["budget"], row["taken"]) for row in rows} == {("steps", "3")}
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
    assert "response_std, inner" in (fork.out / "correlations.csv").read_text()
    assert text.count("Too few sites to tell") == 3  # of three blocks


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
    how = {"say": quiet, "budget": "steps"}
    assert branch(copy, at, 3, 2, **how) == text.replace(str(folder), str(copy))
    assert len(trained) == len(lines) - 5
    assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())
    assert (path.parent / "gains.csv").read_bytes() == (
        branch_point_of(folder, at).out / "gains.csv"
    ).read_bytes()
    branch(folder, at, 3, 2, **how)
    assert len(trained) == len(lines) - 5
    assert bytes_of(folder, ".lock") == before
    # other steps and fewer orders stand beside them
    branch(copy, at, steps=1, orders=1, **how)
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


TINY = """
from dataclasses import dataclass
import torch
from nets import Initializer

@dataclass(frozen=True)
class Tiny(Initializer):
    scale: float = 1e-3
    def draw(self, name, shape, generator):
        return torch.randn(shape, generator=generator) * self.scale
"""


@pytest.fixture
def tiny(grown, tmp_path, monkeypatch):
    """A copy of the run that names an initializer of one's own, which can be imported."""
    shutil.copytree(grown, tmp_path / "run")
    (tmp_path / "tiny_values.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / "run" / "config.yaml"
    own = "initializer: {class_path: tiny_values.Tiny, init_args: {scale: 0.5}}"
    config.write_text(config.read_text().replace("initializer: he", own))
    return tmp_path / "run"


def doing(point, *applied):
    """The same place, as if the run had done that there."""
    return replace(point, record=replace(point.record, applied=applied))


def test_an_initializer_that_the_config_makes_is_used(tiny, at):
    point = branch_point_of(tiny, at)
    assert repr(point.settings.initializer) == "Tiny(scale=0.5)"
    # one that an action had is used at every site
    (done,) = point.grown
    wide = doing(point, replace(done, initializer="Tiny(scale=0.5)"))
    wanted, _ = candidates(wide)
    assert len(wanted) > 3
    for name, actions in wanted.items():
        assert all(a.initializer is point.settings.initializer for a in actions)  # pyright: ignore
        assert name == NONE or "initializer='Tiny(scale=0.5)'" in name
    # and one of the policy's own settings
    policy = {"class_path": "mine.Mine", "init_args": {"how": {"class_path": "tiny_values.Tiny"}}}
    of_policy = replace(doing(point, replace(done, initializer="Tiny(scale=0.001)")), policy=policy)
    (action,) = of_policy.done
    assert action.initializer.scale == 1e-3  # pyright: ignore


@pytest.mark.parametrize("config", ["", "{class_path: tiny.Tiny, init_args: {}}"])
def test_an_initializer_that_nothing_makes_is_refused_by_name(grown, at, tmp_path, capsys, config):
    shutil.copytree(grown, tmp_path / "run")
    if config:
        path = tmp_path / "run" / "config.yaml"
        path.write_text(path.read_text().replace("initializer: he", f"initializer: {config}"))
        assert called("branch", tmp_path / "run", "--at", at) == 2
        message = capsys.readouterr().err
        assert "cannot be made from its config.yaml: Problem with given class_path" in message
        assert "No module named 'tiny'" in message
    else:
        point = branch_point_of(tmp_path / "run", at)
        other = doing(point, replace(point.grown[0], initializer="Tiny()"))
        with pytest.raises(ValueError, match=r"initializer Tiny\(\) is known by its name alone"):
            candidates(other)


def test_every_growth_goes_with_what_else_the_run_did(grown, at):
    point = branch_point_of(grown, at)
    first, *_, last = point.record.architecture.blocks
    (done,) = point.grown
    freeze, survive = Freeze("stage1"), SetSurvival(last, 0.8)
    both = doing(point, freeze, survive, done, Unfreeze("head"))
    wanted, _ = candidates(both)
    assert wanted.pop(NONE) == (survive, Unfreeze("head"))  # nothing grew to make room for
    assert both.done in wanted.values()
    assert len(wanted) > 3
    for actions in wanted.values():
        assert actions[:2] == (freeze, survive)
        assert actions[3:] == (Unfreeze("head"),)
        assert [adds_capacity(action) for action in actions] == [False, False, True, False]
    # what does not fit is told by itself, not by what was to be frozen for it
    _, left_out = candidates(replace(both, record=replace(both.record, limit=point.record.cost)))
    assert left_out
    assert not any("make room" in line for line in left_out)
    # every newborn has the survival of that of the run
    born = doing(point, Insert(first, 4, 0.5))
    wanted, _ = candidates(born)
    inserted = [a for actions in wanted.values() for a in actions if isinstance(a, Insert)]
    assert {action.survival for action in inserted} == {0.5}
    assert len(inserted) > 1


def test_what_is_removed_at_the_step_is_no_site_and_costs_nothing(grown, at):
    point = branch_point_of(grown, at)
    kept, gone = "stage1.block1", "stage1.block2"
    deeper = point.record.architecture.apply(Insert(kept, 8))
    roomy = replace(point.record, architecture=deeper, limit=UNBOUNDED)
    pruned = doing(replace(point, record=roomy), Remove(gone), Widen(kept, 6))
    wanted, left_out = candidates(pruned)
    assert base_of(pruned) == deeper.apply(Remove(gone))
    assert wanted[NONE] == (Remove(gone),)
    assert all(actions[0] == Remove(gone) for actions in wanted.values())
    assert len(wanted) > 3
    assert not any(gone in line for line in [*list(wanted), *left_out])
    assert pruned.done in wanted.values()


def test_what_goes_with_the_growth_alone_is_refused_by_name(grown, at):
    point = branch_point_of(grown, at)
    stage = point.record.architecture.stages[0]
    born = f"{stage.name}.block{stage.births + 1}"
    ours = doing(point, Insert(stage.blocks[0].name, 4), SetSurvival(born, 0.5))
    with pytest.raises(ValueError, match=rf"SetSurvival\(block='{born}'.*goes with what grew"):
        candidates(ours)


def test_kinds_and_numbers_of_sites_are_a_choice_and_a_draw(grown, at):
    point = branch_point_of(grown, at)
    for kind, action in (("widen", Widen), ("insert", Insert), ("streams", WidenStage)):
        wanted, _ = candidates(point, [kind])
        names = [name for name in wanted if name != NONE and not name.startswith(DONE)]
        assert {type(wanted[name][0]) for name in names} == {action}
    names = [set(candidates(point, ["insert"], most)[0]) for most in (1, 2, None)]
    assert names[0] < names[1] < names[2]
    assert [len(each) for each in names[:2]] == [3, 4]  # none, what was done, and the sites
    _, left_out = candidates(point, ["insert"], 1)
    assert left_out[-1].startswith("insert: ")
    assert left_out[-1].endswith(" sites not drawn")
    draws = [
        tuple(candidates(replace(point, record=replace(point.record, seed=seed)), ["insert"], 1)[0])
        for seed in range(8)
    ]
    assert len(set(draws)) > 1


def test_at_equal_flops_a_cheaper_net_takes_more_steps(grown, at, tmp_path):
    shutil.copytree(grown, tmp_path / "run")
    text = branch(tmp_path / "run", at, 6, 1, say=quiet, kinds=["widen"], sites=1)
    point = branch_point_of(tmp_path / "run", at)
    after = point.record.architecture.apply(point.grown[0])
    each, total = point.settings.batch_size, 6 * point.settings.batch_size * train_flops(after)
    wanted, _ = candidates(point, ["widen"], 1)
    taken = {row["growth"]: int(row["taken"]) for row in csv_rows(point.out / "branches.csv")}
    assert set(taken) == set(wanted)
    for name, actions in wanted.items():
        net = after if name != NONE else point.record.architecture
        net = point.record.architecture.apply(actions[0]) if actions else net
        growing = 32 * (2 * point.record.cost.flops + 3 * cost(net).flops) if actions else 0
        spent = growing + taken[name] * each * train_flops(net)
        assert total <= spent < total + each * train_flops(net)  # ends as a run does
        assert (work(Plan(6), point, actions)[0] >= taken[name]) == bool(actions) or not actions
    assert taken[NONE] > 6
    assert f"after {taken[NONE]} steps" in text
    assert "train for as many FLOPs" in text


def test_several_steps_and_runs_are_read_together(grown, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(grown, tmp_path / name)
    runs = [tmp_path / "a", tmp_path / "b"]
    steps = [point.record.step for point in points_of([grown], "all")]
    assert len(steps) > 1
    assert [p.record.step for p in points_of(runs)] == steps[:1] * 2
    assert [p.record.step for p in points_of(runs, f"{steps[1]},{steps[0]}")] == steps[:2] * 2
    assert len(points_of([grown, grown.parent / "." / ".." / grown.parent.name / grown.name])) == 1
    words = [*runs, "--at", f"{steps[0]},{steps[1]}", "--steps", 1, "--orders", 1]
    assert called("branch", *words, "--kinds", "insert", "--sites", 1) == 0
    output = capsys.readouterr().out
    assert "4 growth steps, runs: 2" in output
    assert output.startswith("growths: 2 + none, ")
    assert "12 branches to train" in output.splitlines()[0]
    assert (tmp_path / "a/branch/pooled.md").read_text() in output + "\n"
    for run_folder in runs:
        for step in steps[:2]:
            assert (run_folder / f"branch/step{step:07d}/branch.md").exists()


def test_what_was_done_before_an_interrupt_is_kept(grown, at, tmp_path, monkeypatch, capsys):
    shutil.copytree(grown, tmp_path / "run")
    plain, calls = training.asking.branch._train, []

    def third(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(training.asking.branch, "_train", third)
    words = ["branch", tmp_path / "run", "--at", at, "--steps", 1, "--orders", 1]
    assert called(*words, "--kinds", "widen") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(csv_rows(branch_point_of(tmp_path / "run", at).out / "branches.csv")) == 2


def test_branches_of_an_earlier_version_count_where_nothing_else_was_done(
    branched, at, tmp_path, monkeypatch
):
    folder, _, text = branched
    shutil.copytree(folder, tmp_path / "run")
    path = branch_point_of(tmp_path / "run", at).out / "branches.csv"
    rows = csv_rows(path)
    names = ("steps", "order", "growth", "loss", "accuracy")
    path.write_text(to_csv([{name: row[name] for name in names} for row in rows]))
    monkeypatch.setattr(training.asking.branch, "_train", None)
    again = branch(tmp_path / "run", at, 3, 2, say=quiet, budget="steps")
    assert again == text.replace(str(folder), str(tmp_path / "run"))


def test_drops_of_a_further_order_are_its_own(grown, at, monkeypatch):
    seeds = []
    plain = training.asking.branch.train_step

    def watched(net, *given):
        seeds.append(int(net.draw[0]))
        return plain(net, *given)

    monkeypatch.setattr(training.asking.branch, "train_step", watched)
    point = branch_point_of(grown, at)
    ground = training.asking.branch.prepare(point.settings)
    for order in (0, 1):
        settings, own = training.asking.branch._in_order(point.settings, ground, order)
        training.asking.branch._train(point, settings, own, point.done, Plan(1, budget="steps"))
        assert seeds[-1] == settings.seed == own.batches.seed
    assert seeds[0] == point.settings.seed != seeds[1]


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
    assert len(wanted) == 2
    assert all("the limit is" in line or "not about" in line for line in left_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --at 3", "run must be a history.jsonl file or a run folder, got nowhere"),
        ("run --at 1", "at must be one of the growth steps {} of run, got 1"),
        ("run --at x", "at must be an integer, got 'x'"),
        ("run --at {} --steps 0", "steps must be at least 1, got 0"),
        ("run --at {} --orders 0", "orders must be at least 1, got 0"),
        ("run --at {},1", "at must be one of the growth steps {} of run, got 1"),
        ("run --at {},x", "at must be an integer, got '{},x'"),
        ("run --at {} --budget time", "budget must be one of flops, steps; got 'time'"),
        ("run --at {} --kinds widen,dig", "kinds must be one of widen, insert, streams; got 'dig'"),
        ("run --at {} --sites 0", "sites must be at least 1, got 0"),
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
    how = ("--steps", 3, "--orders", 2, "--budget", "steps")
    assert called("branch", folder, "--at", at, *how) == 0
    assert capsys.readouterr().out == f"\n{text}\n"


def test_without_at_the_first_growth_is_taken(branched, at, grown):
    assert (
        branch_point_of(grown).record.step
        == at
        == min(int(p.stem[4:]) for p in grown.glob("growth/*"))
    )
    folder, _, text = branched
    assert branch(folder, steps=3, orders=2, say=quiet, budget="steps") == text


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
