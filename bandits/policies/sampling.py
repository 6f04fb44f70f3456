"""Drawing arms: one 32-bit random number a sample, a cumulative sum and a search.

`jax.random.categorical` adds noise to every arm for every sample; inverting the CDF takes one
random number and a search. After the exponential all arithmetic is on integers, which no order of
summation changes: only the last bit of ``exp`` could set a draw under vmap apart from the same draw
alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from bandits.kernels import has_twin, threefry
from theory import checks

UNIT = 2.0**31
"""What a probability of 1 weighs, in whole units: the sum stays a factor 2 short of overflow."""


def sample_categorical(
    key: PRNGKeyArray, log_probs: Float[Array, "*batch K"], num_samples: int
) -> Int32[Array, "*batch num_samples"]:
    """Independent draws a ~ exp(log_probs), with replacement, from each row.

    An arm of probability zero is never drawn. The law is met to a total variation of 1.5 K 2^-32,
    beside the rounding of exp(log_probs); `inverse_cdf` says why. To run over keys, vmap.

    Args:
      key: one PRNG key; every row gets its own random numbers from it.
      log_probs: nats, ``-inf`` on excluded arms.
      num_samples: draws from each row, >= 1.

    Raises:
      InvalidInput: a row that is no distribution, fewer than two arms, or ``num_samples`` < 1 or
        not whole.
    """
    if not isinstance(num_samples, int | np.integer) or num_samples < 1:
        raise checks.InvalidInput(
            f"num_samples is {num_samples}; it must be a whole number of at least 1"
        )
    shape = (*np.shape(log_probs)[:-1], int(num_samples))
    return inverse_cdf(log_probs, threefry.bits(key, shape))


def sample_counts(
    key: PRNGKeyArray, log_probs: Float[Array, "*batch K"], num_samples: int
) -> Int32[Array, "*batch K"]:
    """How often each arm comes up in ``num_samples`` draws: multinomial(num_samples, p) each row.

    These are the draws of `sample_categorical` with the same key; arguments and errors are the
    same.
    """
    arms = sample_categorical(key, log_probs, num_samples)
    return _count(arms, num_arms=np.shape(log_probs)[-1])


def inverse_cdf(
    log_probs: Float[Array, "*batch K"], bits: UInt32[Array, "*batch N"]
) -> Int32[Array, "*batch N"]:
    """The arm that each random number stands for: the first a with F(a) > bits / 2^32.

    Deterministic: the same bits for two policies are common random numbers. In integers, with the
    masses m_k = round(2^31 p_k), their running sums c_k = m_0 + … + m_k and M = c_{K−1}:

      t = ⌊bits · M / 2^32⌋,  and a is the arm with c_{a−1} <= t < c_a  (c_{−1} = 0).

    **It cannot miss.** bits < 2^32, so 0 <= t < M: the search starts from the bracket
    c_{−1} <= t < c_{K−1}; the ends of blocks that t has passed narrow it to a block, and every
    halving keeps it. It ends with c_{a−1} <= t < c_a for some a
    of 0 … K − 1, so that m_a = c_a − c_{a−1} > 0 and p_a > 0. Sums of floats break the last step: a
    parallel sum rounds c_a and c_{a−1} differently even where p_a = 0.

    **How exact.** Rounding the masses, dividing by M and rounding t each shift at most K 2^-32 of
    probability, summed over arms: a total variation of at most 1.5 K 2^-32 (3.5e-8 for K = 100).
    Arms with p <= 2^-32 are never drawn. A float32 uniform has 23 bits: 500 times coarser.

    Args:
      log_probs: nats, ``-inf`` on excluded arms. Traced values are not checked: a sum off 1 but
        below 2 is normalised, and NaN gives arms in range, so look for it in ``log_probs``.
      bits: uniform on 0 … 2^32 − 1, from ``jax.random.bits(key, shape, "uint32")``. Leading axes
        broadcast with those of ``log_probs``.

    Raises:
      InvalidInput: a row that is no distribution, fewer than two arms, or bits of another type.
    """
    checks.require_log_distribution("log_probs", log_probs)
    if bits.dtype != jnp.uint32:
        raise checks.InvalidInput(f"bits are {bits.dtype}; they must be uint32")
    return _inverse_cdf(log_probs, bits)


# Compiled as a whole: called eagerly, the loops inside would be compiled again each time.
@jax.jit
@functools.partial(jnp.vectorize, signature="(k),(n)->(n)")
def _inverse_cdf(log_probs: Float[Array, " K"], bits: UInt32[Array, " N"]) -> Int32[Array, " N"]:
    # Half precision cannot hold 2^31.
    precision = jnp.promote_types(log_probs.dtype, jnp.float32)
    masses = jnp.round(UNIT * jnp.exp(log_probs.astype(precision))).astype(jnp.uint32)
    edges = running_sum(masses)
    return find_arms(edges, _multiply_high(bits, edges[-1]))


@has_twin
def running_sum(masses: UInt32[Array, " K"]) -> UInt32[Array, " K"]:
    """Return c_k = m_0 + … + m_k; in integers, every order of summation gives the same bits."""
    return jnp.cumsum(masses, dtype=jnp.uint32)


@has_twin
def find_arms(edges: UInt32[Array, " K"], t: UInt32[Array, " N"]) -> Int32[Array, " N"]:
    """Return the arm with edges[arm − 1] <= t < edges[arm], and the last one for larger t."""
    arms = jnp.searchsorted(edges, t, side="right")
    return jnp.minimum(arms, edges.size - 1).astype(jnp.int32)


def _multiply_high(
    a: UInt32[Array, "*shape"], b: UInt32[Array, "*shape"]
) -> UInt32[Array, "*shape"]:
    """⌊a · b / 2^32⌋ by 16-bit halves: no step overflows, and no 64-bit type is needed."""
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = b >> 16, b & 0xFFFF
    middle = a_high * b_low + (a_low * b_low >> 16)
    carry = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (carry >> 16)


# A scatter adds 2 to 5 ns to a draw. Sorting the random numbers and searching them for the edges
# instead costs 20 ns more, comparing each with every edge 3 ns an edge; `jax.random.multinomial`,
# K binomials in a row, 2,600 ns an arm: faster only from some 100 draws an arm on.
@functools.partial(jax.jit, static_argnames="num_arms")
def _count(arms: Int32[Array, "*batch N"], num_arms: int) -> Int32[Array, "*batch K"]:
    def count(arms: Int32[Array, " N"]) -> Int32[Array, " K"]:
        return jnp.zeros(num_arms, jnp.int32).at[arms].add(1)

    return jnp.vectorize(count, signature="(n)->(k)")(arms)
