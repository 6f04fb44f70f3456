"""What a search is, as data: the whole grid, in one form for all files that mean the same."""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_origin, get_type_hints

import optax

from bandits.losses import METHODS
from bandits.problems.environments import ENVIRONMENTS, CategoricalBandit
from bandits.search.entries import (
    NONNEGATIVE,
    POSITIVE,
    read_choice,
    read_seeds,
    values_of,
    whole,
)
from bandits.search.files import FILES, FileBandit
from theory.types import TwoOrMore

UPDATES = ("sampled", "exact")
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}

MOST_OF_PROMPT = 10**4
"""Most responses to a prompt: its pairs are their square."""

MOST_RESPONSES = 10**7
"""Most responses in a batch or minibatch."""

MOST_STEPS = 2**31 - 1
"""Most steps and passes: they are counted in 32 bits."""

Numbers = float | tuple[float, ...]
"""One number, or an axis."""

Counts = int | tuple[int, ...]
"""One whole number, or an axis."""

OF_SAMPLES = (
    "policy", "seeds", "responses", "contexts", "minibatch", "batch", "passes", "least_gap",
)  # fmt: skip
"""Keys about samples, which exact updates do not draw."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A search, and the table of what its file may say. A number is an axis where it is a tuple.

    The keys of ``[training]`` are annotated with what reads them and refuses what is not allowed,
    and with the label of their dimension. Those about samples are None for exact updates.

    Attributes:
      environment: One or several names of `ENVIRONMENTS`, or "files".
      arguments: Arguments of the environments' builders, by name.
      files: The bandit of the environment "files", else None.
      methods: Names of `bandits.losses.METHODS`.
      hyperparameters: Hyperparameters of the methods, by name.
      metrics: Names of what is recorded.
      record: Numbers of steps after which it is recorded.
    """

    environment: str | tuple[str, ...]
    arguments: Mapping[str, Numbers]
    files: FileBandit | None = None
    methods: tuple[str, ...]
    hyperparameters: Mapping[str, Numbers]
    metrics: tuple[str, ...]
    record: tuple[int, ...]
    updates: Annotated[str, partial(read_choice, allowed=UPDATES)] = "sampled"
    optimizer: Annotated[str, partial(read_choice, allowed=OPTIMIZERS)] = "adam"
    steps: Annotated[int, whole(1, MOST_STEPS).number]
    learning_rate: Annotated[Numbers, POSITIVE.axis]
    policy: Annotated[str | None, partial(read_choice, allowed=("table", "network"))] = "table"
    seeds: Annotated[tuple[int, ...] | None, read_seeds] = (0,)
    responses: Annotated[
        Counts | None, whole(2, MOST_OF_PROMPT).axis, "responses N to a prompt"
    ] = 10
    contexts: Annotated[Counts | None, whole(1, MOST_RESPONSES).axis, "prompts"] = 10
    # By default all responses to all prompts.
    minibatch: Annotated[
        Counts | None, whole(1, MOST_RESPONSES).axis, "minibatch M in responses"
    ] = None
    batch: Annotated[Counts | None, whole(1, MOST_RESPONSES).axis, "batch B in responses"] = None
    # By default 1 where a method is on-policy, and all steps where it is offline.
    passes: Annotated[Counts | None, whole(1, MOST_STEPS).axis, "passes T over each batch"] = None
    least_gap: Annotated[
        Numbers | None, NONNEGATIVE.axis, "least difference in reward of a labelled pair"
    ] = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What is set of a run, named and ordered as the dataset's dimensions; axes are tuples.

        Methods are along ``loss``, as in every dataset: ``method`` is a word of xarray's own.
        """
        names = (
            "contexts", "responses", "minibatch", "batch", "passes", "learning_rate", "least_gap",
        )  # fmt: skip
        settings = {
            "environment": self.environment,
            "loss": self.methods,
            **dict(sorted(self.arguments.items())),
            **{name: getattr(self, name) for name in names},
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
        """Number of points of the grid."""
        return math.prod(map(len, self.axes.values()))

    @property
    def num_programs(self) -> int:
        """Number of programs that are compiled."""
        return math.prod(len(self.axes[name]) for name in self.static)

    @property
    def environments(self) -> tuple[str, ...]:
        """The environments' names, also where there is one."""
        return values_of(self.environment)

    def environment_arguments(self, environment: str) -> dict[str, Any]:
        """Return what is given of the arguments that the environment has."""
        return pick(parameters_of(environment), self.arguments)

    def default_passes(self, method: str) -> int:
        """Return T where none is given: 1 draws anew every time, ``steps`` never."""
        return 1 if METHODS[method].on_policy else self.steps

    def describe(self) -> dict[str, Any]:
        """Return the search in one form, as JSON holds it: equal for all files that mean the same.

        Axes are lists of their values, and defaults are filled in.
        """
        is_sampled = self.updates == "sampled"
        training: dict[str, Any] = {
            "methods": self.methods,
            "hyperparameters": {
                name: of.hyperparameters | pick(of.hyperparameters, self.hyperparameters)
                for name, of in ((name, METHODS[name]) for name in self.methods)
            },
        }
        training |= {
            name: getattr(self, name) for name in MARKS if is_sampled or name not in OF_SAMPLES
        }
        if is_sampled:
            training |= {
                "minibatch": self._or_everything(self.minibatch),
                "batch": self._or_everything(self.batch),
                "passes": {name: self.passes or self.default_passes(name) for name in self.methods},
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
        """Return the responses that are given, or else all responses to all prompts."""
        if responses is not None:
            return responses
        if isinstance(self.contexts, int) and isinstance(self.responses, int):
            return self.contexts * self.responses
        return "contexts · responses"


MARKS: dict[str, tuple[Any, ...]] = {
    name: hint.__metadata__
    for name, hint in get_type_hints(Spec, include_extras=True).items()
    if get_origin(hint) is Annotated
}
"""What the keys of ``[training]`` are annotated with: what reads them, and a label."""


def build_environment(environment: str, arguments: Mapping[str, Any]) -> CategoricalBandit:
    """Build the environment of the given name, with those of the arguments that it has.

    The bandit of files is itself among the arguments, see `Spec.shared`.
    """
    if environment == FILES:
        return arguments[FILES]
    return ENVIRONMENTS[environment].build(**pick(parameters_of(environment), arguments))


def pick(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of those names that have one."""
    return {name: values[name] for name in names if name in values}


def parameters_of(environment: str) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of the environment's builder; a `TwoOrMore` is a size, and no axis."""
    if environment == FILES:
        return {}
    return inspect.signature(ENVIRONMENTS[environment].build).parameters


def _defaults(environment: str) -> dict[str, float]:
    """Return the defaults of the environment's arguments: sizes whole, all others as floats."""
    return {
        name: p.default if p.annotation is TwoOrMore else float(p.default)
        for name, p in parameters_of(environment).items()
    }


def _plain(value: Any) -> Any:
    """Return dicts, lists, strings and finite numbers only."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
