"""What a search is, as data: the whole grid, in one form for all files that mean the same."""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bandits.losses import METHODS
from bandits.problems.environments import ENVIRONMENTS, CategoricalBandit
from bandits.search.entries import values_of
from bandits.search.files import FILES, FileBandit
from theory.types import TwoOrMore

Numbers = float | tuple[float, ...]
"""One number, or an axis."""

Counts = int | tuple[int, ...]
"""One whole number, or an axis."""


@dataclass(frozen=True)
class Spec:
    """A search. A number is an axis where it is a tuple.

    Attributes:
      environment: a name, or several, of `bandits.problems.environments.ENVIRONMENTS`; or "files".
      arguments: of the environments' builders, by name.
      methods: names of `bandits.losses.METHODS`.
      hyperparameters: of the methods, by name.
      updates: "sampled" (Algorithm 1) or "exact" (expected updates to the Gibbs policy).
      policy: "table" or "network".
      optimizer: "adam" or "sgd".
      steps: gradient steps.
      learning_rate: > 0.
      seeds: of the repeats, whole numbers >= 0 of 32 bits; None for exact updates.
      responses: N, to a prompt; None for exact updates, as all that follow.
      contexts: prompts.
      minibatch: M, in responses, or None for all prompts at once.
      batch: B, in responses, or None for all prompts at once.
      passes: T, or None for 1 where a method is on-policy, and all steps where it is offline.
      least_gap: pairs whose rewards differ by less are not labelled.
      metrics: what is recorded.
      record: when, in steps.
      files: the bandit of the environment "files"; None for all others.
    """

    environment: str | tuple[str, ...]
    arguments: Mapping[str, Numbers]
    methods: tuple[str, ...]
    hyperparameters: Mapping[str, Numbers]
    updates: str
    policy: str
    optimizer: str
    steps: int
    learning_rate: Numbers
    seeds: tuple[int, ...] | None
    responses: Counts | None
    contexts: Counts | None
    minibatch: Counts | None
    batch: Counts | None
    passes: Counts | None
    least_gap: Numbers | None
    metrics: tuple[str, ...]
    record: tuple[int, ...]
    files: FileBandit | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What is set of a run, named and ordered as the dataset's dimensions; axes are tuples.

        Methods are along ``loss``, as in every dataset: ``method`` is a word of xarray's own.
        """
        settings = {
            "environment": self.environment,
            "loss": self.methods,
            **dict(sorted(self.arguments.items())),
            "contexts": self.contexts,
            "responses": self.responses,
            "minibatch": self.minibatch,
            "batch": self.batch,
            "passes": self.passes,
            "learning_rate": self.learning_rate,
            "least_gap": self.least_gap,
            **dict(sorted(self.hyperparameters.items())),
            "seed": self.seeds,
        }
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def shared(self) -> dict[str, Any]:
        """What all runs share and is no setting, by name: the bandit of files.

        It is an argument of the runs: as a constant it would be compiled into every program.
        """
        return {} if self.files is None else {FILES: self.files.bandit}

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The settings that are axes; the methods always are."""
        return {name: value for name, value in self.settings.items() if isinstance(value, tuple)}

    @property
    def static(self) -> tuple[str, ...]:
        """The axes whose values need a program each; beside a network the others cost nothing."""
        always = {"contexts", "responses", "minibatch"}
        beside_a_table = {"environment", "loss", "batch", "passes"}
        names = always if self.policy == "network" else always | beside_a_table
        return tuple(name for name in self.axes if name in names)

    @property
    def num_runs(self) -> int:
        """Points of the grid."""
        return math.prod(map(len, self.axes.values()))

    @property
    def num_programs(self) -> int:
        """Programs that are compiled."""
        return math.prod(len(self.axes[name]) for name in self.static)

    @property
    def environments(self) -> tuple[str, ...]:
        """The environments' names, also where there is one."""
        return values_of(self.environment)

    def environment_arguments(self, environment: str) -> dict[str, Any]:
        """What is given of the arguments that the environment has."""
        return pick(parameters_of(environment), self.arguments)

    def method_hyperparameters(self, method: str) -> dict[str, Any]:
        """What is given of the hyperparameters that the method has."""
        return pick(METHODS[method].hyperparameters, self.hyperparameters)

    def default_passes(self, method: str) -> int:
        """T where none is given: fresh samples every time, or none for the whole run."""
        return 1 if METHODS[method].on_policy else self.steps

    def describe(self) -> dict[str, Any]:
        """The search in one form, as JSON holds it: equal for all files that mean the same.

        Axes are lists of their values, and defaults are filled in.
        """
        training: dict[str, Any] = {
            "methods": self.methods,
            "hyperparameters": {
                name: METHODS[name].hyperparameters | self.method_hyperparameters(name)
                for name in self.methods
            },
            "updates": self.updates,
            "optimizer": self.optimizer,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
        }
        if self.updates == "sampled":
            training |= {
                "policy": self.policy,
                "seeds": self.seeds,
                "responses": self.responses,
                "contexts": self.contexts,
                "minibatch": self._or_everything(self.minibatch),
                "batch": self._or_everything(self.batch),
                "passes": {name: self.passes or self.default_passes(name) for name in self.methods},
                "least_gap": self.least_gap,
            }
        problem: dict[str, Any] = {"environment": self.environment}
        if self.files is not None:  # the numbers, so that files can be moved but not changed
            problem |= dataclasses.asdict(self.files)
        else:
            problem["arguments"] = {
                name: _defaults(name) | self.environment_arguments(name)
                for name in self.environments
            }
        record = {"metrics": self.metrics, "steps": self.record}
        return _plain({"problem": problem, "training": training, "record": record})

    def _or_everything(self, responses: Counts | None) -> Counts | str:
        """All prompts at once where nothing else is said, as a number where it is one."""
        if responses is not None:
            return responses
        if isinstance(self.contexts, int) and isinstance(self.responses, int):
            return self.contexts * self.responses
        return "contexts · responses"


def build_environment(environment: str, arguments: Mapping[str, Any]) -> CategoricalBandit:
    """The environment of the given name, with those of the arguments that it has.

    The bandit of files is itself among the arguments, see `Spec.shared`.
    """
    if environment == FILES:
        return arguments[FILES]
    return ENVIRONMENTS[environment].build(**pick(parameters_of(environment), arguments))


def pick(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those names that have one."""
    return {name: values[name] for name in names if name in values}


def parameters_of(environment: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of the environment's builder; sizes, which are no axes, are `TwoOrMore`."""
    if environment == FILES:
        return {}
    return inspect.signature(ENVIRONMENTS[environment].build).parameters


def _defaults(environment: str) -> dict[str, float]:
    """Of the environment's arguments: sizes are whole numbers, all others are not."""
    return {
        name: p.default if p.annotation is TwoOrMore else float(p.default)
        for name, p in parameters_of(environment).items()
    }


def _plain(value: Any) -> Any:
    """Dicts, lists, strings and finite numbers only."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
