"""The one loop: a compiled scan over steps that looks at the state after some of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

State = TypeVar("State")
Record = TypeVar("Record")


def record_scan(
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    steps: Sequence[int],
    look: Callable[[State], tuple[State, Record]],
) -> tuple[State, Record]:
    """Return the last state, and the records after each of the given numbers of steps.

    Args:
      step: (number of steps so far, state) -> the next state.
      state: The state before the first step, a pytree.
      steps: Numbers of steps after which to look, increasing, each >= 0; 0 is the start.
      look: state -> the state, and a pytree of arrays that is recorded.

    Returns:
      The state after ``steps[-1]`` steps, and the records, stacked along a leading axis.
    """

    def advance(
        carry: tuple[Int[Array, ""], State], last: Int[Array, ""]
    ) -> tuple[tuple[Int[Array, ""], State], Record]:
        first, state = carry
        state, record = look(jax.lax.fori_loop(first, last, step, state))
        return (last, state), record

    (_, end), records = jax.lax.scan(advance, (jnp.int32(0), state), jnp.asarray(steps, jnp.int32))
    return end, records
