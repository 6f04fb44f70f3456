"""Train on T24's synthetic length problems: the reward is learned from preferences.

The response is a length, from 0 to T. The policy starts at a broad, right-skewed reference. *Min*:
shorter is better. *Mode*: the reference's most probable length is best. *Skew*: as Min, but the
preference data hold short responses only. The data are pairs of the reference, labelled by the true
(gold) reward with noise. Offline methods learn from the pairs. A reward model, the proxy, is fitted
to them too, and all other methods are trained against it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.keys import split_into
from bandits.losses import METHODS, Loss, Responses, make_pair
from bandits.policies import Params, Policy, hazard_table, recurrent
from bandits.policies.sampling import sample_categorical
from bandits.policies.variable_length import lengths
from bandits.problems.environments import CategoricalBandit, min_length, mode_length, skew_length
from bandits.problems.preferences import preference_probabilities
from bandits.problems.reward_models import fit_linear, fit_network, network_rewards
from bandits.studies.curves import require_not_diverged
from bandits.sweeps import choices, sweep
from bandits.training import Minibatch, Schedule, from_dataset, on_policy, train
from theory import checks, distributions
from theory.checks import InvalidInput
from theory.variable_length import table_of_lengths

PROBLEMS = ("min", "mode", "skew")

POLICIES = ("hazard_table", "recurrent")
"""A logit for each place, and a network that reads the tokens before beside such a table."""

REWARD_MODELS = ("bumps", "network")
"""A sum of bumps over the lengths, solved exactly, and a multilayer perceptron of the length."""

ATTRIBUTES = {
    "gold": {"long_name": "true reward", "units": "maximum lengths"},
    "proxy": {"long_name": "learned reward", "units": "maximum lengths"},
    "reference_kl": {"long_name": "KL(policy‖reference)", "units": "nats"},
    "mean_length": {"long_name": "mean length", "units": "tokens"},
}


@dataclass(frozen=True)
class Lengths:
    """Set the problems, their data, and what is trained on them."""

    max_length: int = 40  # T
    mode: float = 12.0  # of the reference's lengths
    spread: float = 0.6  # of their logarithm
    cut: int = 12  # the longest response in the data of Skew
    pairs: int = 500  # labelled
    temperature: float = 0.05  # of the labeller, in units of the gold reward, > 0
    policy: str = "hazard_table"  # one of `POLICIES`
    width: int = 16  # of the recurrent policy's state
    bumps: int = 8  # of the first of `REWARD_MODELS`
    widths: tuple[int, ...] = (32, 32)  # of the hidden layers of the second
    # Of either reward model, relative to the mean loss of a label: the prior of a weight has
    # standard deviation 1/√(ridge × labels), in nats of log-odds.
    ridge: float = 1e-4
    # Of every method with a KL penalty, in nats of log-odds: of DPO as it is, of policy gradients
    # times the temperature, which makes it the same in units of the reward.
    beta: float = 0.1
    learning_rate: float = 0.03  # of Adam
    seeds: int = 10  # independent data and training

    def __post_init__(self) -> None:
        """Refuse what makes no problem."""
        checks.require_positive("beta", self.beta)
        checks.require_finite("ridge", self.ridge)
        checks.require_nonnegative("ridge", self.ridge)
        checks.require_known("policy", self.policy, POLICIES)
        if min(self.widths, default=0) < 1:
            raise InvalidInput(f"widths is {self.widths}; every hidden layer needs a unit")
        for name, least in (("bumps", 2), ("cut", 2), ("pairs", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is {getattr(self, name)}; at least {least} is needed")

    def loss(self, method: str) -> Loss:
        """Return the method with the problem's β."""
        units = {"contrastive": 1.0, "policy gradient": self.temperature}
        if "beta" not in METHODS[method].hyperparameters:
            return METHODS[method].bind()
        return METHODS[method].bind(beta=self.beta * units[METHODS[method].family])

    def bandit(self, problem: str) -> CategoricalBandit:
        """Return the gold problem over lengths."""
        if problem == "skew":
            return skew_length(self.max_length, self.cut, self.mode, self.spread)
        build = {"min": min_length, "mode": mode_length}[problem]
        return build(self.max_length, self.mode, self.spread)

    def start(self, reference: Float[Array, " K"], key: PRNGKeyArray) -> tuple[Policy, Params]:
        """Return the policy, and its parameters at the reference."""
        table = table_of_lengths(reference, jnp.zeros(1))
        if self.policy == "hazard_table":
            return hazard_table(1, self.max_length), table
        policy = recurrent(1, self.max_length, self.width)
        return policy, policy.init(table, key)

    def features(self) -> Float[Array, "K F"]:
        """Return bumps over the lengths, evenly spread, as wide as they are apart."""
        every = jnp.arange(self.max_length + 1)[:, None]
        centres = jnp.linspace(0, self.max_length, self.bumps)
        return jnp.exp(-(((every - centres) / (self.max_length / (self.bumps - 1))) ** 2))


