"""Learned rewards: Bradley–Terry maximum likelihood on counted preferences, by class of reward.

Tables and linear rewards are convex problems, solved exactly by `theory.bradley_terry`, whose
functions stand here beside the network's.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.fitting import minimize
from bandits.policies.network import Dense, apply_layers, init_layers
from theory import checks
from theory.bradley_terry import (
    bradley_terry_loss,
    fit_linear,
    fit_tabular,
    require_counts,
    require_data,
)

__all__ = [
    "bradley_terry_loss",
    "fit_linear",
    "fit_network",
    "fit_tabular",
    "network_rewards",
    "require_counts",
]


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
    require_data(features, counts, ridge)
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
