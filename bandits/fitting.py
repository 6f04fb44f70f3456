"""Full-batch descent of a loss by any optimiser, compiled as one loop."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float


def minimize(
    loss: Callable[[Any], Float[Array, ""]],
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Any:
    """The parameters after so many full-batch steps of an optimiser."""

    def step(carry: tuple[Any, optax.OptState], _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params
