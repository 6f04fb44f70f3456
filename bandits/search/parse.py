"""A search from a TOML file, checked before anything runs.

    [problem]
    environment = ["far", "near"]             # of `modeseek list`, one or several
    width = [10.0, 20.0]                      # any argument of the environments

    [training]
    methods = ["best_of_n", "dpo"]            # of `modeseek list`, one or several
    updates = "sampled"                       # Algorithm 1; or "exact": expected updates
    policy = "table"                          # or "network", on contexts, as T24's bandit
    optimizer = "adam"                        # or "sgd"
    steps = 200
    learning_rate = {log = [1e-3, 1e-1, 9]}
    seeds = 16                                # how many, from 0; or a list
    responses = [5, 10]                       # N, to a prompt
    contexts = [10, 50]                       # prompts
    minibatch = 50                            # M, in responses; by default contexts · responses
    batch = 100                               # B, in responses; by default contexts · responses
    passes = [1, 5, 200]                      # T; by default 1, and `steps` for offline methods
    least_gap = 0.2                           # of reward, for a pair to be labelled; by default 0

    [training.hyperparameters]
    beta = [0.01, 0.1, 1.0]                   # those of the methods, by default each method's own

    [record]
    metrics = ["expected_reward", "reference_kl"]
    steps = [0, 50, 100, 200]                 # by default the start and the end

A number is an axis where it is given as a list, or as ``{log = [first, last, count]}`` or
``{linear = [first, last, count]}``; whole numbers are rounded then, and repeats left out. Methods
(the dimension ``loss``) and seeds always are axes. A hyperparameter applies to the methods that
have it and an argument to the environments that have it; the others ignore it, and repeat their
runs along its axis.

Exact updates descend from the reference to the Gibbs policy of ``beta`` by a divergence. They take
no seeds, and nothing that is said of samples.

A bandit of your own comes from files, in any format that `modeseek simulate` reads:

    [problem]
    reference = "letters.csv"         # or "uniform", over the arms that the other file names
    reward = "rewards.csv"            # one number an arm; or, instead,
    preferences = "pairs.csv"         # who was preferred to whom: a reward is fitted to them
    normalize = true                  # divide the reference by its sum; by default false
    pseudocount = 0.5                 # added to each of its entries before; by default 0
    ridge = 0.01                      # of the fitted reward: 1/s², s its prior's deviation in nats

Paths are relative to the TOML file, and each of these keys has one value. Responses are sampled
and labelled by the reward, given or fitted, as in an environment.
"""

import functools
import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from bandits.losses import DIVERGENCES, METHODS
from bandits.problems.environments import ENVIRONMENTS, CategoricalBandit
from bandits.search.entries import (
    FINITE,
    MOST_VALUES,
    NONNEGATIVE,
    POSITIVE,
    ends_of,
    read_axis,
    read_choice,
    read_names,
    read_number,
    read_table,
    require_known,
    show,
    values_of,
    whole,
)
from bandits.search.files import FILE_KEYS, FILES, FileBandit, read_files
from bandits.search.spec import Numbers, Spec, build_environment, parameters_of
from theory import checks
from theory.checks import InvalidInput
from theory.types import TwoOrMore

UPDATES = ("sampled", "exact")
POLICIES = ("table", "network")
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}

METRICS = ("expected_reward", "reference_kl", "entropy", "optimal_mass")
"""What can be recorded."""

TARGET_METRICS = ("forward_kl", "reverse_kl")
"""What can be too, where there is a target: of exact updates."""

OF_SAMPLES: dict[str, Any] = {
    "policy": POLICIES[0],
    "seeds": 1,
    "responses": 10,
    "contexts": 10,
    "minibatch": None,
    "batch": None,
    "passes": None,
    "least_gap": 0.0,
}
"""Keys of [training] that say something of samples, with their defaults."""

MOST_RUNS = 2**53
"""Runs of a search, so that a place in it is an exact number everywhere."""

MOST_PROGRAMS = 10**4
"""Programs of a search: each takes about a second to compile."""

MOST_ARMS = 10**5
"""Arms of an environment: up to here float32 sums a distribution to 1 within the tolerance."""

MOST_OF_PROMPT = 10**4
"""Responses to a prompt: its pairs are their square."""

