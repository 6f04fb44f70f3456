"""Displacement by one pair: the descents against the closed forms, and claims that can fail."""

import dataclasses
import re

import numpy as np
import pytest

from bandits.studies.s25.displacement import Displacement

STUDY = Displacement(winners=3, uncovered=(0.5, 0.05))
judge = Displacement.judge


@pytest.fixture(scope="module")
def small():
    return STUDY.run()


@pytest.fixture
def dataset(small):
    return small.copy(deep=True)


def closed_form(winner, mass, margin):
    """θ_w up and θ_l down by half the margin each."""
    loser = 1 - winner - mass
    weights = np.array([winner * np.exp(margin / 2), loser * np.exp(-margin / 2), mass])
    return weights / weights.sum()


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_every_step_lies_on_the_path_of_theory(dataset, loss):
    for winner in dataset["winner"].values:
        for mass in dataset["mass"].values:
            one = dataset.sel(loss=loss, winner=winner, mass=mass)
            expected = np.array([closed_form(winner, mass, m) for m in one["margin"].values])
            np.testing.assert_allclose(one["probability"], expected, atol=2e-5)


def test_the_margin_follows_the_slope_of_the_loss(dataset):
    """Both logits move by rate · |slope|, so the margin by twice that: written out here."""
    (dpo_rate, ipo_rate), steps = STUDY.learning_rates, STUDY.steps
    margins = np.zeros((2, steps + 1))
    for s in range(steps):
        h, g = margins[:, s]
        margins[0, s + 1] = h + 2 * dpo_rate * STUDY.beta / (1 + np.exp(STUDY.beta * h))
        margins[1, s + 1] = g + 2 * ipo_rate * 2 * (0.5 / STUDY.tau - g)
    for loss, expected in zip(("dpo", "ipo"), margins, strict=True):
        for winner in dataset["winner"].values:
            one = dataset["margin"].sel(loss=loss, winner=winner, mass=0.5)
            np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)


def test_the_closed_forms_are_those_of_the_lecture(dataset):
    p_w, u = dataset["winner"].values[:, None], dataset["mass"].values
    p_l = 1 - p_w - u
    np.testing.assert_allclose(dataset["peak"], u / (u + 2 * np.sqrt(p_w * p_l)), rtol=1e-6)
    np.testing.assert_allclose(dataset["peak_margin"], np.log(p_l / p_w), rtol=1e-6)
    winner = float(p_w[1, 0])
    parked = closed_form(winner, 0.5, 0.5 / STUDY.tau)[2]
    np.testing.assert_allclose(dataset["parked"].sel(winner=winner, mass=0.5), parked, rtol=1e-6)


def test_every_claim_holds_and_says_over_how_many_pairs(dataset):
    claims = judge(dataset)
    assert [claim.holds for claim in claims] == [True] * 3
    assert all("over 6 pairs" in claim.statement for claim in claims)
    assert all(claim.low == claim.effect == claim.high for claim in claims)
    steepest = float(dataset["peak"].sel(winner=1e-4, mass=0.05))  # 14 times what it started with
    assert claims[0].note == (
        f"With 0.05 on uncovered responses and a winner of 0.0001 it peaks at {steepest:.3f}."
    )


AT = {"winner": 1e-4, "mass": 0.05}
PATH = {**AT, "response": "uncovered"}


@pytest.mark.parametrize(
    ("name", "where", "change", "expected"),
    [
        *(("peak", AT, change, [0]) for change in (0.006, -0.006)),
        *(("peak_margin", AT, change, [1]) for change in (0.2, -0.2)),
        *(("parked", AT, change, [2]) for change in (0.006, -0.006)),
        ("probability", {"loss": "ipo", "step": STUDY.steps, **PATH}, 0.01, [2]),
        ("probability", {"loss": "dpo", "step": 3, **PATH}, 0.99, [0, 1]),
    ],
)
def test_what_is_elsewhere_fails_the_claim_about_it_and_no_other(
    failing, dataset, name, where, change, expected
):
    dataset[name].loc[where] += change
    assert failing(Displacement, dataset) == expected


def test_a_run_that_diverges_is_refused():
    settings = dataclasses.replace(STUDY, winners=2, steps=20, learning_rates=(1.0, 1e20))
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(ValueError, match=r"runs diverged, .* loss=ipo"),
    ):
        settings.run()


def test_the_figure_has_a_path_and_the_two_quantities_over_the_winner(dataset):
    path, peak, parked = Displacement.draw(dataset).axes
    assert [line.get_label() for line in path.lines] == ["winner", "loser", "uncovered"]
    for axes, name in ((peak, "peak"), (parked, "parked")):
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "reference probability of the winner"
        closed, dots = axes.lines[:-1:2], axes.lines[1::2]
        for mass, line, measured in zip((0.5, 0.05), closed, dots, strict=True):
            assert line.get_label() == f"closed form, {mass:g} at the start"
            np.testing.assert_allclose(line.get_ydata(), dataset[name].sel(mass=mass))
            assert measured.get_marker() == axes.lines[-1].get_marker() == "o"
        assert axes.lines[-1].get_label() == "measured"


def test_the_moving_figure_shows_the_three_probabilities_under_dpo_and_ipo(dataset):
    frames = Displacement.film(dataset)
    frames.draw(frames.number - 1)
    step = int(re.search(r"step (\d+)", frames.figure.get_suptitle()).group(1))
    for axes, name in zip(frames.figure.axes[::2], ("dpo", "ipo"), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        close = np.abs(np.log(dataset["winner"].values / 1e-3)).argmin()
        one = dataset["probability"].sel(loss=name, step=step).isel(winner=close, mass=0)
        np.testing.assert_allclose(heights, one, atol=1e-6)
        assert sum(heights) == pytest.approx(1.0, abs=1e-5)
