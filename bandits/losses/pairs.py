"""Sums over the pairs of a group of responses: Σ w_ij f(β(s_i − s_j) − δ).

Here f is a function of the margin of a pair, s the scores of the responses, w_ij the weight of "i
preferred to j", β a scale and δ an offset. The weights are a table, a list, or made of rewards.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.kernels import has_twin
from bandits.kernels.lookup import look_up
from bandits.losses.responses import preferences_by_reward
from theory.pairs import Pairs

OfMargin = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
"""Margins -> losses, number by number. Compiled code is kept for each function, so it must be one
of a module and not a lambda that is made anew at every call."""


@has_twin
def sum_over_pairs(
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    weights: Float[ArrayLike, "C C"] | Pairs,
    *,
    scale: Float[ArrayLike, ""] = 1.0,
    offset: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Return Σ w_ij f(β(s_i − s_j) − δ) over the pairs with a weight > 0.

    An infinite score of an excluded response gets into the sum only if it is in a labelled pair.
    """
    if isinstance(weights, Pairs):
        s = jnp.asarray(scores)
        # A list is summed as it stands: a table of its pairs may not fit.
        winners, losers = jnp.asarray(weights.winners), jnp.asarray(weights.losers)
        margins = look_up(s, winners) - look_up(s, losers)
        margins = jnp.where(weights.weights > 0, margins, 0.0)
        scaled = multiply(jnp.asarray(scale, s.dtype), margins)
        return jnp.sum(weights.weights * of_margin(scaled - offset))
    s, w, beta, delta = of_one_type(scores, weights, scale, offset)
    scaled = multiply(beta, s)
    # Two excluded responses are ∞ − ∞ apart, and 0 · ∞ in a gradient is NaN.
    margins = jnp.where(w > 0, scaled[:, None] - scaled[None, :], 0.0)
    return jnp.sum(w * of_margin(margins - delta))


@has_twin
def mean_over_pairs(
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    rewards: Float[ArrayLike, " C"],
    *,
    scale: Float[ArrayLike, ""] = 1.0,
    offset: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Return the mean f(β(s_i − s_j) − δ) of the pairs with r_i > r_j; 0 where there is none."""
    s, r, beta, delta = of_one_type(scores, rewards, scale, offset)
    return sum_over_pairs(of_margin, s, preferences_by_reward(r), scale=beta, offset=delta)


def of_one_type(*values: ArrayLike) -> tuple[Array, ...]:
    """Return the values as arrays of the type that holds them all."""
    dtype = jnp.result_type(*values)
    return tuple(jnp.asarray(value, dtype) for value in values)


@jax.custom_jvp
def multiply(scale: Float[Array, ""], scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return β s, with derivative 0 in β where an excluded response has an infinite score."""
    return scale * scores


multiply.defjvps(
    lambda tangent, _, scale, scores: tangent * finite_or_zero(scores),
    lambda tangent, _, scale, scores: tangent * scale,
)


def finite_or_zero(scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the scores, 0 in place of infinite ones."""
    return jnp.where(jnp.isfinite(scores), scores, 0.0)
