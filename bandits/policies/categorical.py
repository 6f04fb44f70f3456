"""Policies over K arms: a table, a log-linear model of features, models of the context."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.kernels.lookup import look_up
from bandits.policies import sampling
from bandits.policies.base import Params, Policy, log_normalizer, require_key
from bandits.policies.network import Dense, apply_dense, apply_layers, init_layers, layer_norm
from theory.checks import InvalidInput

Logits = Callable[..., Float[Array, " K"]]


def tabular_softmax(num_arms: int | None = None) -> Policy:
    """Return the policy log p = θ − logsumexp(θ) with the logits θ ``[K]`` for parameters.

    The logits start at log p, where ``-inf`` excludes an arm, or at random with ``num_arms`` and a
    key: standard normal.

    >>> policy = tabular_softmax()
    >>> logits = policy.init(jnp.log(jnp.array([0.5, 0.25, 0.25])))
    >>> [round(float(p), 2) for p in jnp.exp(policy.log_probs(logits, None))]
    [0.5, 0.25, 0.25]
    """

    def init(
        log_probs: Float[Array, " K"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, " K"]:
        if log_probs is not None:
            return log_probs
        if num_arms is None or key is None:
            raise InvalidInput("a table starts at log_probs, or at random with num_arms and a key")
        return jax.random.normal(key, (num_arms,))

    return _over_arms(init, lambda logits, context=None: logits)


def log_linear(
    features: Float[Array, "K F"], base_log_probs: Float[Array, " K"] | None = None
) -> Policy:
    """Return the policy p(a) ∝ p_0(a) exp(φ(a)·θ): arms that share features φ move together.

    Its parameters θ ``[F]`` start at 0, where p = p_0 (``base_log_probs``, uniform by default), or
    at random with a key: standard normal.
    """
    chex.assert_rank(features, 2)
    base = jnp.zeros(len(features)) if base_log_probs is None else base_log_probs
    chex.assert_equal_shape_prefix([features, base], 1)

    def init(
        log_probs: Float[Array, " K"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, " F"]:
        if log_probs is not None:
            raise InvalidInput("log_linear starts at its base; give base_log_probs instead")
        size = features.shape[1]
        return jnp.zeros(size) if key is None else jax.random.normal(key, (size,))

    return _over_arms(init, lambda theta, context=None: base + features @ theta)


def context_linear(num_arms: int, context_size: int) -> Policy:
    """Return the policy log π(·|x) = x Θ − logsumexp, linear in the context; Θ is ``[d, K]``.

    Its parameters start at random, standard normal over √d. To start at a linear reference, take
    the reference's weights for Θ.
    """

    def init(
        log_probs: Float[Array, " K"] | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "d K"]:
        if log_probs is not None:
            raise InvalidInput("context_linear has no bias; take a linear reference's weights")
        key = require_key("a linear policy", key)
        return jax.random.normal(key, (context_size, num_arms)) / context_size**0.5

    return _over_arms(init, lambda weights, context: context @ weights)


def context_residual(
    base: Callable[[Float[Array, " d"]], Float[Array, " K"]],
    num_arms: int,
    context_size: int,
    widths: Sequence[int] = (64,),
) -> Policy:
    """Return the policy log π(·|x) = base(x) + MLP(x) − logsumexp, which starts at its base.

    ``base`` maps a context to log-probabilities or logits. The hidden layers start at random and
    the last one at 0.
    """
    sizes = (context_size, *widths, num_arms)

    def init(
        log_probs: Float[Array, " K"] | None = None, key: PRNGKeyArray | None = None
    ) -> list[Dense]:
        if log_probs is not None:
            raise InvalidInput("context_residual starts at its base; give another base instead")
        key = require_key("a network", key)
        *hidden, last = init_layers(key, list(itertools.pairwise(sizes)))
        return [*hidden, jax.tree.map(jnp.zeros_like, last)]

    return _over_arms(init, lambda layers, context: base(context) + apply_layers(layers, context))


def context_network(
    num_arms: int, context_size: int, widths: Sequence[int] = (50, 256, 256)
) -> Policy:
    """Return a multilayer perceptron of the context: the published bandit's policy.

    context ``[d]`` → dense, LayerNorm, ReLU → dense, ReLU → … → K logits. Weights and biases start
    uniform in ±1/√(inputs). To start at given log-probabilities exactly, the last layer starts with
    weights 0 and those for its bias.
    """
    sizes = (context_size, *widths, num_arms)

    def init(
        log_probs: Float[Array, " K"] | None = None, key: PRNGKeyArray | None = None
    ) -> list[Dense]:
        layers = init_layers(require_key("a network", key), list(itertools.pairwise(sizes)))
        if log_probs is not None:
            layers[-1] = Dense(jnp.zeros_like(layers[-1].kernel), jnp.asarray(log_probs, float))
        return layers

    def logits(layers: list[Dense], context: Float[Array, " d"]) -> Float[Array, " K"]:
        first, *others = layers
        x = jax.nn.relu(layer_norm(apply_dense(first, context)))
        return apply_layers(others, x)

    return _over_arms(init, logits)


def _over_arms(init: Callable[..., Params], logits: Logits) -> Policy:
    """Return the policy whose responses are arms, from the logits of all of them."""

    def log_probs(params: Params, context: Any = None) -> Float[Array, " K"]:
        return jax.nn.log_softmax(logits(params, context))

    def log_prob(params: Params, context: Any, arms: Int[Array, " C"]) -> Float[Array, " C"]:
        return look_up(log_probs(params, context), arms)

    def sample(params: Params, key: PRNGKeyArray, context: Any, count: int) -> Int[Array, " C"]:
        return sampling.sample_categorical(key, log_probs(params, context), count)

    def scored(
        params: Params, context: Any, arms: Int[Array, " C"]
    ) -> tuple[Float[Array, " C"], Float[Array, ""]]:
        of_all = logits(params, context)
        return look_up(of_all, arms), log_normalizer(of_all)

    return Policy(init, log_probs, log_prob, sample, scored)
