"""Exact descent: a loss over all arms moves a tabular softmax policy, without sampling noise."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.kernels import has_twin
from bandits.losses.divergences import Divergence
from bandits.policies import tabular_softmax
from bandits.scan import record_scan
from theory import checks
from theory.types import LogProbs, Positive, checked

OptimizerFactory = Callable[[ArrayLike], optax.GradientTransformation]


@checked
def descend(
    loss: Divergence,
    initial_log_probs: LogProbs,
    target_log_probs: LogProbs,
    learning_rate: Positive,
    steps: Sequence[int],
    optimizer: OptimizerFactory = optax.sgd,
    natural_gradient: bool = False,
) -> Float[Array, "steps K"]:
    """Return the policy's log-probabilities after each of the given numbers of gradient steps.

    θ ← θ − update(∇_θ loss(log softmax(θ), log q)), from θ = log p_0.

    The natural gradient divides the gradient g by p. That is F⁻¹g on the simplex: the Fisher matrix
    of a softmax is F = diag(p) − ppᵀ, and F (g/p) = g − p Σg = g, as a gradient in logits sums to
    zero. Arms with no initial mass never get any. All arrays and the learning rate may be traced.

    >>> from bandits import reverse_kl
    >>> start, target = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> path = descend(reverse_kl, start, target, learning_rate=1.0, steps=(0, 1, 100))
    >>> [round(float(p), 2) for p in jnp.exp(path[:, 0])]
    [0.5, 0.75, 0.9]

    Args:
      loss: A function of (log_probs, target_log_probs), such as `bandits.reverse_kl`.
      initial_log_probs: log p_0 ``[K]`` of the start.
      target_log_probs: log q ``[K]``.
      learning_rate: Learning rate.
      steps: Steps at which to record, increasing, each >= 0; 0 is the start.
      optimizer: An optax factory that takes the learning rate, such as ``optax.adam``.
      natural_gradient: Whether to precondition with the inverse Fisher matrix.

    Returns:
      ``[len(steps), K]``, not finite from the step on at which the descent diverged.

    Raises:
      InvalidInput: For what the types do not allow, and for steps that do not increase.
    """
    _require_steps(steps)
    checks.require_one_problem(
        "descend",
        initial_log_probs=(initial_log_probs, 1),
        target_log_probs=(target_log_probs, 1),
        learning_rate=(learning_rate, 0),
    )
    given = map(jnp.asarray, (initial_log_probs, target_log_probs, learning_rate))
    return follow(loss, optimizer, natural_gradient, tuple(steps), *given)


@has_twin
def follow(
    loss: Divergence,
    optimizer: OptimizerFactory,
    natural_gradient: bool,
    steps: tuple[int, ...],
    initial_log_probs: Float[Array, " K"],
    target_log_probs: Float[Array, " K"],
    learning_rate: Float[Array, ""],
) -> Float[Array, "steps K"]:
    """Return the descent of any loss by any optimiser, ``[len(steps), K]``."""
    policy = tabular_softmax()
    transform = optimizer(learning_rate)
    support = jnp.isfinite(initial_log_probs)

    def objective(logits: Float[Array, " K"]) -> tuple[Float[Array, ""], Float[Array, " K"]]:
        log_probs = policy.log_probs(logits)
        return loss(log_probs, target_log_probs), log_probs

    def update(logits: Array, state: optax.OptState) -> tuple[Array, optax.OptState]:
        gradient, log_probs = jax.grad(objective, has_aux=True)(logits)
        if natural_gradient:
            probs = jnp.exp(log_probs)
            gradient = jnp.where(probs > 0, gradient / jnp.where(probs > 0, probs, 1.0), 0.0)
        # An excluded arm's logit is −∞, which decay or noise in an optimiser would turn into NaN.
        updates, state = transform.update(gradient, state, jnp.where(support, logits, 0.0))
        return jnp.where(support, updates, 0.0), state

    logits = policy.init(initial_log_probs)
    state = transform.init(jnp.where(support, logits, 0.0))
    return jax.vmap(policy.log_probs)(record(update, logits, state, steps))


def record(
    update: Callable[[Array, optax.OptState], tuple[Array, optax.OptState]],
    logits: Array,
    state: optax.OptState,
    steps: Sequence[int],
) -> Array:
    """Return the logits after each of the given numbers of updates, along a new first axis."""

    def step(_: Array, carry: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        logits, state = carry
        updates, state = update(logits, state)
        return logits + updates.astype(logits.dtype), state

    return record_scan(step, (logits, state), steps, lambda carry: (carry, carry[0]))[1]


def log_spaced_steps(last: int, per_decade: int = 20) -> tuple[int, ...]:
    """Return 0, 1 and steps up to ``last``, evenly spaced on a log scale, without repeats."""
    if last < 1 or per_decade < 1:
        raise checks.InvalidInput(
            f"last is {last} and per_decade {per_decade}; both must be at least 1"
        )
    count = int(np.ceil(np.log10(last) * per_decade)) + 1
    return (0, *np.unique(np.geomspace(1, last, count).round().astype(int)).tolist())


def _require_steps(steps: Sequence[int]) -> None:
    values = np.asarray(steps)
    if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise checks.InvalidInput(f"steps is {steps!r}; give a list of at least one whole number")
    if values[0] < 0 or (np.diff(values.astype(np.int64)) <= 0).any():
        raise checks.InvalidInput(f"steps is {steps!r}; they must be >= 0 and strictly increase")
