"""What policies need of the network: measured into the record, charged, refused if unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from runs import short_run

from analysis import Observer, Record, effective_rank, read_history
from nets import Widen, cost
from policies import Policy
from training.running.loop import train
from training.running.resume import open_run
from training.running.take_record import measure_probes, with_probes
from training.settings.train_settings import Train


@dataclass(frozen=True)
class Needy(Policy):
    probes: tuple[str, ...] = ()

    @property
    def needs(self):
        return self.probes

    def decide(self, history):
        return [Widen("stage1.block1", 2, initializer="gradmax")] if len(history) == 1 else []


def small(folder, *probes) -> Train:
    return short_run(folder, Needy(probes), epochs=0.1, records=3, threads=1)


def test_effective_rank_stands_in_the_readings_and_its_products_are_charged(tmp_path):
    run = open_run(small(tmp_path, "effective_rank"))
    before = run.progress.flops
    found = measure_probes(run)
    charged = run.progress.flops - before
    images = len(run.probe[0])
    assert found["effective_rank"] == pytest.approx(effective_rank(run.net, run.probe[0]))
    # the forward, and a covariance of the channels of stage 1 over every position
    forward = images * cost(run.net.architecture).flops
    assert forward + 3 * 2 * images * 64 * 16 * 16 < charged < 2 * forward
    with Observer(run.net) as observer:
        run.net(run.probe[0]).sum().backward()
    record = Record.capture(run.net, observer)
    layers = with_probes(record, found).layers
    assert layers.keys() == record.layers.keys()
    for path, rank in found["effective_rank"].items():
        assert layers[path].value("effective_rank") == rank > 0
        assert layers[path] == replace(
            record.layers[path], extra={**record.layers[path].extra, "effective_rank": rank}
        )


def test_a_run_measures_what_its_policy_needs_until_the_budget_is_spent(tmp_path):
    train(small(tmp_path / "one", "effective_rank", "importance"), say=lambda line: None)
    history = read_history(tmp_path / "one")
    for record in history[:-1]:
        assert record.importance.keys() == record.architecture.blocks.keys()
        assert all(r.value("effective_rank") for r in record.layers.values())
    last = history[-1]
    assert not last.importance
    assert not any("effective_rank" in reading.extra for reading in last.layers.values())
    train(small(tmp_path / "two"), say=lambda line: None)
    bare = read_history(tmp_path / "two")
    assert not bare[0].importance
    assert bare[0].layers["stem"].value("effective_rank") is None
    assert bare[0].train_flops < history[0].train_flops


def test_an_unknown_probe_is_refused_by_name(tmp_path):
    message = "policy Needy must need probes of importance, effective_rank, got 'weather'"
    with pytest.raises(ValueError, match=message):
        train(small(tmp_path, "weather"), say=lambda line: None)


def test_gradmax_grows_in_a_run(tmp_path):
    train(small(tmp_path), say=lambda line: None)
    history = read_history(tmp_path)
    assert history[0].applied == (Widen("stage1.block1", 2),)
    assert history[0].applied[0].initializer == "gradmax"
    assert history[-1].architecture == history[0].architecture.apply(history[0].applied[0])
