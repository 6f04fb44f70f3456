"""Run the sweep behind the page: every method, reward, coverage and step size, step by step."""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from bandits.keys import split_seed
from bandits.losses import Loss, Responses, response_weights
from bandits.policies import tabular_softmax
from bandits.problems.environments import bump_reward, tanh_cauchy_reference
from bandits.problems.preferences import preference_probabilities, truncated
from bandits.problems.reward_models import fit_tabular
from bandits.studies.expected import Descent, Problem, updates_in_expectation
from bandits.sweeps import DivergenceWarning, sweep
from bandits.training import Minibatch, own_pairs, train
from bandits.training.descent import log_spaced_steps
from theory import distributions, gibbs

METHODS = (
    "forward_kl", "reverse_kl", "preference_likelihood", "best_of_n", "reward_weighted",
    "dpo", "ipo", "hypo", "online_dpo", "best_of_n_minus_worst", "reinforce", "rlhf",
)  # fmt: skip
"""Methods in the order of the menu."""


@dataclass(frozen=True)
class Settings:
    """Settings of the bandit, of the sliders and of the descents.

    Attributes:
      num_arms: K, also the number of bins of the published reference.
      width: Width of the reward's bump, in arms.
      height: Height of the bump, in nats of the labeller's log-odds.
      centres: C1, arms of the reward's peak.
      coverages: C2, fractions of the arms that offline data hold, from the first arm on.
      step_sizes: Step sizes of plain gradient descent.
      last_step: Last step of the record.
      steps_per_decade: Number of records for each power of ten of steps.
      beta: Temperature β of every method that has one.
      kl_coefficient: λ of HyPO.
      group: N, where groups are sampled.
      batch: Number of responses in a sampled minibatch.
      methods: Methods in the menu.
    """

    num_arms: int = 40
    width: float = 4.0
    height: float = 3.0
    centres: tuple[float, ...] = (4, 8, 12, 16, 20, 24, 28, 32, 36)
    coverages: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    step_sizes: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    last_step: int = 1000
    steps_per_decade: int = 8
    beta: float = 0.5
    kl_coefficient: float = 0.1
    group: int = 4
    batch: int = 400
    methods: tuple[str, ...] = METHODS


QUICK = Settings(
    centres=(8, 20, 28),
    coverages=(0.5, 1.0),
    step_sizes=(1.0, 10.0),
    last_step=100,
    steps_per_decade=4,
    batch=80,
    methods=("forward_kl", "reverse_kl", "best_of_n", "dpo", "ipo", "online_dpo"),
)


def run(settings: Settings) -> xr.Dataset:
    """Return policies, pushes, rewards and KLs ``[loss, centre, coverage, step_size, step, …]``."""
    policy = tabular_softmax()
    reference = tanh_cauchy_reference(settings.num_arms)
    record = log_spaced_steps(settings.last_step, settings.steps_per_decade)

    def run_one(
        loss: str, centre: Array, coverage: Array, step_size: Array, reference: Float[Array, " K"]
    ) -> dict[str, Array]:
        reward = bump_reward(settings.num_arms, centre, settings.width, settings.height)
        wins = preference_probabilities(reward, temperature=1.0)
        data = truncated(reference, last=coverage * settings.num_arms - 1)
        # What many pairs teach: the reward where there are some, 0 where there are none.
        pairs = own_pairs(wins)(data)
        fitted = fit_tabular(pairs, ridge=1e-6 * jnp.sum(pairs))
        descent = Descent(
            kl_coefficient=settings.kl_coefficient,
            step=step_size,
            steps=settings.last_step,
            group=settings.group,
            batch=settings.batch,
        )
        problem = Problem(reward, reference, data, fitted, wins, settings.beta)
        minimised, collect, schedule = updates_in_expectation(
            (loss,), jnp.int32(0), policy, problem, descent
        )
        keys = split_seed(0)

        def evaluate(logits: Float[Array, " K"]) -> dict[str, Array]:
            log_probs = policy.log_probs(logits)
            collected = collect(logits, keys.judging, jnp.int32(0))
            return {
                "policy": jnp.exp(log_probs),
                "push": push(minimised, collected, log_probs),
                "reward": jnp.exp(log_probs) @ reward / settings.height,
                "reference_kl": distributions.kl_divergence(log_probs, reference),
            }

        return train(
            keys.training,
            policy,
            reference,
            minimised,
            collect,
            schedule,
            optax.sgd(step_size),
            evaluate,
            record,
        )

    with warnings.catch_warnings():  # the page says itself where a run diverged
        warnings.simplefilter("ignore", DivergenceWarning)
        dataset = sweep(
            run_one,
            {
                "loss": list(settings.methods),
                "centre": np.array(settings.centres, np.float32),
                "coverage": np.array(settings.coverages, np.float32),
                "step_size": np.array(settings.step_sizes, np.float32),
            },
            fixed={"reference": reference},
            dims=["step", "arm"],
            coords={"step": list(record)},
        )
    rewards = [bump_reward(settings.num_arms, c, settings.width) for c in settings.centres]
    optimum = gibbs.gibbs_log_probs(settings.height * jnp.stack(rewards), reference, settings.beta)
    return dataset.assign(
        bump=(("centre", "arm"), np.asarray(rewards)),
        optimum=(("centre", "arm"), np.exp(optimum)),
        reference=("arm", np.exp(reference)),
    ).assign_attrs(height=settings.height, beta=settings.beta, batch=settings.batch)


def push(loss: Loss, collected: Minibatch, log_probs: Float[Array, " K"]) -> Float[Array, " K"]:
    """Return −∂loss/∂θ, what a unit step adds to every arm's logit: w − π Σw.

    w = −∂loss/∂log π are the weights of `response_weights`, over all the groups that were
    collected. A multiple of π can be added to w without any other move of a policy, so the signs of
    w alone do not say who rises.
    """

    def of_group(arms: Int[Array, " C"], group: Responses) -> Float[Array, " K"]:
        weights = response_weights(loss, group.with_log_probs(log_probs[arms]))
        return jnp.zeros_like(log_probs).at[arms].add(weights)

    weights = jnp.mean(jax.vmap(of_group)(collected.responses, collected.groups), axis=0)
    return weights - jnp.exp(log_probs) * jnp.sum(weights)
