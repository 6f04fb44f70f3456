"""The problem of T24's numerical example: a target of three modes, and starts far from it.

K arms on a line; the target q has three equal modes, which a tabular policy can represent exactly.
A start is a Gaussian near the left end, mixed with a little of the uniform distribution: how much
decides how far the policy's support reaches.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bandits.environments import gaussian_reference


@dataclass(frozen=True)
class ThreeModes:
    """The target and the law of the starts.

    Attributes:
      num_arms: K.
      modes: centres of the target's modes, in arms.
      mode_width: their standard deviation, in arms.
      centre_range, width_range: of the starts' Gaussians, in arms.
      floor_range: of the uniform part of a start, log-uniform.
      seed: of the random starts.
    """

    num_arms: int = 100
    modes: tuple[float, ...] = (20.0, 50.0, 80.0)
    mode_width: float = 4.0
    centre_range: tuple[float, float] = (0.0, 20.0)
    width_range: tuple[float, float] = (8.0, 16.0)
    floor_range: tuple[float, float] = (1e-6, 1e-2)
    seed: int = 0

    def target_log_probs(self) -> Float[Array, " K"]:
        """Log q: the equal mixture of the modes."""
        modes = jax.vmap(lambda c: gaussian_reference(self.num_arms, c, self.mode_width))
        components = modes(jnp.asarray(self.modes))
        return jax.nn.logsumexp(components, axis=0) - jnp.log(len(self.modes))

    def start_log_probs(self, start: Float[Array, "3"]) -> Float[Array, " K"]:
        """Log p_0 of a start (centre, width, floor)."""
        centre, width, floor = start
        gaussian = gaussian_reference(self.num_arms, centre, width)
        return jnp.logaddexp(jnp.log1p(-floor) + gaussian, jnp.log(floor) - jnp.log(self.num_arms))

    def random_starts(self, count: int) -> np.ndarray:
        """``[count, 3]`` starts, uniform in their ranges, the same for the same seed."""
        uniform = np.random.default_rng(self.seed).uniform(size=(count, 3))
        ranges = (self.centre_range, self.width_range, tuple(np.log(self.floor_range)))
        low, high = np.array(ranges).T
        starts = low + uniform * (high - low)
        starts[:, 2] = np.exp(starts[:, 2])
        return starts
