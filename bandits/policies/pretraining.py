"""Where network policies start: for every seed, a network distilled to the reference, and contexts.

The reward ignores the context, as in T24's published bandit. Source: arXiv:2404.14367, section 5.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bandits.kernels.compiler import compiler_options
from bandits.keys import split_seed
from bandits.policies import Params, Policy, context_network, distill

CONTEXT_SIZE = 100
"""Size of a context; its numbers are uniform in [0, 1]."""

TRAINING_CONTEXTS = 200
"""Number of training contexts of a seed."""

FRESH_CONTEXTS = 64
"""Number of contexts on which policies are judged."""

DISTILLED_ON = 64
"""Number of the first training contexts, on which a network is brought to the reference."""

BLOCK_RUNS = 4
"""Runs in one vmapped program, so that their Adam states stay in a core's cache."""


class Start(NamedTuple):
    """Where the runs of every seed start, arrays with a leading axis of seeds.

    Attributes:
      params: The distilled networks.
      contexts: Training contexts; a smaller number are the first of a larger one.
      fresh: Contexts that are never trained on.
    """

    params: Params
    contexts: Float[Array, "seeds n d"]
    fresh: Float[Array, "seeds n d"]


@functools.cache
def published_network(num_arms: int, context_size: int = CONTEXT_SIZE) -> Policy:
    """Return the network, the same object each time, so that compiled programs are reused."""
    return context_network(num_arms, context_size)


def make_starts(
    policy: Policy,
    seeds: Int[Array, " seeds"],
    reference_log_probs: Float[Array, " K"],
    *,
    context_size: int = CONTEXT_SIZE,
    training_contexts: int = TRAINING_CONTEXTS,
    fresh_contexts: int = FRESH_CONTEXTS,
) -> Start:
    """Return a distilled network, training contexts and fresh contexts for every seed.

    Args:
      policy: A policy over K arms, given a context.
      seeds: Whole numbers >= 0 of 32 bits.
      reference_log_probs: Log-probabilities that each network is distilled to, in nats.
      context_size: d, the size of a context.
      training_contexts: Number of training contexts.
      fresh_contexts: Number of fresh contexts.
    """
    sizes = context_size, training_contexts, fresh_contexts
    return _compiled(jax.local_devices()[0], policy, *sizes)(seeds, reference_log_probs)


@functools.cache
def _compiled(
    device: jax.Device,
    policy: Policy,
    context_size: int,
    training_contexts: int,
    fresh_contexts: int,
) -> Callable[..., Start]:
    """Return the program, compiled as in a sweep, so that command and Python have the same bits."""

    def start(seed: Int[Array, ""], reference_log_probs: Float[Array, " K"]) -> Start:
        keys = split_seed(seed)
        drawn = jax.random.uniform(
            keys.contexts, (training_contexts + fresh_contexts, context_size)
        )
        contexts, fresh = jnp.split(drawn, [training_contexts])
        params = policy.init(key=keys.policy)
        params = distill(policy, params, contexts[:DISTILLED_ON], reference_log_probs)
        return Start(params, contexts, fresh)

    options = compiler_options(device, in_one_thread=False)
    return jax.jit(jax.vmap(start, in_axes=(0, None)), compiler_options=options)
