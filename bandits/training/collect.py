"""How Algorithm 1 collects responses, and who labels them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.kernels import threefry
from bandits.kernels.lookup import look_up
from bandits.losses import Responses, make_group
from bandits.policies import Params, Policy
from bandits.problems.environments import CategoricalBandit
from bandits.training.schedule import Schedule
from theory.checks import InvalidInput
from theory.pairs import Pairs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minibatch:
    """M responses, C to each of P = M/C prompts.

    Attributes:
      contexts: ``[P, ...]``, or None where the policy has no context.
      responses: ``[P, C, ...]``, arms or sequences.
      groups: Their log-probabilities and labels, every array with the leading axis P. ``log_probs``
        are those of the behaviour until the loss is taken.
    """

    contexts: Any
    responses: Array
    groups: Responses


Label = Callable[[PRNGKeyArray, Float[Array, " C"]], Float[Array, "C C"]]
"""(key, rewards) -> preferences."""

Collect = Callable[[Params, PRNGKeyArray, Int[Array, ""]], Minibatch]
"""(behaviour parameters, key, number of the minibatch in its batch) -> a minibatch."""

Law = Callable[[Float[Array, " K"]], Float[Array, " K"]]
"""Log-probabilities of the behaviour -> those of the law that responses are drawn from."""

PairsOfPolicy = Callable[[Float[Array, " K"]], Float[Array, "K K"]]
"""Log-probabilities of a law -> the weight of every pair of the space."""


def on_policy(
    policy: Policy,
    prompts: Any,
    reward: Callable[[Any, Array], Float[Array, " C"]],
    schedule: Schedule,
    *,
    reference_log_prob: Callable[[Any, Array], Float[Array, " C"]],
    label: Label | None = None,
) -> Collect:
    """Collect responses of the behaviour policy to prompts of a set, labelled by a reward.

    Args:
      policy: The policy that the behaviour's parameters belong to.
      prompts: ``[n, ...]`` training contexts, or None for a policy without a context. A minibatch
        takes P different ones at random; it takes all of them in order where P = n, and some
        several times where P > n.
      reward: (context, responses ``[C, ...]``) -> ``[C]``, true or learned.
      schedule: C and M are used.
      reference_log_prob: (context, responses) -> ``[C]``, log π_ref.
      label: (key, rewards) -> preferences ``[C, C]``; by default every pair by its rewards.
    """
    count, group = schedule.minibatch // schedule.group, schedule.group
    prompts = jax.tree.map(jnp.asarray, prompts)

    def draw_at_once(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        draw_key, label_key = threefry.split(key)
        responses = policy.sample(behaviour, draw_key, None, schedule.minibatch)
        drawn = (
            responses,
            policy.log_prob(behaviour, None, responses),
            reward(None, responses),
            reference_log_prob(None, responses),
        )
        responses, *columns = (a.reshape(count, group, *a.shape[1:]) for a in drawn)
        groups = jax.vmap(judge)(threefry.split(label_key, count), *columns)
        return Minibatch(None, responses, groups)

    def judge(key: PRNGKeyArray, own: Array, rewards: Array, reference: Array) -> Responses:
        return make_group(
            own,
            rewards,
            reference_log_probs=reference,
            preferences=None if label is None else label(key, rewards),
        )

    def collect(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        # The policy may split its key, so labels have keys of their own.
        keys = threefry.split(key, 1 + 2 * count)
        prompt_key, sample_keys, label_keys = keys[0], keys[1 : 1 + count], keys[1 + count :]
        contexts = jax.tree.map(lambda p: p[_choose_prompts(prompt_key, len(p), count)], prompts)

        def respond(
            context: Any, sample_key: PRNGKeyArray, label_key: PRNGKeyArray
        ) -> tuple[Array, Responses]:
            responses = policy.sample(behaviour, sample_key, context, group)
            return responses, judge(
                label_key,
                policy.log_prob(behaviour, context, responses),
                reward(context, responses),
                reference_log_prob(context, responses),
            )

        responses, groups = jax.vmap(respond)(contexts, sample_keys, label_keys)
        return Minibatch(contexts, responses, groups)

    # Without prompts, sample all groups at once: four times cheaper.
    return draw_at_once if prompts is None else collect


def on_bandit(
    policy: Policy,
    bandit: CategoricalBandit,
    schedule: Schedule,
    *,
    prompts: Any = None,
    label: Label | None = None,
) -> Collect:
    """Collect as `on_policy` does, from the arms of a bandit that gives all prompts one reward."""
    return on_policy(
        policy,
        prompts,
        lambda _, arms: look_up(bandit.reward, arms),
        schedule,
        reference_log_prob=lambda _, arms: look_up(bandit.reference_log_probs, arms),
        label=label,
    )


def from_dataset(dataset: Minibatch, schedule: Schedule) -> Collect:
    """Collect the minibatches of a fixed dataset, in order: offline training.

    Args:
      dataset: ``[n, ...]`` prompts with their responses; n C is the batch B.
      schedule: C and M are used; B must not exceed the dataset.

    Raises:
      InvalidInput: If a group of the dataset is not of C responses, or there are fewer than B.
    """
    groups, group = dataset.responses.shape[:2]
    count = schedule.minibatch // schedule.group
    if group != schedule.group:
        raise InvalidInput(f"group is {schedule.group}; the dataset has {group} a prompt")
    if groups < schedule.slots * count:
        raise InvalidInput(
            f"batch is {schedule.slots * schedule.minibatch}; the dataset holds {groups * group} "
            "responses"
        )

    def collect(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        del behaviour, key  # what was collected once does not depend on the policy

        def part(values: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(values, number * count, count)

        return jax.tree.map(part, dataset)

    return collect


def with_own_samples(
    offline: Collect,
    policy: Policy,
    count: int,
    *,
    reference_log_prob: Callable[[Any, Array], Float[Array, " C"]],
) -> Collect:
    """Collect the groups of another collection, each beside samples of the policy: HyPO's data.

    The pairs are those of the other collection. Expectations, through the shares, are over the
    policy's ``count`` samples, which have no labels. With T = 1 they are samples of the policy as
    it is.

    Args:
      offline: The collection that gives the pairs.
      policy: The policy that the behaviour's parameters belong to.
      count: Number of samples beside each group.
      reference_log_prob: (context, responses) -> their log π_ref.
    """

    def collect(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        offline_key, own_key = threefry.split(key)
        held = offline(behaviour, offline_key, number)
        keys = threefry.split(own_key, len(held.responses))

        def beside(
            context: Any, responses: Array, group: Responses, key: PRNGKeyArray
        ) -> tuple[Array, Responses]:
            own = policy.sample(behaviour, key, context, count)
            own_log_probs = policy.log_prob(behaviour, context, own)
            added = {
                "log_probs": own_log_probs,
                "reference_log_probs": reference_log_prob(context, own),
                "behaviour_log_probs": own_log_probs,
                "rewards": jnp.zeros_like(own_log_probs),
                "shares": jnp.full_like(own_log_probs, 1.0 / count),
            }
            group = dataclasses.replace(group, shares=jnp.zeros_like(group.shares))
            joined = {
                name: jnp.concatenate([getattr(group, name), values])
                for name, values in added.items()
            }
            pairs = jnp.pad(group.pair_weights, (0, count))
            return (
                jnp.concatenate([responses, own]),
                dataclasses.replace(group, preferences=pairs, **joined),
            )

        responses, groups = jax.vmap(beside)(held.contexts, held.responses, held.groups, keys)
        return Minibatch(held.contexts, responses, groups)

    return collect


def on_whole_space(
    policy: Policy,
    bandit: CategoricalBandit,
    preferences: Float[Array, "K K"] | Pairs | PairsOfPolicy | None = None,
    *,
    law: Law | None = None,
    own_reference: ArrayLike = False,
) -> Collect:
    """Collect every response of a small space in one group: expectations in place of samples.

    Shares are the law's probabilities. With `Schedule.whole_space`, the update of every method that
    reads shares or pairs is then its expectation, without noise.

    Args:
      policy: A policy over the bandit's arms, without a context.
      bandit: The rewards, true or learned, and the reference.
      preferences: Given pairs, as a table or a list; or a function that makes pairs of a law, such
        as `own_pairs`. By default they are the law's own pairs, labelled by the rewards.
      law: From the behaviour's log-probabilities to those of the law that responses are drawn from;
        by default it is the behaviour. Offline data have one law whatever the behaviour.
      own_reference: Whether log-ratios are to the behaviour instead of the reference, as in
        self-play (SPIN, arXiv:2401.01335); T says for how long.
    """
    if preferences is None:
        wins = bandit.reward[:, None] > bandit.reward[None, :]
        preferences = own_pairs(wins.astype(bandit.reward.dtype))
    arms = jnp.arange(bandit.num_arms)

    def collect(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        del key, number  # nothing is drawn
        own = policy.log_probs(behaviour, None)
        drawn = own if law is None else law(own)
        group = make_group(
            drawn,
            bandit.reward,
            reference_log_probs=jnp.where(own_reference, own, bandit.reference_log_probs),
            preferences=preferences(drawn) if callable(preferences) else preferences,
            shares=jnp.exp(drawn),
        )
        return Minibatch(None, arms[None], jax.tree.map(lambda leaf: leaf[None], group))

    return collect


def own_pairs(wins: Float[Array, "K K"]) -> PairsOfPolicy:
    """Return the expected labels of two independent samples of a law: 2 π_i π_j P(i ≻ j), i ≠ j.

    ``wins`` is P, [i, j]. The weights sum to less than 1, by the probability of two equal samples.
    """

    def pairs(log_probs: Float[Array, " K"]) -> Float[Array, "K K"]:
        probs = jnp.exp(log_probs)
        return 2.0 * _apart(probs[:, None] * probs[None, :] * wins)

    return pairs


def against_own(demonstrations: Float[Array, " K"]) -> PairsOfPolicy:
    """Return the expected pairs of self-play: a demonstration preferred to a sample of the law.

    ``demonstrations`` are probabilities.
    """

    def pairs(log_probs: Float[Array, " K"]) -> Float[Array, "K K"]:
        return _apart(demonstrations[:, None] * jnp.exp(log_probs)[None, :])

    return pairs


def _apart(weights: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Return the weights without the diagonal: a response is not compared with itself."""
    return jnp.where(jnp.eye(len(weights), dtype=bool), 0.0, weights)


def _choose_prompts(key: PRNGKeyArray, size: int, count: int) -> Int[Array, " P"]:
    if count == size:
        return jnp.arange(size)
    return jax.random.choice(key, size, (count,), replace=count > size)
