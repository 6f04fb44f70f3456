"""How often a method collects responses, and what it lowers on them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses import DIVERGENCES, METHODS, Loss
from bandits.policies import tabular_softmax
from bandits.simulation.problem import learns_from_pairs
from bandits.training import Data, Minibatch, Schedule
from theory import checks
from theory.distributions import kl_divergence

POLICY = tabular_softmax()


def schedule_of(
    method: str,
    num_arms: int,
    steps: int,
    responses: int,
    batch: int,
    passes: int | None,
    has_preferences: bool,
) -> Schedule:
    """Return how often a method collects, and how much: exact where the space is the data.

    Raises InvalidInput for numbers of responses that do not fit together.
    """
    marks = METHODS[method]
    reuse = 15 if marks.reuses_samples else 1
    own_passes = reuse if passes is None else passes
    checks.require_multiple("batch", batch, "responses", responses)
    sampled = Schedule(steps, responses, batch, batch, own_passes if marks.on_policy else steps)
    sampled.check()
    exact = Schedule.whole_space(steps, num_arms)
    if marks.needs == "demonstrations":
        return dataclasses.replace(exact, passes=own_passes)
    if marks.whole_space or (has_preferences and learns_from_pairs(method)):
        return exact
    if marks.needs == "preferences and samples":
        return dataclasses.replace(sampled, passes=1)
    return sampled


def is_noisy(method: str, schedule: Schedule) -> bool:
    """Return whether what a method learns from differs by chance from step to step."""
    return METHODS[method].on_policy and not schedule.exact


Objective = Callable[[Float[Array, " K"]], Float[Array, ""]]
"""Log-probabilities of a policy -> what the method lowers, exactly."""


def objective_of(
    method: str,
    schedule: Schedule,
    loss: Loss | None,
    data: Data,
    goal: Float[Array, " K"],
    collected: Minibatch | None,
    beta: ArrayLike,
    kl_coefficient: ArrayLike,
) -> Objective:
    """Return what a method lowers, without sampling noise: how it is judged.

    - a divergence, from the target; demonstrations, forward KL from their law;
    - data that stay as they are: the loss on them, plus λ KL(π‖π_ref) where the method adds it;
    - own samples: −J = β KL(π‖π_ref) − E_π[r] for policy gradients, and for methods that use the
      order of rewards minus the chance that π's response beats one of the reference, ties half.

    Args:
      method: its name.
      schedule: how often it collects.
      loss: with its hyperparameters, but for a KL that it adds; not needed for a divergence.
      data: of the problem.
      goal: log-probabilities of the target.
      collected: the first minibatch.
      beta: of the KL penalty.
      kl_coefficient: λ of a method that adds the KL to a loss on pairs, or 0.
    """
    if method in DIVERGENCES:
        return lambda log_probs: DIVERGENCES[method](log_probs, goal)
    marks = METHODS[method]
    if marks.needs == "demonstrations":
        return lambda log_probs: kl_divergence(goal, log_probs)
    if is_noisy(method, schedule) and marks.one_collection:
        assert data.reward is not None
        reward = data.reward
        if marks.family == "policy gradient":
            return lambda log_probs: (
                jnp.asarray(beta) * kl_divergence(log_probs, data.reference)
                - jnp.sum(jnp.exp(log_probs) * reward)
            )
        wins = beats_reference(reward, data.reference)
        return lambda log_probs: -jnp.sum(jnp.exp(log_probs) * wins)
    assert loss is not None
    assert collected is not None
    arms, groups = collected.responses, collected.groups

    def on_data(log_probs: Float[Array, " K"]) -> Float[Array, ""]:
        held = jax.vmap(lambda arms, group: loss(group.with_log_probs(log_probs[arms])))
        value = jnp.mean(held(arms, groups))
        return value + jnp.asarray(kl_coefficient) * kl_divergence(log_probs, data.reference)

    return on_data


def beats_reference(
    reward: Float[Array, " K"], reference_log_probs: Float[Array, " K"]
) -> Float[Array, " K"]:
    """Return each arm's chance to have more reward than an arm of the reference, ties half."""
    order = jnp.argsort(reward)
    ranked = reward[order]
    mass = jnp.append(0.0, jnp.cumsum(jnp.exp(reference_log_probs)[order]))
    below, through = (jnp.searchsorted(ranked, reward, side=side) for side in ("left", "right"))
    return 0.5 * (mass[below] + mass[through])