class _Keys(NamedTuple):
    """Name what one seed decides."""

    pairs: PRNGKeyArray
    reward_model: PRNGKeyArray
    policy: PRNGKeyArray
    training: PRNGKeyArray


def _keys(seed: Int[Array, ""]) -> _Keys:
    return split_into(_Keys, jax.random.key(seed))


def draw_pairs(
    key: PRNGKeyArray, law: Float[Array, " K"], gold: Float[Array, " K"], settings: Lengths
) -> Int[Array, "n 2"]:
    """Sample pairs of lengths from a law, the preferred one first."""
    draw_key, label_key = jax.random.split(key)
    drawn = sample_categorical(draw_key, law, 2 * settings.pairs).reshape(-1, 2)
    wins = preference_probabilities(gold, settings.temperature)[drawn[:, 0], drawn[:, 1]]
    right = jax.random.uniform(label_key, wins.shape) < wins
    return jnp.where(right[:, None], drawn, drawn[:, ::-1])


def fit_proxy(
    pairs: Int[Array, "n 2"],
    features: Float[Array, "K F"],
    ridge: ArrayLike,
    weights: ArrayLike = 1.0,
) -> Float[Array, " K"]:
    """Return the reward of every length, linear in features, learned from pairs.

    Args:
      pairs: lengths, the preferred one first.
      features: a row for each length from 0.
      ridge: relative to the mean loss of a label, > 0 where the pairs are separable.
      weights: how often each pair counts, ``[n]`` or one for all.
    """
    counts = _count(pairs, len(features), weights)
    return features @ fit_linear(features, counts, ridge * counts.sum())


def _count(pairs: Int[Array, "n 2"], size: int, weights: ArrayLike = 1.0) -> Float[Array, "K K"]:
    """Return how often one length was preferred to another; two of one length say nothing."""
    counts = jnp.zeros((size, size)).at[pairs[:, 0], pairs[:, 1]].add(weights)
    return jnp.where(jnp.eye(size, dtype=bool), 0.0, counts)


class Learned(NamedTuple):
    """Hold the data of R problems and S seeds, and what G reward models learn from them."""

    golds: Float[Array, "R K"]  # true rewards
    reference: Float[Array, " K"]  # log-probabilities
    pairs: Int[Array, "R S n 2"]  # of lengths, the preferred one first
    proxies: Float[Array, "G R S K"]  # learned rewards, with the true one's unit and reference mean


def learn_proxies(settings: Lengths, reward_models: Sequence[str] = REWARD_MODELS[:1]) -> Learned:
    """Sample the data of every problem and seed, and fit reward models to them, in one program."""
    # The rewards behind labels without noise have no finite unit.
    checks.require_positive("temperature", settings.temperature)
    bandits = [settings.bandit(problem) for problem in PROBLEMS]
    reference = bandits[0].reference_log_probs
    laws = jnp.stack([bandit.data_law() for bandit in bandits])
    golds = jnp.stack([bandit.reward for bandit in bandits])
    pairs, fitted = _draw_and_fit(settings, tuple(reward_models), laws, golds)
    # A constant is not learned: the proxy is given the gold one's mean under the reference.
    probs = jnp.exp(reference)
    proxies = fitted - (fitted @ probs)[..., None] + (golds @ probs)[:, None, None]
    return Learned(golds, reference, pairs, proxies)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_and_fit(
    settings: Lengths,
    reward_models: tuple[str, ...],
    laws: Float[Array, "R K"],
    golds: Float[Array, "R K"],
) -> tuple[Int[Array, "R S n 2"], Float[Array, "G R S K"]]:
    def one(
        law: Float[Array, " K"], gold: Float[Array, " K"], seed: Int[Array, ""]
    ) -> tuple[Int[Array, "n 2"], Float[Array, "G K"]]:
        keys = _keys(seed)
        pairs = draw_pairs(keys.pairs, law, gold, settings)
        fitted = [_fit(model, settings, keys.reward_model, pairs) for model in reward_models]
        return pairs, settings.temperature * jnp.stack(fitted)

    over_seeds = jax.vmap(one, in_axes=(None, None, 0))
    seeds = jnp.arange(settings.seeds)
    pairs, fitted = jax.vmap(over_seeds, in_axes=(0, 0, None))(laws, golds, seeds)
    return pairs, jnp.moveaxis(fitted, 2, 0)


def _fit(
    model: str, settings: Lengths, key: PRNGKeyArray, pairs: Int[Array, "n 2"]
) -> Float[Array, " K"]:
    """Fit one of `REWARD_MODELS`: bumps exactly, without a key; a network on lengths in [-1, 1]."""
    if model == "bumps":
        return fit_proxy(pairs, settings.features(), settings.ridge)
    scaled = jnp.linspace(-1.0, 1.0, settings.max_length + 1)[:, None]
    counts = _count(pairs, len(scaled))
    ridge = settings.ridge * counts.sum()
    layers = fit_network(key, scaled, counts, widths=settings.widths, ridge=ridge)
    return network_rewards(layers, scaled)


