import pytest
from spread import Spread

from analysis import LayerReading, Record
from nets import Widen, cost, preset, seed_of
from policies import widen

LIMIT = preset("resnet14", image=(1, 8, 8))
FIRST = seed_of(LIMIT)
ONE, TWO, THREE = FIRST.blocks


def record(stds, architecture=FIRST, **values):
    layers = {f"{name}.bn1": LayerReading(name, "inner", response_std=std) for name, std in stds}
    given = {"step": 1, "epoch": 0.1, "spent": 0.1, "seed": 0, "limit": cost(LIMIT)}
    return Record(**given, architecture=architecture, layers=layers, **values)


WIDENED = Widen(TWO, 1)
HIGH = record([(ONE, 0.5), (TWO, 2.0), (THREE, 1.0)])
COOLING = [HIGH, record([(ONE, 0.5), (TWO, 2.0), (THREE, 1.0)], FIRST.apply(WIDENED))]


@pytest.mark.parametrize(
    ("history", "every", "block"),
    [
        ([HIGH], 1, TWO),
        ([HIGH], 2, None),  # not due
        (COOLING, 1, THREE),  # the highest was widened a record ago
        ([record([])], 1, None),  # nothing was read
        ([record([(ONE, 1.0)], LIMIT)], 1, None),  # no room is left
    ],
)
def test_spread(history, every, block):
    expected = widen(history, block, 0.1) if block else []
    assert Spread(every).decide(history) == expected
