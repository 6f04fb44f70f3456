"""The problem: where policies start, where they should go, and whether a method can get there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.files.comparisons import Comparisons
from bandits.files.tables import Vector, align
from bandits.losses import DIVERGENCES, METHODS
from bandits.problems.environments import CategoricalBandit, reference_from_probabilities
from bandits.problems.reward_models import fit_tabular
from bandits.simulation.data import learns_from_pairs
from bandits.simulation.inputs import (
    UNIFORM,
    as_comparisons,
    as_vector,
    choose_arms,
    require_reachable_pairs,
)
from bandits.training import Data
from theory import checks
from theory.checks import InvalidInput
from theory.pairs import Pairs


def target_of(problem: Data, beta: ArrayLike) -> Float[Array, "*X K"]:
    """Return log π*: the given target, or π_ref exp(r/β)/Z, at β = 0 on the best arms alone."""
    if problem.shown is not None:
        return problem.shown
    assert problem.reward is not None
    start = problem.reference
    reward = jnp.where(jnp.isfinite(start), problem.reward, -jnp.inf)
    ahead = reward - jnp.max(reward, axis=-1, keepdims=True)
    greedy = jnp.asarray(beta) == 0
    tilt = jnp.where(ahead == 0, 0.0, ahead / jnp.where(greedy, 1.0, beta))
    tilt = jnp.where(greedy & (ahead < 0), -jnp.inf, tilt)
    return jax.nn.log_softmax(start + tilt, axis=-1)


@dataclass(frozen=True)
class Arms:
    """Where the arms of all prompts stand.

    Attributes:
      labels: one an arm.
      prompts: names of the prompts, or None where there is one without a name.
      prompt_of: ``[A]``, the prompt of each arm.
      place_of: ``[A]``, its place among that prompt's arms.
    """

    labels: Sequence[object]
    prompts: Sequence[str] | None
    prompt_of: np.ndarray
    place_of: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of prompts, and that of the arms of the largest."""
        return int(self.prompt_of.max()) + 1, int(self.place_of.max()) + 1

    def pad(self, values: ArrayLike, filling: float) -> Float[Array, "X K"]:
        """Return ``[A]`` values, a row a prompt."""
        padded = np.full(self.shape, filling)
        padded[self.prompt_of, self.place_of] = np.asarray(values, np.float64)
        return jnp.asarray(padded, float)

    def uniform(self) -> Vector:
        """Return the same probability for each arm of a prompt."""
        shares = 1.0 / np.bincount(self.prompt_of)[self.prompt_of]
        return Vector(shares, tuple(map(str, self.labels)))


def one_bandit(labels: Sequence[object]) -> Arms:
    """Return all arms in one bandit."""
    places = np.arange(len(labels))
    return Arms(labels, None, np.zeros_like(places), places)


def bandit_for_each_prompt(
    comparisons: Comparisons | None, others: Sequence[str]
) -> tuple[Arms, Comparisons]:
    """Return a bandit for each prompt, whose arms are the responses that its pairs hold.

    The comparisons come back with those arms as their labels: a response to two prompts is two.

    Args:
      comparisons: The preferences, if any are given.
      others: Names of the other inputs that are given.

    Raises InvalidInput where the pairs have no prompts, or where something else is given.
    """
    if comparisons is None:
        raise InvalidInput("a bandit for each prompt needs preferences; add --preferences")
    if others:
        raise InvalidInput(
            f"a bandit for each prompt has its own arms, so no {others[0]} fits them all; leave it "
            "out (--reference uniform)"
        )
    if comparisons.prompts is None or comparisons.prompt_of is None:
        raise InvalidInput(
            "the preferences have no prompts; leave out --per-prompt, or add a column prompt"
        )
    count = len(comparisons.labels)
    both = np.stack([comparisons.winners, comparisons.losers])
    keys, index = np.unique(comparisons.prompt_of * count + both, return_inverse=True)
    winners, losers = index.reshape(both.shape)
    prompt_of = keys // count
    labels = [comparisons.labels[i] for i in keys % count]
    arms = Arms(labels, comparisons.prompts, prompt_of, _number_within(prompt_of))
    return arms, Comparisons(tuple(labels), winners, losers, comparisons.counts)


