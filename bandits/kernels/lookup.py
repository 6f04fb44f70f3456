"""Look arms up in a table: under vmap, all tables are one long table.

vmap turns ``table[arms]`` into a lookup by row and column, for which XLA builds pairs of numbers
first. Places in one long table take half the time.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from bandits import kernels

MOST_PLACES = np.iinfo(np.int32).max
"""Largest number of entries in the tables of one lookup: JAX's integers have 32 bits."""


def look_up(table: Num[Array, " K"], arms: Int[Array, "*shape"]) -> Num[Array, "*shape"]:
    """Return ``table[arms]`` for arms from 0 to K − 1; others count as the nearest of those."""
    return _as_one_table(table, arms) if kernels.are_on() else _plainly(table, arms)


def _plainly(table: Array, arms: Array) -> Array:
    return table.at[arms].get(mode="clip", wrap_negative_indices=False)


@jax.custom_jvp
def _as_one_table(table: Num[Array, " K"], arms: Int[Array, "*shape"]) -> Num[Array, "*shape"]:
    last = min(len(table) - 1, jnp.iinfo(arms.dtype).max)
    # As whole numbers of JAX's own: those of few bits have no room for a place in all tables.
    return _at_places(table, jnp.clip(arms, 0, last).astype(int))


@_as_one_table.defjvp
def _as_one_table_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (table, arms), (to_table, _) = primals, tangents
    # Nothing of its own under vmap here: what is could not be transposed.
    return _as_one_table(table, arms), _plainly(to_table, arms)


@jax.custom_batching.custom_vmap
def _at_places(table: Num[Array, " N"], places: Int[Array, "*shape"]) -> Num[Array, "*shape"]:
    return table.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


@_at_places.def_vmap
def _at_places_of_all(
    size: int, batched: list[bool], tables: Array, places: Array
) -> tuple[Array, bool]:
    if not batched[0]:
        return _at_places(tables, places), True
    if not batched[1]:
        places = jnp.broadcast_to(places, (size, *places.shape))
    if tables.size > MOST_PLACES:
        return jax.vmap(lambda table, places: table[places])(tables, places), True
    own = tables.shape[1]
    starts = own * jnp.arange(size, dtype=places.dtype)
    places += starts.reshape(size, *[1] * (places.ndim - 1))
    return _at_places(tables.reshape(-1), places), True
