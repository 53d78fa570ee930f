"""What a run of our loop leaves for TensorBoard at its end, and what it compares itself with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import short_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import analysis.showing.tensorboard_writer
from analysis import read_history
from analysis.showing.tensorboard_writer import FIRST_LOOK
from policies import Never, Periodic
from training.keeping.picture_files import comparison_of, reference_of, seconds_of, write_pictures
from training.running.loop import train
from training.settings.start_settings import Start
from training.settings.train_settings import Train


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Instead of the one for all tests: the pictures are looked at here."""


def small(folder, policy, **changes) -> Train:
    return short_run(folder, policy, epochs=0.3, records=6, **changes)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Three finished runs in the folders of a comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "comparison.csv").touch()
    rows = {
        "thin": small(folder / "thin" / "seed0", Never(), start=Start(0.5, None)),
        "static": small(folder / "static" / "seed0", Never()),
        "grown": small(folder / "grown" / "seed0", Periodic(every=2)),
    }
    for settings in rows.values():
        train(settings, lambda line: None)
    return folder


def board_of(folder):
    return EventAccumulator(
        str(folder), {"images": 0, "tensors": 0, "scalars": 0}
    ).Reload()  # 0: all


def hyperparameters_of(folder):
    tag = "_hparams_/session_start_info"
    data = board_of(folder).SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(data).session_start_info.hparams


def test_runs_have_the_same_keys_of_the_same_types(comparison):
    rows = {name: hyperparameters_of(comparison / name / "seed0") for name in ("static", "grown")}
    kinds = [
        {key: value.WhichOneof("kind") for key, value in values.items()} for values in rows.values()
    ]
    assert kinds[0] == kinds[1]
    assert {"policy", "lr", "seed", "net", "data"} == set(sorted(kinds[0])[:5])  # what is shown
    assert rows["grown"]["policy"].string_value == "Periodic"
    assert rows["grown"]["settings_of_policy"].string_value == repr(Periodic(every=2))
    first = read_history(comparison / "grown" / "seed0")[0]
    assert rows["grown"]["start_parameters"].number_value == first.cost.parameters
    assert rows["grown"]["training.batch_size"].number_value == 32


def test_beside_the_settings_stands_what_the_summary_has(tmp_path):
    summary = train(small(tmp_path, Never(), validation_images=20), lambda line: None)
    board = board_of(tmp_path)
    data = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    shown = [info.name.tag for info in HParamsPluginData.FromString(data).experiment.metric_infos]
    assert len(shown) == 6
    for tag in shown:
        (event,) = board.Scalars(tag)
        assert event.step == summary["steps"]
        assert event.value == pytest.approx(summary[tag.removeprefix("final/")])


def test_a_short_run_has_its_pictures_once_at_its_end(comparison):
    for name in ("static", "grown"):
        folder = comparison / name / "seed0"
        board, last = board_of(folder), read_history(folder)[-1].step
        images = board.Tags()["images"]
        assert FIRST_LOOK["architecture"] in images
        for tag in images:
            assert [event.step for event in board.Images(tag)] == [last]
        assert [event.step for event in board.Tensors("growth_history/text_summary")] == [last]


def test_a_long_run_has_pictures_at_every_growth(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis.showing.tensorboard_writer, "_REST", -1)
    train(small(tmp_path, Periodic(every=1)), lambda line: None)
    history = read_history(tmp_path)
    grown = [record.step for record in history if record.applied]
    assert len(grown) > 1
    steps = [event.step for event in board_of(tmp_path).Images(FIRST_LOOK["architecture"])]
    assert steps == [*grown, history[-1].step]


def test_the_reference_is_the_largest_static_run_of_the_seed(comparison, tmp_path):
    static = read_history(comparison / "static" / "seed0")
    assert reference_of(comparison / "grown" / "seed0") == static
    assert reference_of(comparison / "thin" / "seed0") == static
    assert reference_of(comparison / "static" / "seed0")[0].architecture.blocks["stage1.block1"]
    assert reference_of(comparison / "static" / "seed0") != static  # never itself
    assert reference_of(comparison / "grown" / "seed1") == []
    assert reference_of(tmp_path / "row" / "seed0") == []  # of no comparison


@pytest.mark.parametrize("damage", ["", "[]", "{}", "{", '{"policy": "Never"}', "\xff"])
def test_a_run_beside_that_cannot_be_read_is_no_reference(tmp_path, damage):
    (tmp_path / "comparison.csv").touch()
    beside = tmp_path / "static" / "seed0"
    beside.mkdir(parents=True)
    (beside / "summary.json").write_bytes(damage.encode("latin-1"))
    assert reference_of(tmp_path / "grown" / "seed0") == []
    (beside / "summary.json").write_text(json.dumps({"policy": "Never", "parameters": 3}))
    assert reference_of(tmp_path / "grown" / "seed0") == []  # without a history


def test_a_run_knows_its_comparison_before_any_run_has_ended(tmp_path):
    run = tmp_path / "row" / "seed0"
    assert comparison_of(run) is None
    (tmp_path / "config.yaml").write_text("data: digits\n")  # of a run
    assert comparison_of(run) is None
    (tmp_path / "config.yaml").write_text("data: digits\ncells:\n  row: {}\n")
    assert comparison_of(run) == tmp_path
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "comparison.csv").touch()
    assert comparison_of(run) == tmp_path


def test_seconds_are_those_of_the_records(comparison, tmp_path):
    folder = comparison / "grown" / "seed0"
    assert len(seconds_of(folder)) == len(read_history(folder))
    assert seconds_of(tmp_path) == []


def test_the_reference_is_found_from_inside_the_comparison(comparison, monkeypatch):
    monkeypatch.chdir(comparison / "grown")
    assert reference_of(Path("seed0")) == read_history(comparison / "static" / "seed0")


def test_pictures_are_written_whole_or_refused(tmp_path):
    write_pictures(tmp_path / "a" / "b", {"one": b"1", "two": b"22"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "a/b").iterdir()} == {
        "one.png": b"1",
        "two.png": b"22",
    }
    with pytest.raises(ValueError, match=r"out: .* cannot be written: Not a directory"):
        write_pictures(tmp_path / "a" / "b" / "one.png" / "c", {})


def test_a_resumed_run_draws_once(tmp_path, monkeypatch):
    settings = small(tmp_path, Periodic())

    def stop(*_):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("training.running.loop.finish", stop)  # all is written but the summary
        with pytest.raises(RuntimeError, match="stopped"):
            train(settings, lambda line: None)
    train(replace(settings, resume=True), lambda line: None)
    board, last = board_of(tmp_path), read_history(tmp_path)[-1].step
    assert [event.step for event in board.Images(FIRST_LOOK["architecture"])] == [last]
