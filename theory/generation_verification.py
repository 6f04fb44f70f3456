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

Source: arXiv:2503.01067, sections 4 and 5. Token tables are ``[L, V]``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from theory import checks


class ClassSizes(NamedTuple):
    """Free parameters of the classes over sequences.

    Attributes:
      responses: V^L.
      policies: of a table over all responses.
      random_rewards: of a table of rewards, the same.
      additive_rewards: of rewards that add up over tokens.
      optimal_policies: of the policies that are optimal for additive rewards, the same.
    """

    responses: int
    policies: int
    random_rewards: int
    additive_rewards: int
    optimal_policies: int


def class_sizes(num_values: int, length: int) -> ClassSizes:
    """How many free parameters each class has.

    Raises InvalidInput for fewer than two values or one token.
    """
    _require_space(num_values, length)
    # Python's integers, which do not overflow.
    responses = int(num_values) ** int(length)
    tokens = length * (num_values - 1)
    return ClassSizes(responses, responses - 1, responses - 1, tokens, tokens)


def token_features(sequences: Int[ArrayLike, "K L"], num_values: int) -> Float[np.ndarray, "K LV"]:
    """One column for each value at each place, 1 where the response has it: additive rewards φ w.

    Raises InvalidInput for sequences that are no table of tokens from 0 to num_values - 1.
    """
    tokens = np.asarray(sequences)
    if tokens.ndim != 2:
        raise checks.InvalidInput(
            f"sequences has shape {tokens.shape}; it must be [K, L], a row a response"
        )
    _require_space(num_values, tokens.shape[1])
    checks.require_index("sequences", tokens, num_values)
    return np.eye(num_values, dtype=np.float32)[tokens].reshape(len(tokens), -1)


def optimal_tokens(
    token_rewards: Float[ArrayLike, "L V"],
    token_reference_log_probs: Float[ArrayLike, "L V"],
    beta: ArrayLike,
) -> Float[Array, "L V"]:
    """Log π_t of the product policy that is optimal for an additive reward.

    Raises InvalidInput for rewards that are no finite ``[L, V]`` table, references of which a row
    is no distribution, another shape, or β <= 0.
    """
    _require_tokens(token_rewards)
    checks.require_log_distribution("token_reference_log_probs", token_reference_log_probs)
    _require_same_shape(
        token_reference_log_probs=token_reference_log_probs, token_rewards=token_rewards
    )
    checks.require_positive("beta", beta)
    return jax.nn.log_softmax(
        jnp.asarray(token_reference_log_probs) + jnp.asarray(token_rewards) / jnp.asarray(beta)
    )


def expected_additive_reward(
    token_log_probs: Float[ArrayLike, "L V"], token_rewards: Float[ArrayLike, "L V"]
) -> Float[Array, ""]:
    """E_π[r] = Σ_t Σ_v π_t(v) w_t(v) of a product policy, without listing its responses.

    Raises InvalidInput as `optimal_tokens` does.
    """
    _require_tokens(token_rewards)
    checks.require_log_distribution("token_log_probs", token_log_probs)
    _require_same_shape(token_log_probs=token_log_probs, token_rewards=token_rewards)
    return jnp.sum(jnp.exp(jnp.asarray(token_log_probs)) * jnp.asarray(token_rewards))


def best_additive_reward(token_rewards: Float[ArrayLike, "L V"]) -> Float[Array, ""]:
    """max_y r(y) = Σ_t max_v w_t(v). Raises InvalidInput as `optimal_tokens` does."""
    _require_tokens(token_rewards)
    return jnp.sum(jnp.max(jnp.asarray(token_rewards), axis=-1))


def seen_share(num_responses: ArrayLike, pairs: ArrayLike) -> Float[Array, "*batch"]:
    """Expected share of K responses in n pairs of independent uniform ones: 1 − (1 − 1/K)^{2n}.

    Raises InvalidInput for K < 2 or n < 0.
    """
    # As a float: spaces of sequences are larger than any integer type.
    size = jnp.asarray(num_responses, float)
    checks.require_nonnegative("pairs", pairs)
    known = checks.concrete(size)
    if known is not None and not (known >= 2).all():
        raise checks.InvalidInput(f"num_responses is {num_responses}; at least 2 are needed")
    return -jnp.expm1(2.0 * jnp.asarray(pairs) * jnp.log1p(-1.0 / size))


def _require_space(num_values: int, length: int) -> None:
    checks.require_whole("num_values", num_values)
    checks.require_whole("length", length)
    if num_values < 2:
        raise checks.InvalidInput(f"num_values is {num_values}; at least 2 are needed")


def _require_same_shape(**tables: ArrayLike) -> None:
    (name, first), (other, second) = tables.items()
    if np.shape(first) != np.shape(second):
        raise checks.InvalidInput(
            f"{name} has shape {np.shape(first)} but {other} {np.shape(second)}; they must match"
        )


def _require_tokens(token_rewards: ArrayLike) -> None:
    if np.ndim(token_rewards) != 2:
        raise checks.InvalidInput(
            f"token_rewards has shape {np.shape(token_rewards)}; it must be [L, V], a row a token"
        )
    checks.require_arms("token_rewards", token_rewards)
    checks.require_finite("token_rewards", token_rewards)
