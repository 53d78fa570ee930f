"""A comparison's own run in TensorBoard, read back as TensorBoard reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import bytes_of, quiet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from test_comparison import rows_of, small

from analysis import read_history
from analysis.judging.comparable_runs import Finished
from analysis.judging.comparison_claims import Judgement, judge
from analysis.recording.atomic_files import Unwritten
from analysis.reporting import comparison_board
from analysis.reporting.row_curves import band_of
from policies import Never, Periodic
from training.comparing.comparison import compare
from training.keeping.result_files import read_summary
from training.settings.compare_settings import Cell
from training.settings.start_settings import Start

CELLS = {
    "static": Cell(Never(), Start(0.25, None)),
    "grown": Cell(Periodic()),
}
STATIC, GROWN = CELLS

pytestmark = pytest.mark.usefixtures("plain_reports")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plain_reports: None) -> Path:
    """A finished comparison of two rows and two seeds."""
    out = tmp_path_factory.mktemp("board") / "out"
    compare(small(out, cells=CELLS), quiet)
    return out


def judged(folder: Path) -> Judgement:
    rows = {
        name: {
            seed: Finished(run, read_summary(run))
            for seed in (0, 1)
            for run in [folder / name / f"seed{seed}"]
        }
        for name in CELLS
    }
    return judge(rows, [STATIC], None, "flops")


def board_of(folder: Path) -> EventAccumulator:
    sizes = {"images": 0, "tensors": 0, "scalars": 0}  # 0: all
    return EventAccumulator(str(folder / "_comparison"), sizes).Reload()


def scalars_of(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board_of(folder).Scalars(tag)]


def test_rows_stand_over_flops_with_their_bands(folder):
    judgement = judged(folder)
    for name in CELLS:
        band = band_of(judgement, name, "flops")
        for kind, edge in (("mean", band.middle), ("low", band.low), ("high", band.high)):
            found = scalars_of(folder, f"{kind}_over_MFLOPs/{name}")
            (first, start), (last, end) = found[0], found[-1]
            assert (first, last) == (band.places[0] // 1e6, band.places[-1] // 1e6)
            assert (start, end) == pytest.approx((edge[0], edge[-1]))
        assert band.spread is not None
        ends = [100 * judgement.curves[name][seed].at(band.places[-1:])[0] for seed in (0, 1)]
        assert (band.middle[-1], band.spread[-1]) == pytest.approx(
            (np.mean(ends), np.std(ends, ddof=1))
        )
    assert judgement.best is not None
    frontier = scalars_of(folder, "mean_over_MFLOPs/static-frontier")
    assert frontier[-1][1] == pytest.approx(100 * judgement.best[-1])


def test_regrets_and_final_scores_stand_at_their_seeds(folder):
    for name in CELLS:
        rows = [row for row in rows_of(folder) if row["run"] == name]
        for tag, column in (("regret", "regret"), ("final_score", "validation_accuracy")):
            told = [(int(row["seed"]), 100 * float(row[column])) for row in rows]
            assert scalars_of(folder, f"{tag}/{name}") == [(s, pytest.approx(v)) for s, v in told]


def test_final_architectures_and_what_was_added_are_told(folder):
    first = read_history(folder / GROWN / "seed0")
    blocks = first[-1].architecture
    for action in first[-1].applied:
        blocks = blocks.apply(action)
    widths = [block.width for block in blocks.blocks.values()]
    assert scalars_of(folder, f"final_widths/{GROWN}") == list(enumerate(widths, start=1))
    tags = board_of(folder).Tags()["scalars"]
    added = [tag for tag in tags if tag.startswith("added_MFLOPs/")]
    assert added
    assert all(tag.startswith(f"added_MFLOPs/{GROWN}/stage") for tag in added)
    (event,) = board_of(folder).Tensors("0_comparison/2_final_architectures/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    assert " ".join(map(str, widths[:1])) in table


def test_every_chart_finds_its_tags(folder):
    (event,) = board_of(folder).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])  # pyright: ignore
    together, beside = layout.category
    tags = set(board_of(folder).Tags()["scalars"])
    for chart in together.chart:
        (start,) = chart.multiline.tag
        assert [tag for tag in tags if tag.startswith(start)]
    assert [chart.title for chart in beside.chart] == list(CELLS)
    for chart in beside.chart:
        assert len(chart.margin.series) == 2  # the row, and the frontier
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= tags


@pytest.mark.parametrize("run", [f"{STATIC}/seed0", f"{GROWN}/seed1"])
def test_layers_of_the_rows_are_closed_beside_it(folder, run):
    """Of the first run too: nothing has been judged when it begins."""
    (event,) = EventAccumulator(str(folder / run)).Reload().Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])  # pyright: ignore
    assert [category.closed for category in layout.category] == [False, True]


def test_tensorboard_sees_one_run_more(folder):
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Runs()
    rows = {f"{name}/seed{seed}" for name in CELLS for seed in (0, 1)}
    assert set(runs) == {"_comparison", *rows}
    began = {run: EventAccumulator(str(folder / run)).Reload() for run in runs}
    first = sorted(runs, key=lambda run: began[run].FirstEventTimestamp() or 0)
    assert first[0] == "_comparison"  # TensorBoard lists it first


def test_it_is_replaced_whole_and_is_the_same_for_the_same_runs(folder):
    before = bytes_of(folder / "_comparison")
    assert len(before) == 1
    (folder / "_comparison" / "events.out.tfevents.1.old").touch()
    (folder / "_comparison.part").mkdir()
    compare(small(folder, cells=CELLS), quiet)
    assert bytes_of(folder / "_comparison") == before
    assert not (folder / "_comparison.part").exists()


def test_a_row_more_goes_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    cells = {**CELLS, "more": Cell(Never(), Start(0.5, None))}
    compare(small(tmp_path, cells=cells), quiet)
    assert "mean_over_MFLOPs/more" in board_of(tmp_path).Tags()["scalars"]


def test_a_disk_that_is_full_leaves_the_old_one(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison_board, "_charts", full)
    with pytest.raises(Unwritten, match="No space left on device"):
        comparison_board.write_board(tmp_path, [("digits", judged(tmp_path))])
    assert board_of(tmp_path).Tags()["scalars"]
    assert not (tmp_path / "_comparison.part").exists()
