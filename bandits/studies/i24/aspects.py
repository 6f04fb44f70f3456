"""I24's setting: PPO and DPO on a contextual bandit, with every aspect of the recipe a knob.

Preference data hold prompts of the general domain. A reward model, linear in some of the features,
is fitted to them; PPO is trained against it, on the same prompts and on others without labels; DPO
is trained on the pairs. Both are judged by the true reward on fresh prompts: those of the general
domain, and of a target domain that the data hardly know.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.contextual import ContextualBandit, draw_preferences, random_contextual_bandit
from bandits.fitting import minimize
from bandits.keys import split_into
from bandits.lookup import look_up
from bandits.losses import METHODS, make_pair
from bandits.policies import Params, Policy, context_linear, context_residual
from bandits.studies.curves import require_not_diverged
from bandits.sweeps import sweep
from bandits.training import Minibatch, Schedule, from_dataset, on_policy, train
from theory import checks
from theory.checks import InvalidInput

GENERAL, TARGET = DOMAINS = (0, 1)
POLICIES = ("linear", "network")
"""Classes of policies: that of the reward model, and a larger one."""


class Recipe(NamedTuple):
    """What goes into a policy.

    Attributes:
      pairs: labelled pairs, one a prompt.
      label_noise: probability that a label is flipped.
      coverage: of the pairs' responses, as in `contextual.draw_preferences`.
      reward_features: how many of the features, every so many of them, the reward model sees.
      reward_pairs: how many of the pairs it is fitted to.
      general_prompts, target_prompts: prompts without labels that PPO trains on too.
    """

    pairs: Any = 400
    label_noise: Any = 0.05
    coverage: Any = 1.0
    reward_features: Any = 12
    reward_pairs: Any = 400
    general_prompts: Any = 0
    target_prompts: Any = 0


@dataclass(frozen=True)
class Aspects:
    """The bandit, the training and the tuning.

    Attributes:
      num_arms, num_features: K and d.
      most_pairs, most_prompts: that a recipe can ask for.
      reward_steps: of Adam, for the reward model.
      ridge: Of the reward model, relative to the mean loss of a label.
      steps: of policies.
      minibatch: prompts in a step.
      group: C, of PPO.
      passes: T, of PPO.
      learning_rates, betas: the grid that PPO and DPO are tuned over.
      widths: of the hidden layers of the larger policy.
      fresh: prompts on which policies are tuned, and others on which they are judged.
      seeds: independent bandits, data and training.
    """

    num_arms: int = 12
    num_features: int = 12
    most_pairs: int = 400
    most_prompts: int = 400
    reward_steps: int = 200
    ridge: float = 1e-3
    steps: int = 240
    minibatch: int = 40
    group: int = 4
    passes: int = 4
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    betas: tuple[float, ...] = (0.02, 0.1, 0.5)
    widths: tuple[int, ...] = (64,)
    fresh: int = 256
    seeds: int = 8


QUICK = Aspects(seeds=2, steps=40, learning_rates=(0.03,), betas=(0.1,), reward_steps=50, fresh=64)
"""One cell of the grid, for a look and for tests."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prepared:
    """All that a recipe comes to before a policy is trained, with axes for recipes and seeds.

    Attributes:
      recipes: their names, R; no array, so part of the structure and not a leaf.
      bandit: the problem, ``[S, ...]``.
      pairs: DPO's data, ``[R, S, n, ...]``.
      learned: weights of the reward model, ``[R, S, d, K]``.
      prompts: that PPO is trained on, ``[R, S, m, d]``.
      fresh: prompts to tune and to judge by, ``[S, 2, D, n, d]``.
    """

    recipes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    bandit: ContextualBandit
    pairs: Minibatch
    learned: Float[Array, "R S d K"]
    prompts: Float[Array, "R S m d"]
    fresh: Float[Array, "S 2 D n d"]


