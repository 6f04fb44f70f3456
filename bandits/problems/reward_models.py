"""Learned rewards: Bradley–Terry maximum likelihood on counted preferences, by class of reward.

Tables and linear rewards are convex problems, solved exactly by `theory.bradley_terry`, whose
functions stand here beside the network's. A ridge means the same in all three fits: 1/s² for a
Gaussian prior of standard deviation s on each parameter, which fades as labels are added.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.fitting import minimize
from bandits.policies.network import Dense, apply_layers, init_layers
from theory.bradley_terry import RIDGE, bradley_terry_loss, fit_linear, fit_tabular
from theory.types import Features, FiniteNonNegative, Positive, Preferences, checked

__all__ = ["bradley_terry_loss", "fit_linear", "fit_network", "fit_tabular", "network_rewards"]


@checked
def fit_network(
    key: PRNGKeyArray,
    features: Features,
    counts: Preferences,
    *,
    widths: Sequence[int] = (64, 64),
    ridge: FiniteNonNegative = RIDGE,
    learning_rate: Positive = 1e-2,
    steps: int = 500,
) -> list[Dense]:
    """Fit a multilayer perceptron φ → r with Adam; `network_rewards` evaluates it.

    Adam minimises −Σ n_ab log σ(r_a − r_b) + (ridge/2) ‖θ‖², divided by Σ n.

    Args:
      key: Key of the initial weights.
      features: φ ``[K, F]``, a row for each arm.
      counts: ``[K, K]``, [a, b] how often a was preferred to b; any weights >= 0.
      widths: Units of each hidden layer, ReLU.
      ridge: Coefficient of ‖θ‖²/2, >= 0, θ all weights and biases: 1/s² for a Gaussian prior of
        standard deviation s on each. It is not relative to the number of labels.
      learning_rate: Learning rate of Adam, > 0.
      steps: Number of full-batch steps; with ridge 0 on separable data they alone keep the rewards
        finite.

    Returns:
      The layers, for `network_rewards`.

    Raises:
      InvalidInput: What `fit_linear` refuses, except separable data.
    """
    features, counts = jnp.asarray(features, float), jnp.asarray(counts, float)
    sizes = (features.shape[-1], *widths, 1)
    layers = init_layers(key, list(itertools.pairwise(sizes)))

    shrinkage = ridge / (2 * jnp.sum(counts))  # the loss is the mean of a label

    def loss(layers: list[Dense]) -> Float[Array, ""]:
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layers))
        return bradley_terry_loss(network_rewards(layers, features), counts) + shrinkage * squares

    return minimize(loss, layers, optax.adam(learning_rate), steps)


def network_rewards(layers: list[Dense], features: Float[Array, "K F"]) -> Float[Array, " K"]:
    """Return the rewards of a fitted network, in nats of log-odds, up to a constant."""
    return apply_layers(layers, features)[..., 0]
