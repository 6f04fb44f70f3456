"""Minima of smooth convex functions to the precision of the numbers, by damped Newton steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HALVINGS = 100
"""How many step sizes are tried: 1, ½, ¼ …"""

SUFFICIENT = 0.25
"""Share of the decrement that a step must gain; a Newton step near the end gains ½."""

Objective = Callable[[Float[Array, " P"]], Float[Array, ""]]
Curvature = Callable[[Float[Array, " P"]], Float[Array, "P P"]]


def minimize(
    loss: Objective,
    start: Float[Array, " P"],
    *,
    curvature: Curvature | None = None,
    most_steps: int = 50,
) -> Float[Array, " P"]:
    """Return the parameters that minimise a convex loss, from any start.

    θ ← θ − s H⁺∇, with s the largest of 1, ½, ¼ … that lowers the loss by a quarter of s ∇ᵀH⁺∇. The
    steps end when the decrement ∇ᵀH⁺∇ is so small that a last step, whose error is quadratic in the
    one before, is exact. Directions that the loss does not depend on stay where they started.

    >>> [round(float(x), 4) for x in minimize(lambda x: jnp.sum(x - jnp.log(x)), jnp.full(2, 5.0))]
    [1.0, 1.0]

    Args:
      loss: Function of the parameters.
      start: Where the steps begin; finite.
      curvature: H, positive semidefinite; by default the Hessian by autodiff. With another one,
        such as a Fisher matrix, convergence is linear and the loss need not be convex; the result
        is then a stationary point.
      most_steps: Number of steps after which the result is where they are; Newton's method has
        needed fewer than 20 wherever the minimum is finite.
    """
    hessian = jax.hessian(loss) if curvature is None else curvature
    # Bound of the squared distance to the minimum, in the metric of H, before the last step.
    enough = jnp.finfo(start.dtype).eps ** 1.5

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.steps < most_steps) & ~state.done

    def step(state: _State) -> _State:
        value, gradient = jax.value_and_grad(loss)(state.params)
        direction = _apply_pseudoinverse(hessian(state.params), gradient)
        decrement = gradient @ direction
        size = _largest_step(loss, state.params, direction, value, decrement)
        done = (decrement <= enough) | (size == 0.0)
        return _State(state.params - size * direction, state.steps + 1, done)

    first = _State(start, jnp.int32(0), jnp.array(False))
    return jax.lax.while_loop(unfinished, step, first).params


class _State(NamedTuple):
    params: Float[Array, " P"]
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def _apply_pseudoinverse(
    matrix: Float[Array, "P P"], vector: Float[Array, " P"]
) -> Float[Array, " P"]:
    """Return H⁺v of a symmetric H; directions that H does not see are left out."""
    values, vectors = jnp.linalg.eigh(matrix)
    rounding = jnp.finfo(values.dtype).eps * values.size * jnp.max(jnp.abs(values))
    seen = values > rounding
    inverse = jnp.where(seen, 1.0 / jnp.where(seen, values, 1.0), 0.0)
    return vectors @ (inverse * (vectors.T @ vector))


def _largest_step(
    loss: Objective,
    params: Float[Array, " P"],
    direction: Float[Array, " P"],
    value: Float[Array, ""],
    decrement: Float[Array, ""],
) -> Float[Array, ""]:
    """Return the largest of 1, ½, ¼ … that lowers the loss enough; 0 if none."""
    # At the optimum the last bits decide; a full step must not count as a rise for them.
    rounding = 4 * jnp.finfo(value.dtype).eps * (1.0 + jnp.abs(value))

    def too_long(state: tuple[Array, Array]) -> Bool[Array, ""]:
        size, halvings = state
        ceiling = value - SUFFICIENT * size * decrement + rounding
        # Not "above": where the loss is NaN the step is too long as well.
        return (halvings < HALVINGS) & ~(loss(params - size * direction) <= ceiling)

    def halve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        size, halvings = state
        return 0.5 * size, halvings + 1

    size, halvings = jax.lax.while_loop(too_long, halve, (jnp.ones_like(value), jnp.int32(0)))
    return jnp.where(halvings < HALVINGS, size, 0.0)
