"""Train every method on a small space without noise: by expectations over all responses.

Offline methods learn from a fixed law of the data, and on-policy ones from the policy itself; HyPO
learns from both. SPIN is shown the KL-regularised optimum, and RLHF is given a fitted reward.
Methods that choose among the responses of a group have no such expectation; they see many samples.
"""

from collections.abc import Sequence
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
)
from theory import gibbs

IN_GROUPS = tuple(name for name, method in METHODS.items() if method.in_groups)
"""Methods that choose among the responses of a group; their groups are sampled."""

IN_EXPECTATION = tuple(name for name in METHODS if name not in IN_GROUPS)


class Problem(NamedTuple):
    """Hold a problem on a small space, and the data to learn it from.

    Attributes:
      reward: the true reward, in nats of the labeller's log-odds.
      reference: log π_ref.
      data: log-probabilities of the law of offline data.
      fitted: the reward that RLHF has learned from these data.
      wins: P(row preferred to column).
      beta: coefficient of every KL penalty, and the temperature of RWR and AWR; > 0.
    """

    reward: Float[Array, " K"]
    reference: Float[Array, " K"]
    data: Float[Array, " K"]
    fitted: Float[Array, " K"]
    wins: Float[Array, "K K"]
    beta: float


class Descent(NamedTuple):
    """Hold the numbers of a descent.

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
    """Return an optimiser that follows the gradient at an even speed, whatever the loss's scale.

    The path is that of plain gradient descent; the length of a step falls to 0 along a cosine.
    """
    return optax.chain(
        optax.normalize_by_update_norm(),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(length, steps)),
    )


def updates_in_expectation(
    names: Sequence[str],
    index: Int[Array, ""],
    policy: Policy,
    problem: Problem,
    descent: Descent,
) -> tuple[Loss, Collect, Schedule]:
    """Return the loss, the data and the schedule of one of the methods, as `train` takes them.

    Args:
      names: methods, all `IN_EXPECTATION` or all `IN_GROUPS`.
      index: which of them; may be traced, so that one program serves them all.
      policy: over the responses, without a context.
      problem: what there is to learn from.
      descent: how long to descend, and on how many samples where groups are sampled.
    """
    methods = [METHODS[name] for name in names]
    hyperparameters = {
        "beta": problem.beta,
        "temperature": problem.beta,
        "kl_coefficient": descent.kl_coefficient,
        "prompt_baseline": 1.0,  # the mean of the space
    }
    loss = switch(index, [bind_known(method, **hyperparameters) for method in methods])
    bandit = CategoricalBandit(problem.reward, problem.reference)
    own = jnp.array([method.on_policy for method in methods])[index]

    def law(behaviour: Float[Array, " K"]) -> Float[Array, " K"]:
        return jnp.where(own, behaviour, problem.data)

    if set(names) <= set(IN_GROUPS):
        schedule = Schedule(descent.steps, descent.group, descent.batch, descent.batch)
        sampled = on_bandit(tabular_softmax(), bandit, schedule)

        def in_groups(behaviour: Params, key: Array, number: Array) -> Minibatch:
            return sampled(law(policy.log_probs(behaviour, None)), key, number)

        return loss, in_groups, schedule

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
    passes = jnp.array([method.passes for method in methods])[index]
    return loss, collect, Schedule.whole_space(descent.steps, len(problem.reward), passes)


def bind_known(method: Method, **hyperparameters: ArrayLike) -> Loss:
    """Return a method's loss with those of the hyperparameters that the method has."""
    return method.bind(**{k: v for k, v in hyperparameters.items() if k in method.hyperparameters})
