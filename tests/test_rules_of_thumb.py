"""Each rule of thumb fires beyond its bound and not within."""

import math

import pytest
from histories import LIMIT, reading, record_of

from analysis.judging.rules_of_thumb import suggestions


def record(step, **layers):
    return record_of(step, LIMIT, layers=layers)


@pytest.mark.parametrize(
    ("statistic", "value", "rule"),
    [
        ("dead_fraction", 0.5, "dead_fraction >= 0.5"),
        ("dead_fraction", 0.49, None),
        ("residual_ratio", 0.09, "residual_ratio < 0.1"),
        ("residual_ratio", 0.1, None),
        ("residual_ratio", 1.0, None),
        ("residual_ratio", 1.1, None),
        ("response_std", math.inf, "response_std is inf"),
        ("gradient_norm", math.nan, "gradient_norm is nan"),
        ("weight_norm", 1e9, None),
    ],
)
def test_rules_on_one_number(statistic, value, rule):
    said = suggestions([record(1, a=reading(**{statistic: value}))])
    if rule is None:
        assert said == {}
    else:
        (words,) = said["a"]
        assert words.startswith(f"{rule}:")


@pytest.mark.parametrize("statistic", ["gradient_norm", "update_ratio"])
@pytest.mark.parametrize(
    ("value", "rule"), [(0.9, "< 1/10 of"), (1, ""), (100, ""), (101, "> 10 x")]
)
def test_rules_beside_layers_of_the_same_role(statistic, value, rule):
    def layers(number):
        others = {f"b{k}": reading(**{statistic: 10.0}) for k in range(number)}
        odd = {"stem": reading("stem", **{statistic: 1e9})}  # alone in its role: not compared
        return record(1, a=reading(**{statistic: float(value)}), **others, **odd)

    said = suggestions([layers(2)])
    if not rule:
        assert said == {}
    else:
        (words,) = said["a"]
        assert words.startswith(f"{statistic} {rule} the median inner layer:")
        assert said.keys() == {"a"}
    assert suggestions([layers(1)]) == {}  # two make no median


def test_a_layer_has_every_suggestion_that_fits():
    said = suggestions([record(1, a=reading(dead_fraction=1.0, residual_ratio=0.05))])
    assert len(said["a"]) == 2
    assert suggestions([record(1, a=reading())]) == {}


@pytest.mark.parametrize(("last", "young"), [(2, True), (3, True), (4, False)])
def test_a_block_edited_within_two_records_is_not_judged(last, young):
    history = [record(10 * k) for k in range(1, last)]
    history.append(record(10 * last, a=reading(dead_fraction=1.0, edited=10)))
    (words,) = suggestions(history)["a"]
    assert words.startswith("edited within 2 records" if young else "dead_fraction")
