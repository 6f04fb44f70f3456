"""The contract: what a method is, and the weights that it puts on responses."""

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
"""A method with its hyperparameters set."""


class Method(NamedTuple):
    """A loss on the log-probabilities of a group of responses, with the marks of T24's table.

    Attributes:
      loss: (responses, **hyperparameters) -> scalar. Every hyperparameter is a traceable number
        with a default.
      family: divergence, likelihood, contrastive or policy gradient.
      formula: the loss in one line.
      source: where it was published.
      on_policy: it samples from the policy that it trains.
      reuses_samples: it takes several steps on the same samples.
      negative_gradient: some response has a negative weight.
      needs: what it learns from: the whole space (every response in the group, with its probability
        as share), with rewards given or learned from preferences before; rewards, preferences, or
        both preferences and samples of the policy itself; demonstrations, or the responses alone.
      label: its name in figures.
      color: of its lines in all figures, as ``#RRGGBB``.
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

    @property
    def whole_space(self) -> bool:
        """Whether the group must hold every response of the space."""
        return self.needs in ("whole space", "learned rewards")

    @property
    def one_collection(self) -> bool:
        """Whether samples of one policy, labelled by a reward, are all that it needs."""
        return self.needs in ("rewards", "preferences", "responses")

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Names and defaults."""
        parameters = list(inspect.signature(self.loss).parameters.values())
        return {p.name: float(p.default) for p in parameters[1:]}

    def bind(self, **hyperparameters: ArrayLike) -> Loss:
        """The loss with these hyperparameters set and the others at their defaults.

        Raises InvalidInput for one that it does not have, with the nearest that it has, and for a
        value out of range.
        """
        for name in hyperparameters:
            checks.require_known("hyperparameter", name, self.hyperparameters)
        loss = functools.partial(self.loss, **hyperparameters)
        # Traced without any work: the loss checks its hyperparameters where they have values.
        jax.eval_shape(lambda: loss(make_group(jnp.zeros(2), jnp.zeros(2))))
        return loss


def response_weights(loss: Loss, responses: Responses) -> Float[Array, " C"]:
    """−∂loss/∂log π: how hard each response is raised (> 0) or pushed down (< 0).

    By the chain rule the policy's parameters follow Σ weight · ∇log π, so these are the c1 and −c2
    of T24's Lemma 6.2, response by response.
    """

    def of_log_probs(log_probs: Float[Array, " C"]) -> Float[Array, ""]:
        return loss(responses.with_log_probs(log_probs))

    return -jax.grad(of_log_probs)(responses.log_probs)


def switch(index: Int[ArrayLike, ""], losses: Sequence[Loss]) -> Loss:
    """The loss of the given index, which may be traced: a method as a sweep axis.

    Under vmap all losses are evaluated and one is kept. Beside a neural policy that costs nothing,
    and all methods share one compiled program.
    """

    def chosen(responses: Responses) -> Float[Array, ""]:
        return jax.lax.switch(index, list(losses), responses)

    return chosen
