"""Both KLs over step sizes, few of them: what is recorded, and that its claims can fail."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import softmax

from bandits.studies.t24.learning_rate_sweep import EXPERIMENT, judge

SETTINGS = dataclasses.replace(
    EXPERIMENT.quick, starts=4, learning_rates=9, steps=(0, 10, 100, 200)
)


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(SETTINGS)


@pytest.fixture
def dataset(measured):
    return measured.copy(deep=True)


def test_the_axes_span_four_decades_of_step_sizes_and_every_start(dataset):
    assert dict(dataset.sizes) == {"loss": 2, "learning_rate": 9, "start": 4, "step": 4}
    np.testing.assert_allclose(dataset["learning_rate"], np.geomspace(0.01, 100, 9))
    assert dataset["step"].values.tolist() == [0, 10, 100, 200]
    assert dataset["forward_kl"].attrs["units"] == "nats"


def test_a_run_of_the_sweep_is_the_descent_of_its_start_and_step_size(dataset):
    problem = SETTINGS.problem
    q = np.exp(np.array(jax.jit(problem.target_log_probs)(), float))
    start = problem.random_starts(4)[2]
    logits = np.array(jax.jit(problem.start_log_probs)(start), float)
    for _ in range(200):
        logits += 10**0.5 * (q - softmax(logits))
    p = softmax(logits)
    run = dataset.sel(loss="forward_kl", start=2, step=200).isel(learning_rate=5)
    assert run["learning_rate"] == pytest.approx(10**0.5)
    assert run["forward_kl"] == pytest.approx((q * np.log(q / p)).sum(), rel=1e-3)
    assert run["reverse_kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3)
    assert run["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-3)


def test_the_asserted_claims_hold(dataset):
    claims = judge(dataset)
    assert len(claims) == 4
    assert all(claim.holds and claim.asserted for claim in claims)
    assert all(claim.low <= claim.effect <= claim.high for claim in claims)
    # 5 of the 9 step sizes lie below 4; both the sizes and the starts count.
    assert claims[2].statement.endswith("24 of 24 runs")


def test_the_effects_are_those_of_a_plain_loop(dataset):
    small = dataset["learning_rate"].values < 4
    at = {
        name: dataset.sel(loss=name).transpose("learning_rate", "start", "step").isel(
            learning_rate=small
        )
        for name in ("forward_kl", "reverse_kl")
    }  # fmt: skip
    mass = [at[n]["mode_mass"].values[..., 2].mean() for n in ("reverse_kl", "forward_kl")]
    held = [at[n]["modes_held"].values[..., -1].mean() for n in ("reverse_kl", "forward_kl")]
    more, fewer, _, _ = judge(dataset)
    assert more.effect == pytest.approx(mass[0] - mass[1], rel=1e-5)
    assert fewer.effect == pytest.approx(held[1] - held[0], rel=1e-5)


def test_claims_fail_where_forward_and_reverse_kl_are_exchanged(dataset):
    exchanged = dataset.assign_coords(loss=dataset["loss"].values[::-1])
    more, fewer, *_ = judge(exchanged)
    assert not more.holds
    assert not fewer.holds


def test_one_run_of_forward_kl_that_rises_fails_its_claim(dataset):
    run = {"loss": "forward_kl", "start": 1, "step": 100}
    dataset["forward_kl"].loc[run][3] += 5.0
    descends = judge(dataset)[2]
    assert not descends.holds
    assert "23 of 24 runs" in descends.statement


def test_a_forward_kl_that_collapses_fails_the_claim_that_it_does_not(dataset):
    dataset["entropy"].loc[{"loss": "forward_kl", "step": 200, "start": 0}] = 0.1
    assert not judge(dataset)[3].holds


@pytest.mark.parametrize("collapsing", [0, 1, 3])
def test_a_reverse_kl_that_does_not_collapse_fails_its_claim(dataset, collapsing):
    entropy = dataset["entropy"]
    entropy.loc[{"loss": "reverse_kl", "start": range(collapsing, 4)}] = 3.0
    claim = judge(dataset)[3]
    assert not claim.holds
    assert f"({collapsing} of 4 starts)" in claim.statement


def test_the_figure_has_a_column_a_number_of_steps_and_both_kls_in_each(dataset):
    figure = EXPERIMENT.draw(dataset)
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["after 10 steps", "after 100 steps", "after 200 steps"]
    assert len(figure.axes) == 9
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert len(axes.collections) == 2
