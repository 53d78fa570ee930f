"""The demo: hard digits, growth in every growing row whatever the losses, and its picture."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from histories import FIRST, history_in_rounds, record_and_grow, record_of, write_history
from runs import script

import run
from analysis import Record
from nets import Insert, Widen, preset, seed_of
from nets.plan.actions import adds_capacity
from policies import Policy
from training.settings.compare_settings import Compare, standard_cells

ROOT = Path(__file__).parents[1]
architectures = script(ROOT / "experiments" / "architectures.py")


@pytest.fixture(scope="module")
def demo() -> Compare:
    words = ["compare", "--config", str(ROOT / "experiments" / "digits.yaml")]
    chosen = run._chosen(run.make_parser(), words)
    return run._settings(Compare, chosen["compare"])


def simulated(policy: Policy, settings: Compare, loss: str, seed: int = 0) -> list[Record]:
    """A run without training, whose losses fall to the end, rise, or are noise alone."""
    history, random = list[Record](), Random(seed)
    whole = preset(settings.net, image=(1, 12, 12))
    net = seed_of(whole)
    for number in range(1, settings.record_count + 1):
        spent = number / settings.record_count
        value = {"falls": 3 * 0.7**number, "rises": 1 + spent, "noise": 1 + random.random()}[loss]
        values = {name: random.random() for name in net.blocks}
        given = {"spent": spent, "validation_loss": value, "seed": seed}
        given["grow_until"] = settings.grow_until
        net = record_and_grow(policy, history, net, whole, values, **given)
    return history


@pytest.mark.parametrize("loss", ["falls", "rises", "noise"])
def test_every_growing_row_grows_whatever_its_losses_are(demo, loss):
    growing = {name: cell.policy for name, cell in demo.cells.items() if not cell.is_static}
    assert list(growing) == [
        *("periodic", "random-site", "plateau", "layer-statistic", "stochastic-depth"),
    ]
    for name, policy in growing.items():
        history = simulated(policy, demo, loss)
        times = [r.spent for r in history if any(map(adds_capacity, r.applied))]
        assert times, name
        assert min(times) <= 0.3, name  # there is time to train what is new


def test_the_data_are_hard_and_the_rows_those_of_any_comparison(demo):
    assert demo.data.startswith("digits:")
    assert list(demo.cells) == list(standard_cells())
    for name, cell in standard_cells().items():
        assert type(demo.cells[name].policy) is type(cell.policy)
        assert demo.cells[name].start == cell.start


def grown(folder: Path, *actions) -> Path:
    """A run's history of four records, the second of which grows."""
    rounds = [[], actions, [], []]

    def record(number, architecture, applied):
        return record_of(number + 1, architecture, spent=(number + 1) / 4, applied=applied)

    return write_history(folder, history_in_rounds(rounds, record))


def test_the_picture_is_an_svg_file_and_the_last_line_its_address(tmp_path, capsys):
    folder = tmp_path / "a comparison"
    one = next(iter(FIRST.blocks))
    grown(folder / "static" / "seed0")
    grown(folder / "periodic" / "seed0", Widen(one, 3))
    grown(folder / "periodic" / "seed1", Insert(one, 4))
    assert architectures.main([str(folder)]) == 0
    address = capsys.readouterr().out.splitlines()[-1].split()[-1]
    path = Path(unquote(urlsplit(address).path))
    assert urlsplit(address).scheme == "file"
    assert path == folder / "architectures.svg"
    picture = ElementTree.parse(path).getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    words = {text.strip() for text in picture.itertext()}
    assert "periodic" in words
    assert "static" not in words  # it has not grown


def test_without_growth_there_is_no_picture(tmp_path, capsys):
    grown(tmp_path / "static" / "seed0")
    assert architectures.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"no run in {tmp_path} has grown\n"
    assert not (tmp_path / "architectures.svg").exists()


def test_make_demo_ends_with_the_picture():
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True
    )
    last = done.stdout.splitlines()[-1]
    assert last.endswith("python experiments/architectures.py runs/digits")
    assert (ROOT / "experiments" / "architectures.py").exists()
