"""Choose a safe step size, from the curvature of what the method lowers and its first step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses import Loss, Responses, make_group, response_weights
from bandits.training import Minibatch
from theory.pairs import Pairs

ADAPTIVE = 0.03
"""Step size of optimisers that divide the gradient by its size: nats a logit moves."""

MOST = 1.0
"""Largest step size for exact divergences, and for samples, whose gradients are noisy."""

KINK = 0.05
"""Nats over which the slope of a loss is taken to change where it jumps."""

MARGINS = 400
"""Margins at which the curvature of a loss on pairs is measured."""


def of_divergence(start: Float[Array, " K"], goal: Float[Array, " K"]) -> Float[Array, ""]:
    """Return a step size for exact descent of a divergence from π to a target q.

    In the logits the gradient of forward KL turns at most by ½ a nat, that of reverse KL by that
    times one more than the log-ratios π/q reach: min(1, 4/(1 + R)), R = max log q/π − min log q/π
    at the start.
    """
    ratio = goal - start
    held = jnp.isfinite(ratio)
    spread = jnp.max(jnp.where(held, ratio, -jnp.inf)) - jnp.min(jnp.where(held, ratio, jnp.inf))
    return jnp.minimum(MOST, 4.0 / (1.0 + spread))


def of_rewards(
    reward: Float[Array, " K"], start: Float[Array, " K"], beta: ArrayLike
) -> Float[Array, ""]:
    """Return 2/(β + R), R the range of rewards: for ascent of J = E r − β KL in the logits.

    Its gradient π∘(A − E A), A = r − β log π/π_ref, has a derivative of at most (β + R)/2: the
    advantages differ by no more than R on the way from π_ref to π*, and π_i π_j <= ¼.
    """
    held = jnp.isfinite(start)
    largest = jnp.max(jnp.where(held, reward, -jnp.inf))
    spread = largest - jnp.min(jnp.where(held, reward, jnp.inf))
    total = beta + spread
    return 2.0 / jnp.where(total > 0, total, 1.0)


def of_data(
    loss: Loss, collected: Minibatch, start: Float[Array, " K"], kl_coefficient: ArrayLike
) -> Float[Array, ""]:
    """Return a step size for descent of a loss on responses that are collected.

    It is at most 1/L, L a bound of the Hessian in the logits, and parts no two logits by more than
    a nat in the first step. The Hessian of pairs Σ w_ij f(h_ij) is the Laplacian of a graph with
    edges w_ij f''; no eigenvalue of it is above max f'' · 2 max_i Σ_j (w_ij + w_ji). The normaliser
    adds ½ |Σ c|, c the weights of the responses.

    Args:
      loss: with its hyperparameters.
      collected: groups of responses.
      start: log-probabilities of the policy.
      kl_coefficient: λ of a KL to the reference that the loss adds.
    """
    arms, groups = collected.responses, collected.groups
    weights = jax.vmap(lambda group: response_weights(loss, group))(groups)

    total = jnp.sum(weights) / len(arms)
    # What a step adds to each logit: its response's weight, less p times all weight.
    added = jnp.zeros_like(start).at[arms].add(weights / len(arms)) - jnp.exp(start) * total
    curvature = 0.5 * jnp.abs(total) + kl_coefficient
    curvature += pair_curvature(loss) * 2.0 * _largest_degree(groups, arms, start)
    first = jnp.max(added) - jnp.min(added)
    return 1.0 / jnp.maximum(jnp.maximum(curvature, first), jnp.finfo(first.dtype).tiny)


def pair_curvature(loss: Loss) -> Float[Array, ""]:
    """Return the largest slope of f' over margins h, f the loss of one pair, i preferred to j."""
    first_wins = Pairs(jnp.array([0]), jnp.array([1]), jnp.array([1.0]))

    def of_margin(margin: Float[Array, ""]) -> Float[Array, ""]:
        log_probs = jnp.stack([margin, jnp.zeros_like(margin)])
        zeros = jnp.zeros(2)
        group = make_group(
            log_probs, zeros, reference_log_probs=zeros, preferences=first_wins, shares=zeros
        )
        return loss(group)

    slope: Callable[[Array], Array] = jax.vmap(jax.grad(of_margin))
    outward = jnp.geomspace(1e-2, 1e4, MARGINS // 2)
    margins = jnp.concatenate([-outward[::-1], outward])
    rise = slope(margins + KINK) - slope(margins - KINK)
    return jnp.max(jnp.abs(rise)) / (2.0 * KINK)


def _largest_degree(groups: Responses, arms: Array, start: Float[Array, " K"]) -> Array:
    """Return the most weight of pairs that one arm is in, on average over the groups."""
    pairs = groups.preferences
    if isinstance(pairs, Pairs):
        ends = jnp.concatenate([pairs.winners, pairs.losers], axis=-1)
        weights = jnp.concatenate([pairs.weights] * 2, axis=-1)
        arms = jnp.take_along_axis(arms, ends, axis=-1)
    else:
        table = groups.pair_weights
        weights = jnp.sum(table, axis=-1) + jnp.sum(table, axis=-2)
    return jnp.max(jnp.zeros_like(start).at[arms].add(weights)) / len(arms)