def prepare(settings: Aspects, recipes: Mapping[str, Recipe]) -> Prepared:
    """Bandits, data, reward models and prompts of every recipe and seed, in one program."""
    _require_some(recipes)
    for name, recipe in recipes.items():
        _require_recipe(settings, name, recipe)
    table = Recipe(*(jnp.array(column) for column in zip(*recipes.values(), strict=True)))
    return _prepare(settings, tuple(recipes), table)


class _Keys(NamedTuple):
    """What one seed decides."""

    bandit: PRNGKeyArray
    fresh: PRNGKeyArray
    prompts: PRNGKeyArray
    pairs: PRNGKeyArray
    unlabelled: PRNGKeyArray
    start: PRNGKeyArray
    training: PRNGKeyArray


def _keys(seed: Int[Array, ""]) -> _Keys:
    return split_into(_Keys, jax.random.key(seed))


def _require_some(recipes: Collection[str]) -> None:
    if not recipes:
        raise InvalidInput("recipes is empty; at least one is needed")


def _require_recipe(settings: Aspects, name: str, recipe: Recipe) -> None:
    checks.require_probability(f"label_noise of {name}", recipe.label_noise)
    checks.require_positive(f"coverage of {name}", recipe.coverage)
    limits = {
        "pairs": (1, settings.most_pairs),
        "reward_pairs": (1, settings.most_pairs),
        "reward_features": (1, settings.num_features),
        "general_prompts": (0, settings.most_prompts),
        "target_prompts": (0, settings.most_prompts),
    }
    for field, (least, most) in limits.items():
        value = getattr(recipe, field)
        if not least <= value <= most:
            raise InvalidInput(
                f"{field} of {name} is {value}; these settings allow {least} to {most}"
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepare(settings: Aspects, names: tuple[str, ...], table: Recipe) -> Prepared:
    def problem(seed: Int[Array, ""]) -> tuple[ContextualBandit, Float[Array, "2 D n d"]]:
        keys = _keys(seed)
        bandit = random_contextual_bandit(keys.bandit, settings.num_arms, settings.num_features)
        fresh_keys = jax.random.split(keys.fresh, len(DOMAINS))
        drawn = [
            bandit.draw_prompts(key, domain, 2 * settings.fresh)
            for key, domain in zip(fresh_keys, DOMAINS, strict=True)
        ]
        by_use = jnp.stack(drawn).reshape(len(DOMAINS), 2, settings.fresh, settings.num_features)
        return bandit, jnp.swapaxes(by_use, 0, 1)

    def cook(
        recipe: Recipe, seed: Int[Array, ""], bandit: ContextualBandit
    ) -> tuple[Minibatch, Float[Array, "d K"], Float[Array, "m d"]]:
        keys = _keys(seed)
        prompts = bandit.draw_prompts(keys.prompts, GENERAL, settings.most_pairs)
        pairs = draw_preferences(
            keys.pairs,
            bandit,
            prompts,
            label_noise=recipe.label_noise,
            coverage=recipe.coverage,
        )
        return (
            _dataset(bandit, prompts, pairs, recipe.pairs),
            _fit_reward(settings, prompts, pairs, recipe),
            _training_prompts(settings, keys.unlabelled, bandit, prompts, recipe),
        )

    seeds = jnp.arange(settings.seeds)
    bandits, fresh = jax.vmap(problem)(seeds)
    over_seeds = jax.vmap(cook, in_axes=(None, 0, 0))
    pairs, learned, prompts = jax.vmap(over_seeds, in_axes=(0, None, None))(table, seeds, bandits)
    return Prepared(names, bandits, pairs, learned, prompts, fresh)


def train_recipes(
    settings: Aspects,
    method: str,
    recipes: Sequence[str],
    prepared: Prepared,
    policy: str = "linear",
) -> xr.Dataset:
    """Train one of `POLICIES` by PPO or DPO: every recipe, learning rate and β.

    ``recipes`` names any of those that were prepared, in any order.

    Returns the share of the best response's gain over the reference, in the true reward, by domain;
    ``validated`` on prompts to tune by, ``share`` on others.
    """
    checks.require_known("method", method, ("dpo", "ppo"))
    checks.require_known("policy", policy, POLICIES)
    _require_some(recipes)
    for name in recipes:
        checks.require_known("recipe", name, prepared.recipes)

    def run_one(
        recipe: Int[Array, ""],
        learning_rate: Float[Array, ""],
        beta: Float[Array, ""],
        seed: Int[Array, ""],
        prepared: Prepared,
    ) -> dict[str, Array]:
        pairs, learned, prompts = jax.tree.map(
            lambda leaf: leaf[recipe, seed], (prepared.pairs, prepared.learned, prepared.prompts)
        )
        bandit, fresh = jax.tree.map(lambda leaf: leaf[seed], (prepared.bandit, prepared.fresh))
        one = dataclasses.replace(
            prepared, bandit=bandit, pairs=pairs, learned=learned, prompts=prompts, fresh=fresh
        )
        return _train_one(settings, method, policy, one, learning_rate, beta, seed)

    dataset = sweep(
        run_one,
        {
            "recipe": np.array([prepared.recipes.index(name) for name in recipes]),
            "learning_rate": np.array(settings.learning_rates, np.float32),
            "beta": np.array(settings.betas, np.float32),
            "seed": np.arange(settings.seeds),
        },
        fixed={"prepared": prepared},
        dims=["step", "domain"],
        coords={"domain": ["general", "target"]},
        block_runs=16,
    ).assign_coords(recipe=list(recipes))
    require_not_diverged(dataset)
    return dataset.squeeze("step")


def tuned(dataset: xr.Dataset) -> xr.DataArray:
    """Shares on each domain, at the learning rate and β that are best there on held-out prompts.

    By the true reward, for each bandit: the tuning of one who can measure what is wanted.
    """
    grid = dataset.stack(grid=("learning_rate", "beta"))
    best = grid["validated"].argmax("grid")
    return grid["share"].isel(grid=best).drop_vars(["grid", "learning_rate", "beta"])


def _train_one(
    settings: Aspects,
    method: str,
    policy_class: str,
    prepared: Prepared,
    learning_rate: Float[Array, ""],
    beta: Float[Array, ""],
    seed: Int[Array, ""],
) -> dict[str, Array]:
    """One run on one recipe and seed of what was prepared."""
    bandit = prepared.bandit
    keys = _keys(seed)
    policy, start = _policy(settings, policy_class, bandit, keys.start)
    if method == "dpo":
        whole = 2 * settings.most_pairs
        schedule = Schedule(settings.steps, 2, 2 * settings.minibatch, whole, settings.steps)
        collect = from_dataset(prepared.pairs, schedule)
        loss = METHODS["dpo"].bind(beta=beta)
    else:
        size = settings.group * settings.minibatch
        schedule = Schedule(settings.steps, settings.group, size, size, settings.passes)
        collect = on_policy(
            policy,
            prepared.prompts,
            lambda prompt, arms: look_up(prompt @ prepared.learned, arms),
            schedule,
            reference_log_prob=lambda prompt, arms: look_up(
                bandit.reference_log_probs(prompt), arms
            ),
        )
        loss = METHODS["ppo"].bind(beta=beta, prompt_baseline=1.0)

    def evaluate(params: Params) -> dict[str, Array]:
        shares = [_share(bandit, policy, params, fresh) for fresh in prepared.fresh]
        return {"validated": shares[0], "share": shares[1]}

    return train(
        keys.training,
        policy,
        start,
        loss,
        collect,
        schedule,
        optax.adam(learning_rate),
        evaluate,
        (settings.steps,),
    )


def _policy(
    settings: Aspects, policy_class: str, bandit: ContextualBandit, key: PRNGKeyArray
) -> tuple[Policy, Params]:
    """A policy of the class, and its parameters at the reference."""
    if policy_class == "linear":
        return context_linear(settings.num_arms, settings.num_features), bandit.reference_weights
    policy = context_residual(
        bandit.reference_log_probs, settings.num_arms, settings.num_features, settings.widths
    )
    return policy, policy.init(key=key)


def _share(
    bandit: ContextualBandit, policy: Policy, params: Params, prompts: Float[Array, "D n d"]
) -> Float[Array, " D"]:
    """Gain over the reference in true reward, as a share of the best response's."""
    rewards = bandit.rewards(prompts)
    over_prompts = jax.vmap(jax.vmap(policy.log_probs, in_axes=(None, 0)), in_axes=(None, 0))
    earned = jnp.sum(jnp.exp(over_prompts(params, prompts)) * rewards, axis=-1).mean(-1)
    start = jnp.sum(jnp.exp(bandit.reference_log_probs(prompts)) * rewards, axis=-1).mean(-1)
    return (earned - start) / (rewards.max(axis=-1).mean(-1) - start)


def _fit_reward(
    settings: Aspects,
    prompts: Float[Array, "n d"],
    pairs: Int[Array, "n 2"],
    recipe: Recipe,
) -> Float[Array, "d K"]:
    """Weights of the reward model, 0 on the features that it does not see."""
    size, features = settings.most_pairs, settings.num_features
    used = jnp.arange(size) < jnp.minimum(recipe.pairs, recipe.reward_pairs)
    shares = used / used.sum()
    # Evenly spread, so that a smaller model sees something of every domain.
    seen = (jnp.arange(features) * recipe.reward_features) % features < recipe.reward_features

    def loss(weights: Float[Array, "d K"]) -> Float[Array, ""]:
        rewards = (prompts * seen) @ weights
        margins = rewards[jnp.arange(size), pairs[:, 0]] - rewards[jnp.arange(size), pairs[:, 1]]
        squares = settings.ridge / 2 * jnp.sum(weights**2)
        return squares - shares @ jax.nn.log_sigmoid(margins)

    start = jnp.zeros((features, settings.num_arms))
    return minimize(loss, start, optax.adam(0.1), settings.reward_steps) * seen[:, None]


def _training_prompts(
    settings: Aspects,
    key: PRNGKeyArray,
    bandit: ContextualBandit,
    labelled: Float[Array, "n d"],
    recipe: Recipe,
) -> Float[Array, "m d"]:
    """The labelled prompts and those without labels, equally often, to a fixed number."""
    general_key, target_key, order_key = jax.random.split(key, 3)
    most = settings.most_prompts
    parts = [
        (labelled, recipe.pairs),
        (bandit.draw_prompts(general_key, GENERAL, most), recipe.general_prompts),
        (bandit.draw_prompts(target_key, TARGET, most), recipe.target_prompts),
    ]
    every = jnp.concatenate([prompts for prompts, _ in parts])
    used = jnp.concatenate([jnp.arange(len(prompts)) < count for prompts, count in parts])
    # In a random order, so that chance alone says which of them are in the last, broken round.
    order = jnp.argsort(jnp.where(used, jax.random.uniform(order_key, used.shape), jnp.inf))
    return every[order[jnp.arange(len(every)) % used.sum()]]


def _dataset(
    bandit: ContextualBandit,
    prompts: Float[Array, "n d"],
    pairs: Int[Array, "n 2"],
    count: Array,
) -> Minibatch:
    """The labelled pairs, the first of them repeated to a fixed number."""
    at = jnp.arange(len(prompts)) % count
    prompts, pairs = prompts[at], pairs[at]
    log_probs = jnp.take_along_axis(bandit.reference_log_probs(prompts), pairs, axis=-1)
    told_apart = pairs[:, 0] != pairs[:, 1]
    groups = jax.vmap(
        lambda held, apart: make_pair(held, reference_log_probs=held, told_apart=apart)
    )(log_probs, told_apart)
    return Minibatch(prompts, pairs, groups)
