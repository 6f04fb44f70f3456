"""The contract: what a policy is."""

from collections.abc import Callable
from typing import NamedTuple

import chex
from jaxtyping import Array, Float


class Policy(NamedTuple):
    """Two pure functions over a pytree of parameters, in the manner of an optax transformation.

    Attributes:
      init: log-probabilities ``[K]`` to start from -> parameters that give exactly those.
      log_probs: parameters -> log-probabilities ``[K]`` of the whole response space.
    """

    init: Callable[[Float[Array, " K"]], chex.ArrayTree]
    log_probs: Callable[[chex.ArrayTree], Float[Array, " K"]]
