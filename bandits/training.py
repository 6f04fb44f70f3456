"""Algorithm 1 of T24: collect responses, label them, pass over them in minibatches, again.

    repeat:   draw B responses, C to a prompt, from the current policy; label them
              T times: for each minibatch of M responses, one gradient step

Every method of the paper is a point of the (B, T) plane. Small B at fixed M is more on-policy; T is
how often samples are reused; offline training is a single iteration whose samples all come from the
start. B and T are therefore traceable numbers, like all others: sweep axes.

**One loop over steps.** Step s belongs to iteration s // (nT), n = B/M, and to minibatch s mod n of
it. The behaviour policy is replaced when an iteration starts; a minibatch is drawn from it when it
is first needed, in pass one, and kept for the other passes. A draw depends on the behaviour, the
iteration and the minibatch, not on when it happens, so this is the algorithm above. Where B and T
are the same in all runs, nothing is drawn twice; where they differ, a vmapped program draws at
every step and discards.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bandits.environments import CategoricalBandit
from bandits.losses import Loss, Responses, make_group
from bandits.metrics import DIVERGED_AT
from bandits.policies import Params, Policy
from theory import checks
from theory.checks import InvalidInput

BASELINE_DECAY = 0.9
"""Of the running mean of the rewards, a minibatch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Minibatch:
    """M responses, C to each of P = M/C prompts.

    Attributes:
      contexts: ``[P, ...]``, or None where the policy has none.
      responses: ``[P, C, ...]``: arms or sequences.
      groups: their log-probabilities and labels, every array with the leading axis P; ``log_probs``
        are the behaviour's until the loss is taken.
    """

    contexts: Any
    responses: Array
    groups: Responses


Label = Callable[[PRNGKeyArray, Float[Array, " C"]], Float[Array, "C C"]]
"""(key, rewards) -> preferences."""

Collect = Callable[[Params, PRNGKeyArray, Int[Array, ""]], Minibatch]
"""(behaviour parameters, key, number of the minibatch in its batch) -> a minibatch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The numbers of Algorithm 1.

    Attributes:
      steps: gradient steps in all.
      group: C, responses to a prompt.
      minibatch: M, responses in a gradient step, a multiple of C.
      batch: B, responses collected in an iteration, a multiple of M; traceable.
      passes: T, passes over a batch, >= 1; traceable. Offline is a T that lasts for all steps.
      most_batch: the largest batch, needed where ``batch`` is traced: it sizes the store.
    """

    steps: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    minibatch: int = dataclasses.field(metadata={"static": True})
    batch: ArrayLike
    passes: ArrayLike = 1
    most_batch: int | None = dataclasses.field(default=None, metadata={"static": True})

    def check(self) -> None:
        """Refuse numbers that do not fit together."""
        for name in ("steps", "group", "minibatch", "batch", "passes"):
            checks.require_whole(name, getattr(self, name))
        most = self._most
        if isinstance(most, jax.core.Tracer):
            raise InvalidInput("batch is traced; give most_batch, the largest that it can be")
        checks.require_whole("most_batch", most)
        for name, batch in (("batch", self.batch), ("most_batch", most)):
            known = checks.concrete(batch)
            if known is not None and (known < self.group).any():
                raise InvalidInput(
                    f"{name} is {known.min()}; a group alone has {self.group} responses"
                )
            checks.require_multiple(name, batch, "minibatch", self.minibatch)
        checks.require_multiple("minibatch", self.minibatch, "group", self.group)
        known = checks.concrete(self.batch)
        if known is not None and (known > np.max(most)).any():
            raise InvalidInput(f"batch is {known.max()}; most_batch allows {most}")

    def fits(self) -> Bool[Array, ""]:
        """Whether a traced B and T fit the other numbers, as `check` demands of known ones."""
        batch, passes = jnp.asarray(self.batch), jnp.asarray(self.passes)
        whole = (batch % self.minibatch == 0) & (batch >= self.minibatch)
        return whole & (batch <= self.slots * self.minibatch) & (passes >= 1)

    @property
    def slots(self) -> int:
        """Minibatches in the largest batch."""
        return int(np.max(np.asarray(self._most))) // self.minibatch

    @property
    def _most(self) -> ArrayLike:
        return self.batch if self.most_batch is None else self.most_batch


