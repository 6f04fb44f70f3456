"""Lines: a method and a swept value each, in shades of the method's colour."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bandits.plotting import METHOD_COLORS
from bandits.simulation.lines import split, swept

PAIRS = [(0, 1, 1)]
REFERENCE = [0.2, 0.3, 0.5]


def test_without_a_sweep_a_method_is_a_line_of_its_colour(make_dataset):
    dataset = make_dataset(REFERENCE, PAIRS, ("dpo", "ipo"))
    assert swept(dataset) == []
    lines = split(dataset)
    assert [(line.method, line.label, line.values) for line in lines] == [
        ("dpo", "DPO", {}),
        ("ipo", "IPO", {}),
    ]
    assert [line.color for line in lines] == [to_rgb(METHOD_COLORS[n]) for n in ("dpo", "ipo")]
    assert {line.style for line in lines} == {"-"}


def test_a_swept_value_is_a_line_for_the_methods_that_have_it_from_dark_to_light(make_dataset):
    dataset = make_dataset(REFERENCE, PAIRS, ("dpo", "ipo"), sweep=("beta", [0.1, 0.5, 2.0]))
    lines = split(dataset)
    assert [line.label for line in lines] == ["DPO β = 0.1", "DPO β = 0.5", "DPO β = 2", "IPO"]
    assert [line.values for line in lines] == [{"beta": 0.1}, {"beta": 0.5}, {"beta": 2.0}, {}]
    light = [sum(line.color) for line in lines[:3]]
    assert light == sorted(light)
    for line, value in zip(lines, (0.1, 0.5, 2.0), strict=False):
        expected = dataset["log_probs"].sel(loss="dpo", beta=value)
        np.testing.assert_array_equal(line.data["log_probs"], expected)


def test_values_that_change_the_run_are_drawn_though_the_method_has_no_such_name(make_dataset):
    dataset = make_dataset(REFERENCE, PAIRS, ("preference_likelihood",), sweep=("tau", [1.0, 2.0]))
    assert [line.label for line in split(dataset)] == ["Pref-FT"]
    dataset["log_probs"][0, 1] += 1e-3
    assert [line.values for line in split(dataset)] == [{"tau": 1.0}, {"tau": 2.0}]


def test_a_value_that_moves_the_target_is_a_line_of_every_method(make_dataset):
    dataset = make_dataset(REFERENCE, PAIRS, ("ipo",), sweep=("beta", [0.1, 0.5]), rate=0.1)
    assert [line.label for line in split(dataset)] == ["IPO"]
    targets = np.log([[0.2, 0.3, 0.5], [0.3, 0.3, 0.4]])
    dataset["target_log_probs"] = (("beta", "arm"), targets)
    lines = split(dataset)
    assert [line.label for line in lines] == ["IPO β = 0.1", "IPO β = 0.5"]
    for line, target in zip(lines, targets, strict=True):
        np.testing.assert_array_equal(line.data["target_log_probs"], target)


@pytest.mark.parametrize("sign", ["marked", "NaN"])
def test_what_diverged_is_dotted_and_says_so(make_dataset, sign):
    dataset = make_dataset(REFERENCE, PAIRS, ("dpo", "ipo"), sweep=("tau", [0.5, 1.0]), rate=0.1)
    if sign == "marked":
        dataset["diverged"] = (("loss", "tau"), [[False, False], [True, False]])
    else:
        dataset["log_probs"][1, 0, -1] = np.nan
    lines = split(dataset)
    assert [line.diverged for line in lines] == [False, True, False]
    assert lines[1].label == "IPO τ = 0.5 (diverged)"
    assert [line.style for line in lines] == ["-", ":", "-"]
