"""What a method sees: a group of responses to one prompt, with log-probabilities and labels."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bandits.kernels import has_twin
from theory.checks import InvalidInput
from theory.pairs import Pairs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Responses:
    """C responses to one prompt. A method reads what it needs and is differentiated in log_probs.

    Attributes:
      log_probs: ``[C]``, log π of the policy that is trained, in nats.
      reference_log_probs: ``[C]``, log π_ref.
      behaviour_log_probs: ``[C]``, log-probabilities under the policy that drew the responses; it
        is older than π where samples are reused.
      rewards: ``[C]``, true or learned.
      preferences: ``[C, C]``, weights >= 0 of "row preferred to column" that sum to 1, or to 0
        where nothing was labelled; or the same as a list of `Pairs`. None stands for every pair,
        labelled by its rewards and equally weighted.
      shares: ``[C]``, each response's part of the expectation, with sum 1: 1/C for samples, the
        probabilities where the group is the whole space.
      baseline: The running mean of the rewards seen so far.
      scores: ``[C]``, log π up to one constant for all responses, such as logits. None stands for
        log π.
    """

    log_probs: Float[Array, " C"]
    reference_log_probs: Float[Array, " C"]
    behaviour_log_probs: Float[Array, " C"]
    rewards: Float[Array, " C"]
    preferences: Float[Array, "C C"] | Pairs | None
    shares: Float[Array, " C"]
    baseline: Float[Array, ""]
    scores: Float[Array, " C"] | None = None

    @property
    def log_ratios(self) -> Float[Array, " C"]:
        """Return log π/π_ref, the implicit reward of arXiv:2305.18290 in units of β."""
        return self.log_probs - self.reference_log_probs

    @property
    def comparable(self) -> Float[Array, " C"]:
        """Return log π up to a constant, for differences between responses.

        The normaliser cancels in a difference. Left in, its gradient would be rounding in place of
        0, and an adaptive optimiser divides by the size of that rounding.
        """
        return self.log_probs if self.scores is None else self.scores

    @property
    def pair_weights(self) -> Float[Array, "C C"]:
        """Return the preferences as a table; where none are given, the rewards make them."""
        if isinstance(self.preferences, Pairs):
            return self.preferences.to_table(self.rewards.shape[-1])
        if self.preferences is not None:
            return self.preferences
        return jnp.vectorize(preferences_by_reward, signature="(c)->(c,c)")(self.rewards)

    @property
    def win_weights(self) -> Float[Array, " C"]:
        """Return the weight with which each response wins: the row sums of the table."""
        if isinstance(self.preferences, Pairs):
            pairs = self.preferences
            return jnp.zeros_like(self.log_probs).at[pairs.winners].add(pairs.weights)
        return jnp.sum(self.pair_weights, axis=-1)

    def with_log_probs(self, log_probs: Float[Array, " C"]) -> "Responses":
        """Return the group under another policy, given by its log-probabilities."""
        return dataclasses.replace(self, log_probs=log_probs, scores=None)


def make_group(
    log_probs: Float[ArrayLike, " C"],
    rewards: Float[ArrayLike, " C"],
    *,
    reference_log_probs: Float[ArrayLike, " C"] | None = None,
    behaviour_log_probs: Float[ArrayLike, " C"] | None = None,
    preferences: Float[ArrayLike, "C C"] | Pairs | None = None,
    shares: Float[ArrayLike, " C"] | None = None,
    baseline: Float[ArrayLike, ""] = 0.0,
) -> Responses:
    """Return a group, by default with the policy itself as reference and behaviour.

    By default every pair is labelled by its rewards, and every response has the same share.
    """
    log_probs, rewards = jnp.asarray(log_probs, float), jnp.asarray(rewards, float)
    held = jax.lax.stop_gradient(log_probs)
    if shares is None:
        shares = jnp.full_like(rewards, 1.0 / rewards.shape[-1])
    if reference_log_probs is None:
        reference_log_probs = held
    if behaviour_log_probs is None:
        behaviour_log_probs = held
    return Responses(
        log_probs=log_probs,
        reference_log_probs=jnp.asarray(reference_log_probs),
        behaviour_log_probs=jnp.asarray(behaviour_log_probs),
        rewards=rewards,
        preferences=(
            jax.tree.map(jnp.asarray, preferences)
            if preferences is None or isinstance(preferences, Pairs)
            else jnp.asarray(preferences)
        ),
        shares=jnp.asarray(shares),
        baseline=jnp.asarray(baseline, rewards.dtype),
    )


def make_pair(
    log_probs: Float[ArrayLike, " 2"],
    *,
    reference_log_probs: Float[ArrayLike, " 2"] | None = None,
    told_apart: ArrayLike = True,
) -> Responses:
    """Return two responses, the first of which is preferred if they are told apart."""
    first_wins = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    return make_group(
        log_probs,
        jnp.zeros(2),
        reference_log_probs=reference_log_probs,
        preferences=first_wins * told_apart,
    )


def preferences_by_reward(
    rewards: Float[Array, " C"], least_gap: ArrayLike = 0.0
) -> Float[Array, "C C"]:
    """Return equal weights for all pairs whose rewards differ, by at least ``least_gap`` >= 0.

    The published offline data use a gap of 0.2. All weights are 0 where no pair differs so much.
    """
    rewards = jnp.asarray(rewards)
    least_gap = jnp.asarray(least_gap, jnp.result_type(rewards, float))
    # Steps have no derivative but 0.
    return label(*jax.lax.stop_gradient((rewards, least_gap)))


@has_twin
def label(rewards: Float[Array, " C"], least_gap: Float[Array, ""]) -> Float[Array, "C C"]:
    """Return the weight of every pair: equal where the first has more reward, by enough, else 0."""
    return normalize_preferences(tell_apart(rewards[:, None] - rewards[None, :], least_gap))


def tell_apart(gaps: Float[Array, "*shape"], least_gap: Array) -> Float[Array, "*shape"]:
    """Return 1 where the first of a pair has more reward, by enough, and 0 elsewhere."""
    return ((gaps > 0) & (gaps >= least_gap)).astype(least_gap.dtype)


def normalize_preferences(weights: Float[Array, "C C"]) -> Float[Array, "C C"]:
    """Return the weights divided by their sum; zeros stay zeros."""
    return divide(weights, jnp.sum(weights))


def sum_of_log_probs(
    weights: Float[Array, " C"],
    total: Float[ArrayLike, ""],
    responses: Responses,
    anchor: Int[Array, ""],
) -> Float[Array, ""]:
    """Return Σ w_i log π_i, as Σ w_i (log π_i − log π_a) + W log π_a.

    Where the weights sum to zero by their formula, responses outside the group get no gradient at
    all, and not the rounding of the sum.

    Args:
      weights: w, without a gradient; a response of weight 0 adds nothing.
      total: W, the sum of the weights, by their formula and not by adding them up.
      responses: The group.
      anchor: a, the place of a response that is not excluded.
    """
    weighted = weights != 0
    scores = jnp.where(weighted, responses.comparable, 0.0)
    differences = scores - jnp.where(weighted, responses.comparable[anchor], 0.0)
    # W = 0 times log π = −∞ is 0 here, and has no gradient.
    held = jnp.where(total == 0, 0.0, responses.log_probs[anchor])
    return jnp.sum(weights * differences) + total * held


def divide(weights: Float[Array, "*shape"], total: Float[Array, "*batch"]) -> Array:
    """Return weights / total, and 0 where the total is 0."""
    return weights / jnp.where(total > 0, total, 1.0)


def require_pairs(responses: Responses) -> None:
    """Refuse a group in which no two responses can be compared."""
    count = responses.log_probs.shape[0]
    if count < 2:
        raise InvalidInput(f"the group holds {count} response; a pair needs at least 2")