MOST_RESPONSES = 10**7
"""Responses in a batch or minibatch."""

MOST_STEPS = 2**31 - 1
"""Steps and passes are counted in 32 bits."""


def read_spec(path: Path) -> Spec:
    """Read a search from a TOML file, as this module's first lines describe it.

    Raises InvalidInput for a file that cannot be read or is not TOML, with the line, and for a
    search that is not allowed, with the key.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}, line {line}: it is not TOML (not UTF-8)") from error
    except (ValueError, RecursionError) as error:  # also a number too long, nesting too deep
        raise InvalidInput(f"{path} is not TOML: {error}") from error
    return parse_spec(content, path.parent)


def parse_spec(content: Mapping[str, Any], folder: Path = Path()) -> Spec:
    """The search that the tables of a TOML file describe.

    Args:
      content: the tables.
      folder: what the paths of files in them are relative to.

    Raises InvalidInput for anything that is not allowed; the message is one sentence that names the
    key, the value and what is allowed.
    """
    tables = read_table("the file", content, ("problem", "training"), ("record",))
    training = read_table(
        "training",
        tables["training"],
        ("methods", "steps", "learning_rate"),
        ("updates", "optimizer", "hyperparameters", *OF_SAMPLES),
    )
    record = read_table("record", tables.get("record", {}), (), ("metrics", "steps"))

    environment, arguments, files = _read_problem(tables["problem"], folder)
    updates = read_choice("training.updates", training.get("updates", UPDATES[0]), UPDATES)
    optimizer = training.get("optimizer", next(iter(OPTIMIZERS)))
    methods = _read_methods(training["methods"], updates)
    steps = read_number("training.steps", training["steps"], whole(1, MOST_STEPS))
    is_exact = updates == "exact"
    measurable = METRICS + TARGET_METRICS if is_exact else METRICS
    metrics = record.get("metrics", list(METRICS[:2]))
    spec = Spec(
        environment=environment,
        arguments=arguments,
        methods=methods,
        hyperparameters=_read_hyperparameters(training.get("hyperparameters", {}), methods),
        updates=updates,
        optimizer=read_choice("training.optimizer", optimizer, tuple(OPTIMIZERS)),
        steps=steps,
        learning_rate=read_axis("training.learning_rate", training["learning_rate"], POSITIVE),
        **(_refuse_samples(training) if is_exact else _read_samples(training)),
        metrics=values_of(read_names("record.metrics", metrics, "metric", measurable)),
        record=_read_record(record.get("steps", [0, steps]), steps),
        files=files,
    )
    _require_size(spec)
    _require_collections(spec)
    _require_problems(spec)
    return spec


def _read_problem(value: Any, folder: Path) -> tuple[Any, dict[str, Numbers], FileBandit | None]:
    """Return the environments and their arguments, or the bandit of files."""
    problem = read_table("problem", value)
    of_files = [name for name in FILE_KEYS if name in problem]
    if "environment" in problem:
        if of_files:
            raise InvalidInput(
                f"problem has both 'environment' and {of_files[0]!r}; give an environment, or files"
            )
        names = problem.pop("environment")
        environment = read_names("problem.environment", names, "environment", ENVIRONMENTS)
        return environment, _read_arguments(problem, values_of(environment)), None
    if not of_files:
        known = dict.fromkeys(name for e in ENVIRONMENTS for name in parameters_of(e))
        for name in problem:
            require_known("problem", "key", name, ["environment", *FILE_KEYS, *known])
        raise InvalidInput("problem has no 'environment'; add it, or a reference and its reward")
    files = read_files(problem, folder)
    if len(files.labels) > MOST_ARMS:
        raise InvalidInput(f"problem has {len(files.labels)} arms; at most {MOST_ARMS} are allowed")
    return FILES, {}, files


def _read_samples(training: Mapping[str, Any]) -> dict[str, Any]:
    given = OF_SAMPLES | dict(training)

    def counts(key: str, least: int, most: int) -> Any:
        value = given[key]
        return None if value is None else read_axis(f"training.{key}", value, whole(least, most))

    return {
        "policy": read_choice("training.policy", given["policy"], POLICIES),
        "seeds": _read_seeds(given["seeds"]),
        "responses": counts("responses", 2, MOST_OF_PROMPT),
        "contexts": counts("contexts", 1, MOST_RESPONSES),
        "minibatch": counts("minibatch", 1, MOST_RESPONSES),
        "batch": counts("batch", 1, MOST_RESPONSES),
        "passes": counts("passes", 1, MOST_STEPS),
        "least_gap": read_axis("training.least_gap", given["least_gap"], NONNEGATIVE),
    }


def _refuse_samples(training: Mapping[str, Any]) -> dict[str, Any]:
    """Exact updates draw none: there is a table, one run of it, and nothing else to say."""
    for key in OF_SAMPLES:
        value = training.get(key)
        is_harmless = key in ("policy", "seeds") and value == OF_SAMPLES[key] and value is not True
        if value is not None and not is_harmless:
            raise InvalidInput(
                f"training.{key} is {show(value)}, but exact updates draw no samples; leave it "
                "out, or set training.updates to 'sampled'"
            )
    return dict.fromkeys(OF_SAMPLES) | {"policy": OF_SAMPLES["policy"]}


def _read_methods(value: Any, updates: str) -> tuple[str, ...]:
    """The methods, refused where the updates do not give them what they learn from."""
    methods = values_of(read_names("training.methods", value, "method", METHODS))
    learns = {
        "sampled": [name for name, method in METHODS.items() if method.one_collection],
        "exact": list(DIVERGENCES),
    }
    for name in methods:
        if name not in learns[updates]:
            others = [f"set training.updates to {u!r}" for u in UPDATES if name in learns[u]]
            remedy = " or ".join([*others, f"choose from {', '.join(learns[updates])}"])
            raise InvalidInput(
                f"training.methods holds {name!r}, which needs {METHODS[name].needs}, not what "
                f"{updates} updates give; {remedy}"
            )
    return methods


def _read_arguments(given: Mapping[str, Any], environments: Sequence[str]) -> dict[str, Numbers]:
    """What the environments are built with: sizes have one value, all other numbers may be axes."""
    takes = {name: p for e in environments for name, p in parameters_of(e).items()}
    arguments = {}
    for name, value in given.items():
        require_known("problem", "key", name, ["environment", *takes])
        if takes[name].annotation is TwoOrMore:
            arguments[name] = read_number(f"problem.{name}", value, whole(2, MOST_ARMS))
        else:
            arguments[name] = read_axis(f"problem.{name}", value, FINITE)
    return arguments


def _read_hyperparameters(value: Any, methods: Sequence[str]) -> dict[str, Numbers]:
    key = "training.hyperparameters"
    takes = {name: None for m in methods for name in METHODS[m].hyperparameters}
    hyperparameters = {}
    for name, entry in read_table(key, value).items():
        if not takes:
            raise InvalidInput(f"{key} holds {name!r}, but {', '.join(methods)} has none")
        require_known(key, "hyperparameter", name, takes)
        numbers = hyperparameters[name] = read_axis(f"{key}.{name}", entry, FINITE)
        for method in (METHODS[m] for m in methods if name in METHODS[m].hyperparameters):
            # What is allowed is an interval, so the ends speak for all values.
            for end in ends_of(numbers):
                _under(key, [name], functools.partial(method.bind, **{name: end}))
    return hyperparameters


def _read_seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int):  # a count
        return tuple(range(read_number("training.seeds", value, whole(1, MOST_VALUES))))
    return values_of(read_axis("training.seeds", value, whole(0, 2**32 - 1)))


def _read_record(value: Any, steps: int) -> tuple[int, ...]:
    record = values_of(read_axis("record.steps", value, whole(0, steps)))
    for before, after in itertools.pairwise(record):
        if before >= after:
            raise InvalidInput(f"record.steps has {after} after {before}; give increasing steps")
    return record


def _require_size(spec: Spec) -> None:
    """Refuse a grid beyond counting, and more programs than anyone can wait for."""
    for number, most, what, axes in (
        (spec.num_runs, MOST_RUNS, "runs", spec.axes),
        (spec.num_programs, MOST_PROGRAMS, "programs to compile", spec.static),
    ):
        if number > most:
            sizes = ", ".join(f"{len(spec.axes[name])} of {name}" for name in axes)
            raise InvalidInput(
                f"the grid has {number} {what}, at most {most} are allowed; take fewer values than "
                f"{sizes}"
            )


def _require_collections(spec: Spec) -> None:
    """Refuse N, M and B that do not fit together anywhere on the grid."""
    if spec.contexts is None or spec.responses is None:
        return
    for contexts, responses in itertools.product(
        values_of(spec.contexts), values_of(spec.responses)
    ):
        everything = contexts * responses
        all_at_once = f"training.contexts · training.responses, {contexts} · {responses},"
        if everything > MOST_RESPONSES:
            raise InvalidInput(
                f"{all_at_once} is {everything}; at most {MOST_RESPONSES} are allowed"
            )
        named_m, minibatches = all_at_once, values_of(everything)
        if spec.minibatch is not None:
            named_m, minibatches = "training.minibatch", values_of(spec.minibatch)
        named_b, batches = all_at_once, np.asarray(everything)
        if spec.batch is not None:
            named_b, batches = "training.batch", np.asarray(spec.batch)
        for minibatch in minibatches:
            checks.require_multiple(named_m, minibatch, "training.responses", responses)
            checks.require_multiple(named_b, batches, named_m.rstrip(","), minibatch)


def _require_problems(spec: Spec) -> None:
    """Refuse arguments that give no bandit, and bandits that the policy cannot be trained on.

    What is allowed of an argument is an interval, so the corners speak for the whole grid.
    """
    references = []
    for environment in spec.environments:
        given = spec.environment_arguments(environment)
        for corner in itertools.product(*map(ends_of, given.values())):
            arguments = dict(zip(given, corner, strict=True))
            build = functools.partial(build_environment, environment, arguments | spec.shared)
            bandit = _under("problem", list(given), build)
            _require_sound(spec, bandit, environment, arguments)
            references.append(np.asarray(bandit.reference_log_probs))
    if spec.policy == "network" and not all(
        np.array_equal(references[0], other) for other in references
    ):
        raise InvalidInput(
            "training.policy is 'network', distilled to one reference for all runs, but "
            f"problem.environment {show(spec.environment)} has several on this grid; choose "
            "environments and arguments with one reference, or the policy 'table'"
        )


def _require_sound(
    spec: Spec, bandit: CategoricalBandit, environment: str, arguments: Mapping[str, float]
) -> None:
    """Refuse numbers so extreme that none come out, and data that a network cannot draw."""
    given = ", ".join(f"{name} = {value:g}" for name, value in arguments.items())
    called = f"problem.environment {environment!r} with {given or 'its defaults'}"
    if spec.files is not None:
        called = "problem.reward"
        if spec.policy == "network" and 0.0 in spec.files.reference:
            arm = spec.files.labels[spec.files.reference.index(0.0)]
            raise InvalidInput(
                f"problem.reference is zero on arm {arm!r}, but a network gives each arm a "
                "probability > 0; add a problem.pseudocount, or choose the policy 'table'"
            )
    if spec.policy == "network" and bandit.data_log_probs is not None:
        raise InvalidInput(
            f"training.policy is 'network', whose offline data are the reference's, but {called} "
            "has data of another law; choose the policy 'table'"
        )
    if not jnp.isfinite(bandit.reward).all() or jnp.isnan(bandit.data_law()).any():
        raise InvalidInput(f"{called} has no finite reward or no reference; be less extreme")
    if spec.updates == "exact":
        # Every divergence has the same default.
        default = METHODS[spec.methods[0]].hyperparameters["beta"]
        least = min(ends_of(spec.hyperparameters.get("beta", default)))
        if jnp.isnan(bandit.target_log_probs(least)).any():
            raise InvalidInput(
                f"training.hyperparameters.beta is {least:g}, so that reward / beta of {called} is "
                "beyond range; it must be larger"
            )


def _under(key: str, names: Sequence[str], call: Callable[[], Any]) -> Any:
    """The result of a call, whose refusal gets the key in front."""
    try:
        return call()
    except InvalidInput as error:
        joint = "." if str(error).startswith(tuple(names)) else ": "
        raise InvalidInput(f"{key}{joint}{error}") from None
