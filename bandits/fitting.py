"""Full-batch descent of a loss by any optimiser, compiled as one loop."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from bandits.scan import record_scan


def minimize(
    loss: Callable[[Any], Float[Array, ""]],
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Any:
    """Return the parameters after so many full-batch steps of an optimiser.

    Args:
      loss: parameters -> a scalar.
      params: where to start, a pytree.
      optimizer: any optax optimiser.
      steps: number of steps, >= 0.
    """

    def step(_: Array, carry: tuple[Any, optax.OptState]) -> tuple[Any, optax.OptState]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = (params, optimizer.init(params))
    (params, _), _ = record_scan(step, start, [steps], lambda carry: (carry, None))
    return params
