"""Train every method on a small space without noise: by expectations over all responses.

Offline methods learn from a fixed law of the data, on-policy ones from the policy itself; HyPO from
both. SPIN's demonstrations are the KL-regularised optimum's, RLHF's reward is fitted before.
Methods that choose among the responses of a group have no such expectation; they see many samples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bandits.losses import METHODS, Loss, Method, switch
from bandits.policies import Params, Policy, tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.training import (
    Collect,
    Minibatch,
    Schedule,
    against_own,
    on_bandit,
    on_whole_space,
    own_pairs,
    train,
)
from bandits.training.collect import Law
from theory import gibbs

IN_GROUPS = tuple(n for n in METHODS if n.startswith("best_of_n") or n == "unlikelihood")
"""Methods that choose among the responses of a group: they are sampled."""

IN_EXPECTATION = tuple(name for name in METHODS if name not in IN_GROUPS)

PASSES = {"spin": 10, "ppo": 4}
"""T of methods that reuse what they collect from the policy; the others have 1."""


class Problem(NamedTuple):
    """A problem on a small space, and the data to learn it from.

    Attributes:
      reward: ``[K]``, true, in nats of log-odds of the labeller.
      reference: ``[K]``, log π_ref.
      data: ``[K]``, log-probabilities of the law of offline data.
      fitted: ``[K]``, the reward that RLHF has learned from those.
      wins: ``[K, K]``, P(row preferred to column).
      beta: coefficient of the KL penalty, of every method that has one, and the temperature of RWR
        and AWR; > 0.
    """

    reward: Float[Array, " K"]
    reference: Float[Array, " K"]
    data: Float[Array, " K"]
    fitted: Float[Array, " K"]
    wins: Float[Array, "K K"]
    beta: float


class Descent(NamedTuple):
    """The numbers of a descent.

    Attributes:
      kl_coefficient: λ of HyPO.
      step: length of the first step.
      steps: number of gradient steps.
      group: N, where groups are sampled.
      batch: number of responses in a sampled minibatch.
    """

    kl_coefficient: float
    step: ArrayLike
    steps: int
    group: int
    batch: int


def even_steps(length: ArrayLike, steps: int) -> optax.GradientTransformation:
    """Return the optimiser of steps along the gradient whose length falls to 0 along a cosine.

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
    record: Sequence[int],
) -> dict[str, Array]:
    """Train by one of the methods, which are all `IN_EXPECTATION` or all `IN_GROUPS`.

    ``index`` may be traced, so that one program serves them all. Returns what `train` does.
    """
    loss, collect, schedule = updates_in_expectation(names, index, policy, problem, descent)
    optimizer = even_steps(descent.step, descent.steps)
    return train(key, policy, params, loss, collect, schedule, optimizer, evaluate, record)


def updates_in_expectation(
    names: Sequence[str],
    index: Int[Array, ""],
    policy: Policy,
    problem: Problem,
    descent: Descent,
) -> tuple[Loss, Collect, Schedule]:
    """Return what one of the methods minimises, on what, and how often: `train`'s arguments."""
    methods = [METHODS[name] for name in names]
    losses = [_bind(method, problem.beta, descent.kl_coefficient) for method in methods]
    loss = switch(index, losses)
    own = jnp.array([method.on_policy for method in methods])[index]

    def law(behaviour: Float[Array, " K"]) -> Float[Array, " K"]:
        return jnp.where(own, behaviour, problem.data)

    if set(names) <= set(IN_GROUPS):
        schedule = Schedule(descent.steps, descent.group, descent.batch, descent.batch)
        return loss, _in_groups(policy, problem, schedule, law), schedule

    def needs(what: str) -> Array:
        return jnp.array([method.needs == what for method in methods])[index]

    def pairs(drawn: Float[Array, " K"]) -> Float[Array, "K K"]:
        optimum = gibbs.gibbs_log_probs(problem.reward, problem.reference, problem.beta)
        labelled = jnp.where(needs("preferences and samples"), problem.data, drawn)
        return jnp.where(
            needs("demonstrations"),
            against_own(jnp.exp(optimum))(drawn),
            own_pairs(problem.wins)(labelled),
        )

    reward = jnp.where(needs("learned rewards"), problem.fitted, problem.reward)
    collect = on_whole_space(
        policy,
        CategoricalBandit(reward, problem.reference),
        pairs,
        law=law,
        own_reference=needs("demonstrations"),
    )
    passes = jnp.array([PASSES.get(name, 1) for name in names])[index]
    return loss, collect, Schedule.whole_space(descent.steps, len(problem.reward), passes)


def _in_groups(policy: Policy, problem: Problem, schedule: Schedule, law: Law) -> Collect:
    """Sample groups of the law, labelled by the true reward."""
    bandit = CategoricalBandit(problem.reward, problem.reference)
    sampled = on_bandit(tabular_softmax(), bandit, schedule)

    def collect(behaviour: Params, key: Array, number: Array) -> Minibatch:
        return sampled(law(policy.log_probs(behaviour, None)), key, number)

    return collect


def _bind(method: Method, beta: float, kl_coefficient: float) -> Loss:
    """Return a method's loss with β, λ, and a baseline that is the mean of the space."""
    wanted = {
        "beta": beta,
        "temperature": beta,
        "kl_coefficient": kl_coefficient,
        "prompt_baseline": 1.0,
    }
    return method.bind(**{k: v for k, v in wanted.items() if k in method.hyperparameters})
