"""Where a method's responses come from, how often, and what it lowers on them."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.environments import CategoricalBandit
from bandits.keys import SeedKeys
from bandits.kernels.lookup import look_up
from bandits.losses import DIVERGENCES, METHODS, Loss
from bandits.policies import tabular_softmax
from bandits.simulate.problem import learns_from_pairs
from bandits.training import (
    Collect,
    Minibatch,
    Schedule,
    against_own,
    from_dataset,
    on_bandit,
    on_whole_space,
    with_own_samples,
)
from theory import checks
from theory.distributions import kl_divergence
from theory.pairs import Pairs

POLICY = tabular_softmax()

Source = Literal[
    "whole space", "given pairs", "learned rewards", "demonstrations", "own samples", "one batch",
    "batch and own samples",
]  # fmt: skip
"""Where a method's responses and labels come from."""

SAMPLED: tuple[Source, ...] = ("own samples", "batch and own samples")
"""Sources that differ from step to step."""


def choose_collection(
    method: str,
    num_arms: int,
    steps: int,
    responses: int,
    batch: int,
    passes: int | None,
    has_preferences: bool,
) -> tuple[Source, Schedule]:
    """Return where a method's data come from and how often: exact where the space is the data.

    Raises InvalidInput for numbers of responses that do not fit together.
    """
    marks = METHODS[method]
    reuse = 15 if marks.reuses_samples else 1
    own_passes = reuse if passes is None else passes
    checks.require_multiple("batch", batch, "responses", responses)
    in_batches = Schedule(steps, responses, batch, batch, own_passes if marks.on_policy else steps)
    in_batches.check()
    exact = Schedule.whole_space(steps, num_arms)
    if method in DIVERGENCES:
        return "whole space", exact
    if marks.needs == "learned rewards":
        return "learned rewards", exact
    if marks.needs == "demonstrations":
        return "demonstrations", dataclasses.replace(exact, passes=own_passes)
    if has_preferences and learns_from_pairs(method):
        return "given pairs", exact
    if marks.needs == "preferences and samples":
        return "batch and own samples", dataclasses.replace(in_batches, passes=1)
    return ("own samples" if marks.on_policy else "one batch"), in_batches


class Data(NamedTuple):
    """What methods may learn from, of one prompt, traced.

    Attributes:
      start, goal: log-probabilities of the reference and the target.
      reward: given or learned.
      pairs: preferences, as shares.
      fitted: the reward learned from them.
    """

    start: Float[Array, " K"]
    goal: Float[Array, " K"]
    reward: Float[Array, " K"] | None
    pairs: Pairs | None
    fitted: Float[Array, " K"] | None


def make_collect(source: Source, data: Data, schedule: Schedule, keys: SeedKeys) -> Collect:
    """Return the collection of that source; the data key draws the batch that is kept."""
    unrewarded = CategoricalBandit(jnp.zeros_like(data.start), data.start)
    if source == "given pairs":
        return on_whole_space(POLICY, unrewarded, data.pairs)
    if source == "demonstrations":
        shown = against_own(jnp.exp(data.goal))
        return on_whole_space(POLICY, unrewarded, shown, own_reference=True)
    if source == "learned rewards":
        assert data.fitted is not None
        return on_whole_space(POLICY, CategoricalBandit(data.fitted, data.start), data.pairs)
    assert data.reward is not None
    samples = on_bandit(POLICY, CategoricalBandit(data.reward, data.start), schedule)
    if source == "own samples":
        return samples
    once = from_dataset(samples(data.start, keys.data, jnp.int32(0)), schedule)
    if source == "one batch":
        return once
    return with_own_samples(
        once, POLICY, schedule.group, reference_log_prob=lambda _, arms: look_up(data.start, arms)
    )


Objective = Callable[[Float[Array, " K"]], Float[Array, ""]]
"""Log-probabilities of a policy -> what the method lowers, exactly."""


def objective_of(
    method: str,
    source: Source,
    loss: Loss | None,
    data: Data,
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
      source: where its data come from.
      loss: with its hyperparameters, but for a KL that it adds; not needed for a divergence.
      data: of the problem.
      collected: the first minibatch.
      beta: of the KL penalty.
      kl_coefficient: λ of a method that adds the KL to a loss on pairs, or 0.
    """
    if method in DIVERGENCES:
        return lambda log_probs: DIVERGENCES[method](log_probs, data.goal)
    if source == "demonstrations":
        return lambda log_probs: kl_divergence(data.goal, log_probs)
    if source == "own samples":
        assert data.reward is not None
        reward = data.reward
        if METHODS[method].family == "policy gradient":
            return lambda log_probs: (
                jnp.asarray(beta) * kl_divergence(log_probs, data.start)
                - jnp.sum(jnp.exp(log_probs) * reward)
            )
        wins = beats_reference(reward, data.start)
        return lambda log_probs: -jnp.sum(jnp.exp(log_probs) * wins)
    assert loss is not None
    assert collected is not None
    arms, groups = collected.responses, collected.groups

    def on_data(log_probs: Float[Array, " K"]) -> Float[Array, ""]:
        held = jax.vmap(lambda arms, group: loss(group.with_log_probs(log_probs[arms])))
        value = jnp.mean(held(arms, groups))
        return value + jnp.asarray(kl_coefficient) * kl_divergence(log_probs, data.start)

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
