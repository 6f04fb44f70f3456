"""A bandit of the user's own: train by each method from a reference and label the trajectory."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits import plotting
from bandits.descent import descend, log_spaced_steps
from bandits.environments import CategoricalBandit, reference_from_probabilities
from bandits.files import Vector, align
from bandits.losses import DIVERGENCES, METHODS
from bandits.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.policies import tabular_softmax
from bandits.reward_models import fit_tabular, require_counts
from bandits.sweeps import DivergenceWarning, sweep
from bandits.training import (
    Collect,
    Schedule,
    against_own,
    from_dataset,
    on_bandit,
    on_whole_space,
    train,
    with_own_samples,
)
from theory import checks

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in ("sgd", "adam", "adamw", "amsgrad", "adagrad", "lion", "nadam", "rmsprop", "yogi")
}
"""Optimisers by name; from Python, `bandits.descend` takes any optax factory."""

POLICY = tabular_softmax()

GIVEN_PAIRS = ("preferences", "preferences and samples", "learned rewards")
"""What methods need that can learn from pairs that are given."""

CLIMB = 1e-3
"""A descent that ends this many nats above its start has diverged."""

MOST_STEPS = 2**31 - 1
"""Steps are counted in 32 bits."""

MOST_LABELS = 40
"""Arms are named on the picture's axis up to this many."""


def to_distribution(name: str, weights: Vector, normalize: bool, pseudocount: float) -> Vector:
    """The weights as probabilities: as given, or divided by their sum; zeros can be smoothed.

    Raises InvalidInput if they are no distribution, with the remedy where there is one.
    """
    checks.require_finite("pseudocount", pseudocount)
    checks.require_nonnegative("pseudocount", pseudocount)
    checks.require_finite(name, weights.values)
    checks.require_nonnegative(name, weights.values)
    checks.require_arms(name, weights.values)
    values = weights.values + pseudocount
    total = values.sum()
    if total <= 0:
        raise checks.InvalidInput(f"{name} is zero on every arm; at least one must be positive")
    if not (normalize or pseudocount) and abs(total - 1) > checks.SUM_TOLERANCE:
        raise checks.InvalidInput(
            f"{name} sums to {total:.8g}; probabilities must sum to 1 (for counts, add --normalize)"
        )
    return Vector(values / total, weights.labels)


