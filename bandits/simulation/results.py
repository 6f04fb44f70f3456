"""Results: trajectories are measured, judged and labelled."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from bandits.losses import METHODS
from bandits.problems.environments import CategoricalBandit
from bandits.problems.metrics import ATTRIBUTES, DIVERGED_AT, measure
from bandits.simulation.data import is_noisy
from bandits.simulation.problem import Arms, target_of
from bandits.simulation.settings import Hyperparameters
from bandits.simulation.verdict import judge
from bandits.sweeps import DivergenceWarning
from bandits.training import Data, Schedule
from theory.distributions import kl_divergence
from theory.pairs import Pairs

RATE, SAFE_RATE = "used_rate", "safe_rate"
"""The results that say which step size a run had, and which would have been chosen."""

OF_ARMS: dict[str, tuple[str, ...]] = {
    "target_log_probs": ("beta",),
    "reference_log_probs": (),
    "learned_reward": (),
    "in_pairs": (),
}
"""Variables over arms that do not change in training, with the hyperparameters they depend on."""

ATTRIBUTES_OF_RUNS: dict[str, dict[str, str]] = ATTRIBUTES | {
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
"""Names and units of all that a dataset of `simulate` holds."""


def measure_runs(padded: xr.Dataset, problem: Data, grid: Hyperparameters) -> xr.Dataset:
    """Add what is measured along the trajectories of all runs: one program for all methods."""
    scale = padded["reward_scale"]
    beta = padded["beta"] if "beta" in grid.axes else xr.DataArray(grid.betas[0])
    scales, betas, prompts = (
        values.broadcast_like(scale).transpose(*scale.dims).values.ravel()
        for values in (scale, beta, padded["prompt"])
    )

    @jax.jit
    def of_runs(problem: Data, *runs: Array) -> dict[str, Array]:
        def of_run(log_probs: Array, scale: Array, beta: Array, prompt: Array) -> dict[str, Array]:
            own = jax.tree.map(lambda leaf: leaf[prompt], problem)
            goal = target_of(own, beta)
            measured = measure(log_probs, goal, own.reward)
            measured["reference_kl"] = kl_divergence(log_probs, own.reference)
            measured |= {"target_log_probs": goal, "reference_log_probs": own.reference}
            if isinstance(own.pairs, Pairs):
                held = own.pairs.weights > 0
                covered = jnp.zeros(goal.shape, bool)
                covered = covered.at[own.pairs.winners].max(held).at[own.pairs.losers].max(held)
                follow = functools.partial(_follow_pairs, own.pairs, own.reference, covered, scale)
                measured |= jax.vmap(follow)(log_probs)
                measured |= {"learned_reward": own.fitted, "in_pairs": covered}
            return measured

        return jax.vmap(of_run)(*runs)

    log_probs = padded["log_probs"].values
    flat = log_probs.reshape(-1, *log_probs.shape[scale.ndim :])
    measured = of_runs(problem, flat, scales, jnp.asarray(betas, log_probs.dtype), prompts)
    for name, values in measured.items():
        own = "place" if name in OF_ARMS else "step"
        padded[name] = ((*scale.dims, own), np.asarray(values).reshape(*scale.shape, -1))
    return padded


def _follow_pairs(
    pairs: Pairs,
    start: Float[Array, " K"],
    covered: Bool[Array, " K"],
    scale: Float[Array, ""],
    log_probs: Float[Array, " K"],
) -> dict[str, Array]:
    """Return what a trainer logs of its pairs, of one prompt."""
    log_ratios = jnp.where(jnp.isfinite(start), log_probs - start, 0.0)
    chosen, rejected = log_ratios[pairs.winners], log_ratios[pairs.losers]
    margin = chosen - rejected
    # At the start all margins are 0, but for rounding.
    right = jnp.where(jnp.abs(margin) <= 1e-6, 0.5, margin > 0)
    return {
        "rewards_chosen": scale * jnp.sum(pairs.weights * chosen),
        "rewards_rejected": scale * jnp.sum(pairs.weights * rejected),
        "reward_margin": scale * jnp.sum(pairs.weights * margin),
        "reward_accuracy": jnp.sum(pairs.weights * right),
        "covered_mass": jnp.sum(jnp.where(covered, jnp.exp(log_probs), 0.0)),
    }


def flatten(padded: xr.Dataset, arms: Arms, learning_rate: float | np.ndarray | None) -> xr.Dataset:
    """Return the arms of all prompts along one dimension, and means over prompts of all else.

    Args:
      padded: results over ``loss``, hyperparameters, ``prompt``, ``step`` and ``place``.
      arms: where the arms of each prompt stand.
      learning_rate: as given, or None if it was chosen.
    """
    dataset = padded.drop_dims("place").drop_vars([DIVERGED_AT, SAFE_RATE])
    if arms.prompts is None:
        dataset = dataset.squeeze("prompt", drop=True)
    else:
        dataset = dataset.mean("prompt").astype("float32")
    if learning_rate is None:
        dataset = dataset.rename({RATE: "learning_rate"})
    else:
        dataset = dataset.drop_vars(RATE)
        if "learning_rate" not in dataset.dims:
            dataset = dataset.assign_coords(learning_rate=learning_rate)
    of_arms = padded[["log_probs"]]
    for name, dims in OF_ARMS.items():
        if name in padded:
            others = set(padded[name].dims) - {*dims, "prompt", "place"}
            of_arms[name] = padded[name].isel(dict.fromkeys(others, 0), drop=True)
    places = {"prompt": ("arm", arms.prompt_of), "place": ("arm", arms.place_of)}
    of_arms = of_arms.drop_vars("prompt").isel(places).transpose(..., "arm")
    dataset = dataset.assign(of_arms.data_vars).assign_coords(arm=list(arms.labels))
    if arms.prompts is not None:
        dataset = dataset.assign_coords(prompt=("arm", [arms.prompts[i] for i in arms.prompt_of]))
    return dataset


def find_diverged(
    padded: xr.Dataset, schedules: Mapping[str, Schedule], grid: Hyperparameters, problem: Data
) -> xr.DataArray:
    """Return which runs are no results, and warn of each in a sentence."""
    runs = padded[["log_probs", "training_loss", DIVERGED_AT, RATE, SAFE_RATE]]
    diverged = xr.zeros_like(padded["reward_scale"].isel(prompt=0, drop=True), bool)
    for place in np.ndindex(*diverged.shape):
        run = runs.isel(dict(zip(diverged.dims, place, strict=True)))
        method = str(run["loss"].values)
        noisy = is_noisy(METHODS[method], schedules[method])
        verdicts = {}
        for i in range(run.sizes["prompt"]):
            one, scale = run.isel(prompt=i), _scale(method, problem, i)
            found = judge(
                one["training_loss"].values,
                np.exp(one["log_probs"].values),
                one["step"].values,
                diverged_at=int(one[DIVERGED_AT]),
                sampled=noisy,
                scale=scale,
            )
            if found:
                verdicts[i] = found
        if not verdicts:
            continue
        diverged[place] = True
        first, verdict = next(iter(verdicts.items()))
        at = {str(dim): float(run[dim]) for dim in diverged.dims[1:]}
        rate, safe = (float(run[name][first]) for name in (RATE, SAFE_RATE))
        shown = {"learning_rate": rate, **grid.own(method, at), **at}
        listed = ", ".join(f"{key}={value:g}" for key, value in shown.items())
        prompts = run.sizes["prompt"]
        which = f" for {len(verdicts)} of {prompts} prompts" if prompts > 1 else ""
        remedy = "choose gentler hyperparameters or other data"
        if verdict.curable:
            smaller = min(shown["learning_rate"] / 10, max(safe, 1e-30))
            remedy = f"try learning_rate={smaller:.2g}"
        warnings.warn(
            f"{method} diverged{which}: it {verdict.sentence}, with {listed}; {remedy}",
            DivergenceWarning,
            stacklevel=3,
        )
    return diverged


def _scale(method: str, problem: Data, prompt: int) -> float:
    """Return a natural size of what a method lowers: the range of rewards, or a nat."""
    if problem.reward is None or METHODS[method].family != "policy gradient":
        return 1.0
    reward = np.asarray(problem.reward)[prompt]
    held = np.isfinite(np.asarray(problem.reference)[prompt])
    return float(np.ptp(reward[held]))


def geometry(problem: Data, dataset: xr.Dataset, beta: float) -> dict[str, Any]:
    """Return how far the target of the first β lies from the reference, as attributes."""
    target = dataset["target_log_probs"]
    first = target.isel(beta=0) if "beta" in target.dims else target
    log_ratio = (first - dataset["reference_log_probs"]).values.astype(np.float64)
    largest = log_ratio[np.isfinite(first.values)].max()
    attributes = {"concentrability": float(np.exp(largest))}
    if problem.shown is None and problem.reward is not None:
        attributes["beta"] = beta
        if len(problem.reference) == 1:
            bandit = CategoricalBandit(problem.reward[0], problem.reference[0])
            attributes["peak_distance"] = int(bandit.peak_distance())
    return attributes
