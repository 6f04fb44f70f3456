"""Put data along the first axes and what vmap adds along the last: this fills vectors.

XLA sums over the first axis in vectors, and over the last axis number by number. A last axis of ten
numbers fills no vector; one that vmap adds holds all the runs of a sweep.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

MOST_RESPONSES = 64
"""Largest group that goes by columns: the table of pairs of a larger one fills vectors itself."""


def in_columns(f: Callable[..., Any], columns: int | None = None) -> Callable[..., Any]:
    """Return a function of arrays alone, with all that vmap adds in one last axis.

    ``f`` must let such an axis follow those of its own, in every argument, and broadcast it: an
    argument that is not mapped over has 1 there. ``jax.grad`` of the result fails ("Linearization
    failed to produce known values"), for JAX cannot transpose what maps in its own way: give it a
    rule by ``jax.custom_jvp``, or stop the gradient of what goes in.

    Args:
      f: The function.
      columns: Length of the last axis that every argument of ``f`` has already (or 1), if any.
    """
    run = jax.custom_batching.custom_vmap(f)

    @run.def_vmap
    def run_columns(size: int, batched: list[bool], *arguments: Array) -> tuple[Any, Any]:
        # In the order of vmap: to turn an array, two axes are swapped.
        shape = (size,) if columns is None else (size, columns)

        def join(value: Array, is_batched: bool) -> Array:
            value = jnp.asarray(value)
            own = value.ndim - len(shape) + (not is_batched)
            value = jnp.moveaxis(value, 0, own) if is_batched else jnp.expand_dims(value, own)
            if math.prod(value.shape[own:]) == 1:
                return value.reshape(*value.shape[:own], 1)
            return jnp.broadcast_to(value, (*value.shape[:own], *shape)).reshape(
                *value.shape[:own], -1
            )

        def part(result: Array) -> Array:
            own_shape = result.shape[:-1]
            result = jnp.broadcast_to(result, (*own_shape, math.prod(shape)))
            return jnp.moveaxis(result.reshape(*own_shape, *shape), len(own_shape), 0)

        joined = map(join, arguments, batched)
        results = jax.tree.map(part, in_columns(f, math.prod(shape))(*joined))
        return results, jax.tree.map(lambda _: True, results)

    return run


def columns_or_table(
    columns: Callable[..., Array], table: Callable[..., Array], *arguments: Array
) -> Array:
    """Return what is made of the pairs of a group: on a CPU by ``columns``, elsewhere by ``table``.

    Both give the same. ``columns`` goes over the responses one after another, for which a GPU would
    wait. ``table`` makes a table of all pairs, and serves groups above `MOST_RESPONSES`, too. The
    first argument has an entry for each response.
    """
    if len(arguments[0]) > MOST_RESPONSES:
        return table(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=columns, default=table)
