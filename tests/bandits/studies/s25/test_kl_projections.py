"""Projections on one Gaussian: fits solved again, targets by hand, and claims that can fail."""

import dataclasses

import jax
import numpy as np
import pytest
import xarray as xr
from scipy import optimize
from scipy.special import log_softmax, rel_entr

from bandits.studies.s25.kl_projections import KlProjections, _larger_side
from theory.checks import InvalidInput

STARTS = [10.0, 50.0, 90.0]
STUDY = KlProjections(targets=4, starts=tuple(STARTS))
NAMES, judge = KlProjections.NAMES, KlProjections.judge
ARMS = np.arange(100)


@pytest.fixture(scope="module")
def measured():
    return STUDY.run()


def gaussian(centre, width):
    return log_softmax(-(((ARMS - centre) / width) ** 2) / 2)


def moments(log_probs):
    probs = np.exp(np.asarray(log_probs, np.float64))
    mean = probs @ ARMS
    return mean, np.sqrt(probs @ (ARMS - mean) ** 2)


def distance(name, fit, goal):
    p, q = np.exp(fit), np.exp(goal)
    forward, reverse = rel_entr(q, p).sum(), rel_entr(p, q).sum()
    m = (p + q) / 2
    return {
        "forward_kl": forward,
        "reverse_kl": reverse,
        "jeffreys": forward + reverse,
        "jensen_shannon": (rel_entr(p, m).sum() + rel_entr(q, m).sum()) / 2,
    }[name]


def parameters(fit):
    """Of the Gaussian through its log-probabilities, where float32 holds them well."""
    near = fit > fit.max() - 20
    a, b, _ = np.polyfit(ARMS[near], fit[near].astype(np.float64), 2)
    return -b / (2 * a), np.sqrt(-1 / (2 * a))


def test_the_forward_kl_matches_moments_as_solved_for(measured):
    """Centre and width for which the discretised Gaussian has the target's two moments."""
    for target in range(STUDY.targets):
        goal = measured["target_log_probs"].values[target].astype(np.float64)
        wanted = np.array(moments(goal))

        def gap(x, wanted=wanted):
            return np.array(moments(gaussian(x[0], np.exp(x[1])))) - wanted

        found = optimize.root(gap, [wanted[0], np.log(wanted[1])], tol=1e-12)
        assert found.success
        expected = np.exp(gaussian(found.x[0], np.exp(found.x[1])))
        for fit in measured["log_probs"].sel(loss="forward_kl").values[target]:
            np.testing.assert_allclose(np.exp(fit), expected, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_fit_is_a_gaussian_and_none_nearby_is_closer(measured, name):
    for target in range(4):
        goal = measured["target_log_probs"].values[target].astype(np.float64)
        for fit in measured["log_probs"].sel(loss=name).values[target]:
            here = np.array(parameters(fit))
            np.testing.assert_allclose(np.exp(fit), np.exp(gaussian(*here)), atol=1e-5)
            reached = distance(name, gaussian(*here), goal)
            for change in ([0.3, 0], [-0.3, 0], [0, 0.3], [0, -0.3], [0.3, 0.3], [-0.3, 0.3]):
                assert distance(name, gaussian(*(here + change)), goal) > reached


def test_the_reverse_kl_sits_on_the_mode_on_the_side_of_its_start(measured):
    reverse = measured.sel(loss="reverse_kl")
    low, high = reverse.sel(start=10.0), reverse.sel(start=90.0)
    one_side = _larger_side(measured).sel(loss="reverse_kl", start=10.0) > 0.99
    assert one_side.any()
    apart = (low["upper_mass"] < 0.01) & (high["upper_mass"] > 0.99)
    assert apart.any()
    assert (low["mean"] < high["mean"]).where(apart, True).all()
    assert (low["deviation"] < 0.6 * measured["target_deviation"]).where(apart, True).all()


def test_what_is_said_of_a_fit_follows_from_its_law(measured):
    for i in np.ndindex(4, 4, 3):
        fit = measured["log_probs"].values[i]
        expected = moments(fit)
        assert float(measured["mean"].values[i]) == pytest.approx(expected[0], abs=1e-3)
        assert float(measured["deviation"].values[i]) == pytest.approx(expected[1], abs=1e-3)
    for i in range(4):
        expected = moments(measured["target_log_probs"].values[i])
        assert float(measured["target_mean"][i]) == pytest.approx(expected[0], abs=1e-3)
        assert float(measured["target_deviation"][i]) == pytest.approx(expected[1], abs=1e-3)
        _, valley = STUDY._draw_target(i)
        above = np.exp(measured["log_probs"].values[:, i])[..., float(valley) < ARMS].sum(axis=-1)
        np.testing.assert_allclose(measured["upper_mass"][:, i], above, atol=1e-5)


# Targets


@pytest.mark.usefixtures("float64")
def test_a_target_is_the_mixture_of_its_settings():
    study = dataclasses.replace(STUDY, centres=(30.0, 30.0), widths=(4.0, 4.0), shares=(0.3, 0.3))
    found, valley = study._draw_target(7)
    expected = 0.3 * np.exp(gaussian(30, 4)) + 0.7 * np.exp(gaussian(69, 4))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9, atol=1e-300)
    assert float(valley) == 49.5


def test_a_target_follows_from_its_seed_alone(measured):
    again = dataclasses.replace(STUDY, targets=2, steps=1, starts=(50.0,)).run()
    np.testing.assert_allclose(
        again["target_log_probs"], measured["target_log_probs"][:2], rtol=1e-6, atol=1e-5
    )
    laws = np.exp(measured["target_log_probs"].values)
    assert all(np.abs(laws[i] - laws[j]).max() > 1e-3 for i in range(4) for j in range(i))


