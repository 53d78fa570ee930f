"""Probes by name, and what a record holds of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from histories import FIRST, reading, record_of

from analysis import LayerReading, Record
from analysis.recording.probed import holds, probe_name, probed, with_probes
from nets import preset
from policies import Gain

ONE, TWO, THREE = FIRST.blocks
LAYERS = {f"{ONE}.bn1": reading(), ONE: reading("stream"), "stem": LayerReading(None, "stem")}


def energy(network, batch, loss):
    return {}


@dataclass(frozen=True)
class Depth:
    power: int = 2

    def __call__(self, network, batch, loss):
        return {}


def test_a_probe_is_called_as_its_function_its_name_or_its_class():
    assert probe_name("gain") == "gain"
    assert probe_name(energy) == "energy"
    assert probe_name(Depth()) == "Depth"
    assert [probe_name(Gain()), probe_name(Gain("insert"))] == ["gain", "insert_gain"]


def test_numbers_go_by_block_into_the_record_and_by_layer_into_its_readings():
    record = record_of(3, layers=LAYERS, importance={TWO: 9.0}, probes={"old": {ONE: 5.0}})
    measured = {
        "importance": {ONE: 0.5},
        "energy": {ONE: 1.0, THREE: 3.0},  # all of them blocks
        "Depth": {ONE: 2.0, "stem": 4.0},
        "none": {},
    }
    after = with_probes(record, measured)
    assert after.importance == {ONE: 0.5}
    assert after.probes == {"old": {ONE: 5.0}, "energy": {ONE: 1.0, THREE: 3.0}, "none": {}}
    assert {path: each.extra for path, each in after.layers.items()} == {
        f"{ONE}.bn1": {},
        ONE: {"Depth": 2.0},
        "stem": {"Depth": 4.0},
    }
    assert probed(after, energy) == measured["energy"]
    assert probed(after, Depth(3)) == measured["Depth"]
    assert probed(after, "importance") == {ONE: 0.5}
    assert probed(after, "none") == {}
    assert record == record_of(3, layers=LAYERS, importance={TWO: 9.0}, probes={"old": {ONE: 5.0}})
    assert with_probes(record, {}) == record


def test_a_record_without_a_probe_says_so():
    record = record_of(7, layers=LAYERS)
    for probe, name in ((energy, "energy"), ("importance", "importance"), (Gain(), "gain")):
        assert not holds(record, probe)
        with pytest.raises(ValueError, match=f"must hold the probe '{name}'.* got one of step 7"):
            probed(record, probe)
    plain = record_of(7, preset("mlp-8"))
    assert holds(plain, "importance")


def test_probes_go_through_a_line_of_history():
    record = record_of(3, probes={"energy": {ONE: 0.1 + 0.2}, "none": {}})
    line = json.dumps(record.to_dict())
    assert Record.from_dict(json.loads(line)) == record
    with pytest.raises(TypeError, match="cannot be changed"):
        record.probes["energy"][ONE] = 1.0  # pyright: ignore
    with pytest.raises(TypeError, match="cannot be changed"):
        record.probes["more"] = {}  # pyright: ignore


def test_a_history_without_probes_is_as_it_was():
    line = record_of(3).to_dict()
    assert "probes" not in line
    assert Record.from_dict(line).probes == {}


@pytest.mark.parametrize(
    "probes", [{"energy": {ONE: "much"}}, {"energy": {ONE: None}}, {"energy": 5}, [1], {"a": [1]}]
)
def test_a_line_with_other_probes_is_refused(probes):
    line = replace(record_of(3), probes={"energy": {}}).to_dict()
    with pytest.raises(ValueError, match=r"probe|record cannot be read"):
        Record.from_dict({**line, "probes": probes})