@dataclass(frozen=True)
class Given:
    """What the user gave.

    Attributes:
      arms: where the arms of all prompts stand.
      start: probabilities of the reference.
      vectors: reward and target, those that are given.
      comparisons: the preferences, or None.
    """

    arms: Arms
    start: Vector
    vectors: Mapping[str, Vector]
    comparisons: Comparisons | None

    @property
    def names(self) -> set[str]:
        """Return which of reward, target and preferences are given."""
        return {*self.vectors, *(["preferences"] if self.comparisons is not None else [])}


def gather(reference: Any, vectors: Mapping[str, Any], preferences: Any, per_prompt: bool) -> Given:
    """Return the inputs of `simulate` over the same arms."""
    vectors = {name: as_vector(name, v) for name, v in vectors.items() if v is not None}
    start = comparisons = None
    if not (isinstance(reference, str) and reference == UNIFORM):
        start = as_vector("reference", reference)
        checks.require_distribution("reference", start.values)
    if preferences is not None:
        comparisons = as_comparisons(preferences, None if start is None else start.labels)
    if per_prompt:
        others = ["reference"] * (start is not None) + list(vectors)
        arms, comparisons = bandit_for_each_prompt(comparisons, others)
    else:
        arms = one_bandit(choose_arms(start, vectors, comparisons))
    return Given(arms, start or arms.uniform(), vectors, comparisons)


def pose(given: Given, ridge: float) -> Data:
    """Return the problem of exactly one of a reward, a target and pairs, checked.

    Args:
      given: the user's inputs.
      ridge: of the reward that is fitted to preferences.

    Returns:
      What the methods may learn from, of X prompts along the first axis of all arrays, padded to
      the same numbers of arms and pairs. The weights of a prompt's pairs sum to 1. The reward is
      given or learned; ``shown`` is a given target.

    Raises InvalidInput where two or none are given, where arms do not match, where a reward is not
    finite, or where the reference excludes an arm of some pair.
    """
    arms, reference, comparisons = given.arms, given.start, given.comparisons
    reward, target = given.vectors.get("reward"), given.vectors.get("target")
    if reward is not None and target is not None:
        raise InvalidInput("give either a reward or a target, one of the two")
    if not given.names:
        raise InvalidInput("give either a reward or a target, or preferences")
    with np.errstate(divide="ignore"):
        start = np.log(reference.values)
    goal = gain = fitted = pairs = None
    if comparisons is not None:
        flat = _align_pairs(comparisons, arms)
        require_reachable_pairs(start, flat, arms.labels)
        fitted = gain = arms.pad(fit_tabular(flat, ridge, num_arms=len(arms.labels)), 0.0)
        pairs = _pad_pairs(flat, arms)
    if target is not None:
        shown = align(target, "target", reference).values
        checks.require_distribution("target", shown)
        goal, gain = arms.pad(reference_from_probabilities(shown), -np.inf), None
    if reward is not None:
        values = align(reward, "reward", reference).values
        CategoricalBandit.from_arrays(values, reference.values)  # which checks and warns
        gain = arms.pad(values, 0.0)
    return Data(arms.pad(start, -np.inf), gain, pairs, fitted, goal)


