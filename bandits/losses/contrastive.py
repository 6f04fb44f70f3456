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
from bandits.losses.responses import Responses, require_pairs, sum_of_log_probs
from theory import checks


def dpo(
    responses: Responses, beta: ArrayLike = 0.1, label_smoothing: ArrayLike = 0.0
) -> Float[Array, ""]:
    """Return −Σ w_ij log σ(β h_ij), β > 0. Source: arXiv:2305.18290.

    With label smoothing, 0 <= ε <= ½, each label counts 1 − ε as it stands and ε the other way
    round (conservative DPO). The pairs of a group come from its rewards unless they are given.
    """
    beta = checks.positive("beta", beta)
    return pair_loss(minus_log_sigmoid, responses, scale=beta, label_smoothing=label_smoothing)


def ipo(
    responses: Responses, tau: ArrayLike = 0.05, label_smoothing: ArrayLike = 0.0
) -> Float[Array, ""]:
    """Return Σ w_ij (h_ij − 1/(2τ))², τ > 0; label smoothing as in `dpo`.

    The published bandit's target of 10 nats is τ = 0.05. Source: arXiv:2310.12036.
    """
    tau = checks.positive("tau", tau)
    return pair_loss(jnp.square, responses, offset=0.5 / tau, label_smoothing=label_smoothing)


