"""Contrastive methods: raise the preferred response and push the other down.

h_ij = log π(y_i)/π_ref(y_i) − log π(y_j)/π_ref(y_j) is the margin of a pair, w_ij the weight of
"i preferred to j".
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.losses.likelihood import best_of_n, preference_likelihood
from bandits.losses.pairs import OfMargin, mean_over_pairs, sum_over_pairs
from bandits.losses.policy_gradient import reinforce
from bandits.losses.responses import Responses, require_pairs
from theory import checks


def dpo(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
    """−Σ w_ij log σ(β h_ij), β > 0. Source: arXiv:2305.18290."""
    beta = checks.positive("beta", beta)
    return _sum_over_pairs(_minus_log_sigmoid, responses.log_ratios, responses, scale=beta)


def ipo(responses: Responses, tau: ArrayLike = 0.05) -> Float[Array, ""]:
    """Σ w_ij (h_ij − 1/(2τ))², τ > 0. Source: arXiv:2310.12036.

    The published bandit's target of 10 nats is τ = 0.05.
    """
    tau = checks.positive("tau", tau)
    return _sum_over_pairs(jnp.square, responses.log_ratios, responses, offset=0.5 / tau)


def hypo(
    responses: Responses, beta: ArrayLike = 0.1, kl_coefficient: ArrayLike = 0.1
) -> Float[Array, ""]:
    """DPO + λ KL(π‖π_ref), the KL by its score function over the shares; β > 0, λ >= 0.

    The pairs are given, the shares must be the policy's own samples or probabilities: what DPO
    leaves free on uncovered responses, the KL holds. As samples are their own baseline, C of them
    shorten the KL's expected gradient by 1 − 1/C. Source: HyPO, arXiv:2406.01462.
    """
    kl_coefficient = checks.nonnegative("kl_coefficient", kl_coefficient)
    unrewarded = dataclasses.replace(responses, rewards=jnp.zeros_like(responses.rewards))
    # With no reward and β = 1, REINFORCE descends the KL.
    divergence = reinforce(unrewarded, beta=1.0, prompt_baseline=1.0)
    return dpo(responses, beta) + kl_coefficient * divergence


def hinge(responses: Responses, beta: ArrayLike = 0.1) -> Float[Array, ""]:
    """Σ w_ij max(0, 1 − β h_ij), β > 0: DPO with the hinge for a loss. Source: arXiv:2402.05749."""
    beta = checks.positive("beta", beta)
    return _sum_over_pairs(_shortfall, responses.log_ratios, responses, scale=beta, offset=1.0)


def slic(
    responses: Responses, margin: ArrayLike = 1.0, regularization: ArrayLike = 0.1
) -> Float[Array, ""]:
    """Σ w_ij max(0, δ − log π(y_i)/π(y_j)) − λ Σ w_ij log π(y_i): SLiC-HF, δ > 0, λ >= 0.

    The second term, likelihood of the winners, stands for its target. Source: arXiv:2305.10425.
    """
    margin = checks.positive("margin", margin)
    regularization = checks.nonnegative("regularization", regularization)
    calibration = _sum_over_pairs(_shortfall, responses.log_probs, responses, offset=margin)
    return calibration + regularization * preference_likelihood(responses)


def best_of_n_minus_worst(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """−log π(y*) + c log π(y⁻), y⁻ the response with the lowest reward; c >= 0.

    All three forms stop pushing a response down once log π/π_ref is no longer above ``floor``:
    ``-inf`` never stops, 0 constrains it to the reference. Source: T24, section 5.
    """
    rest = _rest(responses)
    worst = jnp.arange(rest.size) == jnp.argmin(responses.rewards)
    return _best_minus(rest * worst, responses, coefficient, floor)


def best_of_n_minus_mean(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """−log π(y*) + c mean log π(y) over the responses with less reward; c and floor as above."""
    return _best_minus(_mean_of_rest(responses), responses, coefficient, floor)


def best_of_n_minus_sum(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """−log π(y*) + c Σ log π(y) over the responses with less reward; c and floor as above."""
    return _best_minus(_rest(responses), responses, coefficient, floor)


def unlikelihood(responses: Responses, coefficient: ArrayLike = 1.0) -> Float[Array, ""]:
    """−log π(y*) − c mean log(1 − π(y)) over the responses with less reward, c >= 0.

    Unlike c log π(y), the push fades as π(y) does. Source: arXiv:1908.04319.
    """
    coefficient = checks.nonnegative("coefficient", coefficient)
    rest = _mean_of_rest(responses)
    # π(y) = 1 would be log 0; as y is not alone, rounding alone can bring it there.
    certain = -jnp.finfo(responses.log_probs.dtype).eps
    complement = jnp.log(-jnp.expm1(jnp.minimum(responses.log_probs, certain)))
    return best_of_n(responses) - coefficient * jnp.sum(_masked(rest, complement))


def _sum_over_pairs(
    of_margin: OfMargin,
    scores: Float[ArrayLike, " C"],
    responses: Responses,
    *,
    scale: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
) -> Float[Array, ""]:
    require_pairs(responses)
    # A β that is NaN must show where no pair is labelled, too: it has no other way into the sum.
    offset = offset + 0.0 * jnp.asarray(scale)
    if responses.preferences is None:
        return mean_over_pairs(of_margin, scores, responses.rewards, scale=scale, offset=offset)
    return sum_over_pairs(of_margin, scores, responses.preferences, scale=scale, offset=offset)


@jax.custom_jvp
def _minus_log_sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """−log σ(x), whose derivative autodiff would miss at the kink of |x|."""
    return jax.nn.relu(-x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


_minus_log_sigmoid.defjvps(lambda tangent, _, x: -jax.nn.sigmoid(-x) * tangent)


def _shortfall(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.relu(-x)


def _rest(responses: Responses) -> Float[Array, " C"]:
    """1 on every response with less than the best reward: copies of the best are not pushed."""
    rewards = responses.rewards
    return (rewards < jnp.max(rewards)).astype(responses.log_probs.dtype)


def _mean_of_rest(responses: Responses) -> Float[Array, " C"]:
    rest = _rest(responses)
    return rest / jnp.maximum(jnp.sum(rest), 1.0)


def _best_minus(
    pushed: Float[Array, " C"], responses: Responses, coefficient: ArrayLike, floor: ArrayLike
) -> Float[Array, ""]:
    coefficient = checks.nonnegative("coefficient", coefficient)
    least = responses.reference_log_probs + floor
    bounded = jnp.where(responses.log_probs > least, responses.log_probs, least)
    # An excluded response cannot be pushed further.
    pushed = jnp.where(jnp.isfinite(responses.log_probs), pushed, 0.0)
    return best_of_n(responses) + coefficient * jnp.sum(_masked(pushed, bounded))


def _masked(weights: Array, values: Array) -> Array:
    """Weights · values, and 0 where the weight is: an infinite value there must not count."""
    return jnp.where(weights > 0, weights * jnp.where(weights > 0, values, 0.0), 0.0)
