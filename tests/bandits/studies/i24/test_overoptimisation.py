"""Over-optimisation: gold and proxy over the KL by hand, claims that can fail, the figure."""

import jax
import numpy as np
import pytest
import xarray as xr

from bandits.problems.environments import mode_length
from bandits.studies.i24.overoptimisation import Overoptimisation
from bandits.studies.t24.lengths import Lengths, draw_pairs, fit_proxy
from theory.checks import InvalidInput
from theory.gibbs import gibbs_at_kl

STUDY = Overoptimisation(
    max_length=8, mode=3.0, spread=0.5, temperature=0.3, ridge=1e-2, pairs=(20, 60, 200),
    bumps=(3, 5), largest=1.5, divergences=4, seeds=4,
)  # fmt: skip
REWARDS = ("gold", "proxy")


@pytest.fixture(scope="module")
def measured():
    return STUDY.run()


@pytest.fixture(scope="module")
def bandit():
    return mode_length(8, 3.0, 0.5)


# The settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pairs", (300, 30), r"pairs is \(300, 30\); give at least two numbers, growing"),
        ("pairs", (30, 30), "growing from 1 or more"),
        ("pairs", (30,), "at least two"),
        ("pairs", (), "at least two"),
        ("pairs", (0, 30), "growing from 1 or more"),
        ("pairs", (30.5, 60.0), "whole number"),
        ("bumps", (12, 3), r"bumps is \(12, 3\); give at least two numbers, growing"),
        ("bumps", (3,), "at least two"),
        ("bumps", (1, 3), "growing from 2 or more"),
        ("divergences", 1, "divergences is 1; .* at least 2"),
        ("divergences", 4.5, "divergences is 4.5; it must be a whole number"),
        ("seeds", 3, "seeds is 3; .* at least 4"),
        ("max_length", 1, "max_length is 1; .* at least 2"),
        ("mode", 41.0, "mode is 41.0; lengths go from 1 up to 40"),
        ("mode", 0.5, "mode is 0.5; lengths go from 1"),
        *(
            (name, bad, f"{name} is .*finite number > 0")
            for name in ("largest", "temperature", "ridge", "spread", "mode")
            for bad in (0.0, -1.0, np.nan, np.inf)
        ),
    ],
)
def test_settings_that_cannot_be_run_are_refused_at_once(field, value, message):
    with pytest.raises(InvalidInput, match=message):
        Overoptimisation(**{field: value})


def test_the_least_settings_are_allowed():
    Overoptimisation(max_length=2, mode=1.0, pairs=(1, 2), bumps=(2, 3), divergences=2, seeds=4)


# The run


@pytest.mark.parametrize("reward", REWARDS)
def test_without_pressure_both_rewards_are_the_references(measured, bandit, reward):
    expected = np.exp(bandit.reference_log_probs) @ bandit.reward
    np.testing.assert_allclose(measured[reward].sel(kl=0), expected, atol=1e-3)


def test_the_learned_reward_grows_with_pressure_and_the_true_one_stays_below_its_best(
    measured, bandit
):
    assert (measured["proxy"].diff("kl") > -1e-5).all()
    limits = np.float32(measured["kl"])
    best = np.exp(gibbs_at_kl(bandit.reward, bandit.reference_log_probs, limits)) @ bandit.reward
    assert (measured["gold"] <= xr.DataArray(best, dims="kl") + 1e-3).all()


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("bumps", [3, 5])
def test_a_run_is_the_best_policy_for_the_reward_of_the_first_pairs(measured, bandit, count, bumps):
    most = Lengths(max_length=8, mode=3.0, temperature=0.3, pairs=200, bumps=bumps)
    gold, reference = np.asarray(bandit.reward), bandit.reference_log_probs
    pairs = draw_pairs(jax.random.key(1), reference, gold, most)
    proxy = 0.3 * np.asarray(fit_proxy(pairs[:count], most.features(), 1e-2))
    policies = np.exp(gibbs_at_kl(proxy, reference, np.float32([0.5, 1.0, 1.5])))
    found = measured.sel(pairs=count, bumps=bumps, seed=1, kl=[0.5, 1.0, 1.5])
    np.testing.assert_allclose(found["gold"], policies @ gold, atol=2e-3)
    start = np.exp(reference)
    expected = (policies - start) @ proxy + start @ gold
    np.testing.assert_allclose(found["proxy"], expected, atol=2e-3)


