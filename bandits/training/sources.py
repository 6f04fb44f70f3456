"""Where the responses come from that a method learns from.

A source is a function (policy, data, schedule) -> what `train` collects: samples, or every response
in one group where the data hold all pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.kernels.lookup import look_up
from bandits.losses import Method
from bandits.policies import Policy
from bandits.problems.environments import CategoricalBandit
from bandits.training.collect import (
    Collect,
    against_own,
    from_dataset,
    on_bandit,
    on_whole_space,
    with_own_samples,
)
from bandits.training.schedule import Schedule
from theory.pairs import Pairs


class Data(NamedTuple):
    """What methods may learn from, for one prompt; a method needs a part of it.

    Attributes:
      reference: ``[K]``, log π_ref.
      reward: ``[K]``, the reward that labels responses.
      pairs: Given preferences, with weights that sum to 1. None stands for pairs of responses,
        labelled by their rewards.
      fitted: ``[K]``, a reward that was fitted to preferences before.
      shown: ``[K]``, log-probabilities of demonstrations.
      key: Key of the responses that are sampled once, before training.
    """

    reference: Float[Array, " K"]
    reward: Float[Array, " K"] | None = None
    pairs: Float[Array, "K K"] | Pairs | None = None
    fitted: Float[Array, " K"] | None = None
    shown: Float[Array, " K"] | None = None
    key: PRNGKeyArray | None = None

    @property
    def bandit(self) -> CategoricalBandit:
        """Return the bandit of the reference and the reward, which is 0 where there is none."""
        reward = jnp.zeros_like(self.reference) if self.reward is None else self.reward
        return CategoricalBandit(reward, self.reference)


Source = Callable[[Policy, Data, Schedule], Collect]


def own_responses(policy: Policy, data: Data, schedule: Schedule) -> Collect:
    """Collect responses of the policy itself, labelled by the reward."""
    return on_bandit(policy, data.bandit, schedule)


def offline_responses(policy: Policy, data: Data, schedule: Schedule) -> Collect:
    """Collect the given pairs, or else responses of the reference, drawn once."""
    if data.pairs is not None:
        return on_whole_space(policy, data.bandit, data.pairs)
    assert data.key is not None
    # A table's parameters may be log-probabilities: here those of the law that draws.
    drawn = own_responses(policy, data, schedule)(data.reference, data.key, jnp.int32(0))
    return from_dataset(drawn, schedule)


def learned_reward(policy: Policy, data: Data, schedule: Schedule) -> Collect:
    """Collect every response, with the reward that was fitted to the pairs: for RLHF."""
    return on_whole_space(policy, data._replace(reward=data.fitted).bandit, data.pairs)


def beside_own_samples(policy: Policy, data: Data, schedule: Schedule) -> Collect:
    """Collect pairs of the data beside the policy's own responses: for HyPO."""
    offline = offline_responses(policy, data, schedule)
    if data.pairs is not None:  # every response is in the group, with its probability
        return offline
    return with_own_samples(
        offline,
        policy,
        schedule.group,
        reference_log_prob=lambda _, arms: look_up(data.reference, arms),
    )


def self_play(policy: Policy, data: Data, schedule: Schedule) -> Collect:
    """Collect demonstrations, preferred to the policy's own responses: for SPIN."""
    assert data.shown is not None
    demonstrations = against_own(jnp.exp(data.shown))
    return on_whole_space(policy, data.bandit, demonstrations, own_reference=True)


SOURCES: dict[str, Source] = {
    "learned rewards": learned_reward,
    "preferences and samples": beside_own_samples,
    "demonstrations": self_play,
}
"""Sources by what methods need, where that is more than responses with their rewards."""


def source_of(method: Method) -> Source:
    """Return where the responses of a method come from."""
    return SOURCES.get(method.needs, own_responses if method.on_policy else offline_responses)
