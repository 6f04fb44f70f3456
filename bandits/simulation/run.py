"""Training by each method, labelled; what diverged is said."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from bandits.files.comparisons import Comparisons
from bandits.files.tables import Vector
from bandits.keys import split_seed
from bandits.losses import DIVERGENCES, METHODS
from bandits.problems.environments import CategoricalBandit
from bandits.problems.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.simulation import inputs, step_size
from bandits.simulation.data import POLICY, is_noisy, objective_of, schedule_of
from bandits.simulation.picture import shorten
from bandits.simulation.problem import (
    Arms,
    Problem,
    bandit_for_each_prompt,
    one_bandit,
    pose,
    require_data,
)
from bandits.simulation.verdict import judge, last_steps
from bandits.sweeps import DivergenceWarning, sweep
from bandits.training import Data, Schedule, require_record, source_of, train
from bandits.training.descent import descend, log_spaced_steps
from theory import checks
from theory.comparison_graph import describe, undetermined
from theory.distributions import kl_divergence
from theory.pairs import Pairs

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in ("sgd", "adam", "adamw", "amsgrad", "adagrad", "lion", "nadam", "rmsprop", "yogi")
}
"""Optimisers by name; from Python, `bandits.descend` takes any optax factory."""

METHODS_OF_PAIRS = ("dpo", "rlhf")
METHODS_OF_A_TARGET = ("forward_kl", "reverse_kl")
"""The methods that are run where none are named: for preferences, and for a reward or target."""

MOST_SAID = 3
"""Number of sentences on what the prior decides."""

MOST_STEPS, MOST_SEED = 2**31 - 1, 2**32 - 1
"""Both have 32 bits, steps a sign."""

RIDGE = 0.01
"""Of the rewards that are fitted to preferences: a prior of 10 nats."""

RATE, SAFE_RATE = "used_rate", "safe_rate"
"""The results that say which step size a run had, and which would have been chosen."""

OF_THE_PANEL: dict[str, dict[str, str]] = {
    "training_loss": {"long_name": "what the method lowers", "units": "1"},
    "rewards_chosen": {"long_name": "β log π/π_ref of the chosen", "units": "nats"},
    "rewards_rejected": {"long_name": "β log π/π_ref of the rejected", "units": "nats"},
    "reward_margin": {"long_name": "chosen minus rejected", "units": "nats"},
    "reward_accuracy": {"long_name": "pairs whose margin is > 0", "units": "1"},
    "reward_scale": {"long_name": "factor of log π/π_ref in rewards", "units": "1"},
    "covered_mass": {"long_name": "probability of the arms in some pair", "units": "1"},
    "learning_rate": {"long_name": "step size", "units": "1"},
    "diverged": {"long_name": "whether the run is no result", "units": "1"},
    "in_pairs": {"long_name": "whether the arm is in some pair", "units": "1"},
    "learned_reward": {"long_name": "reward fitted to the preferences", "units": "nats"},
    "beta": {"long_name": "β", "units": "1"},
}
"""Names and units of what `bandits.problems.metrics.ATTRIBUTES` does not have."""

Numbers = float | Sequence[float]
"""One number, or several to sweep."""


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
    steps: int = 1000,
    record: Sequence[int] | None = None,
    optimizer: str = "sgd",
    natural_gradient: bool = False,
    responses: int = 10,
    batch: int = 100,
    passes: int | None = None,
    ridge: float = RIDGE,
    per_prompt: bool = False,
    seed: int = 0,
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
      preferences: pairs, as `as_comparisons` takes them: a table ``[K, K]``
        of how often row was preferred to column, labelled or not, or a list of
        ``(winner, loser[, count])``. A tie is half a win each way. Alone, the reward that
        `reward_models.fit_tabular` fits to them takes the place of a given one: the target follows
        from it, and on-policy methods are trained by it.
      beta: β >= 0, the coefficient of the KL penalty, for every method that has one; or a list.
        At 0 the target is the best arms alone; methods that divide by β refuse it.
      methods: names from `bandits.losses.METHODS`; by default DPO and RLHF with preferences alone,
        and else both KLs.
      hyperparameters: others, by name, for the methods that have them; numbers or lists.
      learning_rate: > 0, or a list. By default a step size that is safe for each method, from the
        curvature of what it lowers (`bandits.simulation.step_size`).
      steps: gradient steps, >= 1.
      record: steps to record, increasing, from 0 to ``steps``; by default on a log scale.
      optimizer: a name from `OPTIMIZERS`.
      natural_gradient: precondition with the inverse Fisher matrix; for divergences.
      responses: C, in a group.
      batch: B, responses collected at a time; also the minibatch.
      passes: T of on-policy methods; by default 15 if the method reuses samples and 1 if not.
      ridge: of the fitted reward, >= 0: 1/s², s the standard deviation in nats of its prior.
      per_prompt: whether preferences with prompts are a bandit for each prompt; the metrics are
        then means over prompts. Without, all responses are arms of one bandit.
      seed: of the samples.

    Returns:
      A dataset over ``loss``, the swept hyperparameters, ``step`` and ``arm``: the metrics,
      ``log_probs``, ``training_loss`` (what the method lowers), ``diverged``, the target and the
      reference; with preferences ``learned_reward``, ``in_pairs`` and what a trainer logs of the
      pairs; concentrability and, with a reward, the peak's distance in its attributes. A run that
      diverged is a DivergenceWarning of one sentence; rewards that the prior decides are an
      UndeterminedWarning.

    Raises:
      InvalidInput: any of the above violated, arms that do not match, a method without the data it
        needs, or a target that it cannot reach from the reference.
    """
    vectors = {
        name: inputs.as_vector(name, value)
        for name, value in (("reward", reward), ("target", target))
        if value is not None
    }
    start = None
    if not (isinstance(reference, str) and reference == inputs.UNIFORM):
        start = inputs.as_vector("reference", reference)
        checks.require_distribution("reference", start.values)
    comparisons = None
    if preferences is not None:
        comparisons = inputs.as_comparisons(preferences, None if start is None else start.labels)
    if per_prompt:
        arms, comparisons = _prompts_as_bandits(comparisons, start, vectors)
        shares = 1.0 / np.bincount(arms.prompt_of)[arms.prompt_of]
        start = Vector(shares, tuple(map(str, arms.labels)))
    else:
        labels = inputs.choose_arms(start, vectors, comparisons)
        names = None if isinstance(labels, int) else tuple(labels)
        count = labels if isinstance(labels, int) else len(labels)
        if start is None:
            start = Vector(np.full(count, 1.0 / count), names)
        arms = one_bandit(names or range(count))

    if methods is None:
        alone = comparisons is not None and not vectors
        methods = METHODS_OF_PAIRS if alone else METHODS_OF_A_TARGET
    methods = (methods,) if isinstance(methods, str) else methods
    settings = _Settings(methods, beta, hyperparameters or {}, learning_rate)
    checks.require_known("optimizer", optimizer, OPTIMIZERS)
    checks.require_whole("steps", steps, most=MOST_STEPS)
    checks.require_whole("seed", seed, least=0, most=MOST_SEED)
    checks.require_whole("responses", responses, least=2)
    checks.require_whole("batch", batch)
    if passes is not None:
        checks.require_whole("passes", passes)
    wanted = _steps_to_record(record, steps)
    recorded = tuple(sorted({0, *wanted, *last_steps(steps)}))
    checks.require_finite("ridge", ridge)
    checks.require_nonnegative("ridge", ridge)
    problem = pose(arms, start, vectors.get("reward"), vectors.get("target"), comparisons, ridge)
    given = {name: name in vectors for name in ("reward", "target")}
    given["preferences"] = comparisons is not None
    require_data(methods, problem, given, arms.labels, natural_gradient, settings.betas)
    if comparisons is not None:
        _say_what_the_prior_decides(comparisons, ridge, per_prompt)
    schedules = {
        name: schedule_of(
            name, arms.shape[1], steps, responses, batch, passes, comparisons is not None
        )
        for name in methods
    }

    def run_once(
        loss: str, prompt: Int[Array, ""], problem: Problem, **swept: Array
    ) -> dict[str, Array]:
        values = settings.of(loss, swept)
        own = jax.tree.map(lambda leaf: leaf[prompt], problem)
        goal = own.target(values["beta"])
        schedule = schedules[loss]
        keys = split_seed(seed)
        data = Data(
            own.start,
            own.reward,
            pairs=own.pairs if schedule.exact else None,
            fitted=own.fitted,
            shown=goal,
            key=keys.data,
        )
        bound = collect = first = None
        if loss not in DIVERGENCES:
            bound = METHODS[loss].bind(**settings.pick(loss, values))
            collect = source_of(METHODS[loss])(POLICY, data, schedule)
            first = collect(own.start, keys.judging, jnp.int32(0))
        # A KL's score function has the right gradient, not the value: it is measured as such.
        kl_coefficient = values.get("kl_coefficient", 0.0)
        without = bound
        if "kl_coefficient" in values:
            without = METHODS[loss].bind(**settings.pick(loss, {**values, "kl_coefficient": 0.0}))
        objective = objective_of(
            loss, schedule, without, data, goal, first, values["beta"], kl_coefficient
        )
        safe = _safe_rate(loss, schedule, bound, data, goal, first, values, optimizer)

        def follow(log_probs: Float[Array, " K"]) -> dict[str, Array]:
            return {"log_probs": log_probs, "training_loss": objective(log_probs)}

        transform = OPTIMIZERS[optimizer]
        safe, rate = (
            jnp.asarray(r, own.start.dtype) for r in (safe, values.get("learning_rate", safe))
        )
        if bound is None or collect is None:
            log_probs = descend(
                DIVERGENCES[loss], own.start, goal, rate, recorded, transform, natural_gradient
            )
            # A descent is judged by its records.
            result = {**jax.vmap(follow)(log_probs), DIVERGED_AT: jnp.int32(-1)}
        else:
            result = train(
                keys.training, POLICY, own.start, bound, collect, schedule, transform(rate),
                lambda logits: follow(POLICY.log_probs(logits)), recorded,
            )  # fmt: skip
        scale = values["tau" if "tau" in METHODS[loss].hyperparameters else "beta"]
        scale = jnp.asarray(scale, own.start.dtype)
        return {**result, RATE: rate, SAFE_RATE: safe, "reward_scale": scale}

    own_dims = {"log_probs": ["step", "place"], "training_loss": ["step"]}
    own_dims |= {name: [] for name in (RATE, SAFE_RATE, "reward_scale", DIVERGED_AT)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # said below, with the remedy
        padded = sweep(
            run_once,
            {
                "loss": list(dict.fromkeys(methods)),
                **settings.axes,
                "prompt": np.arange(arms.shape[0]),
            },
            fixed={"problem": problem},
            dims=own_dims,
            coords={"step": list(recorded)},
        )
    padded = _measure(padded, problem, settings)
    dataset = _flatten(padded, arms, problem, settings.given.get("learning_rate"))
    _judge(padded, dataset, schedules, settings, problem)
    dataset = dataset.sel(step=list(wanted))
    for name, attributes in {**ATTRIBUTES, **OF_THE_PANEL}.items():
        if name in dataset.variables:
            dataset[name].attrs.update(attributes)
    if "reward" not in vectors and "expected_reward" in dataset:
        dataset["expected_reward"].attrs.update(
            long_name="expected learned reward", units="nats of log-odds"
        )
    return dataset.assign_attrs(
        **_geometry(problem, dataset, settings),
        optimizer=optimizer,
        natural_gradient=int(natural_gradient),
        seed=seed,
    )


class _Settings:
    """Every method's hyperparameters: numbers, and axes where a list is given."""

    def __init__(
        self,
        methods: Sequence[str],
        beta: Numbers,
        hyperparameters: Mapping[str, Numbers],
        learning_rate: Numbers | None,
    ):
        if not methods:
            raise checks.InvalidInput("method is empty; name at least one")
        for name in methods:
            checks.require_known("method", name, METHODS)
        known = sorted({h for name in methods for h in METHODS[name].hyperparameters} - {"beta"})
        for given in hyperparameters:
            if given in ("beta", "learning_rate"):
                option = given.replace("_", "-")
                raise checks.InvalidInput(
                    f"{given} is no other hyperparameter; set it with --{option}"
                )
            if not known:
                raise checks.InvalidInput(
                    f"unknown hyperparameter {given!r}; {', '.join(methods)} has none but --beta"
                )
            checks.require_known("hyperparameter", given, known)
        self.given: dict[str, float | np.ndarray] = {
            name: _numbers(name, values)
            for name, values in {
                "beta": beta,
                **hyperparameters,
                **({} if learning_rate is None else {"learning_rate": learning_rate}),
            }.items()
        }
        checks.require_finite("beta", self.given["beta"])
        checks.require_nonnegative("beta", self.given["beta"])
        if learning_rate is not None:
            checks.require_positive("learning_rate", self.given["learning_rate"])
        self.axes = {n: v for n, v in self.given.items() if isinstance(v, np.ndarray)}
        self.betas = [float(b) for b in np.atleast_1d(self.given["beta"])]
        for name in methods:
            if name not in DIVERGENCES:
                self._check(name)

    def of(self, method: str, swept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method's own values, given, swept or by default, β, and the step size."""
        own = METHODS[method].hyperparameters
        allowed = {*own, "beta", "learning_rate"}
        values = {**own, **self.given, **swept}
        return {name: value for name, value in values.items() if name in allowed}

    def pick(self, method: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method's own hyperparameters among the values."""
        return {name: values[name] for name in METHODS[method].hyperparameters}

    def _check(self, method: str) -> None:
        """Bind each value once, for a refusal before any work; a sweep's numbers are traced."""
        for name, values in self.axes.items():
            if name in METHODS[method].hyperparameters:
                for value in values:
                    METHODS[method].bind(**{name: float(value)})
        METHODS[method].bind(
            **{
                name: float(value)
                for name, value in self.pick(method, self.of(method, {})).items()
                if not isinstance(value, np.ndarray)
            }
        )


def _numbers(name: str, values: Numbers) -> float | np.ndarray:
    numbers = np.asarray(values) if not isinstance(values, str) else np.array(())
    if numbers.dtype.kind not in "iuf":
        numbers = np.array(())
    numbers = numbers.astype(np.float64)
    if numbers.ndim == 0:
        return float(numbers)
    if numbers.ndim > 1 or not numbers.size:
        raise checks.InvalidInput(f"{name} is {values!r}; give a number or a list of them")
    if len(np.unique(numbers)) < numbers.size:
        raise checks.InvalidInput(f"{name} is {values!r}; give each value once")
    return numbers if numbers.size > 1 else float(numbers[0])


def _prompts_as_bandits(
    comparisons: Comparisons | None, start: Vector | None, vectors: Mapping[str, Vector]
) -> tuple[Arms, Comparisons]:
    if comparisons is None:
        raise checks.InvalidInput("a bandit for each prompt needs preferences; add --preferences")
    others = ["reference"] * (start is not None) + list(vectors)
    if others:
        raise checks.InvalidInput(
            f"a bandit for each prompt has its own arms, so no {others[0]} fits them all; leave it "
            "out (--reference uniform)"
        )
    return bandit_for_each_prompt(comparisons)


def _say_what_the_prior_decides(comparisons: Comparisons, ridge: float, per_prompt: bool) -> None:
    pairs = Pairs(comparisons.winners, comparisons.losers, comparisons.counts)
    found = undetermined(pairs, len(comparisons.labels))
    short = shorten(comparisons.labels)
    said = [describe(finding, short, ridge) for finding in found]
    if per_prompt:  # no pair ever compares responses to two prompts, and none needs to
        unbounded = [finding for finding in found if finding.kind == "separable"]
        said = [
            f"in {len(unbounded):,} comparisons of responses to a prompt one side never lost: the "
            f"data put no bound on the gap of their rewards, the prior (ridge {ridge:g}) does"
        ] * bool(unbounded)
    if len(said) > MOST_SAID:
        said[MOST_SAID:] = [f"the prior decides {len(said) - MOST_SAID} more gaps of these kinds"]
    for sentence in said:
        warnings.warn(sentence, UndeterminedWarning, stacklevel=3)


def _steps_to_record(record: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    if record is None:
        return log_spaced_steps(steps)
    require_record(record, steps)
    return tuple(map(int, record))


def _safe_rate(
    method: str,
    schedule: Schedule,
    loss: Any,
    data: Data,
    goal: Float[Array, " K"],
    first: Any,
    values: Mapping[str, Any],
    optimizer: str,
) -> Array | float:
    """Return a step size that is safe: of what the method lowers, and of the noise in it."""
    if optimizer != "sgd":
        return step_size.ADAPTIVE
    if method in DIVERGENCES:
        return step_size.of_divergence(data.reference, goal)
    marks = METHODS[method]
    if marks.whole_space:
        assert data.fitted is not None
        return step_size.of_rewards(data.fitted, data.reference, values["beta"])
    kl_coefficient = values.get("kl_coefficient", 0.0)
    rate: Array | float = step_size.of_data(loss, first, data.reference, kl_coefficient)
    if marks.family == "policy gradient":
        assert data.reward is not None
        rate = step_size.of_rewards(data.reward, data.reference, values["beta"])
    if is_noisy(method, schedule) or marks.needs == "demonstrations":
        return jnp.minimum(rate, step_size.MOST)
    return rate


def _measure(padded: xr.Dataset, problem: Problem, settings: _Settings) -> xr.Dataset:
    """Add what is measured along the trajectories of all runs: one program for all methods."""
    dims = [dim for dim in padded["log_probs"].dims if dim not in ("step", "place")]
    lengths = [padded.sizes[dim] for dim in dims]
    places = np.indices(lengths).reshape(len(dims), -1)
    betas = np.array(settings.betas)[places[dims.index("beta")] if "beta" in dims else 0]
    betas = np.broadcast_to(betas, places.shape[1:])

    @jax.jit
    def of_runs(problem: Problem, *runs: Array) -> dict[str, Array]:
        def of_run(log_probs: Array, scale: Array, beta: Array, prompt: Array) -> dict[str, Array]:
            own = jax.tree.map(lambda leaf: leaf[prompt], problem)
            goal = own.target(beta)
            measured = measure(log_probs, goal, own.reward)
            measured["reference_kl"] = kl_divergence(log_probs, own.start)
            if own.pairs is not None:
                follow = jax.vmap(lambda x: _follow_pairs(x, own.start, own.pairs, scale))
                measured |= follow(log_probs)
            return {**measured, "target_log_probs": goal}

        return jax.vmap(of_run)(*runs)

    log_probs = padded["log_probs"].values
    measured = of_runs(
        problem,
        log_probs.reshape(-1, *log_probs.shape[len(dims) :]),
        padded["reward_scale"].values.ravel(),
        jnp.asarray(betas, log_probs.dtype),
        places[dims.index("prompt")],
    )
    for name, values in measured.items():
        own = ["place"] if name == "target_log_probs" else ["step"]
        padded[name] = ((*dims, *own), np.asarray(values).reshape(*lengths, *values.shape[1:]))
    return padded


def _follow_pairs(
    log_probs: Float[Array, " K"],
    start: Float[Array, " K"],
    pairs: Pairs,
    scale: Float[Array, ""],
) -> dict[str, Array]:
    """What a trainer logs of its pairs."""
    log_ratios = jnp.where(jnp.isfinite(start), log_probs - start, 0.0)
    chosen, rejected = log_ratios[pairs.winners], log_ratios[pairs.losers]
    margin = chosen - rejected
    # At the start all margins are 0, but for rounding.
    right = jnp.where(jnp.abs(margin) <= 1e-6, 0.5, margin > 0)
    held = jnp.asarray(pairs.weights) > 0
    covered = jnp.zeros(log_probs.shape, bool)
    covered = covered.at[pairs.winners].max(held).at[pairs.losers].max(held)
    return {
        "rewards_chosen": scale * jnp.sum(pairs.weights * chosen),
        "rewards_rejected": scale * jnp.sum(pairs.weights * rejected),
        "reward_margin": scale * jnp.sum(pairs.weights * margin),
        "reward_accuracy": jnp.sum(pairs.weights * right),
        "covered_mass": jnp.sum(jnp.where(covered, jnp.exp(log_probs), 0.0)),
    }


def _flatten(
    padded: xr.Dataset, arms: Arms, problem: Problem, learning_rate: float | np.ndarray | None
) -> xr.Dataset:
    """The arms of all prompts along one dimension, and means over prompts of all else."""
    over_arms = {name: v for name, v in padded.data_vars.items() if "place" in v.dims}
    if arms.prompts is None:
        dataset = padded.drop_vars(list(over_arms)).squeeze("prompt", drop=True)
    else:
        dataset = padded.drop_vars(list(over_arms)).mean("prompt").astype("float32")
    dataset = dataset.drop_vars([DIVERGED_AT, SAFE_RATE])
    if learning_rate is None:
        dataset = dataset.rename({RATE: "learning_rate"})
    else:
        dataset = dataset.drop_vars(RATE)
        if "learning_rate" not in dataset.dims:
            dataset = dataset.assign_coords(learning_rate=learning_rate)
    dataset = dataset.assign_coords(arm=list(arms.labels))

    def along_arms(values: np.ndarray) -> np.ndarray:
        return values[..., arms.prompt_of, arms.place_of]

    for name, variable in over_arms.items():
        moved = variable.transpose(..., "prompt", "place")
        if name == "target_log_probs":  # the same for all methods, and for all but β
            moved = moved.isel({d: 0 for d in moved.dims[:-2] if d != "beta"})
        dataset[name] = ((*moved.dims[:-2], "arm"), along_arms(moved.values))
    dataset["reference_log_probs"] = ("arm", along_arms(np.asarray(problem.start)))
    if problem.fitted is not None and problem.pairs is not None:
        dataset["learned_reward"] = ("arm", along_arms(np.asarray(problem.fitted)))
        held = np.zeros(arms.shape, bool)
        rows = np.broadcast_to(np.arange(arms.shape[0])[:, None], problem.pairs.winners.shape)
        real = np.asarray(problem.pairs.weights) > 0
        for ends in (problem.pairs.winners, problem.pairs.losers):
            held[rows[real], np.asarray(ends)[real]] = True
        dataset["in_pairs"] = ("arm", along_arms(held))
    if arms.prompts is not None:
        dataset = dataset.assign_coords(prompt=("arm", [arms.prompts[i] for i in arms.prompt_of]))
    return dataset


def _judge(
    padded: xr.Dataset,
    dataset: xr.Dataset,
    schedules: Mapping[str, Schedule],
    settings: _Settings,
    problem: Problem,
) -> None:
    """Mark the runs that are no results, and say so in a sentence each."""
    dims = [str(dim) for dim in dataset["training_loss"].dims if dim != "step"]
    lengths = [dataset.sizes[dim] for dim in dims]
    diverged = np.zeros(lengths, bool)
    steps = padded["step"].values
    probs = np.exp(padded["log_probs"].transpose(*dims, "prompt", "step", "place").values)
    objectives = padded["training_loss"].transpose(*dims, "prompt", "step").values
    stopped = padded[DIVERGED_AT].transpose(*dims, "prompt").values
    rates, safe = (padded[name].transpose(*dims, "prompt").values for name in (RATE, SAFE_RATE))
    for place in itertools.product(*map(range, lengths)):
        method = str(dataset["loss"].values[place[0]])
        sampled = is_noisy(method, schedules[method])
        prompts = len(objectives[place])
        verdicts = {
            i: verdict
            for i in range(prompts)
            if (
                verdict := judge(
                    objectives[place][i],
                    probs[place][i],
                    steps,
                    diverged_at=int(stopped[place][i]),
                    sampled=sampled,
                    scale=_scale(method, problem, i),
                )
            )
        }
        if not verdicts:
            continue
        diverged[place] = True
        i, verdict = next(iter(verdicts.items()))
        at = {
            dim: float(dataset[dim].values[k]) for dim, k in zip(dims[1:], place[1:], strict=True)
        }
        own = settings.pick(method, settings.of(method, at))
        shown = {"learning_rate": float(rates[place][i]), **own, **at}
        listed = ", ".join(f"{key}={value:g}" for key, value in shown.items())
        which = f" for {len(verdicts)} of {prompts} prompts" if prompts > 1 else ""
        remedy = "choose gentler hyperparameters or other data"
        if verdict.curable:
            rate = min(shown["learning_rate"] / 10, max(float(safe[place][i]), 1e-30))
            remedy = f"try learning_rate={rate:.2g}"
        warnings.warn(
            f"{method} diverged{which}: it {verdict.sentence}, with {listed}; {remedy}",
            DivergenceWarning,
            stacklevel=3,
        )
    dataset["diverged"] = (dims, diverged)


def _scale(method: str, problem: Problem, prompt: int) -> float:
    """A natural size of what a method lowers: the range of rewards, or a nat."""
    if problem.reward is None or METHODS[method].family != "policy gradient":
        return 1.0
    reward = np.asarray(problem.reward)[prompt]
    held = np.isfinite(np.asarray(problem.start)[prompt])
    return float(np.ptp(reward[held]))


def _geometry(problem: Problem, dataset: xr.Dataset, settings: _Settings) -> dict[str, float]:
    """How far the target lies from the reference; of the first β."""
    target = dataset["target_log_probs"]
    first = target.isel(beta=0) if "beta" in target.dims else target
    log_ratio = (first - dataset["reference_log_probs"]).values.astype(np.float64)
    log_ratio = log_ratio[np.isfinite(first.values)].max()
    attributes: dict[str, float] = {"concentrability": float(np.exp(log_ratio))}
    if problem.goal is None and problem.reward is not None:
        attributes["beta"] = settings.betas[0]
        if len(problem.start) == 1:
            bandit = CategoricalBandit(problem.reward[0], problem.start[0])
            attributes["peak_distance"] = int(bandit.peak_distance())
    return attributes
