"""Categorical bandits with controllable reward geometry, over arms or over lengths of responses.

K arms on a line; a reward for each, and a reference policy to start from. Condition C1, the
geometric alignment of the two, is set by where the reward's peak lies relative to the reference's
mode. Every builder takes traceable numbers (only ``num_arms`` is static), so a peak's position or a
width is a sweep axis like any other. Source: arXiv:2404.14367, section 5.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bandits.preferences import covered_mass, truncated
from theory import checks, distributions, gibbs
from theory.variable_length import skewed_lengths


class CoverageWarning(UserWarning):
    """The reference excludes every best arm."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CategoricalBandit:
    """A one-step problem: pick one of K arms, receive its reward.

    Attributes:
      reward: ``[..., K]``, finite.
      reference_log_probs: ``[..., K]``, log π_ref in nats; ``-inf`` on excluded arms.
      data_log_probs: ``[..., K]``, log μ, the law of the responses in preference data (condition
        C2); None where it is the reference.
    """

    reward: Float[Array, "*batch K"]
    reference_log_probs: Float[Array, "*batch K"]
    data_log_probs: Float[Array, "*batch K"] | None = None

    @classmethod
    def from_arrays(
        cls, reward: ArrayLike, reference: ArrayLike, data: ArrayLike | None = None
    ) -> "CategoricalBandit":
        """A bandit from a user's own reward, reference and data probabilities, each ``[..., K]``.

        Raises InvalidInput for non-finite rewards, probabilities that are none, fewer than two
        arms, or different numbers of arms. A reference that excludes every arm of the highest
        reward is a CoverageWarning: no policy under a KL penalty gets there.
        """
        checks.require_distribution("reference", reference)
        checks.require_finite("reward", reward)
        checks.require_arms("reward", reward)
        checks.require_same_arms(reward=reward, reference=reference)
        if data is not None:
            checks.require_distribution("data", data)
            checks.require_same_arms(reward=reward, data=data)
        _warn_of_lost_optimum(reward, reference)
        return cls(
            jnp.asarray(reward, float),
            _log_probs(reference),
            None if data is None else _log_probs(data),
        )

    @property
    def num_arms(self) -> int:
        """K."""
        return self.reward.shape[-1]

    def target_log_probs(self, beta: ArrayLike) -> Float[Array, "*batch K"]:
        """Log π*, the Gibbs policy of the KL-regularised objective with coefficient β > 0."""
        return gibbs.gibbs_log_probs(self.reward, self.reference_log_probs, beta)

    def concentrability(self, beta: ArrayLike) -> Float[Array, "*batch"]:
        """max_y π*(y)/π_ref(y) >= 1: the larger, the harder the geometry (C1)."""
        return distributions.concentrability(self.target_log_probs(beta), self.reference_log_probs)

    def data_law(self) -> Float[Array, "*batch K"]:
        """Log μ, by default log π_ref."""
        return self.reference_log_probs if self.data_log_probs is None else self.data_log_probs

    def covered_mass(self) -> Float[Array, "*batch"]:
        """The mass of the reference on arms that preference data can hold: C2 in plain units."""
        return covered_mass(self.reference_log_probs, self.data_law())

    def peak_distance(self) -> Int[Array, "*batch"]:
        """Arms between the reward's peak and the reference's median: C1 in plain units.

        The median, not the most probable arm: the published reference piles its tails up on the
        outer bins, and its most probable arm is the first.
        """
        below = jnp.cumsum(jnp.exp(self.reference_log_probs), axis=-1) < 0.5
        return jnp.abs(jnp.argmax(self.reward, axis=-1) - jnp.sum(below, axis=-1))


def bump_reward(
    num_arms: int, centre: ArrayLike, width: ArrayLike, height: ArrayLike = 1.0
) -> Float[Array, " K"]:
    """r(a) = height · exp(−((a − centre)/width)²), centre and width in arms.

    Raises InvalidInput for fewer than two arms, a centre or height that is not finite, or a width
    <= 0.
    """
    _require_num_arms(num_arms)
    checks.require_finite("centre", centre)
    checks.require_positive("width", width)
    checks.require_finite("height", height)
    distance = (jnp.arange(num_arms) - jnp.asarray(centre)) / jnp.asarray(width)
    return jnp.asarray(height) * jnp.exp(-(distance**2))


