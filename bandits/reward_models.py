"""Learned rewards: Bradley–Terry maximum likelihood on counted preferences.

P(a ≻ b) = σ(r_a − r_b). With n_ab the number of times a was preferred to b, the loss is

    L(r) = −Σ_ab n_ab log σ(r_a − r_b) / Σ n + (ridge/2) ‖parameters‖²,

convex in rewards that are linear in their parameters. Without a ridge its minimum is at infinity
where the data are separable: some set of arms never lost to the others.
"""

import itertools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import optimize

from bandits.policies.network import Dense, apply_layers, init_layers, minimize
from theory import checks
from theory.checks import InvalidInput

NEWTON_STEPS = 50
"""Newton's method with halved steps needs fewer than 20 on every instance met; the rest is free."""

HALVINGS = 30


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

    Args:
      features: φ, a row an arm.
      counts: [a, b], how often a was preferred to b; any weights >= 0.
      ridge: coefficient of ‖w‖²/2, >= 0, relative to the mean loss of a label.

    Raises:
      InvalidInput: no data, negative or non-finite numbers, a preference of an arm against itself,
        shapes that do not match, or separable data without a ridge.
    """
    features, counts = jnp.asarray(features, float), jnp.asarray(counts, float)
    _require_data(features, counts, ridge)
    _require_finite_optimum(features, counts, ridge)
    return _newton(features, counts, jnp.asarray(ridge, features.dtype))


def fit_network(
    key: PRNGKeyArray,
    features: Float[ArrayLike, "K F"],
    counts: Float[ArrayLike, "K K"],
    *,
    widths: Sequence[int] = (64, 64),
    ridge: ArrayLike = 1e-4,
    learning_rate: ArrayLike = 1e-2,
    steps: int = 500,
) -> list[Dense]:
    """A multilayer perceptron φ → r, fitted with Adam; `network_rewards` evaluates it.

    Args:
      key: of the initial weights.
      features: φ, a row an arm.
      counts: as in `fit_linear`.
      widths: of the hidden layers, ReLU.
      ridge: coefficient of the squared parameters over 2, >= 0.
      learning_rate: of Adam, > 0.
      steps: full-batch steps; with ridge 0 on separable data they are what keeps rewards finite.

    Raises InvalidInput as `fit_linear` does, but for separable data.
    """
    features, counts = jnp.asarray(features, float), jnp.asarray(counts, float)
    _require_data(features, counts, ridge)
    checks.require_positive("learning_rate", learning_rate)
    sizes = (features.shape[-1], *widths, 1)
    layers = init_layers(key, list(itertools.pairwise(sizes)))

    def loss(layers: list[Dense]) -> Float[Array, ""]:
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layers))
        return bradley_terry_loss(network_rewards(layers, features), counts) + ridge / 2 * squares

    return minimize(loss, layers, optax.adam(learning_rate), steps)


def network_rewards(layers: list[Dense], features: Float[Array, "K F"]) -> Float[Array, " K"]:
    """The rewards of a fitted network, in nats of log-odds, up to a constant."""
    return apply_layers(layers, features)[..., 0]


@jax.jit
def _newton(
    features: Float[Array, "K F"], counts: Float[Array, "K K"], ridge: Float[Array, ""]
) -> Float[Array, " F"]:
    def loss(weights: Float[Array, " F"]) -> Float[Array, ""]:
        return bradley_terry_loss(features @ weights, counts) + ridge / 2 * weights @ weights

    pairs = (counts + counts.T) / counts.sum()

    def step(_: int, weights: Float[Array, " F"]) -> Float[Array, " F"]:
        gradient = jax.grad(loss)(weights)
        rewards = features @ weights
        odds = jax.nn.sigmoid(rewards[:, None] - rewards[None, :])
        curvature = pairs * odds * (1 - odds)
        laplacian = jnp.diag(curvature.sum(axis=1)) - curvature
        hessian = features.T @ laplacian @ features + ridge * jnp.eye(weights.size)
        # The least-squares solution leaves directions that no label speaks of where they are.
        direction = jnp.linalg.lstsq(hessian, gradient)[0]
        return weights - _halved(loss, weights, direction) * direction

    return jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.zeros(features.shape[1]))


def _halved(
    loss: Callable[[Array], Float[Array, ""]], weights: Array, direction: Array
) -> Float[Array, ""]:
    """The largest of 1, ½, ¼ … at which the step does not raise the loss; 0 if none."""
    sizes = 0.5 ** jnp.arange(HALVINGS)
    losses = jax.vmap(lambda size: loss(weights - size * direction))(sizes)
    # At the optimum the last bit decides; a full step must not count as a rise for it.
    now = loss(weights)
    lowers = losses <= now + 4 * jnp.finfo(now.dtype).eps * jnp.abs(now)
    return jnp.where(lowers.any(), sizes[jnp.argmax(lowers)], 0.0)


def require_counts(counts: Float[ArrayLike, "K K"]) -> None:
    """Refuse what is no table of preferences: [K, K], >= 0, not empty, no arm against itself."""
    checks.require_preferences("counts", counts)
    values = checks.concrete(counts)
    if values is not None and np.diag(values).any():
        arm = int(np.argmax(np.diag(values) > 0))
        raise InvalidInput(f"counts prefers arm {arm} to itself; a pair needs two different arms")


def _require_data(
    features: Float[Array, "K F"], counts: Float[Array, "K K"], ridge: ArrayLike
) -> None:
    require_counts(counts)
    if features.ndim != 2 or len(features) != len(counts):
        raise InvalidInput(
            f"features has shape {features.shape}; it needs one row for each of {len(counts)} arms"
        )
    checks.require_finite("features", features)
    checks.require_finite("ridge", ridge)
    checks.require_nonnegative("ridge", ridge)


def _require_finite_optimum(
    features: Float[Array, "K F"], counts: Float[Array, "K K"], ridge: ArrayLike
) -> None:
    """Refuse separable data without a ridge: some w ranks every pair right, and one strictly."""
    if any(isinstance(x, jax.core.Tracer) for x in (features, counts, ridge)):
        return
    if float(np.max(np.asarray(ridge))) > 0:
        return
    winners, losers = np.nonzero(np.asarray(counts))
    differences = np.asarray(features, np.float64)[winners] - np.asarray(features)[losers]
    # max Σ (φ_w − φ_l) w over the box, with every term >= 0: positive if and only if separable.
    result = optimize.linprog(
        -differences.sum(axis=0),
        A_ub=-differences,
        b_ub=np.zeros(len(differences)),
        bounds=(-1, 1),
    )
    if -result.fun > 1e-9:
        raise InvalidInput(
            "ridge is 0 but the preferences are separable, so the maximum-likelihood reward is "
            "infinite; choose a ridge > 0"
        )
