"""The numbers of Algorithm 1: how much is collected, how often it is used, and for how long."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from theory import checks
from theory.checks import InvalidInput


class Place(NamedTuple):
    """The place of a gradient step in the collections.

    Attributes:
      iteration: Number of the collection, from 0.
      in_iteration: Number of the step in the collection.
      minibatch: Number of the minibatch in the batch.
      is_new: Whether the minibatch is used for the first time.
    """

    iteration: Int[Array, ""]
    in_iteration: Int[Array, ""]
    minibatch: Int[Array, ""]
    is_new: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The numbers of Algorithm 1.

    Attributes:
      steps: Number of gradient steps.
      group: C, responses to a prompt.
      minibatch: M, responses in a gradient step, a multiple of C.
      batch: B, responses collected in an iteration, a multiple of M; traceable.
      passes: T >= 1, passes over a batch; traceable. Offline training has a T that lasts for all
        steps.
      most_batch: The largest batch, which sizes the store; needed where ``batch`` is traced.
      exact: Whether a collection is every response once, so that nothing is sampled.
    """

    steps: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    minibatch: int = dataclasses.field(metadata={"static": True})
    batch: ArrayLike
    passes: ArrayLike = 1
    most_batch: int | None = dataclasses.field(default=None, metadata={"static": True})
    exact: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def whole_space(cls, steps: int, num_arms: int, passes: ArrayLike = 1) -> "Schedule":
        """Return the schedule of expectations: every response once, in one group."""
        return cls(steps, num_arms, num_arms, num_arms, passes, exact=True)

    def check(self) -> None:
        """Refuse numbers that do not fit together."""
        for name in ("steps", "group", "minibatch", "batch", "passes"):
            checks.require_whole(name, getattr(self, name))
        most = self._most
        if isinstance(most, jax.core.Tracer):
            raise InvalidInput("batch is traced; give most_batch, the largest that it can be")
        checks.require_whole("most_batch", most)
        for name, batch in (("batch", self.batch), ("most_batch", most)):
            known = checks.concrete(batch)
            if known is not None and (known < self.group).any():
                raise InvalidInput(
                    f"{name} is {known.min()}; a group alone has {self.group} responses"
                )
            checks.require_multiple(name, batch, "minibatch", self.minibatch)
        checks.require_multiple("minibatch", self.minibatch, "group", self.group)
        known = checks.concrete(self.batch)
        if known is not None and (known > np.max(most)).any():
            raise InvalidInput(f"batch is {known.max()}; most_batch allows {most}")

    def fits(self) -> Bool[Array, ""]:
        """Return whether B and T fit the other numbers, as `check` demands of known ones."""
        batch, passes = jnp.asarray(self.batch), jnp.asarray(self.passes)
        whole = (batch % self.minibatch == 0) & (batch >= self.minibatch)
        return whole & (batch <= self.slots * self.minibatch) & (passes >= 1)

    def uses_once(self) -> bool:
        """Return whether B = M and T = 1 are known: each minibatch is a batch that is used once."""
        batch, passes = checks.concrete(self.batch), checks.concrete(self.passes)
        if batch is None or passes is None:
            return False
        return bool((passes == 1).all() and (batch == self.minibatch).all())

    def place_of(self, step: Int[Array, ""]) -> "Place":
        """Return where a gradient step stands in the collections; B, T and it may be traced."""
        per_batch = jnp.maximum(jnp.asarray(self.batch, jnp.int32) // self.minibatch, 1)
        # More passes than steps are never finished, and their product could overflow.
        passes = jnp.clip(jnp.asarray(self.passes), 1, max(self.steps, 1))
        iteration, place = jnp.divmod(step, per_batch * passes)
        return Place(iteration, place, place % per_batch, place < per_batch)

    @property
    def slots(self) -> int:
        """Count the minibatches in the largest batch."""
        return int(np.max(np.asarray(self._most))) // self.minibatch

    @property
    def _most(self) -> ArrayLike:
        return self.batch if self.most_batch is None else self.most_batch
