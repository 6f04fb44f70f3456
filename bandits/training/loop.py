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
from bandits.metrics import DIVERGED_AT
from bandits.policies import Params, Policy
from bandits.training.collect import Collect, Minibatch
from bandits.training.schedule import Schedule
from theory.checks import InvalidInput

BASELINE_DECAY = 0.9
"""Of the running mean of the rewards, a minibatch."""


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
    schedule.check()
    record = (0, schedule.steps) if record is None else tuple(record)
    require_record(record, schedule.steps)
    per_batch = jnp.maximum(jnp.asarray(schedule.batch, jnp.int32) // schedule.minibatch, 1)
    # More passes than steps are never finished, and their product could overflow.
    passes = jnp.clip(jnp.asarray(schedule.passes), 1, max(schedule.steps, 1))
    per_iteration = per_batch * passes

    def total_loss(params: Params, minibatch: Minibatch) -> tuple[Float[Array, ""], Array]:
        def score(context: Any, responses: Array, group: Responses) -> Responses:
            scores, log_normalizer = policy.score(params, context, responses)
            return dataclasses.replace(group, log_probs=scores - log_normalizer, scores=scores)

        groups = jax.vmap(score)(minibatch.contexts, minibatch.responses, minibatch.groups)
        # Beside the loss the log-probability of each first response: NaN in the parameters gets
        # into that of every arm, so one a prompt shows it.
        return jnp.sum(jax.vmap(loss)(groups)), jnp.sum(groups.log_probs[:, 0])

    def draw(behaviour: Params, iteration: Array, number: Array) -> Minibatch:
        of_iteration = threefry.fold_in(key, iteration)
        return collect(behaviour, threefry.fold_in(of_iteration, number), number)

    # The logit −∞ of an excluded response stays: an optimiser that lets it decay would give NaN. A
    # logit that gets there later has diverged.
    excluded = jax.tree.map(jnp.isneginf, params)

    def hold(tree: Params) -> Params:
        return jax.tree.map(lambda out, leaf: jnp.where(out, 0.0, leaf), excluded, tree)

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
        state = state._replace(behaviour=behaviour, store=store)
        return update(s, state, minibatch, place < per_batch)

    def step_once(s: Array, state: _State) -> _State:
        # Nothing is used twice: no store, and what no loss reads is never computed.
        behaviour = state.params
        if state.behaviour is not None:
            behaviour = jax.lax.cond(s > 0, lambda: state.params, lambda: state.behaviour)
        return update(s, state, draw(behaviour, s, jnp.int32(0)), True)

    def update(s: Array, state: _State, minibatch: Minibatch, is_new: ArrayLike) -> _State:
        rewards = minibatch.groups.rewards
        # Of differences, here and below, so that equal rewards have themselves for a mean: what is
        # left of rounding would be all the advantage there is.
        mean_reward = rewards[0, 0] + jnp.mean(rewards - rewards[0, 0])
        baseline = jnp.where(s == 0, mean_reward, state.baseline)
        groups = dataclasses.replace(
            minibatch.groups,
            baseline=jnp.broadcast_to(baseline, minibatch.groups.baseline.shape),
        )
        minibatch = dataclasses.replace(minibatch, groups=groups)
        # Without the value of the loss, which takes as long of pairs as the gradient.
        gradient, of_first_responses = jax.grad(total_loss, has_aux=True)(state.params, minibatch)
        gradient = jax.tree.map(lambda total: total / len(groups.rewards), gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, hold(state.params))
        updates = hold(updates)
        params = optax.apply_updates(state.params, updates)
        # New samples move the baseline, after they were used; reused ones do not.
        moved = baseline + (1 - BASELINE_DECAY) * (mean_reward - baseline)
        broken = (state.diverged_at < 0) & jnp.isnan(of_first_responses)
        return state._replace(
            params=params,
            opt_state=opt_state,
            baseline=jnp.where(is_new, moved, baseline),
            diverged_at=jnp.where(broken, s, state.diverged_at),
        )

    def advance(
        carry: tuple[Array, _State], last: Array
    ) -> tuple[tuple[Array, _State], dict[str, Array]]:
        first, state = carry
        state = jax.lax.fori_loop(first, last, step_once if once else step, state)
        broken = (state.diverged_at < 0) & _any_nan(state.params)
        state = state._replace(diverged_at=jnp.where(broken, last, state.diverged_at))
        return (last, state), _mark(dict(evaluate(state.params)), state.diverged_at)

    first = params if behaviour is None else behaviour
    once = schedule.uses_once()
    store = None
    if not once:
        empty = jax.eval_shape(lambda: draw(params, jnp.int32(0), jnp.int32(0)))
        store = jax.tree.map(lambda a: jnp.zeros((schedule.slots, *a.shape), a.dtype), empty)

    # Compiled, as the steps are, where nothing around is.
    @jax.jit
    def start_loss(params: Params, behaviour: Params) -> Float[Array, ""]:
        return total_loss(params, draw(behaviour, jnp.int32(0), jnp.int32(0)))[0]

    # A traced number that does not fit, a law without data, or a winner that the policy cannot give
    # must not look like a result.
    loss_at_start = start_loss(params, first)
    unfit = _any_nan(first) | ~schedule.fits() | ~jnp.isfinite(loss_at_start)
    start = _State(
        params,
        optimizer.init(params),
        behaviour if once else first,
        store,
        jnp.zeros(()),
        jnp.where(unfit, 0, -1),
    )
    (_, end), records = jax.lax.scan(advance, (jnp.int32(0), start), jnp.asarray(record, jnp.int32))
    return {**records, DIVERGED_AT: end.diverged_at}


class _State(NamedTuple):
    """What a step hands to the next; without a store, the behaviour is what was given, or None."""

    params: Params
    opt_state: optax.OptState
    behaviour: Params | None
    store: Minibatch | None
    baseline: Float[Array, ""]
    diverged_at: Int[Array, ""]


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
