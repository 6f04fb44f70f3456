"""Preferences as a list of pairs: what a table ``[K, K]`` holds where most of it is zero."""

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

    Raises:
      InvalidInput: lengths that differ, arms outside 0 .. num_arms − 1, weights that are negative,
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
    if winners is None or losers is None or weights is None:
        return
    if not weights.any():
        raise InvalidInput(f"{name} is zero everywhere; there must be at least one preference")
    itself = (winners == losers) & (weights > 0)
    if itself.any():
        arm = winners[np.argmax(itself)]
        raise InvalidInput(f"{name} prefers arm {arm} to itself; a pair needs two different arms")
