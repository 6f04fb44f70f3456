"""Sum over pairs, and label them, in many small groups: one response after another, in columns.

Under vmap on a CPU this takes a half to an eighth of the time of the plain definitions in
`bandits.losses`, whose tables of pairs XLA would take number by number. Where a group is large, and
off the CPU, the plain definitions are faster and are called.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.kernels.columns import columns_or_table, in_columns
from bandits.losses.pairs import OfMargin, finite_or_zero, of_one_type
from bandits.losses.responses import divide, tell_apart
from theory.pairs import Pairs

Formula = Callable[..., Float[Array, ""]]
"""(f, scores, weights or rewards, scale, offset) -> the sum: a plain definition."""


def sum_over_pairs(
    plain: Formula,
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    weights: Float[ArrayLike, "C C"] | Pairs,
    *,
    scale: Float[ArrayLike, ""] = 1.0,
    offset: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Return what `bandits.losses.pairs.sum_over_pairs` does; a list is summed as it does."""
    if isinstance(weights, Pairs):
        return plain(of_margin, scores, weights, scale=scale, offset=offset)
    arguments = of_one_type(scores, weights, scale, offset)
    return _either(plain, _by_weights, of_margin, *arguments)


def mean_over_pairs(
    plain: Formula,
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    rewards: Float[ArrayLike, " C"],
    *,
    scale: Float[ArrayLike, ""] = 1.0,
    offset: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, ""]:
    """Return what `bandits.losses.pairs.mean_over_pairs` does; no table is made."""
    rewards = jax.lax.stop_gradient(rewards)
    arguments = of_one_type(scores, rewards, scale, offset)
    return _either(plain, _by_rewards, of_margin, *arguments)


# Compiled as a whole: called eagerly, the loop inside would be compiled again each time.
@functools.partial(jax.jit, static_argnums=0)
def label(
    plain: Callable[..., Array], rewards: Float[Array, " C"], least_gap: Float[Array, ""]
) -> Float[Array, "C C"]:
    """Return what `bandits.losses.responses.label` does."""
    return columns_or_table(_label_in_columns, plain, rewards, least_gap)


@in_columns
def _label_in_columns(
    rewards: Float[Array, "C *batch"], least_gap: Float[Array, "*batch"]
) -> Float[Array, "C C *batch"]:
    def against_all(counts: Array, reward: Array) -> tuple[Array, Array]:
        labelled = tell_apart(reward - rewards, least_gap)
        return counts + labelled, labelled

    nothing = jnp.zeros_like(rewards - least_gap)
    counts, labelled = jax.lax.scan(against_all, nothing, rewards)
    return divide(labelled, jnp.sum(counts, axis=0))


class Parts(NamedTuple):
    """Hold the sum over the pairs of each group, and its derivatives."""

    value: Float[Array, "*groups"]
    in_scores: Float[Array, "C *groups"]
    in_scale: Float[Array, "*groups"]
    in_offset: Float[Array, "*groups"]


Sums = Callable[[OfMargin, Array, Array, Array], tuple[Array, Array, Array]]
"""(f, scaled scores, weights or rewards, offset), each with the groups along a last axis -> the
sums, and their derivatives in the scaled scores and in the offset."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _either(plain: Formula, sums: Sums, of_margin: OfMargin, *arguments: Array) -> Float[Array, ""]:
    columns = functools.partial(_sum_in_columns, plain, sums, of_margin)
    return columns_or_table(columns, _formula(plain, of_margin), *arguments)


def _formula(plain: Formula, of_margin: OfMargin) -> Formula:
    return lambda scores, given, scale, offset: plain(
        of_margin, scores, given, scale=scale, offset=offset
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _sum_in_columns(
    plain: Formula, sums: Sums, of_margin: OfMargin, *arguments: Array
) -> Float[Array, ""]:
    return _mapped_parts(plain, sums, of_margin)(*arguments).value


@functools.partial(_sum_in_columns.defjvp, symbolic_zeros=True)
def _sum_in_columns_jvp(
    plain: Formula,
    sums: Sums,
    of_margin: OfMargin,
    primals: tuple[Array, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    scores, given, scale, offset = primals
    to_scores, to_given, to_scale, to_offset = tangents
    parts = _mapped_parts(plain, sums, of_margin)(*primals)
    tangent = jnp.zeros_like(parts.value)
    for slope, direction in (
        (parts.in_scores, to_scores),
        (parts.in_scale, to_scale),
        (parts.in_offset, to_offset),
    ):
        if not isinstance(direction, SymbolicZero):
            tangent += jnp.vdot(slope, direction)
    if not isinstance(to_given, SymbolicZero):
        tangent += jax.jvp(
            lambda given: _formula(plain, of_margin)(scores, given, scale, offset),
            (given,),
            (to_given,),
        )[1]
    return parts.value, tangent


@functools.cache
def _mapped_parts(plain: Formula, sums: Sums, of_margin: OfMargin) -> Callable[..., Parts]:
    """Return `_parts` in columns, with JAX's own derivatives: the second ones of the sum."""
    parts = functools.partial(_parts, plain, sums, of_margin)
    mapped = jax.custom_jvp(in_columns(parts))
    mapped.defjvp(functools.partial(jax.jvp, parts))
    return mapped


