"""The numerical example at a small scale: what is recorded, and that its claims can fail."""

import dataclasses

import jax
import numpy as np
import pytest

from bandits.metrics import highest_density_set
from bandits.studies.t24.mode_seeking import EXPERIMENT, judge

SETTINGS = dataclasses.replace(
    EXPERIMENT.quick, random_starts=5, last_step=1000, steps_per_decade=6
)


@pytest.fixture(scope="module")
def measured():
    return EXPERIMENT.run(SETTINGS)


@pytest.fixture
def dataset(measured):
    return measured.copy(deep=True)


def test_both_descents_start_at_the_same_policy_and_every_decade_is_recorded(dataset):
    assert {1, 3, 10, 30, 100, 300, 1000} <= set(dataset["step"].values.tolist())
    assert dataset["step"][0] == 0
    assert dataset.sizes["start"] == 6
    start = dataset["log_probs"].sel(step=0)
    np.testing.assert_array_equal(start.sel(loss="forward_kl"), start.sel(loss="reverse_kl"))
    expected = jax.jit(SETTINGS.problem.start_log_probs)(np.array(SETTINGS.shown_start))
    np.testing.assert_allclose(start.sel(loss="forward_kl"), expected, rtol=1e-5)


def test_the_metrics_of_the_drawn_start_are_those_of_its_distributions(dataset):
    p = np.exp(dataset["log_probs"].values.astype(float))
    q = np.exp(dataset["target_log_probs"].values.astype(float))
    drawn = dataset.sel(start=0).transpose("loss", "step", ...)
    np.testing.assert_allclose(drawn["reverse_kl"], (p * np.log(p / q)).sum(-1), rtol=1e-3)
    np.testing.assert_allclose(drawn["forward_kl"], (q * np.log(q / p)).sum(-1), rtol=1e-3)
    on_modes = np.asarray(highest_density_set(dataset["target_log_probs"].values))
    np.testing.assert_allclose(drawn["mode_mass"], p[..., on_modes].sum(-1), rtol=1e-4)
    assert dataset["reverse_kl"].attrs["units"] == "nats"


def test_each_kl_descends_on_its_own_objective(dataset):
    for name in ("forward_kl", "reverse_kl"):
        assert (dataset[name].sel(loss=name).diff("step") < 1e-5).all()


def test_the_asserted_claims_hold_with_an_interval_around_the_effect(dataset):
    faster, fewer, arrived = judge(dataset)
    assert faster.holds
    assert faster.asserted
    assert fewer.holds
    assert fewer.asserted
    assert not arrived.asserted
    for claim in (faster, fewer, arrived):
        assert claim.low <= claim.effect <= claim.high


def test_the_effects_are_those_of_a_plain_loop(dataset):
    ratios, fewer = [], []
    for start in range(1, 6):
        first = {}
        for name in ("forward_kl", "reverse_kl"):
            run = dataset.sel(start=start, loss=name)
            first[name] = int(np.argmax(run["mode_mass"].values >= 0.9))
            assert run["mode_mass"].values[first[name]] >= 0.9
        steps = dataset["step"].values
        ratios.append(steps[first["forward_kl"]] / steps[first["reverse_kl"]])
        held = {
            n: dataset["modes_held"].sel(start=start, loss=n).values[i] for n, i in first.items()
        }
        fewer.append(held["forward_kl"] - held["reverse_kl"])
    faster_claim, fewer_claim, _ = judge(dataset)
    assert faster_claim.effect == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-6)
    assert fewer_claim.effect == pytest.approx(np.mean(fewer), rel=1e-6)
    assert "(geometric mean, 5 of 5 starts)" in faster_claim.statement


def test_the_claims_fail_where_forward_and_reverse_kl_are_exchanged(dataset):
    exchanged = dataset.assign_coords(loss=dataset["loss"].values[::-1])
    faster, fewer, _ = judge(exchanged)
    assert not faster.holds
    assert faster.effect < 1
    assert not fewer.holds


@pytest.mark.parametrize("name", ["mode_mass", "modes_held"])
def test_the_claims_fail_where_nothing_reaches_the_modes(dataset, name):
    dataset[name] *= 0
    faster, fewer, _ = judge(dataset)
    assert not fewer.holds
    assert faster.holds == (name == "modes_held")


@pytest.mark.parametrize(
    ("arriving", "share", "note"),
    [
        ([], 0.0, "From no start"),
        ([1, 2, 3, 4, 5], 1.0, "From every start"),
        ([2, 3], 0.4, "basin"),
    ],
)
def test_the_share_that_arrives_is_counted(dataset, arriving, share, note):
    dataset["reverse_kl"][:] = 1.0
    dataset["reverse_kl"].loc[{"start": 1, "loss": "forward_kl"}] = 0.01  # one KL is not both
    dataset["reverse_kl"].loc[{"start": arriving, "step": 1000}] = 0.01
    arrived = judge(dataset)[-1]
    assert arrived.effect == pytest.approx(share)
    assert arrived.holds == (share == 1.0)
    assert note in arrived.note


def test_the_figure_shows_distributions_and_curves_of_both_kls(dataset):
    figure = EXPERIMENT.draw(dataset)
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["after 1 step", "after 3 steps", "after 10 steps"]
    assert "Modes held, of 3" in titles
    after_10 = figure.axes[2]
    reverse = dataset["log_probs"].sel(step=10, loss="reverse_kl")
    drawn = [line.get_ydata() for line in after_10.lines]
    assert any(np.allclose(y, np.exp(reverse), atol=1e-7) for y in drawn)


def test_the_moving_figure_shows_both_policies_at_each_recorded_step(dataset):
    frames = EXPERIMENT.film(dataset)
    assert frames.number == dataset.sizes["step"]
    for frame in (0, 7, frames.number - 1):
        frames.draw(frame)
        step = int(dataset["step"][frame])
        assert f"after {step:,} gradient step" in frames.figure.get_suptitle()
        for axes, name in zip(frames.figure.axes, ("forward_kl", "reverse_kl"), strict=True):
            expected = np.exp(dataset["log_probs"].sel(step=step, loss=name))
            np.testing.assert_allclose(axes.lines[-1].get_ydata(), expected, atol=1e-7)
            held = dataset["modes_held"].sel(start=0, step=step, loss=name)
            assert f"{int(held)} of 3 held" in axes.get_title()