def test_targets_have_their_modes_in_range():
    targets = jax.vmap(lambda seed: STUDY._draw_target(seed)[0])(np.arange(200))
    laws = np.exp(np.asarray(targets))
    lower, upper = laws[:, :50].argmax(axis=1), 50 + laws[:, 50:].argmax(axis=1)
    assert ((lower >= 26) & (lower <= 40)).all()
    assert ((upper >= 59) & (upper <= 73)).all()
    assert min(np.ptp(lower), np.ptp(upper)) > 10
    # Centres are of their own, not mirror images.
    assert (lower + upper != 99).mean() > 0.8
    shares = laws[:, :50].sum(axis=1)
    assert 0.28 < shares.min() < 0.35 < 0.65 < shares.max() < 0.72


def test_a_fit_that_diverges_is_refused():
    study = dataclasses.replace(STUDY, targets=1, learning_rate=1e30, steps=10)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(InvalidInput, match="is NaN"):
        study.run()


# Claims


def made(targets=20):
    """Fits as the finding has them: half the starts of the reverse KL end on either side."""
    dims, shape = ("loss", "target", "start"), (4, targets, 3)
    mean, deviation, upper = np.full(shape, 50.0), np.full(shape, 15.0), np.full(shape, 0.5)
    mean[1], deviation[1], upper[1] = [30, 30, 70], 5.0, [0.0, 0.02, 1.0]
    random = np.random.default_rng(0)
    deviation[1] += random.normal(0, 0.1, (targets, 3))
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "deviation": (dims, deviation),
            "upper_mass": (dims, upper),
            "target_mean": ("target", np.full(targets, 50.0)),
            "target_deviation": ("target", np.full(targets, 15.0)),
        },
        {"loss": list(NAMES), "target": range(targets), "start": STARTS},
    )


def test_every_claim_holds_where_the_finding_does():
    claims = judge(made())
    assert [claim.holds for claim in claims] == [True] * 5
    effects = [claim.effect for claim in claims]
    assert effects == pytest.approx([0, 0, 1, 1, 3], abs=0.02)
    assert claims[2].note == "Forward KL 0.00, Jeffreys 0.00, Jensen–Shannon 0.00."
    assert all("(holds if above a half)" in claim.statement for claim in claims[2:4])
    assert claims[2].low == pytest.approx(0.025 ** (1 / 60))  # 60 of 60


FORWARD, REVERSE = {"loss": "forward_kl"}, {"loss": "reverse_kl"}
UNSURE = np.array([8.0, 30.0, 12.0, 25.0] * 5)[:, None]


@pytest.mark.parametrize(
    ("name", "where", "value", "expected"),
    [
        ("mean", {**FORWARD, "target": 3}, 50.2, [0]),
        ("mean", {**FORWARD, "target": 3, "start": 90.0}, 50.2, [0, 1]),
        ("mean", {**FORWARD, "target": 3, "start": 90.0}, 49.8, [0, 1]),
        ("deviation", {**FORWARD, "target": 3}, 15.2, [0]),
        ("upper_mass", REVERSE, 0.8, [2, 3]),
        ("upper_mass", {**REVERSE, "target": range(10)}, 1.0, [3]),
        ("upper_mass", {**REVERSE, "start": [10.0, 50.0]}, 0.3, [2]),
        ("upper_mass", {**FORWARD, "target": 3, "start": 90.0}, 0.97, [2]),
        ("upper_mass", {**FORWARD, "target": 3, "start": 90.0}, 0.03, [2]),
        ("deviation", REVERSE, 15.0, [4]),
        ("deviation", REVERSE, 20.0, [4]),
        # A mean ratio above one, but not surely.
        ("deviation", REVERSE, UNSURE, [4]),
    ],
)
def test_each_finding_that_fails_fails_its_claim(failing, name, where, value, expected):
    dataset = made()
    dataset[name].loc[where] = value
    assert failing(KlProjections, dataset) == expected


@pytest.mark.parametrize(
    ("name", "where"),
    [("mean", {"target": 3, "start": 50.0}), ("deviation", {}), ("upper_mass", {"target": 3})],
)
@pytest.mark.parametrize("loss", [FORWARD, REVERSE])
def test_fits_that_are_undefined_are_not_judged(loss, name, where):
    dataset = made()
    dataset[name].loc[{**loss, **where}] = np.nan
    with pytest.raises(InvalidInput, match=f"{name} is NaN"):
        judge(dataset)


def test_the_figure_has_a_panel_a_divergence_and_two_of_all_targets(measured):
    *fits, widths, sides = KlProjections.draw(measured).axes
    assert [axes.get_title() for axes in fits] == [
        "forward KL", "reverse KL", "Jeffreys", "Jensen–Shannon",
    ]  # fmt: skip
    # The target of middling width, and a fit from every start.
    middle = int(measured["target_deviation"].argsort()[2])
    for axes, name in zip(fits, NAMES, strict=True):
        drawn = np.array([line.get_ydata() for line in axes.lines])
        expected = np.exp(measured["log_probs"].sel(loss=name)[middle])
        np.testing.assert_allclose(drawn, expected, rtol=1e-6)
        assert axes.get_ylim() == fits[0].get_ylim()
    assert len(widths.lines) == 5  # and the diagonal
    np.testing.assert_allclose(
        widths.lines[1].get_ydata(), measured["deviation"].sel(loss="reverse_kl", start=50.0)
    )
    for line in sides.lines:
        assert (np.diff(line.get_xdata()) >= 0).all()
        np.testing.assert_allclose(line.get_ydata()[[0, -1]], [0, 1])
