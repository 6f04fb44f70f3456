"""Preference data: which responses it covers (C2), and how their pairs are labelled."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from bandits.losses.responses import normalize_preferences
from theory import checks
from theory.checks import InvalidInput
from theory.types import (
    FiniteNonNegative,
    Integers,
    NonNegative,
    Positive,
    PositiveProbability,
    Probability,
    checked,
)

Scheme = Literal["all", "best_worst", "random"]
SCHEMES: tuple[Scheme, ...] = ("all", "best_worst", "random")

Judged = Annotated[Float[Array, " C"], checks.require_finite]
"""Rewards of C responses, finite."""


@checked
def preference_probabilities(
    rewards: Judged, temperature: FiniteNonNegative = 0.0, label_noise: Probability = 0.0
) -> Float[Array, "C C"]:
    """Return P(i ≻ j) of a labeller, [i, j]: Bradley–Terry, or deterministic at temperature 0.

    P = (1 − ε) B + ε (1 − B), B = σ((r_i − r_j)/τ), whose limit at τ = 0 is 1, ½ or 0. Rows and
    columns sum to P_ij + P_ji = 1.

    >>> print(f"{preference_probabilities(jnp.array([0.0, 1.0]), temperature=1.0)[1, 0]:.3f}")
    0.731

    Args:
      rewards: r ``[C]``, finite.
      temperature: τ >= 0, in units of the reward: noise of the labeller's taste.
      label_noise: ε from 0 to 1, the probability that a label is flipped.

    Raises:
      InvalidInput: For an argument that its type does not allow.
    """
    gaps = jnp.asarray(rewards)[:, None] - jnp.asarray(rewards)[None, :]
    noiseless = 0.5 * (1.0 + jnp.sign(gaps))
    soft = jnp.asarray(temperature) > 0
    bradley_terry = jax.nn.sigmoid(gaps / jnp.where(soft, temperature, 1.0))
    probabilities = jnp.where(soft, bradley_terry, noiseless)
    noise = jnp.asarray(label_noise)
    return (1.0 - noise) * probabilities + noise * (1.0 - probabilities)


@checked
def label_pairs(
    key: PRNGKeyArray,
    rewards: Judged,
    scheme: Scheme = "all",
    *,
    num_pairs: int = 1,
    temperature: FiniteNonNegative = 0.0,
    label_noise: Probability = 0.0,
    least_gap: NonNegative = 0.0,
) -> Float[Array, "C C"]:
    """Sample labels for pairs of C responses: the weight of "row preferred to column", with sum 1.

    Responses with equal rewards are not told apart: their pairs are left out.

    Args:
      key: Key of the labels and of the choice of pairs.
      rewards: ``[C]``, what the labeller judges by.
      scheme: ``all`` pairs, the ``best_worst`` pair, or ``num_pairs`` at ``random``, without
        repeats, of those that are told apart.
      num_pairs: Number of pairs at ``random``, from 1 to C (C − 1)/2.
      temperature: As in `preference_probabilities`.
      label_noise: As in `preference_probabilities`.
      least_gap: Pairs whose rewards differ by less are left out, >= 0.

    Returns:
      ``[C, C]``, all zero where no pair is left.

    Raises:
      InvalidInput: For fewer than two responses, an unknown scheme, or values out of range.
    """
    checks.require_known("scheme", scheme, SCHEMES)
    rewards = jnp.asarray(rewards)
    count = rewards.shape[-1]
    if count < 2:
        raise InvalidInput(f"rewards holds {count} response; a pair needs at least 2")
    label_key, choice_key = jax.random.split(key)
    probabilities = preference_probabilities(rewards, temperature, label_noise)
    wins = jnp.triu(jax.random.uniform(label_key, (count, count)) < probabilities, k=1)
    upper = jnp.triu(jnp.ones((count, count), bool), k=1)
    gaps = jnp.abs(rewards[:, None] - rewards[None, :])
    told_apart = upper & (gaps > 0) & (gaps >= least_gap)
    chosen = _choose(choice_key, rewards, told_apart, scheme, num_pairs)
    return normalize_preferences(((chosen & wins) | (chosen & ~wins).T).astype(rewards.dtype))


@checked
def tempered(log_probs: Float[Array, " K"], temperature: Positive) -> Float[Array, " K"]:
    """Return log π^(1/τ)/Z: flatter than π for temperatures τ > 1, sharper for 0 < τ < 1."""
    return jax.nn.log_softmax(jnp.asarray(log_probs) / temperature)


def truncated(
    log_probs: Float[Array, " K"], first: ArrayLike = 0, last: ArrayLike | None = None
) -> Float[Array, " K"]:
    """Return π on the arms from ``first`` to ``last`` (included; by default the end).

    Raises:
      InvalidInput: If π has no mass there.
    """
    log_probs = jnp.asarray(log_probs)
    arms = jnp.arange(log_probs.size)
    kept = (arms >= first) & (arms <= (log_probs.size - 1 if last is None else last))
    what = f"keeping arms {first} to {log_probs.size - 1 if last is None else last}"
    return _renormalised(jnp.where(kept, log_probs, -jnp.inf), what)


@checked
def shifted(log_probs: Float[Array, " K"], arms: Integers) -> Float[Array, " K"]:
    """Return π moved by a number of arms (to higher ones if > 0); what leaves the space is lost.

    Raises:
      InvalidInput: For a shift that leaves no mass.
    """
    log_probs = jnp.asarray(log_probs)
    source = jnp.arange(log_probs.size) - jnp.asarray(arms)
    inside = (source >= 0) & (source < log_probs.size)
    moved = jnp.where(inside, log_probs[jnp.clip(source, 0, log_probs.size - 1)], -jnp.inf)
    return _renormalised(moved, f"a shift by {arms} arms")


@checked
def covering_fraction(
    key: PRNGKeyArray, log_probs: Float[Array, " K"], fraction: PositiveProbability
) -> Float[Array, " K"]:
    """Return π on a random fraction of its arms, each as likely to be among them, renormalised.

    It keeps ⌈fraction · n⌉ of the n arms with mass, so at least one. A fraction is above 0 and at
    most 1: 0 would leave no data.
    """
    log_probs = jnp.asarray(log_probs)
    held = jnp.isfinite(log_probs)
    draws = jnp.where(held, jax.random.uniform(key, log_probs.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(draws))
    # The tolerance keeps 0.3 of 10 arms at 3.
    count = jnp.maximum(jnp.ceil(jnp.asarray(fraction) * jnp.sum(held) - 1e-4), 1)
    return jax.nn.log_softmax(jnp.where(held & (rank < count), log_probs, -jnp.inf))


def covered_mass(
    reference_log_probs: Float[Array, "*batch K"], data_log_probs: Float[Array, "*batch K"]
) -> Float[Array, "*batch"]:
    """Return C2 in plain units: the reference's mass on arms that the data's law can draw."""
    covered = data_log_probs > -jnp.inf
    return jnp.sum(jnp.where(covered, jnp.exp(reference_log_probs), 0.0), axis=-1)


def _choose(
    key: PRNGKeyArray,
    rewards: Float[Array, " C"],
    told_apart: Bool[Array, "C C"],
    scheme: Scheme,
    num_pairs: int,
) -> Bool[Array, "C C"]:
    """Return the pairs that a scheme labels, of those in the upper triangle that are told apart."""
    count = rewards.shape[-1]
    if scheme == "all":
        return told_apart
    if scheme == "best_worst":
        best, worst = jnp.argmax(rewards), jnp.argmin(rewards)
        low, high = jnp.minimum(best, worst), jnp.maximum(best, worst)
        return told_apart & jnp.zeros_like(told_apart).at[low, high].set(True)
    most = count * (count - 1) // 2
    if not 1 <= num_pairs <= most:
        raise InvalidInput(f"num_pairs is {num_pairs}; {count} responses make 1 to {most} pairs")
    order = jnp.where(told_apart, jax.random.uniform(key, told_apart.shape), 2.0)
    last = jnp.sort(order.ravel())[num_pairs - 1]
    return told_apart & (order <= last)


def _renormalised(log_probs: Float[Array, " K"], what: str) -> Float[Array, " K"]:
    if not isinstance(log_probs, jax.core.Tracer) and not jnp.isfinite(log_probs).any():
        raise InvalidInput(f"{what} leaves no data: the reference has no mass there")
    return jax.nn.log_softmax(log_probs)
