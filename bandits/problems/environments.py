"""Categorical bandits with controllable reward geometry, over arms or over lengths of responses.

K arms on a line; a reward for each, and a reference policy to start from. Condition C1, the
geometric alignment of the two, is set by where the reward's peak lies relative to the reference's
mode. Every builder takes traceable numbers (only ``num_arms`` is static), so a peak's position or a
width is a sweep axis like any other. A builder raises `InvalidInput` for an argument that its type
does not allow. Source: arXiv:2404.14367, section 5.
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

from bandits.problems.preferences import covered_mass, truncated
from theory import checks, distributions, gibbs
from theory.types import Finite, PerArm, PerProblem, Positive, Probs, Rewards, TwoOrMore, checked
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

    reward: PerArm
    reference_log_probs: PerArm
    data_log_probs: PerArm | None = None

    @classmethod
    @checked
    def from_arrays(
        cls, reward: Rewards, reference: Probs, data: Probs | None = None
    ) -> "CategoricalBandit":
        """Return a bandit from a user's own numbers.

        A reference that excludes every arm of the highest reward is a `CoverageWarning`: no policy
        under a KL penalty gets there.

        Args:
          reward: ``[..., K]``, finite.
          reference: π_ref ``[..., K]``, probabilities that sum to 1.
          data: μ ``[..., K]``, likewise; by default the reference.

        Raises:
          InvalidInput: What the types do not allow, and different numbers of arms.
        """
        _warn_of_lost_optimum(reward, reference)
        return cls(
            jnp.asarray(reward, float),
            _log_probs(reference),
            None if data is None else _log_probs(data),
        )

    @property
    def num_arms(self) -> int:
        """Return K."""
        return self.reward.shape[-1]

    def target_log_probs(self, beta: Positive) -> PerArm:
        """Return log π*, the Gibbs policy of the KL-regularised objective with β > 0."""
        return gibbs.gibbs_log_probs(self.reward, self.reference_log_probs, beta)

    def concentrability(self, beta: Positive) -> PerProblem:
        """Return max_y π*(y)/π_ref(y) >= 1: the larger, the harder the geometry (C1)."""
        return distributions.concentrability(self.target_log_probs(beta), self.reference_log_probs)

    def data_law(self) -> PerArm:
        """Return log μ, by default log π_ref."""
        return self.reference_log_probs if self.data_log_probs is None else self.data_log_probs

    def covered_mass(self) -> PerProblem:
        """Return the reference's mass on arms that preference data can hold: C2 in plain units."""
        return covered_mass(self.reference_log_probs, self.data_law())

    def peak_distance(self) -> Int[Array, "*batch"]:
        """Count the arms between the reward's peak and the reference's median: C1 in plain units.

        The median, not the most probable arm: the published reference piles its tails up on the
        outer bins, and its most probable arm is the first.
        """
        below = jnp.cumsum(jnp.exp(self.reference_log_probs), axis=-1) < 0.5
        return jnp.abs(jnp.argmax(self.reward, axis=-1) - jnp.sum(below, axis=-1))


@checked
def bump_reward(
    num_arms: TwoOrMore, centre: Finite, width: Positive, height: Finite = 1.0
) -> Float[Array, " K"]:
    """Return r(a) = height · exp(−((a − centre)/width)²), centre and width in arms.

    >>> [f"{reward:.3f}" for reward in bump_reward(3, centre=1.0, width=1.0)]
    ['0.368', '1.000', '0.368']
    """
    distance = (jnp.arange(num_arms) - jnp.asarray(centre)) / jnp.asarray(width)
    return jnp.asarray(height) * jnp.exp(-(distance**2))