# Claims

ENDS = {30: (-0.2, -0.25, -0.3), 100: (-0.16, -0.12, -0.2), 300: (-0.14, -0.1, -0.12)}
"""Gold at the largest KL, by pairs, for 3, 6 and 12 bumps."""

LEARNED = {30: 0.5, 100: 0.1, 300: 0.0}


def made():
    """Gold that rises to a KL of 1 and falls: less with more data; six bumps best but for few."""
    kl, seeds, bumps = [0.0, 1.0, 2.0], 5, [3, 6, 12]
    shape = (len(ENDS), len(bumps), seeds, len(kl))
    gold = np.random.default_rng(0).uniform(0, 1e-3, (*shape[:3], 1)) + np.zeros(shape)
    gold[..., 0] += -0.2
    gold[..., 1] += -0.1
    gold[..., 2] += np.array(list(ENDS.values()))[..., None]
    proxy = np.full(shape, -0.2)
    proxy[..., 1] = -0.05
    proxy[..., 2] = np.array(list(LEARNED.values()))[:, None, None]
    dims = ("pairs", "bumps", "seed", "kl")
    return xr.Dataset(
        {"gold": (dims, gold), "proxy": (dims, proxy)},
        {"pairs": list(ENDS), "bumps": bumps, "seed": range(seeds), "kl": kl},
    )


def test_every_claim_holds_where_the_finding_does_and_is_vouched_for():
    claims = Overoptimisation.judge(made())
    assert [claim.holds and claim.asserted for claim in claims] == [True] * 6
    effects = [0.15, 0.15, 0.65, 0.04, 0.08, 0.04]
    assert [claim.effect for claim in claims] == pytest.approx(effects, abs=2e-3)
    assert claims[0].note == "The best KL is 1.0 nats."
    assert "30 pairs minus that with 300" in claims[1].statement
    assert "Learned minus true: 30 pairs 0.7" in claims[2].note
    assert claims[3].statement.endswith("too few, 3; 100 pairs")
    assert claims[4].statement.endswith("too many, 12; 100 pairs")
    assert claims[5].note == "Best: 3 bumps with 30 pairs, 6 with 300."


@pytest.mark.parametrize(
    ("quantity", "where", "value", "expected"),
    [
        ("gold", {"pairs": 30, "bumps": 6, "kl": 2.0}, -0.05, [0, 1, 5]),
        ("gold", {"pairs": 300, "bumps": 6, "kl": 2.0}, -0.35, [1]),
        ("proxy", {"pairs": 30, "kl": 2.0}, -0.3, [2]),
        ("proxy", {"pairs": 300, "kl": 2.0}, 0.9, [2]),
        ("gold", {"pairs": 100, "bumps": 3, "kl": 2.0}, -0.1, [3]),
        ("gold", {"pairs": 100, "bumps": 12, "kl": 2.0}, -0.1, [4]),
        ("gold", {"pairs": 30, "bumps": 3, "kl": 2.0}, -0.4, [5]),
        ("gold", {"pairs": 300, "bumps": 3, "kl": 2.0}, -0.05, [5]),
        ("proxy", {"bumps": 3}, 9.0, []),
        ("proxy", {"pairs": 100}, 9.0, []),
    ],
)
def test_each_finding_that_fails_fails_its_claims_and_no_other(
    failing, quantity, where, value, expected
):
    dataset = made()
    dataset[quantity].loc[where] = value
    assert failing(Overoptimisation, dataset) == expected


def test_a_fall_that_is_not_sure_fails_its_claims(failing):
    dataset = made()
    dataset["gold"].loc[{"pairs": 30, "bumps": 6, "kl": 2.0}] = [-1.5, 0.2, 0.1, 0.2, 0.1]
    claims = Overoptimisation.judge(dataset)
    assert claims[0].low < 0
    assert {0, 1} <= set(failing(Overoptimisation, dataset))


