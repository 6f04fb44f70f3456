"""The contract: what a method is."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float


class Method(NamedTuple):
    """A loss on log-probabilities, with the three marks of arXiv:2404.14367, table 1.

    Attributes:
      loss: (log_probs ``[K]``, target_log_probs ``[K]``) -> scalar in nats. Minus its gradient in
        log_probs is the weight put on each response; a negative one pushes the response down.
      formula: the loss in one line.
      source: where it was published.
      on_policy: it samples from the policy that it trains.
      reuses_samples: it takes several steps on the same samples.
      negative_gradient: some response has a negative weight.
    """

    loss: Callable[[Float[Array, " K"], Float[Array, " K"]], Float[Array, ""]]
    formula: str
    source: str
    on_policy: bool
    reuses_samples: bool
    negative_gradient: bool