def _parts(
    plain: Formula,
    sums: Sums,
    of_margin: OfMargin,
    scores: Float[Array, "C *groups"],
    given: Float[Array, "C *rest"],
    scale: Float[Array, "*groups"],
    offset: Float[Array, "*groups"],
) -> Parts:
    own_axes = given.ndim - offset.ndim
    shared = scores.shape[1:], given.shape[own_axes:], scale.shape, offset.shape
    groups = jnp.broadcast_shapes(*shared)
    scores = jnp.broadcast_to(scores, (len(scores), *groups))
    if math.prod(groups) >= len(scores):
        value, slopes, in_offset = sums(of_margin, scale * scores, given, offset)
        in_scale = jnp.sum(finite_or_zero(scores) * slopes, axis=0)
        return Parts(value, scale * slopes, in_scale, in_offset)
    # Fewer groups than responses: a row of the table is longer than a row of groups.
    by_formula = jax.value_and_grad(_formula(plain, of_margin), argnums=(0, 2, 3))
    given = jnp.broadcast_to(given, (*given.shape[:own_axes], *groups))
    scale, offset = (jnp.broadcast_to(number, groups) for number in (scale, offset))
    if groups:
        by_formula = jax.vmap(by_formula, in_axes=-1, out_axes=-1)
    value, slopes = by_formula(scores, given, scale, offset)
    return Parts(value, *slopes)


def _by_weights(
    of_margin: OfMargin,
    scores: Float[Array, "C *groups"],
    weights: Float[Array, "C C *groups"],
    offset: Float[Array, "*groups"],
) -> tuple[Array, Array, Array]:
    """Sum each response against all others, one after another."""

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


def _by_rewards(
    of_margin: OfMargin,
    scores: Float[Array, "C *groups"],
    rewards: Float[Array, "C *groups"],
    offset: Float[Array, "*groups"],
) -> tuple[Array, Array, Array]:
    """Sum all responses against each of them, one after another.

    This way round XLA makes one kernel of every sum, and leaves out what nobody asks for.
    """

    def against(sums: _Sums, response: tuple[Array, Array]) -> tuple[_Sums, None]:
        score, reward = response
        won, lost = rewards > reward, rewards < reward
        margins = jnp.where(won, scores - score, jnp.where(lost, score - scores, 0.0)) - offset
        losses, slopes = jax.jvp(of_margin, (margins,), (jnp.ones_like(margins),))
        sign = jnp.where(won, 1.0, jnp.where(lost, -1.0, 0.0))
        return _Sums(
            sums.wins + won,
            sums.losses + jnp.where(won, losses, 0.0),
            sums.slopes + sign * slopes,
            sums.as_winner + jnp.where(won, slopes, 0.0),
        ), None

    nothing = jnp.zeros_like(scores)
    sums, _ = jax.lax.scan(against, _Sums(*[nothing] * 4), (scores, rewards))
    weight = 1.0 / jnp.maximum(jnp.sum(sums.wins, axis=0), 1.0)
    value, as_winner = (weight * jnp.sum(part, axis=0) for part in (sums.losses, sums.as_winner))
    return value, weight * sums.slopes, -as_winner


class _Sums(NamedTuple):
    """Hold sums of each response, ``[C *groups]``, over those it was compared with so far."""

    wins: Array
    losses: Array
    slopes: Array
    as_winner: Array
