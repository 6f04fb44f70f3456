"""Algorithm 1 of T24: collect responses, label them, pass over them in minibatches, again.

    repeat:   draw B responses, C to a prompt, from the current policy; label them
              T times: for each minibatch of M responses, one gradient step

Every method of the paper is a point of the (B, T) plane. Small B at fixed M is more on-policy; T is
how often samples are reused; offline training is a single iteration whose samples all come from the
start. B and T are therefore traceable numbers, like all others: sweep axes.

**One loop over steps.** Step s belongs to iteration s // (nT), n = B/M, and to minibatch s mod n of
it. The behaviour policy is replaced when an iteration starts; a minibatch is drawn from it when it
is first needed, in pass one, and kept for the other passes, if there can be any. A draw depends on
the behaviour, the iteration and the minibatch, not on when it happens, so this is the algorithm
above. Where B and T are the same in all runs, nothing is drawn twice; where they differ, a vmapped
program draws at every step and discards.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from bandits.kernels import threefry
from bandits.losses import Loss, Responses
from bandits.policies import Params, Policy
from bandits.problems.metrics import DIVERGED_AT
from bandits.scan import record_scan
from bandits.training.collect import Collect, Minibatch
from bandits.training.schedule import Schedule
from theory.checks import InvalidInput

BASELINE_DECAY = 0.9
"""Of the running mean of the rewards, a minibatch."""


class Training(NamedTuple):
    """The state of a training: what a step hands to the next.

    Attributes:
      params: of the policy.
      opt_state: of the optimiser.
      behaviour: parameters that draw samples, those at the start of the iteration.
      store: the minibatches of the iteration, where they are used more than once.
      baseline: running mean of the rewards.
      excluded: where a parameter started at −∞: the logit of an excluded response.
      step: number of gradient steps so far.
      diverged_at: number of steps after which the training diverged, -1 where it did not.
    """

    params: Params
    opt_state: optax.OptState
    behaviour: Params
    store: Minibatch | None
    baseline: Float[Array, ""]
    excluded: Params
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]


class Trainer(NamedTuple):
    """A training as two pure functions, as optax writes an optimiser.

    Attributes:
      init: parameters -> the state before the first step.
      step: (state, key) -> the state after one gradient step; the key draws the minibatch, in the
        steps that draw one.
    """

    init: Callable[[Params], Training]
    step: Callable[[Training, PRNGKeyArray], Training]


def make_trainer(
    policy: Policy,
    loss: Loss,
    collect: Collect,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    behaviour: Params | None = None,
) -> Trainer:
    """Return Algorithm 1 as `Trainer.init` and `Trainer.step`; arguments as in `train`."""
    schedule.check()

    def init(params: Params) -> Training:
        first = params if behaviour is None else behaviour
        store = None
        if not schedule.uses_once():
            empty = jax.eval_shape(collect, first, jax.random.key(0), jnp.int32(0))
            store = jax.tree.map(lambda a: jnp.zeros((schedule.slots, *a.shape), a.dtype), empty)
        return Training(
            params,
            optimizer.init(params),
            first,
            store,
            jnp.zeros(()),
            jax.tree.map(jnp.isneginf, params),
            jnp.int32(0),
            jnp.int32(-1),
        )

    def step(state: Training, key: PRNGKeyArray) -> Training:
        if state.store is None:  # nothing is used twice
            own = state.params
            if behaviour is not None:
                own = jax.lax.cond(state.step > 0, lambda: state.params, lambda: state.behaviour)
            return update(state, collect(own, key, jnp.int32(0)), True)
        place = schedule.place_of(state.step)
        starts = (place.in_iteration == 0) & (place.iteration > 0)
        own = jax.lax.cond(starts, lambda: state.params, lambda: state.behaviour)
        minibatch = jax.lax.cond(
            place.is_new,
            lambda: collect(own, key, place.minibatch),
            lambda: jax.tree.map(lambda kept: kept[place.minibatch], state.store),
        )
        store = jax.tree.map(
            lambda kept, new: kept.at[place.minibatch].set(new), state.store, minibatch
        )
        return update(state._replace(behaviour=own, store=store), minibatch, place.is_new)

    def update(state: Training, minibatch: Minibatch, is_new: ArrayLike) -> Training:
        rewards = minibatch.groups.rewards
        # Of differences, here and below, so that equal rewards have themselves for a mean: what is
        # left of rounding would be all the advantage there is.
        mean_reward = rewards[0, 0] + jnp.mean(rewards - rewards[0, 0])
        baseline = jnp.where(state.step == 0, mean_reward, state.baseline)
        groups = dataclasses.replace(
            minibatch.groups,
            baseline=jnp.broadcast_to(baseline, minibatch.groups.baseline.shape),
        )
        minibatch = dataclasses.replace(minibatch, groups=groups)
        # Without the value of the loss, which takes as long of pairs as the gradient.
        gradient, of_first_responses = jax.grad(_total_loss, argnums=2, has_aux=True)(
            policy, loss, state.params, minibatch
        )
        gradient = jax.tree.map(lambda total: total / len(rewards), gradient)
        # The logit −∞ of an excluded response stays: an optimiser that lets it decay would give
        # NaN. A logit that gets there later has diverged.
        held = _without(state.excluded, state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, held)
        params = optax.apply_updates(state.params, _without(state.excluded, updates))
        # New samples move the baseline, after they were used; reused ones do not.
        moved = baseline + (1 - BASELINE_DECAY) * (mean_reward - baseline)
        broken = (state.diverged_at < 0) & jnp.isnan(of_first_responses)
        return state._replace(
            params=params,
            opt_state=opt_state,
            baseline=jnp.where(is_new, moved, baseline),
            step=state.step + 1,
            diverged_at=jnp.where(broken, state.step, state.diverged_at),
        )

    return Trainer(init, step)


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
      which the probability of a response was NaN, or at a record a parameter was; -1 if neither
      ever was. Later records are NaN. A traced number out of range, a behaviour that is NaN, or a
      loss that is not finite at the start, counts as diverged after 0 steps, and no record is left.

    Raises:
      InvalidInput: numbers that do not fit together, or records outside 0 … steps.
    """
    trainer = make_trainer(policy, loss, collect, schedule, optimizer, behaviour)
    record = (0, schedule.steps) if record is None else tuple(record)
    require_record(record, schedule.steps)

    def key_of(step: Array) -> PRNGKeyArray:
        place = schedule.place_of(step)
        return threefry.fold_in(threefry.fold_in(key, place.iteration), place.minibatch)

    def look(state: Training) -> tuple[Training, dict[str, Array]]:
        broken = (state.diverged_at < 0) & _any_nan(state.params)
        diverged_at = jnp.where(broken, state.step, state.diverged_at)
        records = _mark(dict(evaluate(state.params)), diverged_at)
        return state._replace(diverged_at=diverged_at), records

    # Compiled, as the steps are, where nothing around is.
    @jax.jit
    def start_loss(params: Params, behaviour: Params) -> Float[Array, ""]:
        first = collect(behaviour, key_of(jnp.int32(0)), jnp.int32(0))
        return _total_loss(policy, loss, params, first)[0]

    # A traced number that does not fit, a law without data, or a winner that the policy cannot give
    # must not look like a result.
    start = trainer.init(params)
    loss_at_start = start_loss(params, start.behaviour)
    unfit = _any_nan(start.behaviour) | ~schedule.fits() | ~jnp.isfinite(loss_at_start)
    end, records = record_scan(
        lambda step, state: trainer.step(state, key_of(step)),
        start._replace(diverged_at=jnp.where(unfit, 0, -1)),
        record,
        look,
    )
    return {**records, DIVERGED_AT: end.diverged_at}


def _total_loss(
    policy: Policy, loss: Loss, params: Params, minibatch: Minibatch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss and the log-probability of the first response, summed over the groups.

    NaN in the parameters gets into the log-probability of every response: one a prompt shows it.
    """

    def score(context: Any, responses: Array, group: Responses) -> Responses:
        scores, log_normalizer = policy.score(params, context, responses)
        return dataclasses.replace(group, log_probs=scores - log_normalizer, scores=scores)

    groups = jax.vmap(score)(minibatch.contexts, minibatch.responses, minibatch.groups)
    return jnp.sum(jax.vmap(loss)(groups)), jnp.sum(groups.log_probs[:, 0])


def _without(excluded: Params, tree: Params) -> Params:
    return jax.tree.map(lambda out, leaf: jnp.where(out, 0.0, leaf), excluded, tree)


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


def require_record(record: Sequence[int], steps: int) -> None:
    """Refuse steps to record that do not increase, or are not whole numbers from 0 to ``steps``."""
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
