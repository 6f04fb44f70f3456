"""Simulate a bandit of the user's own: train by each method, and label what came of it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from bandits.files.comparisons import Comparisons
from bandits.keys import split_seed
from bandits.losses import DIVERGENCES, METHODS
from bandits.policies import tabular_softmax
from bandits.problems.metrics import DIVERGED_AT
from bandits.simulation import inputs, results, step_size
from bandits.simulation.data import Aim, aim_of, schedule_of
from bandits.simulation.picture import shorten
from bandits.simulation.problem import Given, gather, pose, require_data, target_of
from bandits.simulation.results import RATE, SAFE_RATE
from bandits.simulation.settings import OPTIMIZERS, Hyperparameters, Numbers, Settings
from bandits.simulation.verdict import last_steps
from bandits.sweeps import DivergenceWarning, sweep
from bandits.training import Data, Schedule, descend, source_of, train
from theory.comparison_graph import describe, undetermined
from theory.pairs import Pairs

METHODS_OF_PAIRS = ("dpo", "rlhf")
METHODS_OF_A_TARGET = ("forward_kl", "reverse_kl")
"""The methods that are run where none are named: for preferences, and for a reward or target."""

MOST_SAID = 3
"""Number of sentences on what the prior decides."""

POLICY = tabular_softmax()


class UndeterminedWarning(UserWarning):
    """A prior, and not the preferences, decides some of the learned rewards."""


def simulate(
    reference: Any = inputs.UNIFORM,
    *,
    reward: Any = None,
    target: Any = None,
    preferences: Any = None,
    beta: Numbers = 0.1,
    methods: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Numbers] | None = None,
    learning_rate: Numbers | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Train a tabular policy from the reference by each method, and follow it.

    Divergences descend exactly to the target. The other methods run Algorithm 1: on-policy ones on
    responses of the current policy, offline ones on a single batch of the reference's, both
    labelled by the reward. With preferences of the user's own, the methods that need given pairs
    learn from those, all at once and without sampling; two-stage RLHF fits its reward to them. SPIN
    takes the target for the law of its demonstrations.

    Vectors may be arrays ``[K]``, mappings of names to numbers, pandas Series, or xarray
    DataArrays; those with names are brought into the order of the reference.

    Args:
      reference: probabilities ``[K]`` that the policy starts from; or ``"uniform"``, over the arms
        that the other inputs name.
      reward: one finite number an arm; the target is then π_ref exp(r/β) / Z.
      target: probabilities to move to; not beside a reward.
      preferences: pairs, as `as_comparisons` takes them: a table ``[K, K]`` of how often row was
        preferred to column, labelled or not, or a list of ``(winner, loser[, count])``. A tie is
        half a win each way. Alone, the reward that `reward_models.fit_tabular` fits to them takes
        the place of a given one.
      beta: β >= 0, the coefficient of the KL penalty, for every method that has one; or a list.
        At 0 the target is the best arms alone; methods that divide by β refuse it.
      methods: names from `bandits.losses.METHODS`; by default DPO and RLHF with preferences alone,
        and else both KLs.
      hyperparameters: others, by name, for the methods that have them; numbers or lists.
      learning_rate: > 0, or a list. By default a step size that is safe for each method, from the
        curvature of what it lowers (`bandits.simulation.step_size`).
      settings: fields of `Settings`, such as ``steps=1000`` or ``seed=0``.

    Returns:
      A dataset over ``loss``, the swept hyperparameters, ``step`` and ``arm``: the metrics,
      ``log_probs``, ``training_loss`` (what the method lowers), ``diverged``, the target and the
      reference; with preferences ``learned_reward``, ``in_pairs`` and what a trainer logs of the
      pairs; concentrability and, with a reward, the peak's distance in its attributes. A run that
      diverged is a DivergenceWarning of one sentence; rewards that the prior decides are an
      UndeterminedWarning. With ``per_prompt`` the metrics are means over prompts.

    Raises:
      InvalidInput: any of the above violated, arms that do not match, a method without the data it
        needs, or a target that it cannot reach from the reference.
    """
    chosen = Settings(**settings)
    given = gather(reference, {"reward": reward, "target": target}, preferences, chosen.per_prompt)
    names = (methods,) if isinstance(methods, str) else methods
    if names is None:
        names = METHODS_OF_PAIRS if given.names == {"preferences"} else METHODS_OF_A_TARGET
    grid = Hyperparameters(names, beta, hyperparameters or {}, learning_rate)
    chosen.check()
    problem = pose(given, chosen.ridge)
    require_data(names, problem, given, chosen.natural_gradient, grid.betas)
    _say_what_the_prior_decides(given.comparisons, chosen)
    return _run(names, given, problem, grid, chosen)


