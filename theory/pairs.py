"""Preferences as a list of pairs: what a table ``[K, K]`` holds where most of it is zero."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from theory import checks
from theory.checks import InvalidInput


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """P labelled pairs of responses, each with a weight.

    >>> pairs = Pairs.from_table([[0, 3], [1, 0]])
    >>> pairs.winners.tolist(), pairs.losers.tolist(), pairs.weights.tolist()
    ([0, 1], [1, 0], [3, 1])

    Attributes:
      winners: ``[P]``, the preferred response of each pair, from 0 to K − 1.
      losers: ``[P]``, the other response.
      weights: ``[P]``, how often the pair was labelled so, or its share; >= 0.
    """

    winners: Int[Array, " P"] | Int[np.ndarray, " P"]
    losers: Int[Array, " P"] | Int[np.ndarray, " P"]
    weights: Float[Array, " P"] | Float[np.ndarray, " P"]

    @classmethod
    def from_table(cls, table: Float[ArrayLike, "K K"]) -> "Pairs":
        """Return the pairs of a table whose entry [a, b] is the weight of "a preferred to b"."""
        table = np.asarray(table)
        winners, losers = np.nonzero(table)
        return cls(winners, losers, table[winners, losers])

    def to_table(self, num_arms: int) -> Float[Array, "K K"]:
        """Return the table ``[num_arms, num_arms]``; a pair that is listed twice counts twice."""
        weights = jnp.asarray(self.weights)
        empty = jnp.zeros((num_arms, num_arms), weights.dtype)
        return empty.at[self.winners, self.losers].add(weights)


def require_pairs(name: str, pairs: Pairs, num_arms: int) -> None:
    """Refuse pairs that no preferences among ``num_arms >= 2`` arms can be.

    They have lists of different lengths, arms outside 0 .. num_arms − 1, weights that are negative,
    not finite or all zero, or an arm that is compared with itself.
    """
    checks.require_whole("num_arms", num_arms)
    shapes = [np.shape(field) for field in (pairs.winners, pairs.losers, pairs.weights)]
    if num_arms < 2 or len(shapes[0]) != 1 or len(set(shapes)) > 1:
        raise InvalidInput(
            f"{name} has shapes {shapes} for {num_arms} arms; winners, losers and weights must be "
            "three lists of one length, for at least 2 arms"
        )
    checks.require_index(f"{name}.winners", pairs.winners, num_arms)
    checks.require_index(f"{name}.losers", pairs.losers, num_arms)
    checks.require_finite(f"{name}.weights", pairs.weights)
    checks.require_nonnegative(f"{name}.weights", pairs.weights)
    winners, losers, weights = map(checks.concrete, (pairs.winners, pairs.losers, pairs.weights))
    if winners is not None and losers is not None and weights is not None:
        checks.require_weights(name, winners, losers, weights)


def require_pairs_in_support(
    name: str,
    pairs: Pairs | Float[ArrayLike, "K K"],
    reference_log_probs: Float[ArrayLike, " K"],
    labels: Sequence[object] = (),
    remedy: str = "give it a probability > 0 there",
) -> None:
    """Refuse preferences for or against a response that the reference excludes.

    Args:
      name: What the refusal calls the preferences.
      pairs: The preferences, as a list or as a table.
      reference_log_probs: log π_ref; ``-inf`` on excluded arms.
      labels: Names of the arms; without them the refusal gives a number.
      remedy: What the refusal advises, besides leaving the pairs out.
    """
    reference = checks.concrete(reference_log_probs)
    leaves = jax.tree.leaves(pairs)
    if reference is None or any(checks.concrete(leaf) is None for leaf in leaves):
        return
    pairs = pairs if isinstance(pairs, Pairs) else Pairs.from_table(pairs)
    named = np.concatenate([pairs.winners, pairs.losers])
    excluded = named[np.isneginf(reference)[named]]
    if excluded.size:
        arm = int(excluded[0])
        called = repr(str(labels[arm])) if len(labels) else str(arm)
        raise InvalidInput(
            f"{name} name arm {called}, which the reference excludes; {remedy}, or leave its pairs "
            "out"
        )
