"""Likelihood methods: raise some responses, push none down.

Each loss is −Σ w log π with weights w >= 0 that do not depend on π, so its weights are w itself.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses.responses import Responses, require_pairs
from theory import checks

MOST_WEIGHT = 20.0
"""The largest weight of AWR, as in arXiv:1910.00177."""


def supervised(responses: Responses) -> Float[Array, ""]:
    """Return −Σ s log π, the likelihood of all responses (SFT); s are their shares."""
    return _likelihood(responses.shares, responses)


def preference_likelihood(responses: Responses) -> Float[Array, ""]:
    """Return −Σ w_ij log π_i, the likelihood of the winners (Pref-FT)."""
    require_pairs(responses)
    return _likelihood(responses.win_weights, responses)


def best_of_n(responses: Responses) -> Float[Array, ""]:
    """Return −log π(y*), y* the response with the highest reward (the first of equals)."""
    return -responses.log_probs[jnp.argmax(responses.rewards)]


def reward_weighted(responses: Responses, temperature: ArrayLike = 0.1) -> Float[Array, ""]:
    """Return −Σ s exp(r/τ) log π, τ > 0. Source: RWR, Peters and Schaal 2007."""
    temperature = checks.positive("temperature", temperature)
    return _likelihood(responses.shares * jnp.exp(responses.rewards / temperature), responses)


def advantage_weighted(responses: Responses, temperature: ArrayLike = 0.1) -> Float[Array, ""]:
    """Return −Σ s min(exp((r − b)/τ), 20) log π, τ > 0, b the baseline.

    Source: AWR, arXiv:1910.00177, with its clip.
    """
    temperature = checks.positive("temperature", temperature)
    advantages = responses.rewards - responses.baseline
    # The clip is applied to the exponent: exp of the unclipped one may overflow.
    exponents = jnp.minimum(advantages / temperature, jnp.log(MOST_WEIGHT))
    return _likelihood(responses.shares * jnp.exp(exponents), responses)


def _likelihood(weights: Float[Array, " C"], responses: Responses) -> Float[Array, ""]:
    weights = jax.lax.stop_gradient(weights)
    # 0 · log 0 is 0: an excluded response that is not weighted adds nothing. NaN must be seen.
    return -jnp.sum(jnp.where(weights == 0, 0.0, weights * responses.log_probs))
