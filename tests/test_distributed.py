"""Several processes train as one: the same weights on each, one folder, exact resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences, grey_images
from runs import csv_rows
from torch import Tensor

import run
import training.running.loop
import training.stepping.step
from analysis import Observer, read_history
from analysis.examining.requests import ALSO
from analysis.showing.tensorboard_writer import Board
from nets import Freeze, Insert, Network, Widen, WidenStage, build, grow, preset, seed_of
from policies import Periodic, Policy, probed
from training.computing import distributed
from training.computing.evaluation import LOSSES, evaluate
from training.computing.optimizer import Precision, make_optimizer
from training.computing.wrapped_model import wrapped
from training.data.augmenting import Augment
from training.data.batches import Batches
from training.data.images import Images
from training.running.loop import train
from training.settings.train_settings import Train
from training.stepping.step import train_step

ROOT = Path(__file__).parents[1]
DOUBLE = Precision(torch.device("cpu"), torch.float64)
LOSS = LOSSES["classification"]
ACTIONS = {
    5: [Widen("stage1.block1", 3)],
    10: [Insert("stage2.block1", 4), Widen("stage3.block1", 2)],
    14: [WidenStage("stage2", 4)],
    16: [Freeze("stem"), Freeze("stage1.block1", 4), Freeze("stage2.block1")],
}
"""By the step after which they are taken."""

# A process that has torch imported and has computed nothing; its children start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "training.running.loop"])


def as_rank(rank: int, count: int, port: int, function: Callable[..., None], *given: Any) -> None:
    """Call the function as torchrun would have it called."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "t"}
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    function(*given)


