"""The sweep behind the page, against closed forms and brute force."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.problems.preferences import preference_probabilities
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


@pytest.mark.parametrize("step", [0, 10])
def test_a_divergence_pushes_along_its_gradient_in_the_logits(settings, dataset, step):
    """q − p, and −p (log p/q − KL)."""
    reward, reference = problem(settings, 8)
    q = softmax(np.log(reference) + reward / settings.beta)
    chosen = {"centre": 8, "coverage": 1.0, "step_size": 1.0, "step": step}
    p = at(dataset, "forward_kl", **chosen)["policy"].values
    np.testing.assert_allclose(at(dataset, "forward_kl", **chosen)["push"], q - p, atol=1e-5)
    p = at(dataset, "reverse_kl", **chosen)["policy"].values
    ratio = np.log(p / q)
    expected = -p * (ratio - p @ ratio)
    np.testing.assert_allclose(at(dataset, "reverse_kl", **chosen)["push"], expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "rlhf"])
def test_at_its_optimum_a_method_pushes_nobody(dataset, loss):
    chosen = {"centre": 5, "coverage": 1.0, "step_size": 1.0}
    pushes = abs(at(dataset, loss, **chosen)["push"]).max("arm")
    assert pushes.sel(step=0) > 0.02
    assert pushes.sel(step=100) < 0.1 * pushes.sel(step=0)


def test_a_step_adds_the_push_to_the_logits(dataset):
    for loss in ("forward_kl", "reverse_kl", "dpo", "ipo", "rlhf"):
        one = at(dataset, loss, centre=5, coverage=1.0, step_size=1.0)
        ratio = np.log(one["policy"].sel(step=1) / one["policy"].sel(step=0)).values
        push = one["push"].sel(step=0).values
        np.testing.assert_allclose(ratio - ratio[0], push - push[0], atol=2e-5, err_msg=loss)


def test_dpo_pushes_by_the_pairs_won_less_the_pairs_lost(settings, dataset):
    """w_i = β Σ_j [P_ij σ(−β h_ij) − P_ji σ(β h_ij)] over pairs of the data."""
    reward, reference = problem(settings, 5)
    wins = np.asarray(preference_probabilities(reward, temperature=1.0))
    data = np.where(np.arange(settings.num_arms) < 6, reference, 0.0)
    data /= data.sum()
    pairs = 2 * np.outer(data, data) * wins * (1 - np.eye(settings.num_arms))
    one = at(dataset, "dpo", centre=5, coverage=0.5, step_size=1.0, step=100)
    ratio = np.log(one["policy"].values / reference)
    margin = settings.beta * (ratio[:, None] - ratio[None, :])
    won = settings.beta * pairs / (1 + np.exp(margin))
    np.testing.assert_allclose(one["push"], won.sum(1) - won.sum(0), atol=2e-6)


def test_arms_in_no_pair_keep_their_ratios_and_are_not_pushed(dataset):
    one = at(dataset, "dpo", coverage=0.5)
    ratios = log_softmax(np.log(one["policy"].isel(arm=slice(6, None)).values), axis=-1)
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :, :1], ratios.shape), atol=1e-3)
    np.testing.assert_allclose(one["push"].isel(arm=slice(6, None)), 0.0, atol=1e-7)
    assert (abs(one["push"].sel(step=0).isel(arm=slice(None, 6))) > 1e-3).any("arm").all()


def test_best_of_n_pushes_towards_the_shares_of_the_winners(dataset):
    one = at(dataset, "best_of_n")
    winners = one["push"] + one["policy"]
    assert (winners > -1e-6).all()
    np.testing.assert_allclose(winners.sum("arm"), 1.0, rtol=1e-5)


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
