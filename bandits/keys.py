"""The keys of random numbers: a seed has one for each purpose, and no two purposes share one.

In JAX ``fold_in(key, i)`` is ``split(key, n)[i]``, and numbers drawn from a key are made of the
words of these same keys. So a key is used in one way and in one place: to draw from, to split, or
to fold numbers into. Two uses of one key would repeat random numbers, and JAX does not complain.
"""

from typing import NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

Keys = TypeVar("Keys", bound=NamedTuple)


class SeedKeys(NamedTuple):
    """What one seed decides.

    A new purpose goes to the end: the keys of the others then stay as they are.

    Attributes:
      policy: first weights of a network.
      contexts: prompts to train on and to judge on.
      training: samples and labels, as `train` takes it.
      data: responses and labels that are collected once, before training.
      judging: samples by which policies are judged.
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
