"""Where a method's responses come from, and how often."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from bandits.environments import CategoricalBandit
from bandits.lookup import look_up
from bandits.losses import METHODS
from bandits.policies import tabular_softmax
from bandits.simulate.problem import learns_from_pairs
from bandits.training import (
    Collect,
    Schedule,
    against_own,
    from_dataset,
    on_bandit,
    on_whole_space,
    with_own_samples,
)
from theory import checks

POLICY = tabular_softmax()

Source = Literal["given pairs", "learned rewards", "demonstrations", "samples", "both"]
"""Where a method's responses and labels come from; both: given pairs beside own samples."""


def choose_collection(
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
    if has_preferences and learns_from_pairs(method):
        return "given pairs", exact
    if marks.needs == "preferences and samples":
        return "both", dataclasses.replace(in_batches, passes=1)
    return "samples", in_batches


class Data(NamedTuple):
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


def make_collect(source: Source, data: Data, schedule: Schedule, key: PRNGKeyArray) -> Collect:
    """The collection of that source; ``key`` draws the one batch that HyPO keeps."""
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
        once, POLICY, schedule.group, reference_log_prob=lambda _, arms: look_up(data.start, arms)
    )