def train_lengths(
    settings: Lengths,
    methods: Sequence[str],
    axes: Mapping[str, Any],
    *,
    steps: int,
    record: Sequence[int],
    minibatch: int = 40,
    group: int = 4,
    batch: int | None = None,
    reuse: int = 1,
    most_batch: int | None = None,
) -> xr.Dataset:
    """Train methods that are all offline or all on-policy against the proxy, and judge them.

    Args:
      settings: The problems.
      methods: Names, which make the axis ``loss``.
      axes: Other axes: ``problem``, of `PROBLEMS`; ``reward_model``, of `REWARD_MODELS`, by default
        the first; ``batch``, B, and ``passes``, T, of on-policy methods.
      steps: Number of gradient steps.
      record: Steps at which policies are judged.
      minibatch: M, in responses.
      group: C of on-policy methods; of offline ones it is 2.
      batch: B, where it is no axis; by default the minibatch.
      reuse: T of methods that reuse samples, where it is no axis; of the others it is 1.
      most_batch: The largest B, where it is an axis.
    """
    problems, models = axes.get("problem", PROBLEMS), axes.get("reward_model", REWARD_MODELS[:1])
    offline = _require_known(methods, problems, models)
    passes_of = {name: reuse if METHODS[name].reuses_samples else 1 for name in methods}
    learners = choices({name: (settings.loss(name), passes_of[name]) for name in methods})
    axes = {**axes, "problem": choices({name: PROBLEMS.index(name) for name in problems})}
    axes |= {"reward_model": choices(*models)} if "reward_model" in axes else {}

    def run_one(
        loss: tuple[Loss, Int[Array, ""]],
        problem: Int[Array, ""],
        seed: Int[Array, ""],
        learned: Learned,
        reward_model: ArrayLike = 0,
        batch: ArrayLike = batch or minibatch,
        passes: ArrayLike | None = None,
    ) -> dict[str, Array]:
        method, own_passes = loss
        gold, reference = learned.golds[problem], learned.reference
        proxy, pairs = learned.proxies[reward_model, problem, seed], learned.pairs[problem, seed]
        keys = _keys(seed)
        policy, start = settings.start(reference, keys.policy)
        if offline:
            schedule = Schedule(steps, 2, minibatch, 2 * settings.pairs, steps)
            collect = from_dataset(_dataset(pairs, reference, settings.max_length), schedule)
        else:
            passes = own_passes if passes is None else passes
            schedule = Schedule(steps, group, minibatch, batch, passes, most_batch)
            collect = on_policy(
                policy,
                None,
                lambda _, responses: proxy[lengths(responses)],
                schedule,
                reference_log_prob=lambda _, responses: reference[lengths(responses)],
            )
        return train(
            keys.training, policy, start, method, collect, schedule,
            optax.adam(settings.learning_rate),
            lambda params: _judge(policy.log_probs(params, None), gold, proxy, reference),
            record,
        )  # fmt: skip

    return require_not_diverged(
        sweep(
            run_one,
            {"loss": learners, **axes, "seed": np.arange(settings.seeds)},
            fixed={"learned": learn_proxies(settings, models)},
            dims=["step", "length"],
            coords={"step": list(record), "length": np.arange(settings.max_length + 1)},
            attributes=ATTRIBUTES,
            block_runs=16,
        )
    )


def _require_known(
    methods: Sequence[str], problems: Sequence[str], reward_models: Sequence[str]
) -> bool:
    """Refuse unknown names and methods of both kinds; return whether all methods are offline."""
    for axis, known, names in (
        ("method", METHODS, methods),
        ("problem", PROBLEMS, problems),
        ("reward_model", REWARD_MODELS, reward_models),
    ):
        for name in names:
            checks.require_known(axis, name, known)
    kinds = {METHODS[name].on_policy for name in methods}
    if len(kinds) > 1:
        raise InvalidInput(f"methods is {methods}; give offline ones or on-policy ones, not both")
    return kinds == {False}


def _judge(
    law: Float[Array, " K"],
    gold: Float[Array, " K"],
    proxy: Float[Array, " K"],
    reference: Float[Array, " K"],
) -> dict[str, Array]:
    """Return what is recorded of the law of the length, in log-probabilities."""
    probs = jnp.exp(law)
    return {
        "gold": probs @ gold,
        "proxy": probs @ proxy,
        "reference_kl": distributions.kl_divergence(law, reference),
        "mean_length": probs @ jnp.arange(len(law)),
        "length_probability": probs,
    }


def _dataset(pairs: Int[Array, "n 2"], reference: Float[Array, " K"], max_length: int) -> Minibatch:
    """Return the labelled pairs as responses of one content token, repeated, then stops."""
    responses = (jnp.arange(max_length + 1) < pairs[..., None]).astype(int)

    def group(pair: Int[Array, " 2"]) -> Responses:
        log_probs = reference[pair]
        # Two of one length say nothing.
        return make_pair(log_probs, reference_log_probs=log_probs, told_apart=pair[0] != pair[1])

    return Minibatch(None, responses, jax.vmap(group)(pairs))