def simulate(
    reference: Vector,
    *,
    reward: Vector | None = None,
    target: Vector | None = None,
    preferences: np.ndarray | None = None,
    beta: float = 0.1,
    methods: Sequence[str] = ("forward_kl", "reverse_kl"),
    hyperparameters: Mapping[str, float] | None = None,
    learning_rate: float = 1.0,
    steps: int = 1000,
    optimizer: str = "sgd",
    natural_gradient: bool = False,
    responses: int = 10,
    batch: int = 100,
    passes: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Train a tabular policy from the reference by each method, and follow it.

    Divergences descend exactly to the target. The other methods run Algorithm 1: on-policy ones on
    responses of the current policy, offline ones on a single batch of the reference's, both
    labelled by the reward. With preferences of the user's own, the methods that need given pairs
    learn from those, all at once and without sampling; two-stage RLHF fits its reward to them. SPIN
    takes the target for the law of its demonstrations.

    Args:
      reference: probabilities that the policy starts from.
      reward: one finite number an arm; the target is then π_ref exp(r/β) / Z.
      target: probabilities to move to; not beside a reward.
      preferences: ``[K, K]``, how often row was preferred to column. Alone, the reward that
        `reward_models.fit_tabular` fits to them takes the place of a given one: the target follows
        from it, and on-policy methods are trained by it.
      beta: β > 0, the coefficient of the KL penalty, for every method that has one.
      methods: names from `bandits.losses.METHODS`.
      hyperparameters: others, by name, for the methods that have them.
      learning_rate: > 0.
      steps: gradient steps, >= 1, recorded on a log scale.
      optimizer: a name from `OPTIMIZERS`.
      natural_gradient: precondition with the inverse Fisher matrix; for divergences.
      responses: C, in a group.
      batch: B, responses collected at a time; also the minibatch.
      passes: T of on-policy methods; by default 15 if the method reuses samples and 1 if not.
      seed: of the samples.

    Returns:
      A dataset over ``loss``, ``step`` and ``arm``: the metrics, ``log_probs``, the target and the
      reference; concentrability and, with a reward, the peak's distance in its attributes.

    Raises:
      InvalidInput: any of the above violated, arms that do not match, a method without the data it
        needs, a target that it cannot reach from the reference, or a run that diverged.
    """
    if not methods:
        raise checks.InvalidInput("method is empty; name at least one")
    for name in methods:
        checks.require_known("method", name, METHODS)
    checks.require_known("optimizer", optimizer, OPTIMIZERS)
    checks.require_positive("learning_rate", learning_rate)
    checks.require_positive("beta", beta)
    checks.require_distribution("reference", reference.values)
    if preferences is not None:
        preferences = np.asarray(preferences, np.float64)
        require_counts(preferences)
        checks.require_same_arms(preferences=preferences, reference=reference.values)
        start = reference_from_probabilities(reference.values)
        checks.require_pairs_in_support("preferences", preferences, start, reference.labels or ())
    if not 1 <= steps <= MOST_STEPS:
        raise checks.InvalidInput(f"steps is {steps}; it must be from 1 to {MOST_STEPS}")
    fitted = None if preferences is None else fit_tabular(preferences)
    problem = _pose(reference, reward, target, fitted, beta)
    _require_data(methods, problem, reward, target, preferences, natural_gradient)
    settings = _settings(methods, beta, hyperparameters or {})
    losses = {name: METHODS[name].bind(**values) for name, values in settings.items()}
    recorded = log_spaced_steps(steps)
    collections = {
        name: _collection(
            name, len(problem.start), steps, responses, batch, passes, preferences is not None
        )
        for name in methods
        if name not in DIVERGENCES
    }
    learned: dict[str, Array] = {}
    if preferences is not None and fitted is not None:
        learned = {
            "pairs": jnp.asarray(preferences / preferences.sum(), float),
            "fitted": fitted,
        }

    def run_once(
        loss: str,
        learning_rate: Float[Array, ""],
        start: Float[Array, " K"],
        goal: Float[Array, " K"],
        reward: Float[Array, " K"] | None = None,
        pairs: Float[Array, "K K"] | None = None,
        fitted: Float[Array, " K"] | None = None,
    ) -> dict[str, Array]:
        transform = OPTIMIZERS[optimizer]

        def follow(log_probs: Float[Array, "*steps K"]) -> dict[str, Array]:
            return {**measure(log_probs, goal, reward), "log_probs": log_probs}

        if loss in DIVERGENCES:
            log_probs = descend(
                DIVERGENCES[loss], start, goal, learning_rate, recorded, transform, natural_gradient
            )
            # A descent is judged by its records.
            return {**follow(log_probs), DIVERGED_AT: jnp.int32(-1)}
        source, schedule = collections[loss]
        data = _Data(start, goal, reward, pairs, fitted)
        collect = _collect(source, data, schedule, jax.random.key(seed))
        key = jax.random.key(seed)
        return train(
            key, POLICY, start, losses[loss], collect, schedule, transform(learning_rate),
            lambda logits: follow(POLICY.log_probs(logits)), recorded,
        )  # fmt: skip

    gain = {} if problem.reward is None else {"reward": problem.reward}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # refused below, with the remedy
        dataset = sweep(
            run_once,
            {"loss": list(dict.fromkeys(methods)), "learning_rate": [learning_rate]},
            fixed={"start": problem.start, "goal": problem.goal, **gain} | learned,
            dims=["step", "arm"],
            coords={"step": list(recorded), "arm": list(problem.labels)},
            attributes=ATTRIBUTES,
        ).squeeze("learning_rate")
    if reward is None and "expected_reward" in dataset:
        dataset["expected_reward"].attrs.update(
            long_name="expected learned reward", units="nats of log-odds"
        )
    dataset["target_log_probs"] = ("arm", np.asarray(problem.goal))
    dataset["reference_log_probs"] = ("arm", np.asarray(problem.start))
    _require_convergence(dataset, settings)
    dataset = dataset.drop_vars(DIVERGED_AT)
    log_ratio = np.asarray(problem.goal - problem.start, np.float64)
    log_ratio = log_ratio[np.isfinite(problem.goal)].max()
    return dataset.assign_attrs(
        **problem.attributes,
        concentrability=float(np.exp(log_ratio)),
        optimizer=optimizer,
        natural_gradient=int(natural_gradient),
        seed=seed,
    )


def plot(dataset: xr.Dataset) -> Figure:
    """The distributions at the end, and the way there: KLs and the mass on the best arms."""
    with plotting.style():
        figure = plotting.new_figure(15.5, 8.5, layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=[1.15, 1])
        _plot_distributions(figure.add_subplot(grid[0, :]), dataset)
        last = "expected_reward" if "expected_reward" in dataset else "optimal_mass"
        for i, metric in enumerate(("forward_kl", "reverse_kl", last)):
            axes = figure.add_subplot(grid[1, i])
            for name in dataset["loss"].values:
                one = dataset.sel(loss=name).isel(step=slice(1, None))
                axes.plot(one["step"], one[metric], color=plotting.METHOD_COLORS[name])
            title = dataset[metric].attrs["long_name"]
            units = dataset[metric].attrs["units"]
            axes.set(title=title, xscale="log", xlabel="gradient steps")
            axes.set_ylabel(units if units != "1" else "")
            axes.set_ylim(bottom=min(0.0, float(dataset[metric].min())))
    return figure


def summarise(dataset: xr.Dataset) -> list[tuple[str, ...]]:
    """One row a method: name and metrics at the last step, under the names of the first row."""
    metrics = [
        name for name in ("expected_reward", "forward_kl", "reverse_kl", "entropy", "optimal_mass")
        if name in dataset
    ]  # fmt: skip
    rows = [("method", *(dataset[m].attrs["long_name"] for m in metrics))]
    for name in dataset["loss"].values:
        final = dataset.sel(loss=name).isel(step=-1)
        rows.append((str(name), *(f"{float(final[m]):.4g}" for m in metrics)))
    return rows


class _Problem(NamedTuple):
    """Where policies start and where they should go.

    Attributes:
      start, goal: log-probabilities ``[K]``.
      reward: ``[K]``, given or learned, or None if only a target is given.
      labels: the arms' names.
      attributes: of the dataset.
    """

    start: Float[Array, " K"]
    goal: Float[Array, " K"]
    reward: Float[Array, " K"] | None
    labels: Sequence[object]
    attributes: dict[str, float]


def _pose(
    reference: Vector,
    reward: Vector | None,
    target: Vector | None,
    fitted: Float[Array, " K"] | None,
    beta: float,
) -> _Problem:
    if reward is not None and target is not None:
        raise checks.InvalidInput("give either a reward or a target, one of the two")
    if reward is None and target is None and fitted is None:
        raise checks.InvalidInput("give either a reward or a target, or preferences")
    start = reference_from_probabilities(reference.values)
    if target is not None:
        other = align(target, "target", reference)
        checks.require_distribution("target", other.values)
        goal = reference_from_probabilities(other.values)
        return _Problem(start, goal, None, _names(other), {})
    if reward is None:
        assert fitted is not None
        reward = Vector(np.asarray(fitted), reference.labels)
    other = align(reward, "reward", reference)
    bandit = CategoricalBandit.from_arrays(other.values, reference.values)
    goal = bandit.target_log_probs(beta)
    if np.isnan(np.asarray(goal)).any():
        raise checks.InvalidInput(
            f"beta is {beta:g}, so reward / beta is beyond range; choose a larger "
            "beta or smaller rewards"
        )
    attributes = {"beta": beta, "peak_distance": int(bandit.peak_distance())}
    return _Problem(start, goal, bandit.reward, _names(other), attributes)


def _names(arms: Vector) -> Sequence[object]:
    return arms.labels or range(len(arms.values))


def _learns_from_pairs(method: str) -> bool:
    """Whether it takes pairs that are given."""
    return METHODS[method].needs in GIVEN_PAIRS and (
        METHODS[method].needs != "preferences" or not METHODS[method].on_policy
    )


def _require_data(
    methods: Sequence[str],
    problem: _Problem,
    reward: Vector | None,
    target: Vector | None,
    preferences: np.ndarray | None,
    natural_gradient: bool,
) -> None:
    """Refuse methods that lack the data they learn from, or the mass to get there."""
    for name in methods:
        method = METHODS[name]
        if natural_gradient and name not in DIVERGENCES:
            raise checks.InvalidInput(
                f"natural_gradient is for exact descent of a divergence; {name} is none, leave it "
                "out"
            )
        if name in DIVERGENCES:
            _require_reachable(name, problem)
        elif method.needs == "demonstrations":
            if target is None:
                raise checks.InvalidInput(
                    f"{name} learns from demonstrations, but no target is given; add --target, "
                    "their law"
                )
            shown, start = np.exp(problem.goal), np.exp(problem.start)
            checks.require_support("target", shown, "reference", start)
        elif method.needs == "learned rewards":
            if preferences is None:
                raise checks.InvalidInput(
                    f"{name} fits its reward to preferences, but none are given; add "
                    "--preferences, or choose reverse_kl, which optimises the same objective for a "
                    "--reward"
                )
        elif problem.reward is None or not (
            reward is not None or method.on_policy or _learns_from_pairs(name)
        ):
            given = "only a target is" if target is not None else "only preferences are"
            why = "samples its own responses" if method.on_policy else "learns from responses"
            from_pairs = ", ".join(n for n in METHODS if _learns_from_pairs(n))
            raise checks.InvalidInput(
                f"{name} {why}, which a reward must label, but {given} given; add --reward, or "
                f"choose a method that learns from --preferences: {from_pairs}"
            )


def _require_reachable(method: str, problem: _Problem) -> None:
    """Refuse a divergence that is infinite at the start and stays so."""
    start, goal = np.asarray(problem.start), np.asarray(problem.goal)
    missing = {
        "target": np.isneginf(goal) & ~np.isneginf(start),
        "reference": np.isneginf(start) & ~np.isneginf(goal),
    }
    infinite = {
        "reverse_kl": ("target",),
        "forward_kl": ("reference",),
        "jeffreys": ("target", "reference"),
        "jensen_shannon": (),
    }
    for excluded in infinite[method]:
        if missing[excluded].any():
            arm = problem.labels[int(np.argmax(missing[excluded]))]
            other = "reference" if excluded == "target" else "target"
            raise checks.InvalidInput(
                f"{excluded} is zero on arm {str(arm)!r} where the {other} is not, so {method} is "
                "infinite; smooth the zeros (--pseudocount 0.5 for counts) or choose another "
                "--method"
            )


def _settings(
    methods: Sequence[str], beta: float, hyperparameters: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Each method's hyperparameters: β and the others given, where it has them, or its defaults."""
    known = {h for name in methods for h in METHODS[name].hyperparameters}
    for given in hyperparameters:
        if given == "beta":
            raise checks.InvalidInput("beta is no other hyperparameter; set it with --beta")
        if not known - {"beta"}:
            raise checks.InvalidInput(
                f"unknown hyperparameter {given!r}; {', '.join(methods)} has none but --beta"
            )
        checks.require_known("hyperparameter", given, sorted(known - {"beta"}))
    given_values = {"beta": beta, **hyperparameters}
    return {
        name: {h: given_values.get(h, value) for h, value in METHODS[name].hyperparameters.items()}
        for name in methods
    }


Source = Literal["given pairs", "learned rewards", "demonstrations", "samples", "both"]
"""Where a method's responses and labels come from; both: given pairs beside own samples."""


def _collection(
    method: str,
    num_arms: int,
    steps: int,
    responses: int,
    batch: int,
    passes: int | None,
    has_preferences: bool,
) -> tuple[Source, Schedule]:
    """Whence and how often: exact where the space itself is the data, else in batches."""
    marks = METHODS[method]
    reuse = 15 if marks.reuses_samples else 1
    own_passes = reuse if passes is None else passes
    if responses < 2:
        raise checks.InvalidInput(f"responses is {responses}; a group needs at least 2 to compare")
    checks.require_whole("batch", batch)
    checks.require_multiple("batch", batch, "responses", responses)
    in_batches = Schedule(steps, responses, batch, batch, own_passes if marks.on_policy else steps)
    in_batches.check()
    exact = Schedule.whole_space(steps, num_arms)
    if marks.needs == "learned rewards":
        return "learned rewards", exact
    if marks.needs == "demonstrations":
        return "demonstrations", dataclasses.replace(exact, passes=own_passes)
    if has_preferences and _learns_from_pairs(method):
        return "given pairs", exact
    if marks.needs == "preferences and samples":
        return "both", dataclasses.replace(in_batches, passes=1)
    return "samples", in_batches


class _Data(NamedTuple):
    """What methods may learn from, traced.

    Attributes:
      start, goal: log-probabilities of the reference and the target.
      reward: as given.
      pairs: preferences, as shares.
      fitted: the reward learned from them.
    """

    start: Float[Array, " K"]
    goal: Float[Array, " K"]
    reward: Float[Array, " K"] | None
    pairs: Float[Array, "K K"] | None
    fitted: Float[Array, " K"] | None


def _collect(source: Source, data: _Data, schedule: Schedule, key: PRNGKeyArray) -> Collect:
    unrewarded = CategoricalBandit(jnp.zeros_like(data.start), data.start)
    if source == "given pairs":
        return on_whole_space(POLICY, unrewarded, data.pairs)
    if source == "demonstrations":
        shown = against_own(jnp.exp(data.goal))
        return on_whole_space(POLICY, unrewarded, shown, own_reference=True)
    if source == "learned rewards":
        assert data.fitted is not None
        return on_whole_space(POLICY, CategoricalBandit(data.fitted, data.start), data.pairs)
    assert data.reward is not None
    samples = on_bandit(POLICY, CategoricalBandit(data.reward, data.start), schedule)
    if source == "samples":
        return samples
    once = from_dataset(samples(data.start, jax.random.fold_in(key, 1), jnp.int32(0)), schedule)
    return with_own_samples(
        once, POLICY, schedule.group, reference_log_prob=lambda _, arms: data.start[arms]
    )


def _require_convergence(dataset: xr.Dataset, settings: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse a run that ended in NaN, or a descent that ended above its start."""
    rate = float(dataset["learning_rate"])
    for name in dataset["loss"].values:
        one = dataset.sel(loss=name)
        broken = one["log_probs"].isnull().any("arm").values
        if broken.any():
            at = int(one[DIVERGED_AT]) if one[DIVERGED_AT] >= 0 else int(one["step"][broken][0])
            values = {"learning_rate": rate, **settings[str(name)]}
            listed = ", ".join(f"{key}={value:g}" for key, value in values.items())
            raise checks.InvalidInput(
                f"{name} diverged after {at} steps with {listed}; choose a smaller learning_rate, "
                "or gentler hyperparameters"
            )
        measured = [kl for kl in ("forward_kl", "reverse_kl") if name in (kl, "jeffreys")]
        if measured:
            start, *_, end = np.sum([one[kl].values for kl in measured], axis=0)
            if not end <= start + CLIMB:
                raise checks.InvalidInput(
                    f"learning_rate is {rate:g}: {name} diverged, from "
                    f"{start:.4g} to {end:.4g} nats; choose a smaller one"
                )


def _plot_distributions(axes: Axes, dataset: xr.Dataset) -> None:
    labels = [str(label) for label in dataset["arm"].values]
    arms = np.arange(len(labels))
    few = len(labels) <= MOST_LABELS
    target = np.exp(dataset["target_log_probs"].values)
    reference = np.exp(dataset["reference_log_probs"].values)
    if few:
        axes.bar(arms, target, width=0.85, color=plotting.TARGET_COLOR, label="target")
    else:
        axes.fill_between(arms, target, color=plotting.TARGET_COLOR, linewidth=0, label="target")
    axes.plot(
        arms, reference, "_" if few else ":", color=plotting.INK, markersize=13, label="reference"
    )
    for i, name in enumerate(dataset["loss"].values):
        probs = np.exp(dataset["log_probs"].sel(loss=name).isel(step=-1).values)
        shift = 0.3 * (i - (dataset.sizes["loss"] - 1) / 2) if few else 0.0
        axes.plot(
            arms + shift,
            probs,
            "o" if few else "-",
            color=plotting.METHOD_COLORS[name],
            label=plotting.METHOD_LABELS[name],
        )
    if few:
        axes.set_xticks(arms, labels, parse_math=False)  # a label may hold a dollar sign
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    axes.set(title=f"Policies after {int(dataset['step'][-1]):,} steps", ylabel="probability")
    axes.legend()
