"""Layers of neural policies and reward models."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class Dense(NamedTuple):
    """An affine map x → x kernel + bias: kernel ``[inputs, outputs]``, bias ``[outputs]``."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]


def init_layers(key: PRNGKeyArray, shapes: Sequence[tuple[int, int]]) -> list[Dense]:
    """Return layers of the given (inputs, outputs), weights and biases uniform in ±1/√inputs.

    One draw gives all numbers, as a draw for each layer multiplies the compile time.
    """
    sizes = [(inputs + 1) * outputs for inputs, outputs in shapes]
    numbers = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
    parts = jnp.split(numbers, np.cumsum(sizes)[:-1])
    layers = [
        part.reshape(inputs + 1, outputs) * inputs**-0.5
        for part, (inputs, outputs) in zip(parts, shapes, strict=True)
    ]
    return [Dense(kernel=layer[:-1], bias=layer[-1]) for layer in layers]


def apply_dense(layer: Dense, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """Return x kernel + bias."""
    return x @ layer.kernel + layer.bias


def apply_layers(
    layers: Sequence[Dense], x: Float[Array, "*batch inputs"]
) -> Float[Array, "*batch outputs"]:
    """Return what the layers make of x, with ReLU between them."""
    *hidden, last = layers
    for layer in hidden:
        x = jax.nn.relu(apply_dense(layer, x))
    return apply_dense(last, x)


def layer_norm(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Return x with mean 0 and variance 1 over the last axis, without gain or bias."""
    return jax.nn.standardize(jnp.asarray(x), epsilon=1e-5)
