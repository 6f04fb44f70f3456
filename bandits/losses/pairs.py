"""Sums over the pairs of a group of responses: Σ w_ij f(s_i − s_j).

f is a function of the margin of a pair, s the scores of the responses, w_ij the weight of "i
preferred to j".
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from bandits.columns import in_columns

OfMargin = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
"""Margins -> losses, number by number; a function of a module, for what is made of it is kept."""


def sum_over_pairs(
    of_margin: OfMargin, scores: Float[Array, " C"], weights: Float[Array, "C C"]
) -> Float[Array, ""]:
    """Σ w_ij f(s_i − s_j), where a pair without weight adds nothing, whatever its margin.

    Of many groups, under vmap on a CPU, in a half to an eighth of the time that the formula takes.
    """
    return jax.lax.platform_dependent(
        scores,
        weights,
        cpu=functools.partial(_sum_in_columns, of_margin),
        default=functools.partial(_sum_by_formula, of_margin),
    )


def _sum_by_formula(
    of_margin: OfMargin, scores: Float[Array, " C"], weights: Float[Array, "C C"]
) -> Float[Array, ""]:
    # A pair with an excluded response, −∞, that nobody labelled: 0 · ∞ in a gradient is NaN.
    labelled = weights > 0
    margins = jnp.where(labelled, scores[:, None] - scores[None, :], 0.0)
    return jnp.sum(weights * of_margin(margins))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_in_columns(
    of_margin: OfMargin, scores: Float[Array, " C"], weights: Float[Array, "C C"]
) -> Float[Array, ""]:
    return _with_slopes(of_margin)(scores, weights)[0]


@functools.partial(_sum_in_columns.defjvp, symbolic_zeros=True)
def _differentiate(
    of_margin: OfMargin, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    value, slopes = _with_slopes(of_margin)(*primals)
    tangent = jnp.zeros_like(value)
    if not isinstance(tangents[0], SymbolicZero):
        tangent += jnp.dot(slopes, tangents[0])
    if not isinstance(tangents[1], SymbolicZero):
        of_weights = functools.partial(_sum_by_formula, of_margin, primals[0])
        tangent += jax.jvp(of_weights, primals[1:], tangents[1:])[1]
    return value, tangent


@functools.cache
def _with_slopes(of_margin: OfMargin) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(scores, weights) -> the sum and its derivatives in the scores."""
    plain = functools.partial(_sum_with_slopes, of_margin)
    mapped = jax.custom_jvp(in_columns(plain))
    mapped.defjvp(functools.partial(jax.jvp, plain))
    return mapped


def _sum_with_slopes(
    of_margin: OfMargin, scores: Float[Array, "C *batch"], weights: Float[Array, "C C *batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "C *batch"]]:
    batch = jnp.broadcast_shapes(scores.shape[1:], weights.shape[2:])
    scores = jnp.broadcast_to(scores, (len(scores), *batch))
    weights = jnp.broadcast_to(weights, (len(scores), *scores.shape))
    if math.prod(batch) >= len(scores):
        return _one_after_another(of_margin, scores, weights)
    # Fewer groups than responses: the rows of the table are longer than those of groups.
    by_formula = jax.value_and_grad(functools.partial(_sum_by_formula, of_margin))
    for _ in batch:
        by_formula = jax.vmap(by_formula, in_axes=-1, out_axes=-1)
    return by_formula(scores, weights)


def _one_after_another(
    of_margin: OfMargin, scores: Float[Array, "C *batch"], weights: Float[Array, "C C *batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "C *batch"]]:
    """Each response against all others, in every group at once."""

    def against_all(
        sums: tuple[Array, Array], response: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        losses, as_loser = sums
        score, weight = response
        labelled = weight > 0
        margins = jnp.where(labelled, score - scores, 0.0)
        of_pairs, slopes = jax.jvp(of_margin, (margins,), (jnp.ones_like(margins),))
        slopes = jnp.where(labelled, weight * slopes, 0.0)
        losses += jnp.where(labelled, weight * of_pairs, 0.0)
        return (losses, as_loser - slopes), jnp.sum(slopes, axis=0)

    nothing = jnp.zeros_like(scores)
    (losses, as_loser), as_winner = jax.lax.scan(against_all, (nothing, nothing), (scores, weights))
    return jnp.sum(losses, axis=0), as_loser + as_winner
