"""Data along the first axes, what vmap adds along the last: the way round that fills vectors.

XLA sums over the first axis in vectors, and over the last number by number; a last axis of ten
numbers fills no vector. With what vmap adds there instead, it holds all the runs of a sweep.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

MOST_RESPONSES = 64
"""Of a group: the table of the pairs of a larger one fills vectors, and caches, by itself."""


def in_columns(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of arrays alone, with all that vmap adds in one last axis.

    ``f`` must let such an axis follow those of its own, in every argument, and broadcast it: an
    argument that is not mapped over has 1 there. ``jax.grad`` of the result fails ("Linearization
    failed to produce known values"), for JAX cannot transpose what maps in its own way: give it a
    rule by ``jax.custom_jvp``, or stop the gradient of what goes in.
    """
    return _in_columns(f, columns=None)


def _in_columns(f: Callable[..., Any], columns: int | None) -> Callable[..., Any]:
    """The function where the last axis of every argument has so many columns, or 1, if any."""
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
        results = jax.tree.map(part, _in_columns(f, math.prod(shape))(*joined))
        return results, jax.tree.map(lambda _: True, results)

    return run


def columns_or_table(
    columns: Callable[..., Array], table: Callable[..., Array], *arguments: Array
) -> Array:
    """What is made of the pairs of a group: by the first on a CPU, elsewhere by the second.

    Both give the same. The first goes over the responses one after another, for which a GPU would
    wait; the second makes a table of them all, and serves groups above `MOST_RESPONSES` too. The
    first argument has an entry for each response.
    """
    if len(arguments[0]) > MOST_RESPONSES:
        return table(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=columns, default=table)
