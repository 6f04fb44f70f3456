"""Where network policies start: a network distilled to the reference, and contexts, for every seed.

Of a problem whose reward ignores the context, as T24's bandit is published. Source:
arXiv:2404.14367, section 5.
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
"""Numbers in a context, uniform in [0, 1]."""

TRAINING_CONTEXTS = 200
"""Contexts to train on that a seed has in store."""

FRESH_CONTEXTS = 64
"""Contexts on which policies are judged."""

DISTILLED_ON = 64
"""Training contexts, the first, on which a network is brought to the reference."""

BLOCK_RUNS = 4
"""Runs in one vmapped program: their Adam states together stay in a core's cache."""


class Start(NamedTuple):
    """Where the runs of every seed start, arrays with a leading axis of seeds.

    Attributes:
      params: the distilled networks.
      contexts: to train on; fewer are the first of more.
      fresh: contexts that are never trained on.
    """

    params: Params
    contexts: Float[Array, "seeds n d"]
    fresh: Float[Array, "seeds n d"]


@functools.cache
def published_network(num_arms: int, context_size: int = CONTEXT_SIZE) -> Policy:
    """The network; the same object each time, so that compiled programs are found again."""
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
    """A distilled network, training contexts and fresh ones for every seed.

    Args:
      policy: over K arms, given a context.
      seeds: whole numbers >= 0 of 32 bits.
      reference_log_probs: what each network is distilled to, in nats.
      context_size: d, numbers in a context.
      training_contexts: how many of them a seed gets.
      fresh_contexts: how many to judge on.
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
    """Compiled as a sweep is: the command and Python then start from the same bits."""

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