def train(
    key: PRNGKeyArray,
    policy: Policy,
    params: Params,
    loss: Loss,
    collect: Collect,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    evaluate: Callable[[Params], Mapping[str, Array]],
    record: Sequence[int] | None = None,
    behaviour: Params | None = None,
) -> dict[str, Array]:
    """Algorithm 1: what ``evaluate`` says of the policy after the given numbers of steps.

    One compiled scan. Traceable, and so vmappable, in everything numeric: key, parameters, what
    ``loss``, ``collect`` and ``optimizer`` were made with, B and T.

    Args:
      key: of all samples and labels.
      policy: whose parameters are trained.
      params: where it starts.
      loss: a method with its hyperparameters, such as ``METHODS["ipo"].bind(tau=0.05)``.
      collect: `on_policy` or `from_dataset`, or your own.
      schedule: B, C, M, T and the number of steps.
      optimizer: any optax optimiser.
      evaluate: parameters -> named arrays, recorded.
      record: steps at which to do so, increasing; by default the start and the end.
      behaviour: parameters that draw the first iteration's samples, by default ``params``: the law
        of offline data (C2).

    Returns:
      The records, stacked along a leading axis, and ``diverged_at``: the number of steps after
      which the loss was not finite, or at a record a parameter was NaN; -1 if neither ever was.
      Later records are NaN. A traced number out of range, or a behaviour that is NaN, counts as
      diverged after 0 steps, and no record is left.

    Raises:
      InvalidInput: numbers that do not fit together, or records outside 0 … steps.
    """
    schedule.check()
    record = (0, schedule.steps) if record is None else tuple(record)
    _require_record(record, schedule.steps)
    per_batch = jnp.maximum(jnp.asarray(schedule.batch, jnp.int32) // schedule.minibatch, 1)
    # More passes than steps are never finished, and their product could overflow.
    passes = jnp.clip(jnp.asarray(schedule.passes), 1, max(schedule.steps, 1))
    per_iteration = per_batch * passes

    def minibatch_loss(params: Params, minibatch: Minibatch) -> Float[Array, ""]:
        log_probs = jax.vmap(policy.log_prob, in_axes=(None, 0, 0))(
            params, minibatch.contexts, minibatch.responses
        )
        groups = dataclasses.replace(minibatch.groups, log_probs=log_probs)
        return jnp.mean(jax.vmap(loss)(groups))

    def draw(behaviour: Params, iteration: Array, number: Array) -> Minibatch:
        of_iteration = jax.random.fold_in(key, iteration)
        return collect(behaviour, jax.random.fold_in(of_iteration, number), number)

    def step(s: Array, state: _State) -> _State:
        iteration, place = s // per_iteration, s % per_iteration
        number = place % per_batch
        starts = (place == 0) & (iteration > 0)
        behaviour = jax.lax.cond(starts, lambda: state.params, lambda: state.behaviour)
        minibatch = jax.lax.cond(
            place < per_batch,
            lambda: draw(behaviour, iteration, number),
            lambda: jax.tree.map(lambda kept: kept[number], state.store),
        )
        store = jax.tree.map(lambda kept, new: kept.at[number].set(new), state.store, minibatch)
        mean_reward = jnp.mean(minibatch.groups.rewards)
        baseline = jnp.where(s == 0, mean_reward, state.baseline)
        groups = dataclasses.replace(
            minibatch.groups,
            baseline=jnp.broadcast_to(baseline, minibatch.groups.baseline.shape),
        )
        value, gradient = jax.value_and_grad(minibatch_loss)(
            state.params, dataclasses.replace(minibatch, groups=groups)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return _State(
            params,
            opt_state,
            behaviour,
            store,
            # New samples move the baseline, after they were used; reused ones do not.
            jnp.where(
                place < per_batch,
                BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * mean_reward,
                baseline,
            ),
            jnp.where((state.diverged_at < 0) & ~jnp.isfinite(value), s, state.diverged_at),
        )

    def advance(
        carry: tuple[Array, _State], last: Array
    ) -> tuple[tuple[Array, _State], dict[str, Array]]:
        first, state = carry
        state = jax.lax.fori_loop(first, last, step, state)
        broken = (state.diverged_at < 0) & _any_nan(state.params)
        state = state._replace(diverged_at=jnp.where(broken, last, state.diverged_at))
        return (last, state), _mark(dict(evaluate(state.params)), state.diverged_at)

    first = params if behaviour is None else behaviour
    empty = jax.eval_shape(lambda: draw(params, jnp.int32(0), jnp.int32(0)))
    store = jax.tree.map(lambda a: jnp.zeros((schedule.slots, *a.shape), a.dtype), empty)
    # A traced B or T that does not fit, or a law without data, must not look like a result.
    unfit = _any_nan(first) | ~schedule.fits()
    start = _State(
        params,
        optimizer.init(params),
        first,
        store,
        jnp.zeros(()),
        jnp.where(unfit, 0, -1),
    )
    (_, end), records = jax.lax.scan(advance, (jnp.int32(0), start), jnp.asarray(record, jnp.int32))
    return {**records, DIVERGED_AT: end.diverged_at}


def on_policy(
    policy: Policy,
    prompts: Any,
    reward: Callable[[Any, Array], Float[Array, " C"]],
    schedule: Schedule,
    *,
    reference_log_prob: Callable[[Any, Array], Float[Array, " C"]],
    label: Label | None = None,
) -> Collect:
    """Responses of the behaviour policy to prompts drawn from a set, labelled by a reward.

    Args:
      policy: which the behaviour's parameters belong to.
      prompts: ``[n, ...]`` training contexts, None for a policy without. A minibatch takes P
        different ones at random; all of them in order where P = n, some several times where P > n.
      reward: (context, responses ``[C, ...]``) -> ``[C]``, true or learned.
      schedule: its C and M.
      reference_log_prob: (context, responses) -> ``[C]``, log π_ref.
      label: (key, rewards) -> preferences ``[C, C]``; by default every pair by its rewards.
    """
    count, group = schedule.minibatch // schedule.group, schedule.group
    prompts = jax.tree.map(jnp.asarray, prompts)

    def collect(behaviour: Params, key: PRNGKeyArray, number: Array) -> Minibatch:
        split = jax.random.split(key, 1 + count)
        prompt_key, keys = split[0], split[1:]
        contexts = jax.tree.map(lambda p: p[_choose_prompts(prompt_key, len(p), count)], prompts)

        def respond(context: Any, key: PRNGKeyArray) -> tuple[Array, Responses]:
            responses = policy.sample(behaviour, key, context, group)
            log_probs = policy.log_prob(behaviour, context, responses)
            rewards = reward(context, responses)
            return responses, make_group(
                log_probs,
                rewards,
                reference_log_probs=reference_log_prob(context, responses),
                preferences=None if label is None else label(jax.random.fold_in(key, 1), rewards),
            )

        responses, groups = jax.vmap(respond)(contexts, keys)
        return Minibatch(contexts, responses, groups)

    return collect


def on_bandit(
    policy: Policy,
    bandit: CategoricalBandit,
    schedule: Schedule,
    *,
    prompts: Any = None,
    label: Label | None = None,
) -> Collect:
    """`on_policy` on the arms of a bandit, whose rewards are the same for every prompt."""
    return on_policy(
        policy,
        prompts,
        lambda _, arms: bandit.reward[arms],
        schedule,
        reference_log_prob=lambda _, arms: bandit.reference_log_probs[arms],
        label=label,
    )


def from_dataset(dataset: Minibatch, schedule: Schedule) -> Collect:
    """The minibatches of a fixed dataset, in order: offline training.

    Args:
      dataset: ``[n, ...]`` prompts with their responses; n C is the batch B.
      schedule: its C and M; B must not exceed the dataset.

    Raises InvalidInput where the dataset's groups are not of C, or it holds fewer than B responses.
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


class _State(NamedTuple):
    """What a step hands to the next."""

    params: Params
    opt_state: optax.OptState
    behaviour: Params
    store: Minibatch
    baseline: Float[Array, ""]
    diverged_at: Int[Array, ""]


def _choose_prompts(key: PRNGKeyArray, size: int, count: int) -> Int[Array, " P"]:
    if count == size:
        return jnp.arange(size)
    return jax.random.choice(key, size, (count,), replace=count > size)


def _mark(records: dict[str, Array], diverged_at: Int[Array, ""]) -> dict[str, Array]:
    """The records, NaN from the step on at which the run diverged."""
    return {
        name: jnp.where(diverged_at >= 0, jnp.nan, value)
        if jnp.issubdtype(jnp.result_type(value), jnp.floating)
        else value
        for name, value in records.items()
    }


def _any_nan(tree: Any) -> Bool[Array, ""]:
    return jnp.array([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(tree)]).any()


def _require_record(record: Sequence[int], steps: int) -> None:
    values = np.asarray(record)
    if (
        values.ndim != 1
        or not values.size
        or not np.issubdtype(values.dtype, np.integer)
        or values[0] < 0
        or values[-1] > steps
        or (np.diff(values) <= 0).any()
    ):
        raise InvalidInput(
            f"record is {list(record)}; give increasing whole numbers from 0 to {steps}"
        )