def together(function: Callable[..., None], *given: Any, count: int = 2) -> list[int | None]:
    """Call the function in so many processes; give their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        PROCESSES.Process(target=as_rank, args=(rank, count, port, function, *given))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()  # it waits for another
        process.join()
    return [process.exitcode for process in processes]


def some_images(count: int = 96) -> Images:
    return Images(*grey_images(count))


def batches_of(rank: int = 0, count: int = 1) -> Batches:
    mean, std = torch.tensor([100.0]), torch.tensor([50.0])
    return Batches(some_images(), 16, 3, "cpu", Augment(1, flip=True), mean, std, rank, count)


def start() -> tuple[Network, torch.optim.Optimizer]:
    net = build(seed_of(preset("resnet8", image=(1, 8, 8)))).double()
    return net, make_optimizer(net, Train(lr=0.05))


def grown(net: Network, optimizer: torch.optim.Optimizer, step: int) -> Any:
    return grow(net, ACTIONS[step], optimizer, probe=batches_of().batch(9, 0)[0].double())


def copies(values: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values}


def train_a_part(folder: Path, accumulate: int) -> None:
    with distributed.joined():
        net, optimizer = start()
        model, batches = wrapped(net), batches_of(distributed.rank(), distributed.size())
        window, seen = torch.zeros(3, dtype=torch.float64), []
        for step in range(20):
            inputs, targets = batches.batch(*divmod(step, batches.per_epoch))
            args = inputs.double(), targets, LOSS, DOUBLE, window, accumulate
            train_step(model, optimizer, *args)
            seen.append(copies(net.named_parameters()))
            if step + 1 in ACTIONS:
                distributed.share_buffers(net)
                after = grown(net, optimizer, step + 1)
                net, optimizer = after.network, after.optimizer
                model = wrapped(net)
        own = copies(net.named_buffers())
        distributed.share_buffers(net)
        done = {"seen": seen, "own": own, "shared": copies(net.named_buffers())}
        torch.save(
            done | {"window": distributed.total(window)}, folder / f"{distributed.rank()}.pt"
        )


def train_alone(parts: int) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], float]:
    """One process that sums the gradients of the parts; the first half moves the statistics."""
    net, optimizer = start()
    batches, seen, total = batches_of(), [], 0.0
    for step in range(20):
        batch = batches.batch(*divmod(step, batches.per_epoch))
        optimizer.zero_grad()
        kept: dict[str, Tensor] = {}
        for part, (inputs, targets) in enumerate(zip(*(each.chunk(parts) for each in batch))):
            if part == parts // 2:
                kept = copies(net.named_buffers())
            loss = LOSS(net(inputs.double()), targets)
            (loss / parts).backward()
            total += loss.item() * len(targets)
        net.load_state_dict(kept, strict=False)
        optimizer.step()
        seen.append(copies(net.named_parameters()))
        if step + 1 in ACTIONS:
            after = grown(net, optimizer, step + 1)
            net, optimizer = after.network, after.optimizer
    return seen, copies(net.named_buffers()), total


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_and_grow_as_one_that_sums_the_gradients_of_both_halves(
    tmp_path, accumulate
):
    assert together(train_a_part, tmp_path, accumulate) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    seen, buffers, total = train_alone(2 * accumulate)
    for step, (one, other, alone) in enumerate(zip(first["seen"], second["seen"], seen)):
        assert one.keys() == other.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(one[name], other[name]), (step, name)
            assert torch.allclose(one[name], value, rtol=1e-5, atol=1e-9), (step, name)
    moved = [name for name, value in first["own"].items() if not value.equal(second["own"][name])]
    assert moved
    for name, value in buffers.items():
        for other in (first["own"], first["shared"], second["shared"]):
            assert torch.allclose(other[name], value, rtol=1e-5, atol=1e-9), name
        assert torch.equal(first["shared"][name], second["shared"][name]), name
    assert first["window"][0] == second["window"][0] == pytest.approx(total)
    assert first["window"][2] == 20 * 16


def observe(model: Any, net: Network, optimizer: Any, parts: int, rank: int = 0) -> Any:
    """Train for four steps on this process's part, or on all parts after each other."""
    batches, every = batches_of(rank, 2 // parts), (1, 2)[rank]
    with Observer(model, optimizer, also=tuple(ALSO)) as observer:
        for step in range(4):
            optimizer.zero_grad()
            inputs, targets = batches.batch(*divmod(step, batches.per_epoch))
            for images, wanted in zip(inputs.chunk(parts), targets.chunk(parts)):
                (LOSS(model(images.double()), wanted) / parts).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            if step == 1 and every == 2:
                observer.state_dict()  # of this process alone: it waits for no other
        layers = {path: {**vars(r), **r.extra} for path, r in observer.readings().items()}
    norms = observer.gradient_norm, observer.gradient_norm_before_clipping
    counts = {
        f"{name} {path}": row.counts
        for name, rows in observer.histograms().items()
        for path, row in rows.items()
    }
    return layers, norms, counts


def observe_a_part(folder: Path) -> None:
    with distributed.joined():
        net, optimizer = start()
        found = observe(wrapped(net), net, optimizer, 1, distributed.rank())
        (folder / f"{distributed.rank()}.pickle").write_bytes(pickle.dumps(found))


def test_readings_are_of_all_processes(tmp_path):
    """As of one process that takes the batches of all in every step."""
    assert together(observe_a_part, tmp_path) == [0, 0]
    first, second = (pickle.loads((tmp_path / f"{r}.pickle").read_bytes()) for r in (0, 1))
    assert first == second
    net, optimizer = start()
    layers, norms, counts = observe(net, net, optimizer, parts=2)
    assert first[1] == pytest.approx(norms, rel=1e-6)
    assert norms[1] > norms[0] == pytest.approx(0.1, rel=1e-3)
    assert first[0].keys() == layers.keys()
    for path, wanted in layers.items():
        found = first[0][path]
        for name, value in wanted.items():
            if isinstance(value, float):
                # each process backs its own mean loss, which is twice its share of the batch's
                share = 2 if name.startswith("activation_gradient") else 1
                expected = pytest.approx(share * value, rel=1e-4, abs=1e-9)
                assert found[name] == expected, (path, name)
    assert first[2].keys() == counts.keys()
    for name, row in counts.items():  # a number near a limit may be counted on its other side
        assert sum(abs(a - b) for a, b in zip(row, first[2][name])) <= 0.02 * sum(row)


def observe_without_an_optimizer() -> None:
    with distributed.joined():
        net, optimizer = start()
        batches, norms = batches_of(distributed.rank(), 2), []
        also = "gradient_norm_before_clipping"
        with Observer(model := wrapped(net), also=also) as observer:
            for step in range(2):
                optimizer.zero_grad()
                inputs, targets = batches.batch(*divmod(step, batches.per_epoch))
                LOSS(model(inputs.double()), targets).backward()
                gradients = [p.grad.flatten() for p in net.parameters()]
                norms.append([torch.cat(gradients).norm().item(), rms(gradients[-2:])])
                optimizer.step()
            head = observer.readings()["head"].gradient_norm
        whole, last = torch.tensor(norms, dtype=torch.float64).mean(0).tolist()
        assert observer.gradient_norm_before_clipping == pytest.approx(whole, rel=1e-6)
        assert head == pytest.approx(last, rel=1e-6)


def rms(tensors: list[Tensor]) -> float:
    return torch.cat(tensors).square().mean().sqrt().item()


def test_without_an_optimizer_gradients_are_read_reduced():
    assert together(observe_without_an_optimizer) == [0, 0]


def judge_a_part(folder: Path, count: int) -> None:
    with distributed.joined():
        seen: list[int] = []
        net = start()[0].float()
        net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        read = evaluate(net, some_images(count), torch.ones(1), torch.ones(1), LOSS, DOUBLE)
        (folder / str(distributed.rank())).write_text(json.dumps([read, sum(seen)]))


@pytest.mark.parametrize(("count", "shares"), [(25, [9, 8, 8]), (2, [1, 1, 0])])
def test_an_evaluation_is_shared_and_all_get_the_same(tmp_path, count, shares):
    assert together(judge_a_part, tmp_path, count, count=3) == [0, 0, 0]
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [images for _, images in told] == shares
    images, net = some_images(count), start()[0].float()
    loss, accuracy = evaluate(net, images, torch.ones(1), torch.ones(1), LOSS, DOUBLE)
    for read, _ in told:
        assert read == told[0][0]
        assert read == [pytest.approx(loss), accuracy]


def tell(folder: Path) -> None:
    def answer() -> str:
        (folder / "asked").write_text(str(distributed.rank()))
        return "yes"

    def refuse() -> None:
        raise ValueError(f"no, says {distributed.rank()}")

    with distributed.joined() as first:
        rank = distributed.rank()
        assert (first, distributed.size()) == (rank == 0, 2)
        assert distributed.greatest(1.5 - rank) == 1.5
        assert distributed.total(torch.tensor([rank + 1.0])).tolist() == [3.0]
        assert distributed.from_first(answer) == "yes"
        with pytest.raises(ValueError, match=r"^no, says 0$"):
            distributed.from_first(refuse)
    assert distributed.size() == 1


def test_what_processes_tell_each_other(tmp_path):
    assert together(tell, tmp_path) == [0, 0]
    assert (tmp_path / "asked").read_text() == "0"


def test_the_parts_of_all_processes_are_the_batch_of_one():
    for whole, *parts in zip(*(batches_of(*place).steps(1) for place in [(), (0, 2), (1, 2)])):
        for value, halves in zip(whole, zip(*parts)):
            assert torch.equal(value, torch.cat(halves))
    with pytest.raises(ValueError, match=r"must be a multiple of 3 \(the processes\), got 16"):
        batches_of(0, 3)


def command(out: Path, *more: str) -> list[str]:
    """The command line of a run of half a second that grows at its first records."""
    words = "train --data digits --net resnet8 --epochs 0.25 --records 6 --batch-size 32"
    words += " --observe-every 3 --device cpu --precision float32"
    words += " --policy Periodic --policy.share 0.1 --out"
    return [*words.split(), str(out), *more]


def run_until(arguments: list[str], number: int, only: int | None = None, count: int = 5) -> None:
    """Run the command; at its count-th step a signal comes to one process, or to all."""
    step, calls = training.stepping.step.train_step, 0

    def stepped(*values: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count and number and only in (None, distributed.rank()):
            os.kill(os.getpid(), number)
        step(*values)

    training.stepping.step.train_step = stepped
    Board.pictures = lambda *_: None  # as conftest does in the tests' own process
    sys.exit(run.main(arguments))


def ending(folder: Path) -> tuple[Any, ...]:
    """What a run leaves but for the clock's part of it."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["progress"]["seconds"]
    rows = csv_rows(folder / "metrics.csv")
    rows = [{**row, "seconds": 0, "images_per_second": 0} for row in rows]
    return state, rows, (folder / "history.jsonl").read_bytes()


def test_a_run_of_two_processes_resumes_exactly_whichever_is_interrupted(tmp_path):
    assert together(run_until, command(tmp_path / "whole"), 0) == [0, 0]
    stopped = tmp_path / "stopped"
    for number, only in ((signal.SIGTERM, 1), (signal.SIGINT, None), (signal.SIGKILL, None)):
        resume = ["--resume"] if stopped.exists() else []
        codes = together(run_until, command(stopped, *resume), number, only)
        assert codes == [-number if number == signal.SIGKILL else 128 + number] * 2
    assert together(run_until, command(stopped, "--resume"), 0) == [0, 0]
    assert not differences(ending(stopped), ending(tmp_path / "whole"))
    assert len(list(stopped.glob("events*"))) == 4  # of rank 0
    history = read_history(stopped)
    assert sum(map(len, (record.applied for record in history))) >= 3


def of_this_rank(network: Network, batch: Any, loss: Any) -> dict[str, float]:
    """A probe that gives and costs something else on every rank."""
    for _ in range(1 + distributed.rank()):
        network(batch[0])
    return {"stage1.block1": 1.0 + distributed.rank(), "stage2.block1": 1.5}


@dataclass(frozen=True)
class Ranked(Policy):
    needs = (of_this_rank,)

    def decide(self, history: Any) -> list[Widen]:
        found = probed(history[-1], of_this_rank)
        return [Widen(max(found, key=found.__getitem__), 1)] if len(history) == 1 else []


def train_ranked(folder: Path) -> None:
    with distributed.joined():
        Board.pictures = lambda *_: None
        given = {"net": "resnet8", "epochs": 0.25, "records": 6, "batch_size": 32}
        settings = Train(**given, policy=Ranked(), device="cpu", out=str(folder / "run"))
        flops = train(settings, lambda line: None)["train_flops"]
        (folder / f"{distributed.rank()}.txt").write_text(str(flops))


def test_rank_0_measures_probes_and_all_charge_the_same(tmp_path):
    assert together(train_ranked, tmp_path) == [0, 0]
    flops = {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)}
    assert len(flops) == 1
    history = read_history(tmp_path / "run")
    assert [record.probes["of_this_rank"]["stage1.block1"] for record in history[:-1]] == [1.0] * (
        len(history) - 1
    )
    assert [a for record in history for a in record.applied] == [Widen("stage2.block1", 1)]


def run_with_two_clocks(arguments: list[str]) -> None:
    """Run the command; on rank 1 a thousand seconds pass between any two looks at the clock."""
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        return time.perf_counter() + 1000 * calls * distributed.rank()

    training.running.loop.perf_counter = clock
    run_until(arguments, 0)


def test_processes_save_together_whatever_their_clocks_say(tmp_path):
    words = command(tmp_path, "--policy", "Never", "--save-every", "60", "--records", "3")
    assert together(run_with_two_clocks, words) == [0, 0]
    assert len(read_history(tmp_path)) == 3


def test_what_one_process_refuses_all_refuse(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    assert together(run_until, command(tmp_path), 0) == [2, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", ".lock"}


def test_a_comparison_runs_in_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "t")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run.main(["compare", "--out", str(tmp_path / "none")]) == 2
    assert "compare must run in 1 process (torchrun is for train), got 2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_torchrun(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += [str(ROOT / "run.py"), *command(tmp_path / "two", "--final", "--lr", "1e-4")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    given = {"net": "resnet8", "epochs": 0.25, "records": 6, "batch_size": 32, "observe_every": 3}
    given |= {"device": "cpu", "precision": "float32", "accumulate": 2, "final": True}
    alone = Train(**given, policy=Periodic(share=0.1), lr=1e-4)  # rounding stays rounding
    summary = train(replace(alone, out=str(tmp_path / "one")), lambda line: None)
    two, one = (read_history(tmp_path / name) for name in ("two", "one"))
    assert done.stdout.count("step ") == len(two)
    told = json.loads((tmp_path / "two" / "summary.json").read_text())
    for name in ("growth", "train_flops", "steps", "epochs", "test_readings"):
        assert told[name] == summary[name]
    # The same batches in the same halves, until a growth sees other running statistics.
    assert two[0].train_loss == pytest.approx(one[0].train_loss, rel=1e-4)
    assert two[0].train_accuracy == pytest.approx(one[0].train_accuracy, abs=0.02)
    assert (tmp_path / "two" / "config.yaml").read_text().count("compile: false") == 1
