"""Give JAX's random bits and keys in a third of the time on a CPU: threefry, written out.

On a CPU JAX runs the 20 rounds of its generator as a loop, to compile sooner, and every turn passes
over all numbers in memory. Written out, they are one pass, and a key costs next to nothing. The
numbers are JAX's own, bit for bit (Salmon et al. 2011, Threefry-2x32-20). Other key types fall back
to `jax.random`, and so does every key where kernels are off.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray, UInt32

from bandits import kernels

DEFAULT = "threefry2x32"
"""Name of JAX's default generator."""

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

Words = UInt32[Array, "*shape"]


def bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Return `jax.random.bits` of 32 bits."""
    if not _is_ours(key) or math.prod(shape) >= 2**32:
        return jax.random.bits(key, shape, jnp.uint32)
    high, low = _count(jax.random.key_data(key), shape)
    return high ^ low


def split(key: PRNGKeyArray, num: int = 2) -> PRNGKeyArray:
    """Return `jax.random.split`, a row of keys."""
    if not _is_ours(key):
        return jax.random.split(key, num)
    return _wrap(*_count(jax.random.key_data(key), (num,)))


def fold_in(key: PRNGKeyArray, data: ArrayLike) -> PRNGKeyArray:
    """Return `jax.random.fold_in` of a whole number >= 0."""
    if not _is_ours(key):
        return jax.random.fold_in(key, data)
    low = jnp.uint32(data)
    return _wrap(*_block(jax.random.key_data(key), jnp.zeros_like(low), low))


def _is_ours(key: PRNGKeyArray) -> bool:
    return (
        kernels.are_on()
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and key.ndim == 0
        and jax.random.key_impl(key) == DEFAULT
        and jax.threefry_partitionable.value
    )


def _wrap(high: Words, low: Words) -> PRNGKeyArray:
    return jax.random.wrap_key_data(jnp.stack([high, low], axis=-1), impl=DEFAULT)


@functools.partial(jax.jit, static_argnames="shape", inline=True)
def _count(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[Words, Words]:
    """Return two random words for each counter 0, 1, 2, … of a shape."""
    low = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _block(key, jnp.zeros_like(low), low)


@functools.partial(jax.jit, inline=True)
def _block(key: UInt32[Array, "2"], high: Words, low: Words) -> tuple[Words, Words]:
    """Return two random words for every counter of two words."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    high, low = high + words[0], low + words[1]
    for turn in range(5):
        for rotation in ROTATIONS[turn % 2]:
            high = high + low
            low = high ^ (low << rotation | low >> 32 - rotation)
        high = high + words[(turn + 1) % 3]
        low = low + words[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return high, low
