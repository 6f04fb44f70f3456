"""Give each purpose of a seed a random key of its own: no two purposes share one.

In JAX ``fold_in(key, i)`` is ``split(key, n)[i]``, and numbers drawn from a key are made of the
words of these same keys. So use a key in one way and in one place: draw from it, split it, or fold
numbers into it. Two uses of one key would repeat random numbers, and JAX does not complain.
"""

from typing import NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

Keys = TypeVar("Keys", bound=NamedTuple)


class SeedKeys(NamedTuple):
    """Hold what one seed decides: a key for each purpose.

    Add a new purpose at the end: the keys of the others then stay as they are.

    Attributes:
      policy: First weights of a network.
      contexts: Prompts to train on and to judge on.
      training: Samples and labels, as `train` takes it.
      data: Responses and labels that are collected once, before training.
      judging: Samples by which policies are judged.
    """

    policy: PRNGKeyArray
    contexts: PRNGKeyArray
    training: PRNGKeyArray
    data: PRNGKeyArray
    judging: PRNGKeyArray


def split_seed(seed: ArrayLike) -> SeedKeys:
    """Return the keys of a seed, a whole number >= 0 of 32 bits."""
    return split_into(SeedKeys, jax.random.key(seed))


def split_into(purposes: type[Keys], key: PRNGKeyArray) -> Keys:
    """Split a key once, into one for each field of a named tuple."""
    return purposes(*jax.random.split(key, len(purposes._fields)))