def tanh_cauchy_reference(
    num_arms: int = 100, location: ArrayLike = -0.7, scale: ArrayLike = 0.4
) -> Float[Array, " K"]:
    """log-probabilities of tanh(X), X ~ Cauchy(location, scale), on equal bins of (−1, 1).

    Exact from the CDF. With F the Cauchy CDF and t_i = (atanh(edge_i) − location)/scale, a bin has
    mass (atan t_{i+1} − atan t_i)/π = atan2(t_{i+1} − t_i, 1 + t_i t_{i+1})/π, a form without
    cancellation; the outer bins hold the tails, atan2(1, −t_1)/π and atan2(1, t_{K−1})/π. The
    published reference: K = 100, Cauchy(−0.7, 0.4).

    Raises InvalidInput for fewer than two arms, a location that is not finite or a scale <= 0.
    """
    _require_num_arms(num_arms)
    checks.require_finite("location", location)
    checks.require_positive("scale", scale)
    inner_edges = -1.0 + 2.0 * jnp.arange(1, num_arms) / num_arms
    t = (jnp.arctanh(inner_edges) - location) / scale
    inner = jnp.arctan2(jnp.diff(t), 1.0 + t[:-1] * t[1:])
    tails = jnp.arctan2(1.0, jnp.stack([-t[0], t[-1]]))
    mass = jnp.concatenate([tails[:1], inner, tails[1:]]) / jnp.pi
    return jax.nn.log_softmax(jnp.log(mass))


def gaussian_reference(num_arms: int, centre: ArrayLike, width: ArrayLike) -> Float[Array, " K"]:
    """log-probabilities ∝ exp(−((a − centre)/width)²/2), centre and width in arms.

    Raises InvalidInput for fewer than two arms, a centre that is not finite or a width <= 0.
    """
    _require_num_arms(num_arms)
    checks.require_finite("centre", centre)
    checks.require_positive("width", width)
    return jax.nn.log_softmax(-0.5 * ((jnp.arange(num_arms) - centre) / width) ** 2)


def power_law_reference(
    num_arms: int, exponent: ArrayLike, mode: ArrayLike = 0
) -> Float[Array, " K"]:
    """log-probabilities ∝ (1 + |a − mode|)^(−exponent): a peak with heavy tails, Zipf for mode 0.

    Raises InvalidInput for fewer than two arms, a mode that is not finite or an exponent <= 0.
    """
    _require_num_arms(num_arms)
    checks.require_finite("mode", mode)
    checks.require_positive("exponent", exponent)
    return jax.nn.log_softmax(
        -jnp.asarray(exponent) * jnp.log1p(jnp.abs(jnp.arange(num_arms) - mode))
    )


def uniform_reference(num_arms: int) -> Float[Array, " K"]:
    """log-probabilities −log K. Raises InvalidInput for fewer than two arms."""
    _require_num_arms(num_arms)
    return jnp.full(num_arms, -jnp.log(num_arms))


def reference_from_probabilities(
    probabilities: Float[ArrayLike, "*batch K"],
) -> Float[Array, "*batch K"]:
    """log-probabilities of a user's own reference; zeros stay excluded.

    Raises InvalidInput if they are no distribution.
    """
    checks.require_distribution("reference", probabilities)
    return _log_probs(probabilities)


def far_bandit(width: ArrayLike = 10.0) -> CategoricalBandit:
    """R1: the reward's peak, arm 70, lies far from the reference's bulk around arm 16; K = 100."""
    return CategoricalBandit(bump_reward(100, 70, width), tanh_cauchy_reference(100))


def near_bandit(width: ArrayLike = 10.0) -> CategoricalBandit:
    """R2: the reward's peak, arm 20, lies in the reference's bulk around arm 16; K = 100."""
    return CategoricalBandit(bump_reward(100, 20, width), tanh_cauchy_reference(100))


