"""What is asked: where policies start, where they should go, and whether a method can get there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bandits.files.comparisons import Comparisons
from bandits.files.tables import Vector, align
from bandits.losses import DIVERGENCES, METHODS
from bandits.problems.environments import CategoricalBandit, reference_from_probabilities
from bandits.problems.reward_models import fit_tabular
from bandits.simulation.inputs import require_reachable_pairs
from theory import checks
from theory.pairs import Pairs

GIVEN_PAIRS = ("preferences", "preferences and samples", "learned rewards")
"""What methods need that can learn from pairs that are given."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    """One bandit a prompt, padded to the same numbers of arms and pairs; mostly there is one.

    Attributes:
      start: ``[X, K]``, log π_ref of X prompts; ``-inf`` on excluded arms and on padding.
      goal: ``[X, K]``, log-probabilities of a given target, or None.
      reward: ``[X, K]``, given or learned, or None where only a target is given.
      pairs: winners, losers and weights ``[X, P]``; the weights of a prompt sum to 1. None without
        preferences.
      fitted: ``[X, K]``, the reward learned from them, or None.
    """

    start: Float[Array, "X K"]
    goal: Float[Array, "X K"] | None
    reward: Float[Array, "X K"] | None
    pairs: Pairs | None
    fitted: Float[Array, "X K"] | None

    def target(self, beta: ArrayLike) -> Float[Array, "*X K"]:
        """Return log π*: the given target, or π_ref exp(r/β)/Z, at β = 0 on the best arms alone."""
        if self.goal is not None:
            return self.goal
        assert self.reward is not None
        reward = jnp.where(jnp.isfinite(self.start), self.reward, -jnp.inf)
        ahead = reward - jnp.max(reward, axis=-1, keepdims=True)
        greedy = jnp.asarray(beta) == 0
        tilt = jnp.where(ahead == 0, 0.0, ahead / jnp.where(greedy, 1.0, beta))
        tilt = jnp.where(greedy & (ahead < 0), -jnp.inf, tilt)
        return jax.nn.log_softmax(self.start + tilt, axis=-1)


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
        """The number of prompts, and of the arms of the largest."""
        return int(self.prompt_of.max()) + 1, int(self.place_of.max()) + 1

    def pad(self, values: ArrayLike, filling: float) -> Float[Array, "X K"]:
        """Return ``[A]`` values, a row a prompt."""
        padded = np.full(self.shape, filling)
        padded[self.prompt_of, self.place_of] = np.asarray(values, np.float64)
        return jnp.asarray(padded, float)


def one_bandit(labels: Sequence[object]) -> Arms:
    """Return all arms in one bandit."""
    places = np.arange(len(labels))
    return Arms(labels, None, np.zeros_like(places), places)


def bandit_for_each_prompt(comparisons: Comparisons) -> tuple[Arms, Comparisons]:
    """Return a bandit for each prompt, whose arms are the responses that its pairs hold.

    The comparisons come back with those arms as their labels: a response to two prompts is two.

    Raises InvalidInput where the pairs have no prompts.
    """
    if comparisons.prompts is None or comparisons.prompt_of is None:
        raise checks.InvalidInput(
            "the preferences have no prompts; leave out --per-prompt, or add a column prompt"
        )
    count = len(comparisons.labels)
    both = np.stack([comparisons.winners, comparisons.losers])
    keys, index = np.unique(comparisons.prompt_of * count + both, return_inverse=True)
    index = index.reshape(both.shape)
    prompt_of, label_of = keys // count, keys % count
    starts = np.searchsorted(prompt_of, np.arange(len(comparisons.prompts)))
    arms = Arms(
        [comparisons.labels[i] for i in label_of],
        comparisons.prompts,
        prompt_of,
        np.arange(len(keys)) - starts[prompt_of],
    )
    names = tuple(map(str, arms.labels))
    return arms, Comparisons(names, index[0], index[1], comparisons.counts)


def pose(
    arms: Arms,
    reference: Vector,
    reward: Vector | None,
    target: Vector | None,
    comparisons: Comparisons | None,
    ridge: float,
) -> Problem:
    """Return the problem of exactly one of a reward, a target and pairs, checked.

    Raises InvalidInput where two or none are given, where arms do not match, where a reward is not
    finite, or where the reference excludes an arm of some pair.
    """
    if reward is not None and target is not None:
        raise checks.InvalidInput("give either a reward or a target, one of the two")
    if reward is None and target is None and comparisons is None:
        raise checks.InvalidInput("give either a reward or a target, or preferences")
    with np.errstate(divide="ignore"):
        start = np.log(reference.values)
    goal = gain = fitted = pairs = None
    if comparisons is not None:
        flat = _align_pairs(comparisons, arms)
        require_reachable_pairs(start, flat, arms.labels)
        fitted = gain = np.asarray(fit_tabular(flat, ridge, num_arms=len(arms.labels)))
        pairs = _pad_pairs(flat, arms)
    if target is not None:
        shown = align(target, "target", reference).values
        checks.require_distribution("target", shown)
        goal = reference_from_probabilities(shown)
        gain = None
    if reward is not None:
        gain = align(reward, "reward", reference).values
        CategoricalBandit.from_arrays(gain, reference.values)  # which checks and warns
    return Problem(
        start=arms.pad(start, -np.inf),
        goal=None if goal is None else arms.pad(goal, -np.inf),
        reward=None if gain is None else arms.pad(gain, 0.0),
        pairs=pairs,
        fitted=None if fitted is None else arms.pad(fitted, 0.0),
    )


def _align_pairs(comparisons: Comparisons, arms: Arms) -> Pairs:
    """The pairs by places among the arms, each pair once."""
    names = tuple(map(str, arms.labels))
    if names == comparisons.labels:
        place = np.arange(len(names))
    else:
        known = {name: i for i, name in enumerate(names)}
        for label in comparisons.labels:
            if label not in known:
                try:
                    checks.require_known("arm", label, names)
                except checks.InvalidInput as error:
                    raise checks.InvalidInput(
                        f"preferences name an arm that the reference lacks: {error} (to take the "
                        "arms of both, add --join; for the arms of the pairs, --reference uniform)"
                    ) from None
        place = np.array([known[label] for label in comparisons.labels])
    flat = place[comparisons.winners] * len(names) + place[comparisons.losers]
    keys, index = np.unique(flat, return_inverse=True)
    weights = np.bincount(index.ravel(), comparisons.counts)
    return Pairs(keys // len(names), keys % len(names), weights)


def _pad_pairs(flat: Pairs, arms: Arms) -> Pairs:
    prompt = arms.prompt_of[flat.winners]
    order = np.argsort(prompt, kind="stable")
    prompt = prompt[order]
    sizes = np.bincount(prompt, minlength=arms.shape[0])
    place = np.arange(len(prompt)) - (np.cumsum(sizes) - sizes)[prompt]
    winners, losers = (np.zeros((len(sizes), sizes.max()), np.int32) for _ in range(2))
    weights = np.zeros(winners.shape)
    winners[prompt, place] = arms.place_of[flat.winners[order]]
    losers[prompt, place] = arms.place_of[flat.losers[order]]
    weights[prompt, place] = flat.weights[order]
    weights /= weights.sum(axis=1, keepdims=True)
    return Pairs(jnp.asarray(winners), jnp.asarray(losers), jnp.asarray(weights, float))


def learns_from_pairs(method: str) -> bool:
    """Return whether a method takes pairs that are given."""
    return METHODS[method].needs in GIVEN_PAIRS and (
        METHODS[method].needs != "preferences" or not METHODS[method].on_policy
    )


def require_data(
    methods: Sequence[str],
    problem: Problem,
    given: Mapping[str, bool],
    labels: Sequence[object],
    natural_gradient: bool,
    betas: Sequence[float],
) -> None:
    """Refuse methods that lack the data they learn from, or the mass to get there.

    Args:
      methods: names.
      problem: start, target and rewards.
      given: which of reward, target and preferences the user gave.
      labels: the arms' names, for refusals.
      natural_gradient: whether it was asked for.
      betas: every β that is run.
    """
    for name in methods:
        method = METHODS[name]
        if natural_gradient and name not in DIVERGENCES:
            raise checks.InvalidInput(
                f"natural_gradient is for exact descent of a divergence; {name} is none, leave it "
                "out"
            )
        if name in DIVERGENCES:
            for beta in betas:
                _require_reachable(name, problem, beta, labels)
        elif method.needs == "demonstrations":
            if not given["target"]:
                raise checks.InvalidInput(
                    f"{name} learns from demonstrations, but no target is given; add --target, "
                    "their law"
                )
            shown, start = np.exp(problem.target(1.0)), np.exp(problem.start)
            checks.require_support("target", shown[0], "reference", start[0])
        elif method.needs == "learned rewards":
            if not given["preferences"]:
                raise checks.InvalidInput(
                    f"{name} fits its reward to preferences, but none are given; add "
                    "--preferences, or choose reverse_kl, which optimises the same objective for a "
                    "--reward"
                )
        elif problem.reward is None or not (
            given["reward"] or method.on_policy or learns_from_pairs(name)
        ):
            known = "only a target is" if given["target"] else "only preferences are"
            why = "samples its own responses" if method.on_policy else "learns from responses"
            from_pairs = ", ".join(n for n in METHODS if learns_from_pairs(n))
            raise checks.InvalidInput(
                f"{name} {why}, which a reward must label, but {known} given; add --reward, or "
                f"choose a method that learns from --preferences: {from_pairs}"
            )


def _require_reachable(
    method: str, problem: Problem, beta: float, labels: Sequence[object]
) -> None:
    """Refuse a divergence that is infinite at the start and stays so."""
    start, goal = np.asarray(problem.start), np.asarray(problem.target(beta))
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
            if problem.goal is None:
                raise checks.InvalidInput(
                    f"beta is {beta:g}, where the optimum has the best arms alone, so {method} is "
                    "infinite; choose a larger beta, or a method that takes this one: forward_kl, "
                    "rlhf, reinforce, ppo"
                )
            arm = labels[int(np.argmax(missing[excluded][0]))]
            other = "reference" if excluded == "target" else "target"
            raise checks.InvalidInput(
                f"{excluded} is zero on arm {str(arm)!r} where the {other} is not, so {method} is "
                "infinite; smooth the zeros (--pseudocount 0.5 for counts) or choose another "
                "--method"
            )