def test_a_capacity_is_not_judged_on_the_seeds_it_is_chosen_on():
    # Six bumps win on even seeds and twelve on odd ones: each half chooses what the other loses by.
    dataset = made()
    where = {"pairs": 100, "kl": 2.0}
    odd = dataset["seed"].values % 2 == 1
    dataset["gold"].loc[where | {"bumps": 3}] = -0.3
    dataset["gold"].loc[where | {"bumps": 6}] = np.where(odd, -0.2, -0.1)
    dataset["gold"].loc[where | {"bumps": 12}] = np.where(odd, -0.1, -0.2)
    few, many = Overoptimisation.judge(dataset)[3:5]
    assert few.effect == pytest.approx(0.1)
    assert many.effect == pytest.approx(-0.04)
    assert not many.holds


def test_data_that_want_less_capacity_as_they_grow_count_against_the_claim():
    dataset = made()
    dataset["gold"][:] = dataset["gold"].values[::-1]
    claim = Overoptimisation.judge(dataset)[5]
    assert claim.high < 0
    assert not claim.holds
    assert claim.note == "Best: 6 bumps with 30 pairs, 3 with 300."


@pytest.mark.parametrize("name", REWARDS)
def test_results_that_are_undefined_are_not_judged(name):
    dataset = made()
    dataset[name][0, 1, 3, 1] = np.nan
    with pytest.raises(InvalidInput, match=f"{name} is NaN"):
        Overoptimisation.judge(dataset)


# The figure


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(dataset):
    figure = Overoptimisation.draw(dataset)
    figure.draw_without_rendering()
    return figure.axes


def test_the_figure_has_true_and_learned_rewards_by_data_and_by_capacity():
    dataset = made()
    by_data, by_capacity, _ = drawn(dataset)
    assert by_data.get_title() == "More data, 6 bumps"
    assert by_capacity.get_title() == "More capacity, 100 pairs"
    cuts = ((by_data, "pairs", {"bumps": 6}), (by_capacity, "bumps", {"pairs": 100}))
    for axes, unit, where in cuts:
        assert texts(axes)[:-1] == [f"{v} {unit}" for v in dataset[unit].values]
        for reward, style, lines in (
            ("gold", "-", axes.lines[:3]),
            ("proxy", ":", axes.lines[3:6]),
        ):
            for i, line in enumerate(lines):
                mean = dataset[reward].sel(where).isel({unit: i}).mean("seed")
                np.testing.assert_allclose(line.get_ydata(), mean)
                assert line.get_linestyle() == style
                assert tuple(line.get_color()) == tuple(axes.lines[i].get_color())


def test_the_figure_has_the_true_reward_at_the_largest_kl_by_both():
    dataset = made()
    *_, by_both = drawn(dataset)
    assert by_both.get_title() == "True reward at 2 nats"
    assert texts(by_both) == ["3 bumps", "6 bumps", "12 bumps", "reference"]
    ends = dataset["gold"].isel(kl=-1).mean("seed")
    for line, bumps in zip(by_both.lines[:3], (3, 6, 12), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [30, 100, 300])
        np.testing.assert_allclose(line.get_ydata(), ends.sel(bumps=bumps))
    start = float(dataset["gold"].sel(kl=0).mean())
    np.testing.assert_allclose(by_both.lines[3].get_ydata(), start)
    assert len(by_both.collections) == 3


def test_more_values_than_a_palette_holds_are_all_drawn_and_told_apart():
    few = made()
    dataset = xr.concat([few.assign_coords(pairs=few["pairs"] * 100**i) for i in range(3)], "pairs")
    by_data, *_ = drawn(dataset)
    assert len(texts(by_data)) == 9 + 1
    assert len({tuple(line.get_color()) for line in by_data.lines[:9]}) == 9


def test_no_true_reward_is_cut_off_and_learned_ones_that_are_say_how_far_they_go():
    dataset = made()
    for axes in drawn(dataset):
        low, high = axes.get_ylim()
        bands = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in axes.collections])
        assert low < bands.min()
        assert bands.max() < high
    by_data, by_capacity, _ = drawn(dataset)
    assert texts(by_data)[-1] == "learned, up to 0.50"
    assert texts(by_capacity)[-1] == "learned, up to 0.10"
    dataset["proxy"][:] = -0.15
    for axes in drawn(dataset)[:2]:
        assert texts(axes)[-1] == "learned"