def bump_bandit(
    num_arms: int = 100,
    centre: ArrayLike = 70.0,
    width: ArrayLike = 10.0,
    location: ArrayLike = -0.7,
    scale: ArrayLike = 0.4,
) -> CategoricalBandit:
    """A bump of reward anywhere, and a tanh-Cauchy reference anywhere: R1, with every number free.

    Raises InvalidInput as `bump_reward` and `tanh_cauchy_reference` do.
    """
    return CategoricalBandit(
        bump_reward(num_arms, centre, width), tanh_cauchy_reference(num_arms, location, scale)
    )


def min_length(
    max_length: int = 40, mode: ArrayLike = 12.0, spread: ArrayLike = 0.6
) -> CategoricalBandit:
    """Shorter is better: r = −|y|/T over lengths from 0 to T, a right-skewed reference."""
    reference = skewed_lengths(max_length, mode, spread)
    return CategoricalBandit(-jnp.arange(max_length + 1) / max_length, reference)


def mode_length(
    max_length: int = 40, mode: ArrayLike = 12.0, spread: ArrayLike = 0.6
) -> CategoricalBandit:
    """The reference's usual length is best: r = −||y| − mode|/T over lengths from 0 to T."""
    reference = skewed_lengths(max_length, mode, spread)
    distance = jnp.abs(jnp.arange(max_length + 1) - mode)
    return CategoricalBandit(-distance / max_length, reference)


def skew_length(
    max_length: int = 40, cut: ArrayLike = 12, mode: ArrayLike = 12.0, spread: ArrayLike = 0.6
) -> CategoricalBandit:
    """As `min_length`, but preference data hold no response of more than ``cut`` tokens.

    Raises InvalidInput for a cut that leaves no data.
    """
    bandit = min_length(max_length, mode, spread)
    short = truncated(bandit.reference_log_probs, last=cut)
    return dataclasses.replace(bandit, data_log_probs=short)


class EnvironmentEntry(NamedTuple):
    """A named problem: how to build it, and where it was published."""

    build: Callable[..., CategoricalBandit]
    source: str


ENVIRONMENTS = {
    "far": EnvironmentEntry(far_bandit, "T24, section 5, reward R1"),
    "near": EnvironmentEntry(near_bandit, "T24, section 5, reward R2"),
    "bump": EnvironmentEntry(bump_bandit, "T24, section 5, R1 and R2 generalised"),
    "min_length": EnvironmentEntry(min_length, "T24, section 4.2, Min Length"),
    "mode_length": EnvironmentEntry(mode_length, "T24, section 4.2, Mode Length"),
    "skew_length": EnvironmentEntry(skew_length, "T24, section 4.2, Skew Length"),
}


def _log_probs(probabilities: Float[ArrayLike, "*batch K"]) -> Float[Array, "*batch K"]:
    if isinstance(probabilities, jax.Array):
        return jax.nn.log_softmax(jnp.log(probabilities), axis=-1)
    # A probability below float32's range is small, not zero: its logarithm is taken in float64.
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.asarray(probabilities, np.float64))
    return jax.nn.log_softmax(jnp.asarray(log_probs, float), axis=-1)


def _warn_of_lost_optimum(reward: ArrayLike, reference: ArrayLike) -> None:
    rewards, probs = checks.concrete(reward), checks.concrete(reference)
    if rewards is None or probs is None:
        return
    rewards, probs = np.broadcast_arrays(rewards, probs)
    reachable = np.where(probs > 0, rewards, -np.inf).max(axis=-1)
    lost = reachable < rewards.max(axis=-1)
    if lost.any():
        best = rewards.max(axis=-1)[lost].flat[0]
        warnings.warn(
            f"reference is zero on every arm of the highest reward, {best:g}; no policy under a KL "
            f"penalty gets there, the most it can reach is {reachable[lost].flat[0]:g}",
            CoverageWarning,
            stacklevel=3,
        )


def _require_num_arms(num_arms: int) -> None:
    if num_arms < 2:
        raise checks.InvalidInput(f"num_arms is {num_arms}; at least 2 are needed")
