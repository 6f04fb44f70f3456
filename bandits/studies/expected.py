"""Every method on a small space, without noise: expectations over all responses.

Offline methods learn from a fixed law of the data, on-policy ones from the policy itself; HyPO from
both; SPIN's demonstrations are the KL-regularised optimum's; RLHF's reward is fitted to the data
before. Methods that choose among the responses of a group have no such expectation and see many
samples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bandits.environments import CategoricalBandit
from bandits.losses import METHODS, Loss, switch
from bandits.policies import Params, Policy, tabular_softmax
from bandits.training import (
    Collect,
    Schedule,
    against_own,
    on_bandit,
    on_whole_space,
    own_pairs,
    train,
)
from theory import gibbs

IN_GROUPS = tuple(n for n in METHODS if n.startswith("best_of_n") or n == "unlikelihood")
"""They choose among the responses of a group: sampled."""

IN_EXPECTATION = tuple(name for name in METHODS if name not in IN_GROUPS)

PASSES = {"spin": 10, "ppo": 4}
"""T of methods that reuse what they collect from the policy; of the others 1."""


class Problem(NamedTuple):
    """What is learned, and from what.

    Attributes:
      reward: ``[K]``, true, in nats of log-odds of the labeller.
      reference: ``[K]``, log π_ref.
      data: ``[K]``, log-probabilities of the law of offline data.
      fitted: ``[K]``, the reward that RLHF has learned from those.
      wins: ``[K, K]``, P(row preferred to column).
    """

    reward: Float[Array, " K"]
    reference: Float[Array, " K"]
    data: Float[Array, " K"]
    fitted: Float[Array, " K"]
    wins: Float[Array, "K K"]


class Descent(NamedTuple):
    """How it is learned.

    Attributes:
      beta: of every method that has one; the temperature of RWR and AWR.
      kl_coefficient: λ of HyPO.
      optimizer: what a gradient is turned into a step by.
      steps: gradient steps.
      record: after how many of them the policy is looked at.
      group: N, where groups are sampled.
      batch: responses in a sampled minibatch.
    """

    beta: float
    kl_coefficient: float
    optimizer: optax.GradientTransformation
    steps: int
    record: Sequence[int]
    group: int
    batch: int


def even_steps(length: float, steps: int) -> optax.GradientTransformation:
    """Gradients divided by their norm, times a length that falls to 0 along a cosine.

    The path is that of plain gradient descent, at even speed, whatever the scale of a loss.
    """
    return optax.chain(
        optax.normalize_by_update_norm(),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(length, steps)),
    )


def train_in_expectation(
    names: Sequence[str],
    index: Int[Array, ""],
    key: Array,
    policy: Policy,
    params: Params,
    problem: Problem,
    descent: Descent,
    evaluate: Callable[[Params], Mapping[str, Array]],
) -> dict[str, Array]:
    """Train by one of the methods, which are all `IN_EXPECTATION` or all `IN_GROUPS`.

    ``index`` may be traced, so that one program serves them all. Returns what `train` does.
    """
    loss, collect, schedule = updates_in_expectation(names, index, policy, problem, descent)
    return train(
        key,
        policy,
        params,
        loss,
        collect,
        schedule,
        descent.optimizer,
        evaluate,
        descent.record,
    )


def updates_in_expectation(
    names: Sequence[str],
    index: Int[Array, ""],
    policy: Policy,
    problem: Problem,
    descent: Descent,
) -> tuple[Loss, Collect, Schedule]:
    """What one of the methods minimises, on what, and how often: `train`'s arguments."""

    def is_(name: str) -> Array | bool:
        return index == names.index(name) if name in names else False

    # Methods share losses: online DPO's is DPO's.
    losses = list(dict.fromkeys(METHODS[name].loss for name in names))
    which = jnp.array([losses.index(METHODS[name].loss) for name in names])
    owners = [next(n for n in names if METHODS[n].loss is loss) for loss in losses]
    bound = [METHODS[name].bind(**_settings(name, descent)) for name in owners]
    offline = jnp.array([not METHODS[name].on_policy for name in names])[index]

    def law(own: Float[Array, " K"]) -> Float[Array, " K"]:
        return jnp.where(offline, problem.data, own)

    if set(names) <= set(IN_GROUPS):
        schedule = Schedule(descent.steps, descent.group, descent.batch, descent.batch)
        collect = _in_groups(policy, problem, schedule, law)
    else:
        passes = jnp.array([PASSES.get(name, 1) for name in names])[index]
        schedule = Schedule.whole_space(descent.steps, len(problem.reward), passes)
        optimum = gibbs.gibbs_log_probs(problem.reward, problem.reference, descent.beta)
        collect = on_whole_space(
            policy,
            CategoricalBandit(
                jnp.where(is_("rlhf"), problem.fitted, problem.reward), problem.reference
            ),
            lambda drawn: jnp.where(
                is_("spin"),
                against_own(jnp.exp(optimum))(drawn),
                own_pairs(problem.wins)(jnp.where(is_("hypo"), problem.data, drawn)),
            ),
            law=law,
            own_reference=is_("spin"),
        )
    return switch(which[index], bound), collect, schedule


def _in_groups(
    policy: Policy,
    problem: Problem,
    schedule: Schedule,
    law: Callable[[Float[Array, " K"]], Float[Array, " K"]],
) -> Collect:
    """Samples of the law, labelled by the true reward."""
    sampled = on_bandit(
        tabular_softmax(), CategoricalBandit(problem.reward, problem.reference), schedule
    )
    return lambda behaviour, key, number: sampled(
        law(policy.log_probs(behaviour, None)), key, number
    )


def _settings(name: str, descent: Descent) -> dict[str, float]:
    """β (or the temperature in its place) and λ, and a baseline that is the mean of the space."""
    wanted = {
        "beta": descent.beta,
        "kl_coefficient": descent.kl_coefficient,
        "temperature": descent.beta,
        "prompt_baseline": 1.0,
    }
    return {k: v for k, v in wanted.items() if k in METHODS[name].hyperparameters}
