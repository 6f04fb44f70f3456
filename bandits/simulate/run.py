"""Training by each method, labelled; what diverged is refused."""

import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float

from bandits.descent import descend, log_spaced_steps
from bandits.environments import reference_from_probabilities
from bandits.files import Vector
from bandits.losses import DIVERGENCES, METHODS
from bandits.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.reward_models import fit_tabular, require_counts
from bandits.simulate.data import POLICY, Data, choose_collection, make_collect
from bandits.simulate.problem import pose, require_data
from bandits.sweeps import DivergenceWarning, sweep
from bandits.training import train
from theory import checks

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in ("sgd", "adam", "adamw", "amsgrad", "adagrad", "lion", "nadam", "rmsprop", "yogi")
}
"""Optimisers by name; from Python, `bandits.descend` takes any optax factory."""

CLIMB = 1e-3
"""A descent that ends this many nats above its start has diverged."""

MOST_STEPS = 2**31 - 1
"""Steps are counted in 32 bits."""


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
    problem = pose(reference, reward, target, fitted, beta)
    require_data(methods, problem, reward, target, preferences, natural_gradient)
    settings = _settings(methods, beta, hyperparameters or {})
    losses = {name: METHODS[name].bind(**values) for name, values in settings.items()}
    recorded = log_spaced_steps(steps)
    collections = {
        name: choose_collection(
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
        data = Data(start, goal, reward, pairs, fitted)
        collect = make_collect(source, data, schedule, jax.random.key(seed))
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
