"""Why learning a reward can need fewer preferences than learning a policy.

Responses are sequences of L tokens of V values each. A reward that adds up over tokens,
r(y) = Σ_t w_t(y_t), has L (V − 1) free parameters (a constant a token is no preference); the class
of all policies has V^L − 1. But the policies that are *optimal* for additive rewards are few again:

**Product policies.** If r and log π_ref add up over tokens, so does the log of the Gibbs policy:

    π*(y) = Π_t π_t(y_t),      π_t ∝ π_ref,t exp(w_t/β).

*Proof.* π_ref exp(r/β) = Π_t π_ref,t(y_t) exp(w_t(y_t)/β), and the sum of a product over all
sequences is the product of the sums over each token, so Z = Π_t Z_t. ∎

A two-stage method searches the small class of rewards, and so only policies that are optimal for
one of them; DPO on all policies searches V^L − 1 directions. DPO on product policies is the same
small search: by the theorem above they are isomorphic to the additive rewards.

**What a table can know.** n pairs of independent uniform responses show a share
1 − (1 − 1/K)^{2n} of the K = V^L responses; of the others a table knows nothing.

Token tables are ``[L, V]``, a row for each token: ``token_rewards`` w_t(v), and log-probabilities
in nats. Every function raises `InvalidInput` for what the types refuse, and for tables of different
shapes. Source: arXiv:2503.01067, sections 4 and 5.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from theory import checks
from theory.types import NonNegative, PerProblem, Positive, TokenLogProbs, TwoOrMore, Whole, checked


def _require_tokens(name: str, rewards: ArrayLike) -> None:
    if np.ndim(rewards) != 2:
        raise checks.InvalidInput(
            f"{name} has shape {np.shape(rewards)}; it must be [L, V], a row for each token"
        )
    checks.require_arms(name, rewards)
    checks.require_finite(name, rewards)


TokenRewards = Annotated[Float[ArrayLike, "L V"], _require_tokens]
"""w_t(v), finite: a row for each of L tokens, a column for each of V >= 2 values."""


class ClassSizes(NamedTuple):
    """Free parameters of the classes over sequences.

    Attributes:
      responses: V^L.
      policies: Of all policies, V^L − 1.
      random_rewards: Of all rewards, the same.
      additive_rewards: Of rewards that add up over tokens, L (V − 1).
      optimal_policies: Of the policies that are optimal for additive rewards, the same.
    """

    responses: int
    policies: int
    random_rewards: int
    additive_rewards: int
    optimal_policies: int


@checked
def class_sizes(num_values: TwoOrMore, length: Whole) -> ClassSizes:
    """Return how many free parameters each class over L tokens of V values has.

    >>> sizes = class_sizes(num_values=2, length=3)
    >>> sizes.policies, sizes.additive_rewards
    (7, 3)
    """
    # Python's integers, which do not overflow.
    responses = int(num_values) ** int(length)
    tokens = length * (num_values - 1)
    return ClassSizes(responses, responses - 1, responses - 1, tokens, tokens)


@checked
def token_features(
    sequences: Int[ArrayLike, "K L"], num_values: TwoOrMore
) -> Float[np.ndarray, "K LV"]:
    """Return φ of additive rewards φ w: a column for each value at each place, 1 where it stands.

    ``sequences`` are K responses of L tokens each, from 0 to V − 1; all else is refused.
    """
    tokens = np.asarray(sequences)
    if tokens.ndim != 2:
        raise checks.InvalidInput(
            f"sequences has shape {tokens.shape}; it must be [K, L], a row for each response"
        )
    checks.require_whole("length", tokens.shape[1])
    checks.require_index("sequences", tokens, num_values)
    return np.eye(num_values, dtype=np.float32)[tokens].reshape(len(tokens), -1)


@checked
def optimal_tokens(
    token_rewards: TokenRewards, token_reference_log_probs: TokenLogProbs, beta: Positive
) -> Float[Array, "L V"]:
    """Return log π_t of the product policy that is optimal for an additive reward.

    β is in units of the reward for a nat.
    """
    _require_same_shape(
        token_reference_log_probs=token_reference_log_probs, token_rewards=token_rewards
    )
    return jax.nn.log_softmax(
        jnp.asarray(token_reference_log_probs) + jnp.asarray(token_rewards) / jnp.asarray(beta)
    )


@checked
def expected_additive_reward(
    token_log_probs: TokenLogProbs, token_rewards: TokenRewards
) -> Float[Array, ""]:
    """Return E_π[r] = Σ_t Σ_v π_t(v) w_t(v) of a product policy, without listing its responses."""
    _require_same_shape(token_log_probs=token_log_probs, token_rewards=token_rewards)
    return jnp.sum(jnp.exp(jnp.asarray(token_log_probs)) * jnp.asarray(token_rewards))


@checked
def best_additive_reward(token_rewards: TokenRewards) -> Float[Array, ""]:
    """Return max_y r(y) = Σ_t max_v w_t(v)."""
    return jnp.sum(jnp.max(jnp.asarray(token_rewards), axis=-1))


@checked
def seen_share(
    num_responses: Annotated[Float[ArrayLike, "*batch"], checks.require_two], pairs: NonNegative
) -> PerProblem:
    """Return 1 − (1 − 1/K)^{2n}: the expected share of K responses in n pairs of uniform ones."""
    # As a float: spaces of sequences are larger than any integer type.
    size = jnp.asarray(num_responses, float)
    return -jnp.expm1(2.0 * jnp.asarray(pairs) * jnp.log1p(-1.0 / size))


def _require_same_shape(**tables: ArrayLike) -> None:
    (name, first), (other, second) = tables.items()
    if np.shape(first) != np.shape(second):
        raise checks.InvalidInput(
            f"{name} has shape {np.shape(first)} but {other} {np.shape(second)}; they must match"
        )
