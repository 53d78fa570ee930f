"""The literature's tables as configurations: schedules at full size, and their rows, small."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from histories import after_all, record_of
from runs import quiet

from nets import Architecture, VarianceTransfer, preset, train_flops
from policies import Never
from training.comparing.comparison import compare
from training.comparing.jobs import jobs_of
from training.settings.compare_settings import Compare
from training.settings.train_settings import Train

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CLASSES = {"cifar10": 10, "cifar100": 100}
SMALL = {
    "gradmax-table2": "wrn-10-1",
    "variance-transfer": "resnet8",
    "variance-transfer-cifar100": "resnet8",
}
"""The tables, and nets of their kind that take a second."""
PLAIN = VarianceTransfer(rescale=False)
INITIALIZERS = {
    "gradmax": {"he": "he", "gradmax": "gradmax"},
    "variance": {
        "plain": PLAIN,
        "net2net": "net2net",
        "variance-transfer": "variance-transfer",
        "cohort": PLAIN,
        "both": "variance-transfer",
    },
}
SHORT = "--data digits --epochs 1 --records 20 --batch_size 32 --seeds [0] --workers 1 --threads 1"
pytestmark = pytest.mark.usefixtures("plain_reports")


def table_of(parser, name: str, *more: str) -> Compare:
    """The settings of a table, with more options behind its file."""
    words = ["compare", "--config", str(EXPERIMENTS / f"{name}.yaml"), *more]
    chosen = vars(parser.instantiate(parser.parse_args(words))["compare"])
    return Compare(**{key: value for key, value in chosen.items() if key != "config"})


def grown(run: Train) -> list[Architecture]:
    """The architectures of a row between its records, were it trained; growth is as in a run."""
    limit = run.limit(CLASSES[run.data], (3, 32, 32))
    history, architecture, found = [], run.first(limit), []
    for number in range(1, run.record_count + 1):
        found.append(architecture)
        record = record_of(number, architecture, limit, spent=(number + 0.1) / run.record_count)
        record = replace(record, grow_until=run.grow_until)
        if record.spent <= run.grow_until:
            record = replace(record, applied=tuple(run.policy.decide([*history, record])))
        history.append(record)
        architecture = after_all(architecture, record.applied)
    return found


@pytest.mark.parametrize(
    ("name", "net", "growths", "share"),
    [
        ("gradmax-table2", preset("wrn-28-1"), 12, 0.77),
        ("variance-transfer", preset("resnet20"), 8, 0.50),
        ("variance-transfer-cifar100", preset("resnet18", stem="cifar", classes=100), 8, 0.50),
    ],
)
def test_a_table_grows_as_published(parser, name, net, growths, share):
    settings = table_of(parser, name)
    runs = {job.row: job.settings for job in jobs_of(settings)}
    rows = [row for row, run in runs.items() if not isinstance(run.policy, Never)]
    large = runs["large"]
    assert large.first(large.limit(CLASSES[large.data], net.image)) == net
    assert {row: runs[row].initializer for row in rows} == INITIALIZERS[name.split("-")[0]]
    first, *_, last = nets = grown(runs[rows[0]])
    assert last == net
    assert [a != b for a, b in pairwise(nets)].count(True) == growths
    assert {block.width / net.blocks[name].width for name, block in first.blocks.items()} == {0.25}
    for row in rows:
        assert (runs[row].policy, runs[row].start) == (runs[rows[0]].policy, runs[rows[0]].start)
        assert runs[row].budget == "epochs"
        assert runs[row].rates == ("cohort" if row in ("cohort", "both") else "shared")
    assert mean(map(train_flops, nets)) / train_flops(net) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_a_table_runs_to_its_end(parser, tmp_path, name):
    more = f"{SHORT} --net {SMALL[name]} --device cpu --out {tmp_path}".split()
    settings = table_of(parser, name, *more)
    outcome = compare(settings, quiet)
    assert not outcome.failures
    limit = preset(SMALL[name], image=(1, 8, 8), stem="cifar")
    for row, cell in settings.cells.items():
        folder = tmp_path / row / "seed0"
        last = Architecture.from_dict(json.loads((folder / "architecture.json").read_text()))
        start = cell.start.within(limit) if cell.start else limit
        growing = not isinstance(cell.policy, Never)
        assert last == (limit if growing else start)
        summary = json.loads((folder / "summary.json").read_text())
        grew = {entry["step"] for entry in summary["growth"]}
        assert len(grew) > 6 if growing else not grew
    assert set(settings.cells) >= {"large", settings.pair[0], settings.pair[1]}
    for text in (outcome.text, (tmp_path / "report.html").read_text()):
        for cell in settings.cells.values():
            assert " ± ".join(f"{number:.2f}" for number in cell.published) in text
