"""Sums over the pairs of a group of responses: Σ w_ij f(s_i − s_j − δ).

f is a function of the margin of a pair, s the scores of the responses, w_ij the weight of "i
preferred to j", δ an offset.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.columns import columns_or_table, in_columns

OfMargin = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
"""Margins -> losses, number by number. Compiled code is kept for each: give a function of a module,
not a lambda that is made anew at every call."""

Parts = tuple[Float[Array, "*batch"], Float[Array, "C *batch"], Float[Array, "*batch"]]
"""The sum, and its derivatives in the scores and in the offset."""


def sum_over_pairs(
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    weights: Float[ArrayLike, "C C"],
    offset: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Σ w_ij f(s_i − s_j − δ), where what is not labelled counts as a margin of −δ.

    So no infinite score of an excluded response gets into the sum unless it is labelled. Of many
    small groups, under vmap on a CPU, in a half to an eighth of the time that the formula takes.
    """
    dtype = jnp.result_type(scores, weights, offset)
    arguments = (jnp.asarray(value, dtype) for value in (scores, weights, offset))
    return _sum_over_pairs(of_margin, *arguments)


# Compiled as a whole: called eagerly, the loop inside would be compiled again each time.
@functools.partial(jax.jit, static_argnums=0)
def _sum_over_pairs(
    of_margin: OfMargin,
    scores: Float[Array, " C"],
    weights: Float[Array, "C C"],
    offset: Float[Array, ""],
) -> Float[Array, ""]:
    columns, table = (functools.partial(f, of_margin) for f in (_sum_in_columns, _sum_by_formula))
    return columns_or_table(columns, table, scores, weights, offset)


def _sum_by_formula(
    of_margin: OfMargin,
    scores: Float[Array, " C"],
    weights: Float[Array, "C C"],
    offset: Float[Array, ""],
) -> Float[Array, ""]:
    # Two excluded responses are ∞ − ∞ apart, and 0 · ∞ in a gradient is NaN.
    margins = jnp.where(weights > 0, scores[:, None] - scores[None, :], 0.0)
    return jnp.sum(weights * of_margin(margins - offset))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_in_columns(
    of_margin: OfMargin,
    scores: Float[Array, " C"],
    weights: Float[Array, "C C"],
    offset: Float[Array, ""],
) -> Float[Array, ""]:
    return _mapped_parts(of_margin)(scores, weights, offset)[0]


@functools.partial(_sum_in_columns.defjvp, symbolic_zeros=True)
def _sum_in_columns_jvp(
    of_margin: OfMargin, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    scores, weights, offset = primals
    to_scores, to_weights, to_offset = tangents
    value, in_scores, in_offset = _mapped_parts(of_margin)(*primals)
    tangent = jnp.zeros_like(value)
    if not isinstance(to_scores, SymbolicZero):
        tangent += jnp.dot(in_scores, to_scores)
    if not isinstance(to_offset, SymbolicZero):
        tangent += in_offset * to_offset
    if not isinstance(to_weights, SymbolicZero):
        tangent += jax.jvp(
            lambda weights: _sum_by_formula(of_margin, scores, weights, offset),
            (weights,),
            (to_weights,),
        )[1]
    return value, tangent


@functools.cache
def _mapped_parts(of_margin: OfMargin) -> Callable[[Array, Array, Array], Parts]:
    """`_parts` in columns, with JAX's own derivatives: the second ones of the sum."""
    plain = functools.partial(_parts, of_margin)
    mapped = jax.custom_jvp(in_columns(plain))
    mapped.defjvp(functools.partial(jax.jvp, plain))
    return mapped


def _parts(
    of_margin: OfMargin,
    scores: Float[Array, "C *batch"],
    weights: Float[Array, "C C *batch"],
    offset: Float[Array, "*batch"],
) -> Parts:
    batch = jnp.broadcast_shapes(scores.shape[1:], weights.shape[2:], offset.shape)
    scores = jnp.broadcast_to(scores, (len(scores), *batch))
    if math.prod(batch) >= len(scores):
        return _one_after_another(of_margin, scores, weights, offset)
    # Fewer groups than responses: a row of the table is longer than a row of groups.
    weights = jnp.broadcast_to(weights, (len(scores), *scores.shape))
    offset = jnp.broadcast_to(offset, batch)
    by_formula = jax.value_and_grad(functools.partial(_sum_by_formula, of_margin), argnums=(0, 2))
    for _ in batch:
        by_formula = jax.vmap(by_formula, in_axes=-1, out_axes=-1)
    value, slopes = by_formula(scores, weights, offset)
    return value, *slopes


def _one_after_another(
    of_margin: OfMargin,
    scores: Float[Array, "C *batch"],
    weights: Float[Array, "C C *batch"],
    offset: Float[Array, "*batch"],
) -> Parts:
    """Each response against all others, in every group at once."""

    def against_all(
        sums: tuple[Array, Array], response: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        losses, as_loser = sums
        score, weight = response
        margins = jnp.where(weight > 0, score - scores, 0.0) - offset
        of_pairs, slopes = jax.jvp(of_margin, (margins,), (jnp.ones_like(margins),))
        slopes = weight * slopes
        return (losses + weight * of_pairs, as_loser - slopes), jnp.sum(slopes, axis=0)

    nothing = jnp.zeros_like(scores)
    (losses, as_loser), as_winner = jax.lax.scan(against_all, (nothing, nothing), (scores, weights))
    return jnp.sum(losses, axis=0), as_loser + as_winner, -jnp.sum(as_winner, axis=0)
