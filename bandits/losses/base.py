"""What a method is, and the weights that it puts on responses."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bandits.losses.responses import Responses, make_group
from theory import checks

Loss = Callable[[Responses], Float[Array, ""]]
"""A method with its hyperparameters set: responses -> a number."""


class Method(NamedTuple):
    """A loss on the log-probabilities of a group of responses, with the marks of T24's table.

    Attributes:
      loss: (responses, **hyperparameters) -> number. Every hyperparameter is a traceable number
        with a default.
      family: divergence, likelihood, contrastive or policy gradient.
      formula: The loss in one line.
      source: Where it was published.
      on_policy: Whether it samples from the policy that it trains.
      reuses_samples: Whether it takes several steps on the same samples.
      negative_gradient: Whether some response has a negative weight.
      needs: What it learns from. "whole space" is every response in one group, with its probability
        as share and given rewards; "learned rewards" is the same with rewards fitted to preferences
        before. `bandits.training.source_of` says how each is collected.
      label: Its name in figures.
      color: The color of its lines in all figures, as ``#RRGGBB``.
      in_groups: Whether it chooses among the responses of a group, such as the best of N. It then
        has no expectation over the whole space in one group.
      passes: T, how often it passes over responses of the policy itself by default.
    """

    loss: Callable[..., Float[Array, ""]]
    family: str
    formula: str
    source: str
    on_policy: bool
    reuses_samples: bool
    negative_gradient: bool
    needs: Literal[
        "whole space",
        "learned rewards",
        "rewards",
        "preferences",
        "preferences and samples",
        "demonstrations",
        "responses",
    ]
    label: str
    color: str
    in_groups: bool = False
    passes: int = 1

    @property
    def whole_space(self) -> bool:
        """Return whether the group must hold every response of the space."""
        return self.needs in ("whole space", "learned rewards")

    @property
    def one_collection(self) -> bool:
        """Return whether samples of one policy, labelled by a reward, are all that it needs."""
        return self.needs in ("rewards", "preferences", "responses")

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Return the names of the hyperparameters with their defaults."""
        parameters = list(inspect.signature(self.loss).parameters.values())
        return {p.name: float(p.default) for p in parameters[1:]}

    def bind(self, **hyperparameters: ArrayLike) -> Loss:
        """Return the loss with these hyperparameters set and the others at their defaults.

        >>> from bandits import METHODS
        >>> loss = METHODS["dpo"].bind(beta=0.5)

        Raises:
          InvalidInput: For an unknown hyperparameter, and for a value out of range.
        """
        for name in hyperparameters:
            checks.require_known("hyperparameter", name, self.hyperparameters)
        loss = functools.partial(self.loss, **hyperparameters)
        # Traced without any work: the loss checks its hyperparameters where they have values.
        jax.eval_shape(lambda: loss(make_group(jnp.zeros(2), jnp.zeros(2))))
        return loss


def response_weights(loss: Loss, responses: Responses) -> Float[Array, " C"]:
    """Return −∂loss/∂log π: how hard each response is raised (> 0) or pushed down (< 0).

    By the chain rule the policy's parameters follow Σ weight · ∇log π, so these are the c1 and −c2
    of T24's Lemma 6.2, response by response.

    >>> from bandits import METHODS, make_group
    >>> group = make_group([-1.0, -1.0], rewards=[1.0, 0.0])
    >>> [f"{weight:.2f}" for weight in response_weights(METHODS["dpo"].bind(beta=0.6), group)]
    ['0.30', '-0.30']
    """

    def of_log_probs(log_probs: Float[Array, " C"]) -> Float[Array, ""]:
        return loss(responses.with_log_probs(log_probs))

    return -jax.grad(of_log_probs)(responses.log_probs)


def switch(index: Int[ArrayLike, ""], losses: Sequence[Loss]) -> Loss:
    """Return the loss of the given index, which may be traced: a method as a sweep axis.

    Under vmap all losses are evaluated and one is kept. Beside a neural policy that costs nothing,
    and all methods share one compiled program.
    """
    return lambda responses: jax.lax.switch(index, list(losses), responses)
