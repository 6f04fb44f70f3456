"""T24's one-dimensional bandit as published: a network on contexts that the reward ignores.

K = 100 arms, the tanh-Cauchy reference, a bump of reward whose peak is far from the reference's
bulk (R1, arm 70) or in it (R2, arm 20); contexts uniform in [0, 1]^100; a network per seed,
distilled to the reference. Everything but the sizes is a sweep axis, the method included: it costs
nothing beside the network, and one program serves all.

To end within seconds, experiments take fewer on-policy collections than the hundred published (16
to 20 of 15 steps), and prompts from the lower part of the published 5 to 200. The loss of a prompt
is the mean over its own pairs, so a prompt without any adds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from bandits.keys import split_seed
from bandits.losses import METHODS, Loss, preferences_by_reward
from bandits.policies import Params, Policy, pretraining
from bandits.policies.network import Dense
from bandits.policies.pretraining import BLOCK_RUNS as BLOCK_RUNS
from bandits.policies.pretraining import Start as Start
from bandits.policies.pretraining import published_network
from bandits.problems.environments import CategoricalBandit, bump_reward, tanh_cauchy_reference
from bandits.problems.metrics import ATTRIBUTES
from bandits.studies.curves import require_not_diverged
from bandits.sweeps import choices, sweep
from bandits.training import Schedule, on_bandit, train
from theory import distributions

NUM_ARMS = 100

PEAKS = {"R1": 70, "R2": 20}
"""The two rewards by the arm of their peak: far from the reference's bulk, and in it."""

LEAST_GAP = 0.2
"""Pairs of the published data differ by at least this much reward."""

LEARNING_RATES = {"likelihood": 1e-2, "contrastive": 3e-3, "policy gradient": 3e-3}
"""Of Adam: as published for best-of-N and for IPO, and taken over by the other methods."""


@dataclass(frozen=True)
class Bandit:
    """The problem and its sizes.

    Attributes:
      width: of the reward's bump, in arms.
      context_size: numbers in a context.
      responses: N, to each prompt.
      most_contexts: training contexts a seed has in store.
      fresh_contexts: on which policies are judged.
      seeds: independent repeats: network, contexts, samples.
    """

    width: float = 10.0
    context_size: int = pretraining.CONTEXT_SIZE
    responses: int = 10
    most_contexts: int = pretraining.TRAINING_CONTEXTS
    fresh_contexts: int = pretraining.FRESH_CONTEXTS
    seeds: int = 5

    def policy(self) -> Policy:
        """Return the network, the same object for equal bandits."""
        return published_network(NUM_ARMS, self.context_size)


class Learner(NamedTuple):
    """What a run trains with.

    Attributes:
      loss: the method.
      learning_rate: of Adam.
      least_gap: pairs of responses whose rewards differ by less are not labelled.
    """

    loss: Loss
    learning_rate: ArrayLike
    least_gap: ArrayLike


class Variant(NamedTuple):
    """A method as it is run: its name in `bandits.losses.METHODS`, and `Learner.least_gap`."""

    method: str
    least_gap: float = LEAST_GAP

    def learner(self) -> Learner:
        """Return the method with the learning rate of its family."""
        method = METHODS[self.method]
        return Learner(method.bind(), LEARNING_RATES[method.family], self.least_gap)