@checked
def tanh_cauchy_reference(
    num_arms: TwoOrMore = 100, location: Finite = -0.7, scale: Positive = 0.4
) -> Float[Array, " K"]:
    """Return log-probabilities of tanh(X), X ~ Cauchy(location, scale), on equal bins of (−1, 1).

    They are exact, from the CDF F. With t_i = (atanh(edge_i) − location)/scale, a bin has
    mass (atan t_{i+1} − atan t_i)/π = atan2(t_{i+1} − t_i, 1 + t_i t_{i+1})/π, a form without
    cancellation; the outer bins hold the tails, atan2(1, −t_1)/π and atan2(1, t_{K−1})/π. The
    published reference: K = 100, Cauchy(−0.7, 0.4).
    """
    inner_edges = -1.0 + 2.0 * jnp.arange(1, num_arms) / num_arms
    t = (jnp.arctanh(inner_edges) - location) / scale
    inner = jnp.arctan2(jnp.diff(t), 1.0 + t[:-1] * t[1:])
    tails = jnp.arctan2(1.0, jnp.stack([-t[0], t[-1]]))
    mass = jnp.concatenate([tails[:1], inner, tails[1:]]) / jnp.pi
    return jax.nn.log_softmax(jnp.log(mass))


@checked
def gaussian_reference(num_arms: TwoOrMore, centre: Finite, width: Positive) -> Float[Array, " K"]:
    """Return log-probabilities ∝ exp(−((a − centre)/width)²/2), centre and width in arms."""
    return jax.nn.log_softmax(-0.5 * ((jnp.arange(num_arms) - centre) / width) ** 2)


@checked
def power_law_reference(
    num_arms: TwoOrMore, exponent: Positive, mode: Finite = 0
) -> Float[Array, " K"]:
    """Return log-probabilities ∝ (1 + |a − mode|)^(−exponent): heavy tails, Zipf for mode 0."""
    return jax.nn.log_softmax(
        -jnp.asarray(exponent) * jnp.log1p(jnp.abs(jnp.arange(num_arms) - mode))
    )


@checked
def uniform_reference(num_arms: TwoOrMore) -> Float[Array, " K"]:
    """Return log-probabilities −log K."""
    return jnp.full(num_arms, -jnp.log(num_arms))


@checked
def reference_from_probabilities(reference: Probs) -> PerArm:
    """Return log-probabilities ``[..., K]`` of a user's own reference; zeros stay excluded."""
    return _log_probs(reference)


def far_bandit(width: Positive = 10.0) -> CategoricalBandit:
    """Return R1: the reward's peak, arm 70, is far from the reference's bulk at arm 16; K = 100."""
    return CategoricalBandit(bump_reward(100, 70, width), tanh_cauchy_reference(100))


def near_bandit(width: Positive = 10.0) -> CategoricalBandit:
    """Return R2: the reward's peak, arm 20, is in the reference's bulk at arm 16; K = 100."""
    return CategoricalBandit(bump_reward(100, 20, width), tanh_cauchy_reference(100))


def bump_bandit(
    num_arms: TwoOrMore = 100,
    centre: Finite = 70.0,
    width: Positive = 10.0,
    location: Finite = -0.7,
    scale: Positive = 0.4,
) -> CategoricalBandit:
    """Return a bump of reward and a tanh-Cauchy reference anywhere: R1, with every number free."""
    return CategoricalBandit(
        bump_reward(num_arms, centre, width), tanh_cauchy_reference(num_arms, location, scale)
    )


def min_length(
    max_length: TwoOrMore = 40, mode: Positive = 12.0, spread: Positive = 0.6
) -> CategoricalBandit:
    """Return the problem where shorter is better: r = −|y|/T; lengths go from 0 to T."""
    reference = skewed_lengths(max_length, mode, spread)
    return CategoricalBandit(-jnp.arange(max_length + 1) / max_length, reference)


def mode_length(
    max_length: TwoOrMore = 40, mode: Positive = 12.0, spread: Positive = 0.6
) -> CategoricalBandit:
    """Return the problem where the usual length is best: r = −||y| − mode|/T; lengths 0 to T."""
    reference = skewed_lengths(max_length, mode, spread)
    distance = jnp.abs(jnp.arange(max_length + 1) - mode)
    return CategoricalBandit(-distance / max_length, reference)


def skew_length(
    max_length: TwoOrMore = 40, cut: ArrayLike = 12, mode: Positive = 12.0, spread: Positive = 0.6
) -> CategoricalBandit:
    """Return `min_length` with preference data of at most ``cut`` tokens.

    Raises:
      InvalidInput: For a cut that leaves no data.
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


def _log_probs(probabilities: Float[ArrayLike, "*batch K"]) -> PerArm:
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
            stacklevel=4,  # the caller of the checked `from_arrays`
        )
