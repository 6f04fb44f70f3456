"""Losses and gradients against those that the public code of other frameworks computes."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.losses import METHODS, make_group, make_pair
from bandits.losses.likelihood import best_of_n, preference_likelihood, supervised
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")

ORACLES = json.loads((Path(__file__).parent / "oracles" / "losses.json").read_text())
FLOAT32 = {"openrlhf.kl.k2"}
"""What the framework computes in float32."""


class OfPairs(NamedTuple):
    """How a method gives a recorded loss of pairs.

    Attributes:
      method: its name.
      hyperparameters: (β, ε) of a batch -> its hyperparameters.
      why: the reason for what differs.
      reference_free: the recorded loss is one of log π, so that the reference is the same for all.
      likelihood: (β, ε) -> the weight of `preference_likelihood`, which is added.
    """

    method: str
    hyperparameters: Callable
    why: str = ""
    reference_free: bool = False
    likelihood: Callable = lambda beta, eps: 0 * beta


class OfGroups(NamedTuple):
    """How a method gives a recorded loss of groups.

    Attributes:
      method: its name.
      hyperparameters: (β, clip) of a batch -> its hyperparameters.
      factor: recorded loss = factor · loss of the method.
      why: the reason for the factor and for what else differs.
      rewards: the rewards of a group -> those that the method is given.
      gradient_only: the values differ.
      holds: (log π, log π_ref) of all responses -> where the two can be compared.
    """

    method: str
    hyperparameters: Callable
    factor: float = 1.0
    why: str = ""
    rewards: Callable = lambda rewards: rewards
    gradient_only: bool = False
    holds: Callable = lambda log_probs, reference: np.full(log_probs.shape, True)


def of_beta(beta, eps):
    return {"beta": beta}


def smoothed(beta, eps):
    return {"beta": beta, "label_smoothing": eps}


def of_tau(beta, eps):
    return {"tau": beta}


ONE_TOKEN = "a mean over one token is the sum"
SUM = "the sum of two methods"

PAIRS = {
    "trl.dpo.sigmoid": OfPairs("dpo", of_beta),
    "trl.dpo.sigmoid_norm": OfPairs("dpo", of_beta, ONE_TOKEN),
    "em.dpo": OfPairs("dpo", of_beta),
    "halos.dpo": OfPairs("dpo", of_beta),
    "em.dpo.reference_free": OfPairs("dpo", of_beta, reference_free=True),
    "trl.cpo.sigmoid": OfPairs("dpo", of_beta, reference_free=True),
    # TRL 1.16 ignores label_smoothing in DPO, IPO and hinge; its CPO has it, in this form.
    "em.cdpo+eps": OfPairs("dpo", smoothed),
    "halos.cdpo+eps": OfPairs("dpo", smoothed),
    "openrlhf.dpo+eps": OfPairs("dpo", smoothed),
    "trl.cpo.sigmoid+eps+nll": OfPairs(
        "dpo", smoothed, SUM, reference_free=True, likelihood=lambda beta, eps: 1 + 0 * beta
    ),
    "trl.dpo.sigmoid+sft(rpo)": OfPairs("dpo", of_beta, SUM, likelihood=lambda beta, eps: eps),
    "trl.dpo.ipo": OfPairs("ipo", of_tau, ONE_TOKEN),
    "em.ipo": OfPairs("ipo", of_tau),
    "openrlhf.ipo": OfPairs("ipo", of_tau),
    "halos.ipo": OfPairs("ipo", of_tau, "not finite in HALOs where the policy is the reference"),
    "trl.cpo.ipo": OfPairs("ipo", of_tau, ONE_TOKEN, reference_free=True),
    "trl.dpo.hinge": OfPairs("hinge", of_beta),
    "trl.cpo.hinge": OfPairs("hinge", of_beta, reference_free=True),
    "halos.slic": OfPairs("slic", lambda beta, eps: {"margin": beta, "regularization": eps}),
    "trl.dpo.sft": OfPairs("preference_likelihood", lambda beta, eps: {}),
}

ONLINE = {
    "trl.online_dpo.sigmoid": OfPairs("online_dpo", of_beta, "TRL labels ties"),
    "trl.online_dpo.ipo": OfPairs("online_ipo", of_tau, "TRL labels ties"),
}


def centred(beta, clip):
    return {"beta": 0.0, "clip": clip, "prompt_baseline": 1.0}


def standardised(rewards):
    return rewards / (jnp.std(rewards, ddof=1) + 1e-4)


LEFT_OUT = 4 / 3
OWN_MEAN = "RLOO takes the mean of the other N − 1 rewards: N/(N − 1) times r less the mean of all"

KL = OfGroups(
    "reinforce",
    lambda beta, clip: {"beta": 1.0},
    why="½ (log π/π_ref)² as a loss has the gradient of the KL in the reward",
    rewards=jnp.zeros_like,
    gradient_only=True,
)

GROUPS = {
    "trl.grpo.grpo": OfGroups("ppo", centred, why="recorded without the standard deviation"),
    "verl.vanilla.c=1e9": OfGroups("ppo", centred, why="its dual clip is out of reach"),
    "openrlhf.policy_loss": OfGroups("ppo", centred),
    "trl1.12.ppo.pg_loss": OfGroups("ppo", centred),
    "trl.grpo.group_std": OfGroups(
        "ppo", centred, why="GRPO divides by the group's deviation", rewards=standardised
    ),
    "trl.rloo.kl": OfGroups(
        "ppo",
        lambda beta, clip: {"beta": beta, "clip": clip, "prompt_baseline": 1.0},
        LEFT_OUT,
        OWN_MEAN,
    ),
    "verl.reinforce.kl_in_reward": OfGroups("reinforce", lambda beta, clip: {"beta": beta}),
    "verl.reinforce.kl_in_reward.rloo": OfGroups(
        "reinforce", lambda beta, clip: {"beta": beta, "prompt_baseline": 1.0}, LEFT_OUT, OWN_MEAN
    ),
    "verl.kl.k2": KL,
    "openrlhf.kl.k2": KL._replace(
        why="OpenRLHF cuts the KL of a response off at 10, and its gradient with it",
        holds=lambda log_probs, reference: 0.5 * (log_probs - reference) ** 2 < 10,
    ),
}

NO_SUCH_METHOD = {
    "trl.dpo.nca_pair", "trl.dpo.bco_pair", "trl1.13.bco(delta=.25)", "trl.dpo.sppo_hard",
    "trl.dpo.apo_zero", "trl.dpo.apo_down", "trl.kto.kto", "trl.kto.apo_zero_unpaired",
    "trl.dpo.discopop", "trl.dpo.exo_pair+eps", "trl.orpo",
    "trl.dpo.robust+eps",  # unbiased; label_smoothing here is the conservative form
    "trl.dpo.aot+eps", "trl.dpo.aot_unpaired+eps",  # they sort the margins of a batch
    "trl.dpo.sigmoid.forward_kl", "trl.dpo.sigmoid.js_divergence",  # f-DPO
    "trl.dpo.sigmoid.wpo",  # weights by the policy's own probabilities
    "trl.cpo.simpo", "halos.simpo",  # a target margin
    "trl1.13.xpo.sigmoid", "trl1.13.nash_md",
    "verl.vanilla",  # a dual clip at 3
    "trl.grpo.group_std+k3", "verl.kl.k1", "openrlhf.kl.k1", "verl.kl.k3", "openrlhf.kl.k3",
    "trl.grpo.cispo", "trl.grpo.sapo", "trl.grpo.vespo", "trl.gmpo",
}  # fmt: skip
"""Recorded losses that no method gives. Move a name to a table above with the method that does."""

NOT_RECORDED = {
    "forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "rlhf",
    "supervised", "best_of_n", "reward_weighted", "advantage_weighted",
    "hypo", "spin", "unlikelihood",
    "best_of_n_minus_worst", "best_of_n_minus_mean", "best_of_n_minus_sum",
}  # fmt: skip
"""Methods that are held to no recorded loss by their name."""


def recorded(kind, name):
    """The value and the gradients of a loss, each stacked over the batches; null is NaN."""
    losses = ORACLES[kind]["losses"]
    entry = losses[name]
    if "same_as" in entry:
        entry = losses[entry["same_as"]]
    return {key: np.array(numbers, float) for key, numbers in entry.items()}


def inputs(kind):
    return {key: np.array(numbers) for key, numbers in ORACLES[kind]["inputs"].items()}


def assert_close(found, expected, tolerance, message=""):
    """Within the tolerance of each number, or of 1 for smaller ones."""
    size = np.maximum(1.0, np.abs(expected))
    np.testing.assert_allclose(
        found / size, expected / size, rtol=0, atol=tolerance, err_msg=message
    )


def pair_by_pair(loss, log_probs, reference):
    """The mean over pairs that are groups of their own."""
    pairs = log_probs.reshape(2, -1).T, reference.reshape(2, -1).T
    return jnp.mean(jax.vmap(lambda x, y: loss(make_pair(x, reference_log_probs=y)))(*pairs))


def in_one_group(preferences, loss, log_probs, reference):
    """All pairs in one group: first the chosen responses, then the rejected ones."""
    return loss(
        make_group(
            log_probs,
            jnp.zeros_like(log_probs),
            reference_log_probs=reference,
            preferences=preferences,
        )
    )


def as_list(loss, log_probs, reference):
    number = log_probs.size // 2
    first = jnp.arange(number)
    pairs = Pairs(first, first + number, jnp.full(number, 1 / number))
    return in_one_group(pairs, loss, log_probs, reference)


def as_table(loss, log_probs, reference):
    number = log_probs.size // 2
    table = jnp.eye(2 * number, k=number) / number
    return in_one_group(table, loss, log_probs, reference)


# Under vmap a table is summed in columns, one group alone by the formula.
ROUTES = {
    "pair by pair": (pair_by_pair, True),
    "table, in columns": (as_table, True),
    "table, by the formula": (as_table, False),
    "list": (as_list, True),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses_of_pairs(method, route, log_probs, reference, hyperparameters, likelihood):
    over_pairs, mapped = ROUTES[route]

    def of_batch(batch):
        log_probs, reference, hyperparameters, likelihood = batch

        def loss(responses):
            own = METHODS[method].loss(responses, **hyperparameters)
            return own + likelihood * preference_likelihood(responses)

        return jax.value_and_grad(lambda x: over_pairs(loss, x, reference))(log_probs)

    batches = log_probs, reference, hyperparameters, likelihood
    return jax.vmap(of_batch)(batches) if mapped else jax.lax.map(of_batch, batches)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_pairs_are_those_of_the_frameworks(name, route):
    row, data, expected = PAIRS[name], inputs("pairs"), recorded("pairs", name)
    reference = np.hstack([data["rc"], data["rr"]])
    values, slopes = losses_of_pairs(
        row.method,
        route,
        np.hstack([data["pc"], data["pr"]]),
        0 * reference if row.reference_free else reference,
        row.hyperparameters(data["beta"], data["eps"]),
        row.likelihood(data["beta"], data["eps"]),
    )
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()
    known = np.isfinite(expected["value"])
    assert known.sum() >= 18
    assert_close(values[known], expected["value"][known], 1e-12, row.why)
    of_both = np.hstack([expected["dpc"], expected["dpr"]])[known]
    assert_close(slopes[known], of_both, 1e-12, row.why)


@functools.partial(jax.jit, static_argnums=0)
def losses_by_rewards(method, log_probs, reference, rewards, hyperparameters):
    """The mean over pairs that are labelled by their rewards."""

    def of_pair(log_probs, reference, rewards, hyperparameters):
        group = make_group(log_probs, rewards, reference_log_probs=reference)
        return METHODS[method].loss(group, **hyperparameters)

    def of_batch(log_probs, *rest):
        return jnp.mean(jax.vmap(of_pair, in_axes=(0, 0, 0, None))(log_probs, *rest))

    return jax.vmap(jax.value_and_grad(of_batch))(log_probs, reference, rewards, hyperparameters)


def online(name, rewards):
    row, data = ONLINE[name], inputs("pairs")
    values, slopes = losses_by_rewards(
        row.method,
        np.stack([data["pc"], data["pr"]], axis=-1),
        np.stack([data["rc"], data["rr"]], axis=-1),
        rewards,
        row.hyperparameters(data["beta"], data["eps"]),
    )
    return np.asarray(values), np.asarray(slopes)


@pytest.mark.parametrize("name", ONLINE)
def test_losses_of_pairs_labelled_by_their_rewards_are_those_of_the_frameworks(name):
    rewards = inputs("pairs")["online_rewards"].reshape(20, 2, 3).swapaxes(1, 2)
    tied = rewards[..., 0] == rewards[..., 1]
    assert tied.sum() == 10
    expected = recorded("pairs", name)
    of_both = np.stack([expected["dpc"], expected["dpr"]], axis=-1)

    # TRL labels a tie, for the first response.
    values, slopes = online(name, rewards + tied[..., None] * [1.0, 0.0])
    assert_close(values, expected["value"], 1e-12)
    assert_close(slopes, of_both, 1e-12)

    # Here a tie tells nothing.
    values, slopes = online(name, rewards)
    known = ~tied.any(axis=1)
    assert_close(values[known], expected["value"][known], 1e-12)
    assert_close(slopes, np.where(tied[..., None], 0.0, of_both), 1e-12)
    assert (slopes[tied] == 0).all()


@jax.jit
@jax.vmap
@jax.value_and_grad
def supervised_on_chosen(log_probs):
    """SFT on the first half of the responses."""
    shares = jnp.where(jnp.arange(log_probs.size) < log_probs.size // 2, 2 / log_probs.size, 0)
    return supervised(make_group(log_probs, 0 * log_probs, shares=shares))


@jax.jit
@jax.vmap
@jax.value_and_grad
def best_of_pairs(log_probs):
    """The mean over pairs whose first response has more reward."""
    pairs = log_probs.reshape(2, -1).T
    return jnp.mean(
        jax.vmap(lambda pair: best_of_n(make_group(pair, jnp.array([1.0, 0.0]))))(pairs)
    )


@pytest.mark.parametrize("loss", [supervised_on_chosen, best_of_pairs])
def test_sft_and_best_of_two_are_the_likelihood_of_the_chosen_response(loss):
    data, expected = inputs("pairs"), recorded("pairs", "trl.dpo.sft")
    values, slopes = loss(np.hstack([data["pc"], data["pr"]]))
    assert_close(values, expected["value"], 1e-12)
    assert_close(slopes, np.hstack([expected["dpc"], expected["dpr"]]), 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def losses_of_groups(method, new, old, reference, rewards, hyperparameters):
    def of_group(new, old, reference, rewards, hyperparameters):
        group = make_group(new, rewards, reference_log_probs=reference, behaviour_log_probs=old)
        return METHODS[method].loss(group, **hyperparameters)

    def of_batch(new, *rest):
        return jnp.mean(jax.vmap(of_group, in_axes=(0, 0, 0, 0, None))(new, *rest))

    return jax.vmap(jax.value_and_grad(of_batch))(new, old, reference, rewards, hyperparameters)


@pytest.mark.parametrize("name", GROUPS)
def test_losses_of_groups_are_those_of_the_frameworks(name):
    row, data, expected = GROUPS[name], inputs("groups"), recorded("groups", name)
    hyperparameters = row.hyperparameters(data["beta"], data["clip"])
    values, slopes = losses_of_groups(
        row.method,
        data["new"],
        data["old"],
        data["ref"],
        jax.vmap(jax.vmap(row.rewards))(data["reward"]),
        {key: np.broadcast_to(number, 20) for key, number in hyperparameters.items()},
    )
    tolerance = 1e-6 if name in FLOAT32 else 1e-12
    held = row.holds(data["new"], data["ref"])
    assert held.sum() >= 150
    assert_close(row.factor * slopes[held], expected["dnew"][held], tolerance, row.why)
    if not row.gradient_only:
        assert_close(row.factor * values, expected["value"], tolerance, row.why)


def test_every_recorded_loss_has_a_method_or_is_known_to_have_none():
    copied = {name for kind in ("pairs", "groups") for name in ORACLES[kind]["losses"]}
    others = {name for kind in ("pairs", "groups") for name in ORACLES[kind]["not_copied"]}
    assert len(copied) + len(others) == 63
    assert set(PAIRS) | set(ONLINE) | set(GROUPS) == copied
    assert others == NO_SUCH_METHOD


def test_every_method_has_a_recorded_loss_or_is_known_to_have_none():
    held = {row.method for table in (PAIRS, ONLINE, GROUPS) for row in table.values()}
    assert held.isdisjoint(NOT_RECORDED)
    assert held | NOT_RECORDED == set(METHODS)
