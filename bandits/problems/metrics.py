"""Measures along a trajectory: divergences, reward, entropy, and the modes that are held.

Policies are ``[..., K]`` and broadcast over leading axes; the target is one, ``[K]``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from theory import distributions

ATTRIBUTES: dict[str, dict[str, str]] = {
    "forward_kl": {"long_name": "forward KL(target‖policy)", "units": "nats"},
    "reverse_kl": {"long_name": "reverse KL(policy‖target)", "units": "nats"},
    "entropy": {"long_name": "policy entropy", "units": "nats"},
    "expected_reward": {"long_name": "expected reward", "units": "1"},
    "optimal_mass": {"long_name": "probability of the best arms", "units": "1"},
    "mode_mass": {"long_name": "probability on the target's modes", "units": "1"},
    "modes_held": {"long_name": "target modes held", "units": "1"},
    "reference_kl": {"long_name": "KL(policy‖reference)", "units": "nats"},
    "log_probs": {"long_name": "policy log-probability", "units": "nats"},
    "step": {"long_name": "gradient steps", "units": "1"},
    "arm": {"long_name": "arm", "units": "1"},
    "learning_rate": {"long_name": "learning rate", "units": "1"},
}
"""Names and units, as the attributes of a labelled dataset."""

DIVERGED_AT = "diverged_at"
"""The result that says after how many steps a run stopped being finite; -1 if it never did."""

MODE_MASS = 0.95
"""Share of the target's mass that its modes hold together (`highest_density_set`)."""

HELD_SHARE = 0.5
"""Least fraction of the target's basin mass for a mode to count as held."""


def measure(
    log_probs: Float[Array, "*batch K"],
    target_log_probs: Float[Array, " K"],
    reward: Float[Array, " K"] | None = None,
) -> dict[str, Float[Array, "*batch"]]:
    """Return every metric of a policy against a target, keyed as `ATTRIBUTES`.

    Without a reward (only a target is given), the best arms are the target's most probable, and
    there is no expected reward.
    """
    log_probs, target_log_probs = jnp.asarray(log_probs), jnp.asarray(target_log_probs)
    probs = jnp.exp(log_probs)
    score = target_log_probs if reward is None else reward
    metrics = {
        "forward_kl": distributions.kl_divergence(target_log_probs, log_probs),
        "reverse_kl": distributions.kl_divergence(log_probs, target_log_probs),
        "entropy": distributions.entropy(log_probs),
        "optimal_mass": jnp.sum(jnp.where(score == jnp.max(score), probs, 0.0), axis=-1),
        "mode_mass": jnp.sum(jnp.where(highest_density_set(target_log_probs), probs, 0.0), axis=-1),
        "modes_held": modes_held(probs, find_basins(target_log_probs)),
    }
    if reward is not None:
        metrics["expected_reward"] = jnp.sum(probs * reward, axis=-1)
    return metrics


def highest_density_set(
    log_probs: Float[Array, " K"], mass: float = MODE_MASS
) -> Bool[Array, " K"]:
    """Return the smallest set of arms, most probable first, that holds at least ``mass``."""
    log_probs = jnp.asarray(log_probs)
    order = jnp.argsort(-log_probs)
    probs = jnp.exp(log_probs[order])
    before = jnp.cumsum(probs) - probs
    return jnp.zeros(log_probs.shape, bool).at[order].set(before < mass)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Basins:
    """The modes of a target on a line of arms, and the basin of each: the arms up to the valleys.

    Attributes:
      is_mode: ``[K]``, true on the first arm of every local maximum.
      index: ``[K]``, the number of the basin that an arm lies in, from the left.
      mass: ``[K]``, the target's probability of that basin.
    """

    is_mode: Bool[Array, " K"]
    index: Int[Array, " K"]
    mass: Float[Array, " K"]

    @property
    def count(self) -> Int[Array, ""]:
        """Count the modes."""
        return jnp.sum(self.is_mode)


def find_basins(target_log_probs: Float[Array, " K"]) -> Basins:
    """Split the arms at the target's valleys, one basin a mode; plateaus count once."""
    q = jnp.asarray(target_log_probs)
    arms = jnp.arange(q.size)
    rises = jnp.concatenate([jnp.array([True]), q[1:] > q[:-1]])
    changes = jnp.concatenate([q[1:] != q[:-1], jnp.array([True])])
    # The value after the plateau that an arm lies on, and before it; none beyond the ends.
    next_change = jax.lax.cummin(jnp.where(changes, arms + 1, q.size), reverse=True)
    value_after = jnp.append(q, -jnp.inf)[next_change]
    plateau = jax.lax.cummax(jnp.where(jnp.append(True, changes[:-1]), arms, 0))
    value_before = jnp.append(-jnp.inf, q)[plateau]

    is_mode = rises & (q > value_after)
    # A basin starts where the line rises out of a plateau that it had fallen into.
    opens = jnp.append(False, (q[1:] > q[:-1]) & (value_before[:-1] > q[:-1]))
    index = jnp.cumsum(opens)
    return Basins(is_mode, index, _basin_masses(jnp.exp(q), index))


def modes_held(probs: Float[Array, "*batch K"], basins: Basins) -> Int[Array, "*batch"]:
    """Count the target's modes that a policy holds: half the target's mass of the basin or more.

    The arms are taken in their order on the line; neighbouring arms belong to one mode.
    """
    held = basin_masses(probs, basins) >= HELD_SHARE * basins.mass
    return jnp.sum(basins.is_mode & held, axis=-1)


def basin_masses(probs: Float[Array, "*batch K"], basins: Basins) -> Float[Array, "*batch K"]:
    """Return, for every arm, the policy's probability of the basin that the arm lies in."""
    return _basin_masses(jnp.asarray(probs), basins.index)


def _basin_masses(
    probs: Float[Array, "*batch K"], index: Int[Array, " K"]
) -> Float[Array, "*batch K"]:
    # Summed basin by basin: differences of a cumulative sum would lose small masses to rounding.
    arms_first = jnp.moveaxis(probs, -1, 0)
    masses = jax.ops.segment_sum(arms_first, index, index.size, indices_are_sorted=True)
    return jnp.moveaxis(masses[index], 0, -1)
