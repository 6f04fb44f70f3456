"""Data along the first axes, what vmap adds along the last: the way round that fills vectors.

XLA sums over the first axis in vectors, and over the last number by number; a last axis of ten
numbers fills no vector. With what vmap adds there instead, it holds all the runs of a sweep.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

MOST_RESPONSES = 64
"""Of a group: the table of the pairs of a larger one fills vectors, and caches, by itself."""


def in_columns(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of arrays alone, with the axes that vmap adds last instead of first.

    ``f`` must let further axes follow those of its own, in every argument, and broadcast them: an
    argument that is not mapped over has 1 there. ``jax.grad`` of the result fails ("Linearization
    failed to produce known values"), for JAX cannot transpose what maps in its own way: give it a
    rule by ``jax.custom_jvp``, or stop the gradient of what goes in.
    """
    return _in_columns(f, mapped=0)


def _in_columns(f: Callable[..., Any], mapped: int) -> Callable[..., Any]:
    """The function, whose arguments' last axes are those of so many vmaps: further ones go before.

    In this order, that of plain vmap, to turn an array takes one swap of two axes.
    """
    run = jax.custom_batching.custom_vmap(f)

    @run.def_vmap
    def run_columns(size: int, batched: list[bool], *arguments: Array) -> tuple[Any, Any]:
        columns = (
            jnp.moveaxis(value, 0, value.ndim - 1 - mapped)
            if is_batched
            else jnp.expand_dims(value, value.ndim - mapped)
            for value, is_batched in zip(map(jnp.asarray, arguments), batched, strict=True)
        )
        results = jax.tree.map(
            lambda result: jnp.moveaxis(result, result.ndim - 1 - mapped, 0),
            _in_columns(f, mapped + 1)(*columns),
        )
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
