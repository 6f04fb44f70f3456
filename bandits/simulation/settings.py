"""The settings of a simulation, and the hyperparameters that are swept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

from bandits.losses import DIVERGENCES, METHODS
from bandits.training import log_spaced_steps, require_record
from theory import checks
from theory.bradley_terry import RIDGE

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in ("sgd", "adam", "adamw", "amsgrad", "adagrad", "lion", "nadam", "rmsprop", "yogi")
}
"""Optimisers by name; from Python, `bandits.descend` takes any optax factory."""

MOST_STEPS, MOST_SEED = 2**31 - 1, 2**32 - 1
"""Both have 32 bits; steps have a sign."""

Numbers = float | Sequence[float]
"""One number, or several to sweep."""


@dataclass(frozen=True)
class Settings:
    """The settings of a simulation; the command has an option for each.

    Attributes:
      steps: Gradient steps, at least 1.
      record: Steps to record; by default on a log scale.
      optimizer: sgd, adam, adamw, amsgrad, adagrad, lion, nadam, rmsprop, yogi
      natural_gradient: Precondition with the inverse Fisher matrix.
      per_prompt: A bandit for each prompt of the preferences, not one of all.
      ridge: Of the reward fitted to preferences, >= 0: 1/s^2, s the standard deviation of its
        prior in nats.
      responses: N, responses to a prompt, at least 2.
      batch: Responses collected at a time, a multiple.
      passes: Passes of on-policy methods over each batch.
      seed: Of the samples.
    """

    steps: int = 1000
    record: Sequence[int] = ()
    optimizer: str = "sgd"
    natural_gradient: bool = False
    per_prompt: bool = False
    ridge: float = RIDGE
    responses: int = 10
    batch: int = 100
    passes: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that are out of range."""
        checks.require_known("optimizer", self.optimizer, OPTIMIZERS)
        checks.require_whole("steps", self.steps, most=MOST_STEPS)
        checks.require_whole("seed", self.seed, least=0, most=MOST_SEED)
        checks.require_whole("responses", self.responses, least=2)
        checks.require_whole("batch", self.batch)
        checks.require_multiple("batch", self.batch, "responses", self.responses)
        if self.passes is not None:
            checks.require_whole("passes", self.passes)
        require_record(self.recorded, self.steps)
        checks.require_finite("ridge", self.ridge)
        checks.require_nonnegative("ridge", self.ridge)

    @property
    def recorded(self) -> Sequence[int]:
        """Return the steps to record."""
        by_default = self.record is None or not len(self.record)
        return log_spaced_steps(self.steps) if by_default else self.record


class Hyperparameters:
    """The hyperparameters of every method, with β and the step size; lists of them are axes.

    Attributes:
      given: All that are given, by name; an array is swept.
      axes: Those that are swept.
      betas: Every β that is run.
    """

    def __init__(
        self,
        methods: Sequence[str],
        beta: Numbers,
        hyperparameters: Mapping[str, Numbers],
        learning_rate: Numbers | None,
    ):
        """Check the names and values; InvalidInput names what is wrong."""
        if not methods:
            raise checks.InvalidInput("method is empty; name at least one")
        for name in methods:
            checks.require_known("method", name, METHODS)
        known = sorted({h for name in methods for h in METHODS[name].hyperparameters} - {"beta"})
        for name in hyperparameters:
            if name in ("beta", "learning_rate"):
                option = name.replace("_", "-")
                raise checks.InvalidInput(
                    f"{name} is no other hyperparameter; set it with --{option}"
                )
            if not known:
                raise checks.InvalidInput(
                    f"unknown hyperparameter {name!r}; {', '.join(methods)} has none but --beta"
                )
            checks.require_known("hyperparameter", name, known)
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        given = {"beta": beta, **hyperparameters, **rate}
        self.given = {name: _numbers(name, values) for name, values in given.items()}
        checks.require_finite("beta", self.given["beta"])
        checks.require_nonnegative("beta", self.given["beta"])
        if learning_rate is not None:
            checks.require_positive("learning_rate", self.given["learning_rate"])
        self.axes = {n: v for n, v in self.given.items() if isinstance(v, np.ndarray)}
        self.betas = np.atleast_1d(self.given["beta"]).tolist()
        # Each value is bound once, for a refusal before any work: a sweep's numbers are traced.
        for method in methods:
            for name, values in self.own(method, {}).items():
                for value in np.atleast_1d(values) if method not in DIVERGENCES else ():
                    METHODS[method].bind(**{name: float(value)})

    def of(self, method: str, swept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method's own values, given, swept or by default, β, and the step size."""
        own = METHODS[method].hyperparameters
        values = {**own, **self.given, **swept}
        return {n: value for n, value in values.items() if n in {*own, "beta", "learning_rate"}}

    def own(self, method: str, swept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method's own values alone."""
        values = self.of(method, swept)
        return {name: values[name] for name in METHODS[method].hyperparameters}


def _numbers(name: str, values: Numbers) -> float | np.ndarray:
    numbers = np.asarray(values) if not isinstance(values, str) else np.array(())
    if numbers.dtype.kind not in "iuf" or numbers.ndim > 1 or not numbers.size:
        raise checks.InvalidInput(f"{name} is {values!r}; give a number or a list of them")
    if len(np.unique(numbers)) < numbers.size:
        raise checks.InvalidInput(f"{name} is {values!r}; give each value once")
    return numbers.astype(np.float64) if numbers.size > 1 else float(numbers.ravel()[0])
