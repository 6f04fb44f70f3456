"""Read a search from a TOML file, and check it before anything runs.

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
(the dimension ``loss``) and seeds are always axes. A hyperparameter applies to the methods that
have it, and an argument to the environments that have it. The others ignore it, and repeat their
runs along its axis.

Exact updates descend from the reference to the Gibbs policy of ``beta`` by a divergence. They take
no seeds, and no other key that is about samples.

A bandit of your own comes from files, in any format that `modeseek simulate` reads:

    [problem]
    reference = "letters.csv"         # or "uniform", over the arms that the other file names
    reward = "rewards.csv"            # one number an arm; or, instead,
    preferences = "pairs.csv"         # who was preferred to whom: a reward is fitted to them
    normalize = true                  # divide the reference by its sum; by default false
    pseudocount = 0.5                 # added to each of its entries before; by default 0
    ridge = 0.01                      # of the fitted reward: 1/s², s its prior's deviation in nats

Paths are relative to the TOML file, and each of these keys has one value. Responses are sampled,
and labelled by the given or fitted reward, as in an environment.
"""

import functools
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bandits.losses import DIVERGENCES, METHODS
from bandits.problems.environments import ENVIRONMENTS, CategoricalBandit
from bandits.search.entries import (
    FINITE,
    ends_of,
    read_names,
    read_table,
    show,
    under,
    values_of,
    whole,
)
from bandits.search.files import FILE_KEYS, FILES, read_files
from bandits.search.spec import (
    MARKS,
    MOST_RESPONSES,
    OF_SAMPLES,
    UPDATES,
    Numbers,
    Spec,
    build_environment,
    parameters_of,
)
from theory import checks
from theory.checks import InvalidInput
from theory.types import TwoOrMore

METRICS = ("expected_reward", "reference_kl", "entropy", "optimal_mass")
"""What can be recorded; by default the first two."""

TARGET_METRICS = ("forward_kl", "reverse_kl")
"""What exact updates can record too, because they have a target."""

REQUIRED = ("methods", "steps", "learning_rate")
"""Keys of ``[training]`` without a default."""

HARMLESS = {"policy": "table", "seeds": 1}
"""What exact updates let a file say about samples: there is a table, and one run of it."""

MOST_RUNS = 2**53
"""Most runs of a search, so that a place in it is an exact number everywhere."""

MOST_PROGRAMS = 10**4
"""Most programs of a search: each takes about a second to compile."""

MOST_ARMS = 10**5
"""Most arms of an environment: up to here float32 sums a distribution to 1 within the tolerance."""


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
    """Return the search that the tables of a TOML file describe.

    Args:
      content: The tables.
      folder: Folder that the paths of files in them are relative to.

    Raises InvalidInput for anything that is not allowed; the message is one sentence that names the
    key, the value and what is allowed.
    """
    tables = read_table("the file", content, ("problem", "training"), ("record",))
    optional = ("hyperparameters", *(name for name in MARKS if name not in REQUIRED))
    given = read_table("training", tables["training"], REQUIRED, optional)
    record = read_table("record", tables.get("record", {}), (), ("metrics", "steps"))

    problem = _read_problem(tables["problem"], folder)
    training = _read_training(given)
    updates, steps = training.get("updates", UPDATES[0]), training["steps"]
    methods = _read_methods(given["methods"], updates)
    measurable = METRICS + (TARGET_METRICS if updates == "exact" else ())
    metrics = record.get("metrics", list(METRICS[:2]))
    spec = Spec(
        **problem,
        methods=methods,
        hyperparameters=_read_hyperparameters(given.get("hyperparameters", {}), methods),
        **training,
        metrics=values_of(read_names("record.metrics", metrics, "metric", measurable)),
        record=_read_record(record.get("steps", [0, steps]), steps),
    )
    _require_size(spec)
    _require_collections(spec)
    _require_problems(spec)
    return spec