def run_methods(
    bandit: Bandit,
    methods: Sequence[str] | Mapping[str, Variant],
    axes: Mapping[str, Any],
    *,
    steps: int,
    contexts: int = 10,
    record: Sequence[int] | None = None,
    minibatch: int | None = None,
    most_batch: int | None = None,
) -> xr.Dataset:
    """Train each method by Algorithm 1 from every seed's start, over further axes.

    Args:
      bandit: the problem.
      methods: names from `bandits.losses.METHODS`, or variants by name; the axis ``loss``.
      axes: others: ``reward``, `choices` of peaks; and lists: ``batch``, B; ``passes``, T;
        ``temperature`` of the offline data's law; ``contexts``, marked `static`. Without, the peak
        is R1's, B is everything and T all steps: offline training. A `static` B or T costs a
        program for each value, and saves drawing samples at steps that reuse them.
      steps: gradient steps.
      contexts: training prompts.
      record: when the policy is judged.
      minibatch: M, in responses; by default all prompts at once.
      most_batch: the largest B, where it is an axis.

    Returns:
      ``expected_reward`` and ``reference_kl`` over loss, the axes, seed and step.
    """
    record = tuple(record or (0, steps))
    policy, reference = bandit.policy(), tanh_cauchy_reference(NUM_ARMS)

    def run_one(
        loss: Learner,
        seed: Int[Array, ""],
        start: Start,
        reference_log_probs: Float[Array, " K"],
        reward: ArrayLike = PEAKS["R1"],
        batch: ArrayLike | None = None,
        passes: ArrayLike = steps,
        temperature: ArrayLike = 1.0,
        contexts: int = contexts,
    ) -> dict[str, Array]:
        params = jax.tree.map(lambda leaf: leaf[seed], start.params)
        table = bump_reward(NUM_ARMS, reward, bandit.width)
        problem = CategoricalBandit(table, reference_log_probs)
        everything = contexts * bandit.responses
        batch = everything if batch is None else batch
        schedule = Schedule(
            steps, bandit.responses, minibatch or everything, batch, passes, most_batch
        )
        collect = on_bandit(
            policy,
            problem,
            schedule,
            prompts=start.contexts[seed, :contexts],
            label=lambda _, rewards: preferences_by_reward(rewards, loss.least_gap),
        )
        return train(
            split_seed(seed).training, policy, params, loss.loss, collect, schedule,
            optax.adam(loss.learning_rate),
            lambda p: judge_policy(policy, p, start.fresh[seed], table, reference_log_probs),
            record,
            behaviour=temper(params, temperature),
        )  # fmt: skip

    dataset = sweep(
        run_one,
        {"loss": _learners(methods), **axes, "seed": np.arange(bandit.seeds)},
        fixed={"start": make_starts(bandit), "reference_log_probs": reference},
        dims=["step"],
        coords={"step": list(record)},
        attributes=ATTRIBUTES,
        block_runs=BLOCK_RUNS,
    )
    require_not_diverged(dataset)
    return dataset


def _learners(methods: Sequence[str] | Mapping[str, Variant]) -> choices:
    """Return what runs train with, by the names on the axis."""
    if not isinstance(methods, Mapping):
        methods = {name: Variant(name) for name in methods}
    return choices({name: variant.learner() for name, variant in methods.items()})


def temper(layers: list[Dense], temperature: ArrayLike) -> list[Dense]:
    """Return the network whose policy is π^(1/τ)/Z: its last layer is divided by τ."""
    *hidden, last = layers
    return [*hidden, jax.tree.map(lambda x: x / temperature, last)]


def judge_policy(
    policy: Policy,
    params: Params,
    contexts: Float[Array, "n d"],
    reward: Float[Array, " K"],
    reference_log_probs: Float[Array, " K"],
) -> dict[str, Float[Array, ""]]:
    """Return expected reward and KL from the reference, exact means over contexts."""
    log_probs = jax.vmap(policy.log_probs, in_axes=(None, 0))(params, contexts)
    return {
        "expected_reward": jnp.mean(jnp.exp(log_probs) @ reward),
        "reference_kl": jnp.mean(distributions.kl_divergence(log_probs, reference_log_probs)),
    }


def make_starts(bandit: Bandit) -> Start:
    """Return a distilled network and contexts for every seed."""
    return pretraining.make_starts(
        bandit.policy(),
        jnp.arange(bandit.seeds),
        tanh_cauchy_reference(NUM_ARMS),
        context_size=bandit.context_size,
        training_contexts=bandit.most_contexts,
        fresh_contexts=bandit.fresh_contexts,
    )
