"""What each method collects, what it lowers, and the step size that is safe for it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses import Loss, Method
from bandits.simulation import step_size
from bandits.simulation.settings import Settings
from bandits.training import Data, Minibatch, Schedule
from theory.distributions import kl_divergence

Objective = Callable[[Float[Array, " K"]], Float[Array, ""]]
"""Log-probabilities of a policy -> what the method lowers, exactly."""


class Aim(NamedTuple):
    """What a method lowers.

    Attributes:
      objective: What it lowers, without sampling noise: runs are judged by it.
      rate: A step size that is safe for plain gradient descent.
    """

    objective: Objective
    rate: ArrayLike


def learns_from_pairs(method: Method) -> bool:
    """Return whether a method takes pairs that are given."""
    given = method.needs == "preferences" and not method.on_policy
    return given or method.needs in ("preferences and samples", "learned rewards")


def schedule_of(
    method: Method, settings: Settings, num_arms: int, has_preferences: bool
) -> Schedule:
    """Return how often a method collects, and how much: exact where the space is the data."""
    steps, batch = settings.steps, settings.batch
    passes = settings.passes or (15 if method.reuses_samples else 1)
    exact = Schedule.whole_space(steps, num_arms)
    if method.needs == "demonstrations":
        return dataclasses.replace(exact, passes=passes)
    if method.whole_space or (has_preferences and learns_from_pairs(method)):
        return exact
    if method.needs == "preferences and samples":
        passes = 1
    elif not method.on_policy:
        passes = steps
    return Schedule(steps, settings.responses, batch, batch, passes)


def is_noisy(method: Method, schedule: Schedule) -> bool:
    """Return whether what a method learns from differs by chance from step to step."""
    return method.on_policy and not schedule.exact


def aim_of(
    method: Method,
    loss: Loss,
    schedule: Schedule,
    data: Data,
    collected: Minibatch,
    values: Mapping[str, Any],
) -> Aim:
    """Return what a method lowers on sampled or given data.

    - Demonstrations: forward KL from their law.
    - Own samples: −J = β KL(π‖π_ref) − E_π[r] for policy gradients. For methods that use the order
      of rewards, minus the chance that π's response beats one of the reference, ties half.
    - Data that stay as they are: the loss on them, plus λ KL(π‖π_ref) where the method adds it.

    Args:
      method: No exact divergence.
      loss: With the method's hyperparameters.
      schedule: How often it collects.
      data: What the problem holds.
      collected: The first minibatch.
      values: β, and the method's hyperparameters.
    """
    beta, reference = values["beta"], data.reference
    kl_coefficient = values.get("kl_coefficient", 0.0)
    is_gradient, noisy = method.family == "policy gradient", is_noisy(method, schedule)

    reward = data.fitted if method.whole_space else data.reward
    if is_gradient:
        assert reward is not None
        rate = step_size.of_rewards(reward, reference, beta)
    else:
        rate = step_size.of_data(loss, collected, reference, kl_coefficient)
    if noisy or method.needs == "demonstrations":
        rate = jnp.minimum(rate, step_size.MOST)

    if method.needs == "demonstrations":
        assert data.shown is not None
        return Aim(functools.partial(kl_divergence, data.shown), rate)
    if noisy and method.one_collection:
        assert reward is not None
        gain = reward if is_gradient else beats_reference(reward, reference)

        def on_samples(log_probs: Float[Array, " K"]) -> Float[Array, ""]:
            expected = jnp.sum(jnp.exp(log_probs) * gain)
            if not is_gradient:
                return -expected
            return jnp.asarray(beta) * kl_divergence(log_probs, reference) - expected

        return Aim(on_samples, rate)
    # A KL's score function has the right gradient, not the value: it is measured as such.
    without = loss
    if "kl_coefficient" in values:
        own = {name: values[name] for name in method.hyperparameters}
        without = method.bind(**own | {"kl_coefficient": 0.0})

    def on_data(log_probs: Float[Array, " K"]) -> Float[Array, ""]:
        held = jax.vmap(lambda arms, group: without(group.with_log_probs(log_probs[arms])))
        value = jnp.mean(held(collected.responses, collected.groups))
        return value + jnp.asarray(kl_coefficient) * kl_divergence(log_probs, reference)

    return Aim(on_data, rate)


def beats_reference(
    reward: Float[Array, " K"], reference_log_probs: Float[Array, " K"]
) -> Float[Array, " K"]:
    """Return each arm's chance to have more reward than an arm of the reference, ties half."""
    order = jnp.argsort(reward)
    ranked = reward[order]
    mass = jnp.append(0.0, jnp.cumsum(jnp.exp(reference_log_probs)[order]))
    below, through = (jnp.searchsorted(ranked, reward, side=side) for side in ("left", "right"))
    return 0.5 * (mass[below] + mass[through])