def _say_what_the_prior_decides(comparisons: Comparisons | None, settings: Settings) -> None:
    """Warn of learned rewards that the prior decides, and not the preferences."""
    if comparisons is None:
        return
    pairs = Pairs(comparisons.winners, comparisons.losers, comparisons.counts)
    found = undetermined(pairs, len(comparisons.labels))
    short, ridge = shorten(comparisons.labels), settings.ridge
    said = [describe(finding, short, ridge) for finding in found]
    if settings.per_prompt:  # no pair ever compares responses to two prompts, and none needs to
        unbounded = [finding for finding in found if finding.kind == "separable"]
        said = [
            f"in {len(unbounded):,} comparisons of responses to a prompt one side never lost: the "
            f"data put no bound on the gap of their rewards, the prior (ridge {ridge:g}) does"
        ] * bool(unbounded)
    if len(said) > MOST_SAID:
        said[MOST_SAID:] = [f"the prior decides {len(said) - MOST_SAID} more gaps of these kinds"]
    for sentence in said:
        warnings.warn(sentence, UndeterminedWarning, stacklevel=3)


def _run(
    methods: Sequence[str],
    given: Given,
    problem: Data,
    grid: Hyperparameters,
    settings: Settings,
) -> xr.Dataset:
    """Train every method at every swept value on every prompt; return the labelled dataset."""
    arms = given.arms
    num_arms, with_pairs = arms.shape[1], given.comparisons is not None
    schedules = {m: schedule_of(METHODS[m], settings, num_arms, with_pairs) for m in methods}
    wanted = list(map(int, settings.recorded))
    recorded = tuple(sorted({0, *wanted, *last_steps(settings.steps)}))

    def run(loss: str, prompt: Int[Array, ""], problem: Data, **swept: Array) -> dict[str, Array]:
        own = jax.tree.map(lambda leaf: leaf[prompt], problem)
        values = grid.of(loss, swept)
        return _train(loss, own, values, schedules[loss], settings, recorded)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # said below, with the remedy
        padded = sweep(
            run,
            {"loss": list(schedules), **grid.axes, "prompt": np.arange(arms.shape[0])},
            fixed={"problem": problem},
            dims={
                "log_probs": ["step", "place"],
                "training_loss": ["step"],
                **{name: [] for name in (RATE, SAFE_RATE, "reward_scale", DIVERGED_AT)},
            },
            coords={"step": list(recorded)},
        )
    padded = results.measure_runs(padded, problem, grid)
    dataset = results.flatten(padded, arms, grid.given.get("learning_rate"))
    dataset["diverged"] = results.find_diverged(padded, schedules, grid, problem)
    dataset = dataset.sel(step=wanted)
    for name, variable in dataset.variables.items():
        variable.attrs.update(results.ATTRIBUTES_OF_RUNS.get(str(name), {}))
    if "reward" not in given.names and "expected_reward" in dataset:
        dataset["expected_reward"].attrs.update(
            long_name="expected learned reward", units="nats of log-odds"
        )
    return dataset.assign_attrs(
        **results.geometry(problem, dataset, grid.betas[0]),
        optimizer=settings.optimizer,
        natural_gradient=int(settings.natural_gradient),
        seed=settings.seed,
    )


def _train(
    name: str,
    problem: Data,
    values: Mapping[str, Any],
    schedule: Schedule,
    settings: Settings,
    recorded: tuple[int, ...],
) -> dict[str, Array]:
    """Return the trajectory of one method on the bandit of one prompt.

    Args:
      name: of the method.
      problem: of one prompt; traceable, as the values are.
      values: β, the method's hyperparameters, and the step size if it is given.
      schedule: how often the method collects.
      settings: of the simulation.
      recorded: gradient steps after which the policy is kept.
    """
    start, goal = problem.reference, target_of(problem, values["beta"])
    keys, optimizer = split_seed(settings.seed), OPTIMIZERS[settings.optimizer]
    method, divergence = METHODS[name], DIVERGENCES.get(name)
    if divergence is not None:
        aim = Aim(
            lambda log_probs: divergence(log_probs, goal), step_size.of_divergence(start, goal)
        )

        def walk(rate: Array) -> dict[str, Array]:
            log_probs = descend(
                divergence, start, goal, rate, recorded, optimizer, settings.natural_gradient
            )
            # A descent is judged by its records.
            return {**jax.vmap(follow)(log_probs), DIVERGED_AT: jnp.int32(-1)}
    else:
        pairs = problem.pairs if schedule.exact else None
        data = problem._replace(pairs=pairs, shown=goal, key=keys.data)
        collect = source_of(method)(POLICY, data, schedule)
        first = collect(start, keys.judging, jnp.int32(0))
        loss = method.bind(**{own: values[own] for own in method.hyperparameters})
        aim = aim_of(method, loss, schedule, data, first, values)

        def walk(rate: Array) -> dict[str, Array]:
            return train(
                keys.training, POLICY, start, loss, collect, schedule, optimizer(rate),
                lambda logits: follow(POLICY.log_probs(logits)), recorded,
            )  # fmt: skip

    def follow(log_probs: Float[Array, " K"]) -> dict[str, Array]:
        return {"log_probs": log_probs, "training_loss": aim.objective(log_probs)}

    safe = aim.rate if settings.optimizer == "sgd" else step_size.ADAPTIVE
    safe, rate, scale = (
        jnp.asarray(number, start.dtype)
        for number in (
            safe,
            values.get("learning_rate", safe),
            values["tau" if "tau" in method.hyperparameters else "beta"],
        )
    )
    return {**walk(rate), RATE: rate, SAFE_RATE: safe, "reward_scale": scale}
