"""The contract: what a policy is, and how it is brought to a reference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.fitting import minimize
from theory import distributions

Params = Any
"""A pytree of arrays."""


class Policy(NamedTuple):
    """Pure functions over a pytree of parameters, in the manner of an optax transformation.

    A response is an arm (an integer) or a sequence of tokens ``[L]``; a context is what the policy
    is conditioned on, ``None`` where it is not.

    Attributes:
      init: (log_probs, key) -> parameters. With log-probabilities ``[K]`` the policy is exactly
        those on every context (for sequences they are each token's law); with None it is random.
      log_probs: (parameters, context) -> log-probabilities ``[K]`` of the whole response space, in
        the order of `sequences.all_sequences` where responses are sequences. For small spaces.
      log_prob: (parameters, context, responses ``[C, ...]``) -> their log-probabilities ``[C]``.
      sample: (parameters, key, context, C) -> responses ``[C, ...]``, independent draws.
      scored: (parameters, context, responses) -> their scores ``[C]`` and the log-normaliser of the
        context, log π = score − log-normaliser: logits, where the policy has them. None where all
        responses to a context share no normaliser.
    """

    init: Callable[..., Params]
    log_probs: Callable[..., Float[Array, " K"]]
    log_prob: Callable[[Params, Any, Array], Float[Array, " C"]]
    sample: Callable[[Params, PRNGKeyArray, Any, int], Array]
    scored: Callable[[Params, Any, Array], tuple[Float[Array, " C"], Float[Array, ""]]] | None = (
        None
    )

    def score(
        self, params: Params, context: Any, responses: Array
    ) -> tuple[Float[Array, " C"], Float[Array, ""] | float]:
        """Return scores ``[C]`` and a log-normaliser: those of ``scored``, or log π and 0."""
        if self.scored is None:
            return self.log_prob(params, context, responses), 0.0
        return self.scored(params, context, responses)


def log_normalizer(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Return log Σ exp θ over the last axis; NaN beside an infinite logit, as in log-softmax.

    `jax.nn.logsumexp` would be ∞ there, and a run that diverged would pass for one with log π = −∞.
    """
    greatest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return greatest[..., 0] + jnp.log(jnp.sum(jnp.exp(logits - greatest), axis=-1))


def distill(
    policy: Policy,
    params: Params,
    contexts: Float[Array, "n d"],
    log_probs: Float[Array, " K"],
    *,
    learning_rate: float = 1e-2,
    steps: int = 100,
) -> Params:
    """Parameters moved to a reference by the mean reverse KL(π‖π_ref) over the contexts, with Adam.

    The defaults are those of the published bandit, whose policies start this way.
    """

    def divergence(params: Params) -> Float[Array, ""]:
        of_contexts = jax.vmap(policy.log_probs, in_axes=(None, 0))(params, contexts)
        return distributions.kl_divergence(of_contexts, log_probs).mean()

    return minimize(divergence, params, optax.adam(learning_rate), steps)
