"""Train networks on T24's one-dimensional bandit, on contexts that the reward ignores.

There are K = 100 arms and the tanh-Cauchy reference. The reward is a bump with its peak far from
the reference's bulk (R1, arm 70) or in it (R2, arm 20). Contexts are uniform in [0, 1]^100. Each
seed has a network of its own, distilled to the reference. Everything but the sizes is a sweep axis,
the method included: it costs nothing beside the network, and one program serves all.

To end within seconds, studies take fewer on-policy collections than the hundred published (16
to 20 of 15 steps), and prompts from the lower part of the published 5 to 200. The loss of a prompt
is the mean over its own pairs, so a prompt without any adds nothing.
"""

from collections.abc import Callable, Mapping, Sequence
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
from bandits.policies.pretraining import Start as Start
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


class Learner(NamedTuple):
    """Name what a run trains with."""

    loss: Loss
    learning_rate: ArrayLike  # of Adam
    least_gap: ArrayLike  # pairs of responses whose rewards differ by less are not labelled


def make_learner(method: str, least_gap: float = LEAST_GAP) -> Learner:
    """Return a method of `bandits.losses.METHODS` with the learning rate of its family."""
    entry = METHODS[method]
    return Learner(entry.bind(), LEARNING_RATES[entry.family], least_gap)


@dataclass(frozen=True)
class Bandit:
    """Set the problem and its sizes."""

    width: float = 10.0  # of the reward's bump, in arms
    context_size: int = pretraining.CONTEXT_SIZE  # numbers in a context
    responses: int = 10  # N, to each prompt
    most_contexts: int = pretraining.TRAINING_CONTEXTS  # training contexts a seed has in store
    fresh_contexts: int = pretraining.FRESH_CONTEXTS  # on which policies are judged
    seeds: int = 5  # independent repeats: network, contexts, samples

    def policy(self) -> Policy:
        """Return the network, the same object for equal bandits."""
        return pretraining.published_network(NUM_ARMS, self.context_size)

    def problem(self, peak: ArrayLike, reference: Float[Array, " K"]) -> CategoricalBandit:
        """Return the problem with this peak, an arm, and this reference, in log-probabilities."""
        return CategoricalBandit(bump_reward(NUM_ARMS, peak, self.width), reference)

    def make_starts(self) -> Start:
        """Return a distilled network and contexts for every seed."""
        return pretraining.make_starts(
            self.policy(),
            jnp.arange(self.seeds),
            tanh_cauchy_reference(NUM_ARMS),
            context_size=self.context_size,
            training_contexts=self.most_contexts,
            fresh_contexts=self.fresh_contexts,
        )

    def sweep(
        self,
        run: Callable[..., dict[str, Array]],
        methods: Sequence[str] | Mapping[str, Learner],
        axes: Mapping[str, Any],
        record: Sequence[int],
        attributes: Mapping[str, Mapping[str, str]] = ATTRIBUTES,
    ) -> xr.Dataset:
        """Run every method over the axes and from every seed's start; refuse runs that diverge.

        Args:
          run: takes ``loss``, a `Learner`; ``seed``; ``start``, the starts of all seeds;
            ``reference_log_probs``; and the axes.
          methods: as `run_methods` takes them, as the next two.
          axes: others than ``loss`` and ``seed``.
          record: when the policy is judged.
          attributes: of the results, by name.
        """
        if not isinstance(methods, Mapping):
            methods = {name: make_learner(name) for name in methods}
        dataset = sweep(
            run,
            {"loss": choices(methods), **axes, "seed": np.arange(self.seeds)},
            fixed={
                "start": self.make_starts(),
                "reference_log_probs": tanh_cauchy_reference(NUM_ARMS),
            },
            dims=["step"],
            coords={"step": list(record)},
            attributes=attributes,
            block_runs=pretraining.BLOCK_RUNS,
        )
        require_not_diverged(dataset)
        return dataset


def run_methods(
    bandit: Bandit,
    methods: Sequence[str] | Mapping[str, Learner],
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
      methods: names from `bandits.losses.METHODS`, or learners by name; the axis ``loss``.
      axes: others: ``reward``, `choices` of peaks; and lists: ``batch``, B; ``passes``, T;
        ``temperature`` of the offline data's law; ``contexts``, marked `static`. Without, the peak
        is R1's, B is everything and T all steps: offline training. A `static` B or T costs a
        program for each value, and saves drawing samples at steps that reuse them.
      steps: gradient steps.
      contexts: training prompts.
      record: when the policy is judged; by default at the start and the end.
      minibatch: M, in responses; by default all prompts at once.
      most_batch: the largest B, where it is an axis.

    Returns:
      ``expected_reward`` and ``reference_kl`` over loss, the axes, seed and step.
    """
    record = tuple(record or (0, steps))
    policy = bandit.policy()

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
        problem = bandit.problem(reward, reference_log_probs)
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
            lambda p: judge_policy(
                policy, p, start.fresh[seed], problem.reward, reference_log_probs
            ),
            record,
            behaviour=temper(params, temperature),
        )  # fmt: skip

    return bandit.sweep(run_one, methods, axes, record)


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