def _align_pairs(comparisons: Comparisons, arms: Arms) -> Pairs:
    """Return the pairs by places among the arms, each pair once."""
    names = tuple(map(str, arms.labels))
    if names == comparisons.labels:
        place = np.arange(len(names))
    else:
        known = {name: i for i, name in enumerate(names)}
        for label in [label for label in comparisons.labels if label not in known][:1]:
            try:
                checks.require_known("arm", label, names)
            except InvalidInput as error:
                raise InvalidInput(
                    f"preferences name an arm that the reference lacks: {error} (to take the arms "
                    "of both, add --join; for the arms of the pairs, --reference uniform)"
                ) from None
        place = np.array([known[label] for label in comparisons.labels])
    flat = place[comparisons.winners] * len(names) + place[comparisons.losers]
    keys, index = np.unique(flat, return_inverse=True)
    weights = np.bincount(index.ravel(), comparisons.counts)
    return Pairs(keys // len(names), keys % len(names), weights)


def _pad_pairs(flat: Pairs, arms: Arms) -> Pairs:
    """Return the pairs ``[X, P]`` by prompt; the weights of a prompt sum to 1."""
    prompt = arms.prompt_of[flat.winners]
    place = _number_within(prompt)
    padded = np.zeros((3, arms.shape[0], place.max() + 1))
    ends = arms.place_of[flat.winners], arms.place_of[flat.losers]
    padded[:, prompt, place] = *ends, flat.weights
    winners, losers = jnp.asarray(padded[:2], jnp.int32)
    weights = padded[2] / padded[2].sum(axis=1, keepdims=True)
    return Pairs(winners, losers, jnp.asarray(weights, float))


def _number_within(groups: np.ndarray) -> np.ndarray:
    """Return the number of each entry among those of its group, from 0."""
    return pd.Series(groups).groupby(groups).cumcount().to_numpy()


def require_data(
    methods: Sequence[str],
    problem: Data,
    given: Given,
    natural_gradient: bool,
    betas: Sequence[float],
) -> None:
    """Refuse methods that lack the data they learn from, or the mass to get there.

    Args:
      methods: names.
      problem: start, target and rewards.
      given: what the user gave.
      natural_gradient: whether it was asked for.
      betas: every β that is run.
    """
    for name in methods:
        if natural_gradient and name not in DIVERGENCES:
            raise InvalidInput(
                f"natural_gradient is for exact descent of a divergence; {name} is none, leave it "
                "out"
            )
        if name in DIVERGENCES:
            for beta in betas:
                _require_reachable(name, problem, beta, given.arms.labels)
            continue
        method = METHODS[name]
        if method.needs == "demonstrations":
            if "target" not in given.names:
                raise InvalidInput(
                    f"{name} learns from demonstrations, but no target is given; add --target, "
                    "their law"
                )
            shown, start = np.exp(target_of(problem, 1.0)), np.exp(problem.reference)
            checks.require_support("target", shown[0], "reference", start[0])
        elif method.needs == "learned rewards":
            if "preferences" not in given.names:
                raise InvalidInput(
                    f"{name} fits its reward to preferences, but none are given; add "
                    "--preferences, or choose reverse_kl, which optimises the same objective for a "
                    "--reward"
                )
        elif problem.reward is None or not (
            "reward" in given.names or method.on_policy or learns_from_pairs(method)
        ):
            known = "only a target is" if "target" in given.names else "only preferences are"
            why = "samples its own responses" if method.on_policy else "learns from responses"
            from_pairs = ", ".join(n for n, other in METHODS.items() if learns_from_pairs(other))
            raise InvalidInput(
                f"{name} {why}, which a reward must label, but {known} given; add --reward, or "
                f"choose a method that learns from --preferences: {from_pairs}"
            )


def _require_reachable(method: str, problem: Data, beta: float, labels: Sequence[object]) -> None:
    """Refuse a divergence that is infinite at the start and stays so."""
    start, goal = np.asarray(problem.reference), np.asarray(target_of(problem, beta))
    one, both = jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.5, 0.5]))
    for excluded, other, here, there, arms in (
        ("target", "reference", both, one, np.isneginf(goal) & ~np.isneginf(start)),
        ("reference", "target", one, both, np.isneginf(start) & ~np.isneginf(goal)),
    ):
        # Where two arms are enough to show it, a zero on one side alone makes it infinite.
        if not arms.any() or np.isfinite(DIVERGENCES[method](here, there)):
            continue
        if problem.shown is None:
            raise InvalidInput(
                f"beta is {beta:g}, where the optimum has the best arms alone, so {method} is "
                "infinite; choose a larger beta, or a method that takes this one: forward_kl, "
                "rlhf, reinforce, ppo"
            )
        arm = labels[int(np.argmax(arms[0]))]
        raise InvalidInput(
            f"{excluded} is zero on arm {str(arm)!r} where the {other} is not, so {method} is "
            "infinite; smooth the zeros (--pseudocount 0.5 for counts) or choose another --method"
        )