def _read_problem(value: Any, folder: Path) -> dict[str, Any]:
    """Read the environments and their arguments, or the bandit of files."""
    problem = read_table("problem", value)
    of_files = [name for name in FILE_KEYS if name in problem]
    if "environment" in problem:
        if of_files:
            raise InvalidInput(
                f"problem has both 'environment' and {of_files[0]!r}; give an environment, or files"
            )
        names = problem.pop("environment")
        environment = read_names("problem.environment", names, "environment", ENVIRONMENTS)
        arguments = _read_arguments(problem, values_of(environment))
        return {"environment": environment, "arguments": arguments}
    if not of_files:
        known = dict.fromkeys(name for e in ENVIRONMENTS for name in parameters_of(e))
        read_table("problem", problem, optional=("environment", *FILE_KEYS, *known))
        raise InvalidInput("problem has no 'environment'; add it, or a reference and its reward")
    files = read_files(problem, folder)
    if len(files.labels) > MOST_ARMS:
        raise InvalidInput(f"problem has {len(files.labels)} arms; at most {MOST_ARMS} are allowed")
    return {"environment": FILES, "arguments": {}, "files": files}


def _read_training(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys that stand for themselves; exact updates refuse those about samples."""
    is_exact = given.get("updates") == "exact"
    for name in OF_SAMPLES if is_exact else ():
        value = given.get(name, HARMLESS.get(name))
        if value is True or value != HARMLESS.get(name):
            raise InvalidInput(
                f"training.{name} is {show(value)}, but exact updates draw no samples; leave it "
                "out, or set training.updates to 'sampled'"
            )
    found = {
        name: marks[0](f"training.{name}", given[name])
        for name, marks in MARKS.items()
        if name in given
    }
    return found | dict.fromkeys(OF_SAMPLES if is_exact else ())


def _read_methods(value: Any, updates: str) -> tuple[str, ...]:
    """Read the methods; refuse those that do not get what they learn from."""
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
    """Read the environments' arguments: sizes have one value, all other numbers may be axes."""
    takes = {name: p for e in environments for name, p in parameters_of(e).items()}
    read_table("problem", given, optional=("environment", *takes))
    return {
        name: whole(2, MOST_ARMS).number(f"problem.{name}", value)
        if takes[name].annotation is TwoOrMore
        else FINITE.axis(f"problem.{name}", value)
        for name, value in given.items()
    }


def _read_hyperparameters(value: Any, methods: Sequence[str]) -> dict[str, Numbers]:
    key = "training.hyperparameters"
    takes = {name: None for m in methods for name in METHODS[m].hyperparameters}
    hyperparameters = {}
    for name, entry in read_table(key, value).items():
        if not takes:
            raise InvalidInput(f"{key} holds {name!r}, but {', '.join(methods)} has none")
        with under(key):
            checks.require_known("hyperparameter", name, takes)
        numbers = hyperparameters[name] = FINITE.axis(f"{key}.{name}", entry)
        for method in (METHODS[m] for m in methods if name in METHODS[m].hyperparameters):
            # What is allowed is an interval, so the ends speak for all values.
            for end in ends_of(numbers):
                with under(key, [name]):
                    method.bind(**{name: end})
    return hyperparameters


def _read_record(value: Any, steps: int) -> tuple[int, ...]:
    record = values_of(whole(0, steps).axis("record.steps", value))
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
        named = f"training.contexts · training.responses, {contexts} · {responses},"
        if everything > MOST_RESPONSES:
            raise InvalidInput(f"{named} is {everything}; at most {MOST_RESPONSES} are allowed")
        minibatch_named = named if spec.minibatch is None else "training.minibatch"
        batch_named = named if spec.batch is None else "training.batch"
        batches = np.asarray(everything if spec.batch is None else spec.batch)
        for minibatch in values_of(spec.minibatch or everything):
            checks.require_multiple(minibatch_named, minibatch, "training.responses", responses)
            checks.require_multiple(batch_named, batches, minibatch_named.rstrip(","), minibatch)


def _require_problems(spec: Spec) -> None:
    """Refuse arguments that give no bandit, and bandits that the policy cannot be trained on.

    What is allowed of an argument is an interval, so the corners speak for the whole grid.
    """
    references = []
    for environment in spec.environments:
        given = spec.environment_arguments(environment)
        for corner in itertools.product(*map(ends_of, given.values())):
            arguments = dict(zip(given, corner, strict=True))
            with under("problem", list(given)):
                bandit = build_environment(environment, arguments | spec.shared)
            _require_sound(spec, bandit, environment, arguments)
            references.append(np.asarray(bandit.reference_log_probs))
    same = functools.partial(np.array_equal, references[0])
    if spec.policy == "network" and not all(map(same, references)):
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