def hypo(
    responses: Responses,
    beta: ArrayLike = 0.1,
    kl_coefficient: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Return the loss of DPO plus λ KL(π‖π_ref), λ = ``kl_coefficient`` >= 0.

    The pairs are given; the shares are the policy's own samples or probabilities. DPO leaves
    responses outside the pairs free, and the KL holds them. Its gradient is the score function
    over the shares; as C samples are their own baseline, its expectation is shorter by 1 − 1/C.
    Source: HyPO, arXiv:2406.01462.
    """
    kl_coefficient = checks.nonnegative("kl_coefficient", kl_coefficient)
    unrewarded = dataclasses.replace(responses, rewards=jnp.zeros_like(responses.rewards))
    # With no reward and β = 1, REINFORCE descends the KL.
    divergence = reinforce(unrewarded, beta=1.0, prompt_baseline=1.0)
    return dpo(responses, beta, label_smoothing) + kl_coefficient * divergence


def hinge(
    responses: Responses, beta: ArrayLike = 0.1, label_smoothing: ArrayLike = 0.0
) -> Float[Array, ""]:
    """Return Σ w_ij max(0, 1 − β h_ij), β > 0; label smoothing as in `dpo`.

    Source: arXiv:2402.05749.
    """
    beta = checks.positive("beta", beta)
    return pair_loss(_shortfall, responses, scale=beta, offset=1.0, label_smoothing=label_smoothing)


def slic(
    responses: Responses, margin: ArrayLike = 1.0, regularization: ArrayLike = 0.1
) -> Float[Array, ""]:
    """Return Σ w_ij max(0, δ − log π(y_i)/π(y_j)) − λ Σ w_ij log π(y_i), δ > 0, λ >= 0.

    The second term takes the winners as the published loss takes its target. Source: SLiC-HF,
    arXiv:2305.10425.
    """
    margin = checks.positive("margin", margin)
    regularization = checks.nonnegative("regularization", regularization)
    calibration = pair_loss(_shortfall, responses, to_reference=False, offset=margin)
    return calibration + regularization * preference_likelihood(responses)


def best_of_n_minus_worst(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """Return −log π(y*) + c log π(y⁻), y⁻ the response with the lowest reward; c >= 0.

    All three forms stop pushing a response down once its log π/π_ref falls to ``floor``: ``-inf``
    never stops, 0 holds the response at the reference. Source: T24, section 5.
    """
    rest = _rest(responses)
    worst = jnp.arange(rest.size) == jnp.argmin(responses.rewards)
    return _best_minus(rest * worst, 1.0, responses, coefficient, floor)


def best_of_n_minus_mean(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """Return −log π(y*) + c mean log π(y) over the responses with less reward; c >= 0."""
    return _best_minus(_rest(responses), _size_of_rest(responses), responses, coefficient, floor)


def best_of_n_minus_sum(
    responses: Responses, coefficient: ArrayLike = 0.1, floor: ArrayLike = -jnp.inf
) -> Float[Array, ""]:
    """Return −log π(y*) + c Σ log π(y) over the responses with less reward; c >= 0."""
    return _best_minus(_rest(responses), 1.0, responses, coefficient, floor)


def unlikelihood(responses: Responses, coefficient: ArrayLike = 1.0) -> Float[Array, ""]:
    """Return −log π(y*) − c mean log(1 − π(y)) over the responses with less reward; c >= 0.

    Unlike the push of c log π(y), this one fades as π(y) does. Source: arXiv:1908.04319.
    """
    coefficient = checks.nonnegative("coefficient", coefficient)
    rest = _rest(responses) / _size_of_rest(responses)
    # π(y) = 1 would be log 0; as y is not alone, rounding alone can bring it there.
    certain = -jnp.finfo(responses.log_probs.dtype).eps
    complement = jnp.log(-jnp.expm1(jnp.minimum(responses.log_probs, certain)))
    return best_of_n(responses) - coefficient * jnp.sum(_masked(rest, complement))


def pair_loss(
    of_margin: OfMargin,
    responses: Responses,
    *,
    to_reference: bool = True,
    scale: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
    label_smoothing: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Return Σ w_ij f(β h_ij − δ), h the margin of log π/π_ref.

    Args:
      of_margin: f, applied to arrays number by number; a function of a module, not a lambda.
      responses: The group, C >= 2.
      to_reference: Whether h is of log π/π_ref, or of log π.
      scale: β.
      offset: δ.
      label_smoothing: ε from 0 to ½, the part of each label that counts the other way round.

    Raises:
      InvalidInput: For a group of one response, or a label smoothing out of range.
    """
    require_pairs(responses)
    smoothing = jnp.asarray(checks.between("label_smoothing", label_smoothing, 0.0, 0.5))
    scores = responses.comparable
    if to_reference:
        scores = scores - responses.reference_log_probs
    # A β that is NaN must show where no pair is labelled, too: it has no other way into the sum.
    offset = offset + 0.0 * jnp.asarray(scale)

    def labelled(scale: ArrayLike) -> Float[Array, ""]:
        if responses.preferences is None:
            return mean_over_pairs(of_margin, scores, responses.rewards, scale=scale, offset=offset)
        return sum_over_pairs(of_margin, scores, responses.preferences, scale=scale, offset=offset)

    if isinstance(label_smoothing, float | int) and label_smoothing == 0:
        return labelled(scale)
    # A label the other way round is the margin with the other sign.
    flipped = labelled(-jnp.asarray(scale))
    # No smoothing forgives an excluded loser, whose flipped label costs ∞.
    flipped = jnp.where((smoothing == 0) & jnp.isinf(flipped), 0.0, flipped)
    return (1.0 - smoothing) * labelled(scale) + smoothing * flipped


@jax.custom_jvp
def minus_log_sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return −log σ(x) = max(0, −x) + log(1 + e^−|x|)."""
    return jax.nn.relu(-x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


# Autodiff would miss the derivative at the kink of |x|.
minus_log_sigmoid.defjvps(lambda tangent, _, x: -jax.nn.sigmoid(-x) * tangent)


def _shortfall(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.relu(-x)


def _rest(responses: Responses) -> Float[Array, " C"]:
    """Return 1 on every response with less than the best reward: copies of it are not pushed."""
    rewards = responses.rewards
    return (rewards < jnp.max(rewards)).astype(responses.log_probs.dtype)


def _size_of_rest(responses: Responses) -> Float[Array, ""]:
    """Return the number of responses with less than the best reward."""
    return jnp.maximum(jnp.sum(_rest(responses)), 1.0)


def _best_minus(
    pushed: Float[Array, " C"],
    count: ArrayLike,
    responses: Responses,
    coefficient: ArrayLike,
    floor: ArrayLike,
) -> Float[Array, ""]:
    """Return −log π(y*) + c w Σ log π(y) over the responses with a 1 in ``pushed``."""
    coefficient = checks.nonnegative("coefficient", coefficient)
    weight = 1.0 / count
    log_probs = responses.log_probs
    least = responses.reference_log_probs + floor
    # An excluded response cannot be pushed further.
    pushed = jnp.where(jnp.isfinite(log_probs), pushed, 0.0)
    active = jnp.where(log_probs > least, pushed, 0.0)
    stopped = pushed - active
    best = jnp.argmax(responses.rewards)
    # By counts, so that c = 1 with a mean of k responses cancels the winner's weight exactly.
    total = (jnp.asarray(coefficient) * jnp.sum(active) - count) / count
    weights = jnp.asarray(coefficient) * weight * active - (jnp.arange(pushed.size) == best)
    held = coefficient * weight * jnp.sum(_masked(stopped, least))
    return sum_of_log_probs(weights, total, responses, best) + held


def _masked(weights: Array, values: Array) -> Array:
    """Return weights · values, 0 where the weight is 0: an infinite value there does not count."""
    return jnp.where(weights > 0, weights * jnp.where(weights > 0, values, 0.0), 0.0)
