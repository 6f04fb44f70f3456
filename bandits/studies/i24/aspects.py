"""Train PPO and DPO on a contextual bandit in which every aspect of I24's recipe is a knob.

Preference data hold prompts of the general domain. A reward model, linear in some of the features,
is fitted to them. PPO is trained against it, on the same prompts and on others without labels; DPO
is trained on the pairs. Both are judged by the true reward on fresh prompts: those of the general
domain, and those of a target domain that the data hardly know.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.fitting import minimize
from bandits.kernels.lookup import look_up
from bandits.keys import split_into
from bandits.losses import METHODS, make_pair
from bandits.policies import Params, Policy, context_linear, context_residual
from bandits.problems.contextual import ContextualBandit, draw_preferences, random_contextual_bandit
from bandits.studies.curves import require_not_diverged
from bandits.studies.expected import bind_known
from bandits.sweeps import choices, sweep
from bandits.training import Minibatch, Schedule, from_dataset, on_policy, train
from theory import checks
from theory.checks import InvalidInput

GENERAL, TARGET = 0, 1
DOMAINS = ["general", "target"]
POLICIES = ("linear", "network")
"""The classes of policies: that of the reward model, and a larger one."""


class Recipe(NamedTuple):
    """Say what goes into a policy."""

    pairs: Any = 400  # labelled pairs, one for each prompt
    label_noise: Any = 0.05  # probability that a label is flipped
    coverage: Any = 1.0  # of the pairs' responses, as in `contextual.draw_preferences`
    reward_features: Any = 12  # how many features the reward model sees, evenly spaced
    reward_pairs: Any = 400  # how many of the pairs the reward model is fitted to
    general_prompts: Any = 0  # without labels, that PPO trains on too
    target_prompts: Any = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prepared:
    """Hold all that R recipes come to at S seeds, before a policy is trained."""

    recipes: tuple[str, ...] = dataclasses.field(metadata={"static": True})  # R names
    bandit: ContextualBandit  # [R, S, ...], the same for all recipes
    pairs: Minibatch  # [R, S, n, ...], the data of DPO
    learned: Float[Array, "R S d K"]  # weights of the reward model
    prompts: Float[Array, "R S m d"]  # PPO is trained on them
    fresh: Float[Array, "R S 2 D n d"]  # prompts to tune and to judge by, the same for all recipes


@dataclass(frozen=True)
class Aspects:
    """Hold the settings of the bandit, the training and the tuning, and train."""

    num_arms: int = 12  # K
    num_features: int = 12  # d
    most_pairs: int = 400  # that a recipe can ask for
    most_prompts: int = 400  # that a recipe can ask for, of either domain
    reward_steps: int = 200  # of Adam, for the reward model
    ridge: float = 1e-3  # of the reward model, relative to the mean loss of a label
    steps: int = 240  # of policies
    minibatch: int = 40  # prompts in a step
    group: int = 4  # C, of PPO
    passes: int = 4  # T, of PPO
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)  # to tune PPO and DPO over
    betas: tuple[float, ...] = (0.02, 0.1, 0.5)  # to tune PPO and DPO over
    widths: tuple[int, ...] = (64,)  # of the hidden layers of the larger policy
    fresh: int = 256  # prompts on which policies are tuned, and others on which they are judged
    seeds: int = 8  # independent bandits, data and training

    def prepare(self, recipes: Mapping[str, Recipe]) -> Prepared:
        """Make bandits, data, reward models and prompts of every recipe and seed, in one program.

        Raises InvalidInput for no recipe, and for one that is out of range or asks for more than
        there is.
        """
        if not recipes:
            raise InvalidInput("recipes is empty; at least one is needed")
        for name, recipe in recipes.items():
            checks.require_probability(f"label_noise of {name}", recipe.label_noise)
            checks.require_positive(f"coverage of {name}", recipe.coverage)
            for field, least, most in (
                ("pairs", 1, self.most_pairs),
                ("reward_pairs", 1, self.most_pairs),
                ("reward_features", 1, self.num_features),
                ("general_prompts", 0, self.most_prompts),
                ("target_prompts", 0, self.most_prompts),
            ):
                checks.require_whole(f"{field} of {name}", getattr(recipe, field), least, most)
        table = Recipe(*(jnp.array(column) for column in zip(*recipes.values(), strict=True)))
        cook = functools.partial(self._cook, tuple(recipes))
        over_seeds = jax.vmap(cook, in_axes=(None, 0))
        over_both = jax.vmap(over_seeds, in_axes=(0, None))
        return jax.jit(over_both)(table, jnp.arange(self.seeds))

    def train(
        self, method: str, recipes: Sequence[str], prepared: Prepared, policy: str = "linear"
    ) -> xr.Dataset:
        """Train a class of policies by PPO or DPO, for every recipe, learning rate and β.

        Args:
          method: "ppo" or "dpo".
          recipes: names of recipes that were prepared, in any order.
          prepared: what `prepare` returned.
          policy: one of `POLICIES`.

        Returns:
          The share of the best response's gain over the reference in true reward, by domain:
          ``validated`` on prompts to tune by, ``share`` on others.

        Raises:
          InvalidInput: an unknown name, no recipe, or training that diverges.
        """
        checks.require_known("method", method, ("dpo", "ppo"))
        checks.require_known("policy", policy, POLICIES)
        for name in recipes:
            checks.require_known("recipe", name, prepared.recipes)
        dataset = sweep(
            functools.partial(self._train_one, method, policy),
            {
                "recipe": choices({name: prepared.recipes.index(name) for name in recipes}),
                "learning_rate": list(self.learning_rates),
                "beta": list(self.betas),
                "seed": np.arange(self.seeds),
            },
            fixed={"prepared": prepared},
            dims=["step", "domain"],
            coords={"domain": DOMAINS},
            block_runs=16,
        )
        return require_not_diverged(dataset).squeeze("step")

    def _cook(self, names: tuple[str, ...], recipe: Recipe, seed: Int[Array, ""]) -> Prepared:
        """Return what one recipe comes to at one seed."""
        keys = split_into(_Keys, jax.random.key(seed))
        bandit = random_contextual_bandit(keys.bandit, self.num_arms, self.num_features)
        prompts = bandit.draw_prompts(keys.prompts, GENERAL, self.most_pairs)
        pairs = draw_preferences(
            keys.pairs, bandit, prompts, label_noise=recipe.label_noise, coverage=recipe.coverage
        )
        fresh_keys = jax.random.split(keys.fresh, len(DOMAINS))
        fresh = jnp.stack(
            [bandit.draw_prompts(key, i, 2 * self.fresh) for i, key in enumerate(fresh_keys)]
        ).reshape(len(DOMAINS), 2, self.fresh, self.num_features)
        return Prepared(
            names,
            bandit,
            _dataset(bandit, prompts, pairs, recipe.pairs),
            self._fit_reward(prompts, pairs, recipe),
            self._training_prompts(keys.unlabelled, bandit, prompts, recipe),
            jnp.swapaxes(fresh, 0, 1),
        )

    def _fit_reward(
        self, prompts: Float[Array, "n d"], pairs: Int[Array, "n 2"], recipe: Recipe
    ) -> Float[Array, "d K"]:
        """Return the weights of the reward model, 0 on the features that it does not see."""
        size, features = self.most_pairs, self.num_features
        used = jnp.arange(size) < jnp.minimum(recipe.pairs, recipe.reward_pairs)
        shares = used / used.sum()
        # The features are evenly spread, so that a smaller model sees something of every domain.
        seen = (jnp.arange(features) * recipe.reward_features) % features < recipe.reward_features

        def loss(weights: Float[Array, "d K"]) -> Float[Array, ""]:
            rewards = jnp.take_along_axis((prompts * seen) @ weights, pairs, axis=1)
            squares = self.ridge / 2 * jnp.sum(weights**2)
            return squares - shares @ jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1])

        start = jnp.zeros((features, self.num_arms))
        return minimize(loss, start, optax.adam(0.1), self.reward_steps) * seen[:, None]

    def _training_prompts(
        self,
        key: PRNGKeyArray,
        bandit: ContextualBandit,
        labelled: Float[Array, "n d"],
        recipe: Recipe,
    ) -> Float[Array, "m d"]:
        """Return a fixed number of prompts, labelled and not, each as often as any other."""
        general_key, target_key, order_key = jax.random.split(key, 3)
        most = self.most_prompts
        parts = [
            (labelled, recipe.pairs),
            (bandit.draw_prompts(general_key, GENERAL, most), recipe.general_prompts),
            (bandit.draw_prompts(target_key, TARGET, most), recipe.target_prompts),
        ]
        every = jnp.concatenate([prompts for prompts, _ in parts])
        used = jnp.concatenate([jnp.arange(len(prompts)) < count for prompts, count in parts])
        # The order is random: chance alone says which of them are in the last, incomplete round.
        order = jnp.argsort(jnp.where(used, jax.random.uniform(order_key, used.shape), jnp.inf))
        return every[order[jnp.arange(len(every)) % used.sum()]]

    def _train_one(
        self,
        method: str,
        policy_class: str,
        recipe: Int[Array, ""],
        learning_rate: Float[Array, ""],
        beta: Float[Array, ""],
        seed: Int[Array, ""],
        prepared: Prepared,
    ) -> dict[str, Array]:
        """Train on one recipe and seed of what was prepared."""
        prepared = jax.tree.map(lambda leaf: leaf[recipe, seed], prepared)
        bandit = prepared.bandit
        keys = split_into(_Keys, jax.random.key(seed))
        policy, start = self._policy(policy_class, bandit, keys.start)
        loss = bind_known(METHODS[method], beta=beta, prompt_baseline=1.0)
        if not METHODS[method].on_policy:
            whole = 2 * self.most_pairs
            schedule = Schedule(self.steps, 2, 2 * self.minibatch, whole, self.steps)
            collect = from_dataset(prepared.pairs, schedule)
        else:
            size = self.group * self.minibatch
            schedule = Schedule(self.steps, self.group, size, size, self.passes)
            collect = on_policy(
                policy,
                prepared.prompts,
                lambda prompt, arms: look_up(prompt @ prepared.learned, arms),
                schedule,
                reference_log_prob=lambda prompt, arms: look_up(
                    bandit.reference_log_probs(prompt), arms
                ),
            )

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
            (self.steps,),
        )

    def _policy(
        self, policy_class: str, bandit: ContextualBandit, key: PRNGKeyArray
    ) -> tuple[Policy, Params]:
        """Return a policy of a class, and the parameters with which it is the reference."""
        if policy_class == "linear":
            return context_linear(self.num_arms, self.num_features), bandit.reference_weights
        policy = context_residual(
            bandit.reference_log_probs, self.num_arms, self.num_features, self.widths
        )
        return policy, policy.init(key=key)


QUICK = Aspects(seeds=2, steps=40, learning_rates=(0.03,), betas=(0.1,), reward_steps=50, fresh=64)
"""One cell of the grid, for a look and for tests."""


def tuned(dataset: xr.Dataset) -> xr.DataArray:
    """Return shares on each domain, at the learning rate and β that are best there for each bandit.

    They are the best by the true reward, on held-out prompts: so tunes one who can measure what is
    wanted.
    """
    grid = dataset.stack(grid=("learning_rate", "beta"))
    best = grid["validated"].argmax("grid")
    return grid["share"].isel(grid=best).drop_vars(["grid", "learning_rate", "beta"])


class _Keys(NamedTuple):
    """Hold the keys of what one seed decides."""

    bandit: PRNGKeyArray
    fresh: PRNGKeyArray
    prompts: PRNGKeyArray
    pairs: PRNGKeyArray
    unlabelled: PRNGKeyArray
    start: PRNGKeyArray
    training: PRNGKeyArray


def _share(
    bandit: ContextualBandit, policy: Policy, params: Params, prompts: Float[Array, "D n d"]
) -> Float[Array, " D"]:
    """Return the gain in true reward over the reference, as a share of the best response's."""
    rewards = bandit.rewards(prompts)
    over_prompts = jax.vmap(jax.vmap(policy.log_probs, in_axes=(None, 0)), in_axes=(None, 0))
    earned = jnp.sum(jnp.exp(over_prompts(params, prompts)) * rewards, axis=-1).mean(-1)
    start = jnp.sum(jnp.exp(bandit.reference_log_probs(prompts)) * rewards, axis=-1).mean(-1)
    return (earned - start) / (rewards.max(axis=-1).mean(-1) - start)


def _dataset(
    bandit: ContextualBandit,
    prompts: Float[Array, "n d"],
    pairs: Int[Array, "n 2"],
    count: Array,
) -> Minibatch:
    """Return a fixed number of labelled pairs: the first ``count``, repeated."""
    at = jnp.arange(len(prompts)) % count
    prompts, pairs = prompts[at], pairs[at]
    log_probs = jnp.take_along_axis(bandit.reference_log_probs(prompts), pairs, axis=-1)
    groups = jax.vmap(
        lambda held, apart: make_pair(held, reference_log_probs=held, told_apart=apart)
    )(log_probs, pairs[:, 0] != pairs[:, 1])
    return Minibatch(prompts, pairs, groups)
