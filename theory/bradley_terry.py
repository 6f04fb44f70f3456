"""Bradley–Terry rewards by maximum likelihood, exactly: a convex problem.

P(a ≻ b) = σ(r_a − r_b). With n_ab the number of times a was preferred to b and r = φ w, the loss is

    L(w) = −Σ_ab n_ab log σ(r_a − r_b) / Σ n + (ridge/2) ‖w‖².

Without a ridge its minimum is at infinity where the data are separable: some set of arms never lost
to the others. Source: Bradley and Terry 1952.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from scipy import optimize

from theory import checks, convex
from theory.checks import InvalidInput


def bradley_terry_loss(
    rewards: Float[Array, " K"], counts: Float[Array, "K K"]
) -> Float[Array, ""]:
    """−Σ n_ab log σ(r_a − r_b) / Σ n: the mean cross-entropy of the labels in nats."""
    chex.assert_shape(counts, (rewards.shape[0],) * 2)
    margins = rewards[:, None] - rewards[None, :]
    return -jnp.sum(counts * jax.nn.log_sigmoid(margins)) / jnp.sum(counts)


def fit_tabular(counts: Float[ArrayLike, "K K"], ridge: ArrayLike = 1e-3) -> Float[Array, " K"]:
    """One reward an arm, by maximum likelihood; their mean is 0. Units: nats of log-odds.

    Arms without data get the mean reward. Errors as in `fit_linear`.
    """
    size = np.shape(counts)[-1] if np.ndim(counts) else 0
    rewards = fit_linear(jnp.eye(size), counts, ridge)
    return rewards - rewards.mean()


def fit_linear(
    features: Float[ArrayLike, "K F"], counts: Float[ArrayLike, "K K"], ridge: ArrayLike = 1e-3
) -> Float[Array, " F"]:
    """Weights w of the rewards r = φ w, by Newton's method to the precision of the numbers.

    Where the data leave w open, it is the one of least norm. Traced data are not checked for a
    finite optimum: there the result is where the steps end.

    Args:
      features: φ, a row an arm.
      counts: [a, b], how often a was preferred to b; any weights >= 0.
      ridge: coefficient of ‖w‖²/2, >= 0, relative to the mean loss of a label.

    Raises:
      InvalidInput: no data, negative or non-finite numbers, a preference of an arm against itself,
        shapes that do not match, or separable data without a ridge.
    """
    features, counts = jnp.asarray(features, float), jnp.asarray(counts, float)
    require_data(features, counts, ridge)
    require_finite_optimum(features, counts, ridge)
    return _newton(features, counts, jnp.asarray(ridge, features.dtype))


def require_counts(counts: Float[ArrayLike, "K K"]) -> None:
    """Refuse what is no table of preferences: [K, K], >= 0, not empty, no arm against itself."""
    checks.require_preferences("counts", counts)
    values = checks.concrete(counts)
    if values is not None and np.diag(values).any():
        arm = int(np.argmax(np.diag(values) > 0))
        raise InvalidInput(f"counts prefers arm {arm} to itself; a pair needs two different arms")


def require_data(
    features: Float[Array, "K F"], counts: Float[Array, "K K"], ridge: ArrayLike = 0.0
) -> None:
    """Refuse counts that are no preferences, features that do not fit them, and a ridge < 0."""
    require_counts(counts)
    checks.require_features("features", features, len(counts))
    checks.require_finite("ridge", ridge)
    checks.require_nonnegative("ridge", ridge)


def require_finite_optimum(
    features: Float[ArrayLike, "K F"],
    counts: Float[ArrayLike, "K K"],
    ridge: ArrayLike = 0.0,
    remedy: str = "ridge is 0; choose one > 0",
) -> None:
    """Refuse separable data without a ridge: some w ranks every pair right, and one strictly."""
    rows, table, strength = (checks.concrete(x) for x in (features, counts, ridge))
    if rows is None or table is None or strength is None or strength.max() > 0:
        return
    winners, losers = np.nonzero(table)
    differences = rows.astype(np.float64)[winners] - rows[losers]
    # So that the tolerance below does not depend on the features' units.
    differences = differences / max(np.abs(differences).max(), np.finfo(np.float64).tiny)
    # max Σ (φ_w − φ_l) w over the box, with every term >= 0: positive if and only if separable.
    result = optimize.linprog(
        -differences.sum(axis=0),
        A_ub=-differences,
        b_ub=np.zeros(len(differences)),
        bounds=(-1, 1),
    )
    if -result.fun > 1e-9:
        raise InvalidInput(
            "the preferences are separable, so the maximum-likelihood reward is infinite; " + remedy
        )


@jax.jit
def _newton(
    features: Float[Array, "K F"], counts: Float[Array, "K K"], ridge: Float[Array, ""]
) -> Float[Array, " F"]:
    pairs = (counts + counts.T) / counts.sum()

    def loss(weights: Float[Array, " F"]) -> Float[Array, ""]:
        return bradley_terry_loss(features @ weights, counts) + ridge / 2 * weights @ weights

    def hessian(weights: Float[Array, " F"]) -> Float[Array, "F F"]:
        rewards = features @ weights
        odds = jax.nn.sigmoid(rewards[:, None] - rewards[None, :])
        curvature = pairs * odds * (1 - odds)
        laplacian = jnp.diag(curvature.sum(axis=1)) - curvature
        return features.T @ laplacian @ features + ridge * jnp.eye(weights.size)

    return convex.minimize(loss, jnp.zeros(features.shape[1]), curvature=hessian)
