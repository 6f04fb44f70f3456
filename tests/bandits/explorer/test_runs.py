"""The sweep behind the page, against closed forms and brute force."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bandits.environments import bump_reward, tanh_cauchy_reference
from bandits.preferences import preference_probabilities
from theory import mass_relocation


def problem(settings, centre):
    reward = np.asarray(bump_reward(settings.num_arms, centre, settings.width, settings.height))
    return reward, np.exp(np.asarray(tanh_cauchy_reference(settings.num_arms)))


def at(dataset, loss, **chosen):
    return dataset.sel(loss=loss, **chosen)


def test_each_start_is_the_reference_and_the_optimum_the_gibbs_policy(settings, dataset):
    reward, reference = problem(settings, 5)
    np.testing.assert_allclose(dataset["reference"], reference, rtol=1e-5)
    start = dataset["policy"].sel(step=0).stack(run=["loss", "centre", "coverage", "step_size"])
    np.testing.assert_allclose(start.T, np.tile(reference, (start.sizes["run"], 1)), rtol=1e-4)
    expected = softmax(np.log(reference) + reward / settings.beta)
    np.testing.assert_allclose(dataset["optimum"].sel(centre=5), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl"])
def test_a_step_of_a_divergence_is_that_of_theorem_6_5(settings, dataset, loss):
    reward, reference = problem(settings, 8)
    target = softmax(np.log(reference) + reward / settings.beta)
    one = at(dataset, loss, centre=8, coverage=1.0, step_size=1.0, step=1)
    # Both in double, for float32 probabilities do not sum to 1 within the checks' tolerance.
    with jax.enable_x64(True):
        step = getattr(mass_relocation, f"{loss}_step")
        p = softmax(np.log(reference.astype(float)))
        expected = step(p, target / target.sum(), 1.0)
    np.testing.assert_allclose(one["policy"], expected, rtol=1e-3)


def test_weights_of_dpo_are_the_pairs_won_less_the_pairs_lost(settings, dataset):
    """w_i = β Σ_j [P_ij σ(−β h_ij) − P_ji σ(β h_ij)] over pairs of the data."""
    reward, reference = problem(settings, 5)
    wins = np.asarray(preference_probabilities(reward, temperature=1.0))
    data = np.where(np.arange(settings.num_arms) < 6, reference, 0.0)
    data /= data.sum()
    pairs = 2 * np.outer(data, data) * wins * (1 - np.eye(settings.num_arms))
    one = at(dataset, "dpo", centre=5, coverage=0.5, step_size=1.0, step=100)
    ratio = np.log(one["policy"].values / reference)
    margin = settings.beta * (ratio[:, None] - ratio[None, :])
    push = settings.beta * pairs / (1 + np.exp(margin))
    np.testing.assert_allclose(one["weight"], push.sum(1) - push.sum(0), atol=2e-6)


def test_arms_in_no_pair_keep_their_ratios_and_have_no_weight(dataset):
    one = at(dataset, "dpo", coverage=0.5)
    ratios = log_softmax(np.log(one["policy"].isel(arm=slice(6, None)).values), axis=-1)
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :, :1], ratios.shape), atol=1e-3)
    assert (one["weight"].isel(arm=slice(6, None)) == 0).all()
    assert (one["weight"].isel(arm=slice(None, 6)) != 0).any("arm").all()


def test_weights_of_best_of_n_are_the_shares_of_the_winners(dataset):
    weights = at(dataset, "best_of_n")["weight"]
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum("arm"), 1.0, rtol=1e-5)


def test_reward_and_divergence_are_those_of_the_policy(settings, dataset):
    policy, reference = dataset["policy"], dataset["reference"]
    np.testing.assert_allclose(
        dataset["reward"], (policy * dataset["bump"]).sum("arm", skipna=False), atol=1e-5
    )
    expected = (policy * np.log(policy.where(policy > 0, 1.0) / reference)).sum("arm")
    seen = dataset["reference_kl"]
    np.testing.assert_allclose(seen, expected.where(seen.notnull()), atol=1e-4)


def test_a_run_that_diverges_says_when(dataset):
    diverged = dataset["diverged_at"]
    assert (diverged.sel(loss="ipo", step_size=30.0) >= 0).all()
    assert (diverged.sel(step_size=1.0) == -1).all()
