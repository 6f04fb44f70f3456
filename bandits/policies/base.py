"""What a policy is, and how it is brought to a reference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.fitting import minimize
from theory import distributions
from theory.checks import InvalidInput

Params = Any
"""A pytree of arrays."""


class Policy(NamedTuple):
    """A policy as pure functions over a pytree of parameters, as optax writes an optimiser.

    A response is an arm (an integer) or a sequence of tokens ``[L]``. A context is what the policy
    is conditioned on, or None.

    Attributes:
      init: (log_probs, key) -> parameters. With log-probabilities ``[K]`` the policy has exactly
        those on every context (for sequences they are each token's law); with None it is random.
      log_probs: (parameters, context) -> log-probabilities ``[K]`` of the whole response space, for
        small spaces. Sequences have the order of `sequences.all_sequences`.
      log_prob: (parameters, context, responses ``[C, ...]``) -> their log-probabilities ``[C]``.
      sample: (parameters, key, context, C) -> responses ``[C, ...]``, independent draws.
      scored: (parameters, context, responses) -> scores ``[C]``, such as logits, and the context's
        log-normaliser, with log π = score − log-normaliser. None where the responses to a context
        share no normaliser.
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


def require_key(what: str, key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return the key, refused where there is none for what starts at random."""
    if key is None:
        raise InvalidInput(f"{what} starts at random; give a key")
    return key


def log_normalizer(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Return log Σ exp θ over the last axis, and NaN beside an infinite logit, as log-softmax does.

    `jax.nn.logsumexp` is ∞ there, so that a run that diverged would look like one with log π = −∞.
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
    """Return parameters moved to a reference: Adam lowers the mean KL(π‖π_ref) over contexts.

    The defaults are those of the published bandit, whose policies start this way.
    """

    def divergence(params: Params) -> Float[Array, ""]:
        of_contexts = jax.vmap(policy.log_probs, in_axes=(None, 0))(params, contexts)
        return distributions.kl_divergence(of_contexts, log_probs).mean()

    return minimize(divergence, params, optax.adam(learning_rate), steps)
