"""The numerical example: its problem, what is recorded, and that its claims can fail."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from bandits.problems.metrics import highest_density_set
from bandits.studies.t24.three_modes import PAIR, LearningRateSweep, ModeSeeking, ThreeModes


def gaussian(arms, centre, width):
    weights = np.exp(-0.5 * ((np.arange(arms) - centre) / width) ** 2)
    return weights / weights.sum()


def test_the_target_is_the_equal_mixture_of_its_modes():
    problem = ThreeModes(num_arms=40, modes=(5.0, 20.0, 33.0), mode_width=2.0)
    expected = np.mean([gaussian(40, mode, 2.0) for mode in problem.modes], axis=0)
    target = np.exp(jax.jit(problem.target_log_probs)())
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-8)
    peaks = (target[1:-1] > target[:-2]) & (target[1:-1] > target[2:])
    assert (1 + np.flatnonzero(peaks)).tolist() == [5, 20, 33]


@pytest.mark.parametrize("start", [(5.0, 12.0, 0.01), (0.0, 8.0, 1e-6)])
def test_a_start_is_a_gaussian_mixed_with_the_uniform_distribution(start):
    centre, width, floor = start
    expected = (1 - floor) * gaussian(100, centre, width) + floor / 100
    found = np.exp(jax.jit(ThreeModes().start_log_probs)(np.array(start)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_random_starts_lie_in_their_ranges_and_fill_them():
    problem = ThreeModes(centre_range=(1, 3), width_range=(8, 9), floor_range=(1e-4, 1e-2))
    starts = problem.random_starts(2000)
    assert starts.shape == (2000, 3)
    low, high = np.array([problem.centre_range, problem.width_range, problem.floor_range]).T
    assert (starts >= low).all()
    assert (starts <= high).all()
    # Uniform, the floor on a log scale.
    middle = np.array([2, 8.5, 1e-3])
    np.testing.assert_allclose((starts < middle).mean(axis=0), 0.5, atol=0.05)


def test_the_seed_decides_the_starts_and_their_number_does_not():
    np.testing.assert_array_equal(ThreeModes().random_starts(4), ThreeModes().random_starts(9)[:4])
    assert (ThreeModes(seed=1).random_starts(4) != ThreeModes().random_starts(4)).all()


@pytest.fixture
def descents(measured):
    return measured("mode_seeking")


@pytest.fixture
def swept(measured):
    return measured("learning_rate_sweep")


@pytest.mark.parametrize("study", [ModeSeeking, LearningRateSweep])
def test_claims_fail_where_forward_and_reverse_kl_are_exchanged(measured, study):
    dataset = measured(study.name)
    first, fewer, *_ = study.judge(dataset)
    assert first.holds
    assert fewer.holds
    first, fewer, *_ = study.judge(dataset.assign_coords(loss=dataset["loss"].values[::-1]))
    assert not first.holds
    assert not fewer.holds


def test_both_descents_start_at_the_shown_start_and_the_drawn_steps_are_recorded(descents):
    assert {0, 1, 3, 10, 30, 100, 300, 1000} <= set(descents["step"].values.tolist())
    assert descents.sizes["start"] == 17
    start = descents["log_probs"].sel(step=0)
    expected = jax.jit(ThreeModes().start_log_probs)(np.array(ModeSeeking.shown_start))
    for name in PAIR:
        np.testing.assert_allclose(start.sel(loss=name), expected, rtol=1e-5)


def test_the_metrics_of_the_drawn_start_are_those_of_its_distributions(descents):
    p = np.exp(descents["log_probs"].values.astype(float))
    q = np.exp(descents["target_log_probs"].values.astype(float))
    drawn = descents.sel(start=0).transpose("loss", "step", ...)
    np.testing.assert_allclose(drawn["reverse_kl"], (p * np.log(p / q)).sum(-1), rtol=1e-3)
    np.testing.assert_allclose(drawn["forward_kl"], (q * np.log(q / p)).sum(-1), rtol=1e-3)
    on_modes = np.asarray(highest_density_set(descents["target_log_probs"].values))
    np.testing.assert_allclose(drawn["mode_mass"], p[..., on_modes].sum(-1), rtol=1e-4)
    assert descents["reverse_kl"].attrs["units"] == "nats"


def test_each_kl_descends_on_its_own_objective(descents):
    for name in PAIR:
        assert (descents[name].sel(loss=name).diff("step") < 1e-5).all()


def test_the_effects_of_mode_seeking_are_those_of_a_plain_loop(descents):
    ratios, fewer, steps = [], [], descents["step"].values
    for start in range(1, 17):
        runs = {name: descents.sel(start=start, loss=name) for name in PAIR}
        first = {n: int(np.argmax(run["mode_mass"].values >= 0.9)) for n, run in runs.items()}
        held = {name: runs[name]["modes_held"].values[at] for name, at in first.items()}
        ratios.append(steps[first["forward_kl"]] / steps[first["reverse_kl"]])
        fewer.append(held["forward_kl"] - held["reverse_kl"])
    faster_claim, fewer_claim, arrived = ModeSeeking.judge(descents)
    assert faster_claim.effect == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-6)
    assert fewer_claim.effect == pytest.approx(np.mean(fewer), rel=1e-6)
    assert "(geometric mean, 16 of 16 starts)" in faster_claim.statement
    assert [faster_claim.asserted, fewer_claim.asserted, arrived.asserted] == [True, True, False]


@pytest.mark.parametrize("name", ["mode_mass", "modes_held"])
def test_the_claims_fail_where_nothing_reaches_the_modes(descents, name):
    descents[name] *= 0
    faster, fewer, _ = ModeSeeking.judge(descents)
    assert not fewer.holds
    assert faster.holds == (name == "modes_held")


@pytest.mark.parametrize(
    ("arriving", "share", "note"),
    [([], 0.0, "From no start"), (range(1, 17), 1.0, "From every start"), ([2, 3], 0.125, "basin")],
)
def test_the_share_that_arrives_is_counted(descents, arriving, share, note):
    descents["reverse_kl"][:] = 1.0
    descents["reverse_kl"].loc[{"start": 1, "loss": "forward_kl"}] = 0.01  # one KL is not both
    descents["reverse_kl"].loc[{"start": list(arriving), "step": 1000}] = 0.01
    arrived = ModeSeeking.judge(descents)[-1]
    assert arrived.effect == pytest.approx(share)
    assert arrived.holds == (share == 1.0)
    assert note in arrived.note


def test_the_figure_shows_the_distributions_of_both_kls_and_who_arrives(descents):
    descents["reverse_kl"].loc[{"start": [2, 3], "step": 1000}] = 0.01
    figure = ModeSeeking.draw(descents)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["after 1 step", "after 3 steps", "after 10 steps"]
    assert "Modes held, of 3" in titles
    drawn = [line.get_ydata() for line in figure.axes[2].lines]
    for name in PAIR:
        expected = np.exp(descents["log_probs"].sel(step=10, loss=name))
        assert any(np.allclose(y, expected, atol=1e-7) for y in drawn)
    arrived, never = (line.get_ydata() for line in figure.axes[-1].lines[2:4])
    assert np.flatnonzero(np.isfinite(arrived)).tolist() == [1, 2]
    assert len(never) == 14


def test_the_moving_figure_shows_both_policies_at_each_recorded_step(descents):
    frames = ModeSeeking.film(descents)
    assert frames.number == descents.sizes["step"]
    for frame in (0, 7, frames.number - 1):
        frames.draw(frame)
        now = descents.isel(step=frame)
        assert f"after {int(now['step']):,} gradient step" in frames.figure.get_suptitle()
        for axes, name in zip(frames.figure.axes, PAIR, strict=True):
            expected = np.exp(now["log_probs"].sel(loss=name))
            np.testing.assert_allclose(axes.lines[-1].get_ydata(), expected, atol=1e-7)
            held = now["modes_held"].sel(start=0, loss=name)
            assert f"{int(held)} of 3 held" in axes.get_title()


def test_a_run_of_the_sweep_is_the_descent_of_its_start_and_step_size(swept):
    problem = ThreeModes()
    q = np.exp(np.array(jax.jit(problem.target_log_probs)(), float))
    start = problem.random_starts(4)[2]
    logits = np.array(jax.jit(problem.start_log_probs)(start), float)
    for _ in range(300):
        logits += 10**0.5 * (q - softmax(logits))
    p = softmax(logits)
    run = swept.sel(loss="forward_kl", start=2, step=300).isel(learning_rate=10)
    assert run["learning_rate"] == pytest.approx(10**0.5)
    assert run["forward_kl"] == pytest.approx((q * np.log(q / p)).sum(), rel=1e-3)
    assert run["reverse_kl"] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-3)
    assert run["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-3)


def test_the_effects_of_the_sweep_are_those_of_a_plain_loop(swept):
    small = swept["learning_rate"].values < 4
    at = {
        name: swept.sel(loss=name).transpose("learning_rate", "start", "step").isel(
            learning_rate=small
        )
        for name in PAIR
    }  # fmt: skip
    mass = [at[name]["mode_mass"].values[..., 2].mean() for name in PAIR]
    held = [at[name]["modes_held"].values[..., -1].mean() for name in PAIR]
    claims = LearningRateSweep.judge(swept)
    assert claims[0].effect == pytest.approx(mass[1] - mass[0], rel=1e-5)
    assert claims[1].effect == pytest.approx(held[0] - held[1], rel=1e-5)
    # 11 of the 17 step sizes lie below 4; both the sizes and the starts count.
    assert claims[2].statement.endswith("176 of 176 runs")
    assert all(claim.holds and claim.asserted for claim in claims)


@pytest.mark.parametrize(
    ("name", "runs", "value", "place", "count"),
    [
        ("forward_kl", {"loss": "forward_kl", "start": 1, "step": 100}, 9.0, 2, "165 of 176 runs"),
        ("entropy", {"loss": "forward_kl", "start": 0, "step": 300}, 0.1, 3, "(16 of 16 starts)"),
        *(
            ("entropy", {"loss": "reverse_kl", "start": slice(n, None)}, 3.0, 3, f"({n} of 16")
            for n in (0, 1, 15)
        ),
    ],
)
def test_a_rise_of_forward_kl_its_collapse_and_a_reverse_kl_that_keeps_its_entropy_fail_a_claim(
    swept, name, runs, value, place, count
):
    swept[name].loc[runs] = value
    claim = LearningRateSweep.judge(swept)[place]
    assert not claim.holds
    assert count in claim.statement


def test_the_figure_has_a_column_a_number_of_steps_and_both_kls_in_each(swept):
    figure = LearningRateSweep.draw(swept)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["after 10 steps", "after 100 steps", "after 300 steps"]
    assert len(figure.axes) == 9
    for axes in figure.axes:
        assert len(axes.lines) == 2
        assert len(axes.collections) == 2
