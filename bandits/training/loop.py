"""Algorithm 1 of T24: collect responses, label them, train on them in minibatches, and repeat.

    repeat:   draw B responses, C to a prompt, from the current policy; label them
              T times: for each minibatch of M responses, one gradient step

Every method of the paper is a point of the (B, T) plane. At fixed M, a small B is more on-policy,
and T is how often samples are reused. Offline training is one iteration whose samples all come from
the start. B and T are traceable numbers, so they can be axes of a sweep.

**One loop over steps.** Step s belongs to iteration s // (nT), n = B/M, and to minibatch s mod n of
it. The current policy becomes the behaviour policy when an iteration starts. A minibatch is drawn
from the behaviour when it is first needed, in pass one, and kept for the other passes. A draw
depends on the behaviour, the iteration and the minibatch, and not on when it happens, so this is
the algorithm above. Where B and T are the same in all runs, nothing is drawn twice; where they
differ, a vmapped program draws at every step and discards what it does not need.
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
"""Decay of the running mean of the rewards, for each new minibatch."""


class Training(NamedTuple):
    """The state of a training, which each step hands to the next.

    Attributes:
      params: Parameters of the policy.
      opt_state: State of the optimiser.
      behaviour: Parameters that draw samples, those at the start of the iteration.
      store: The minibatches of the iteration, or None where each is used once.
      baseline: Running mean of the rewards.
      excluded: Whether a parameter started at −∞, as the logit of an excluded response does.
      step: Number of gradient steps so far.
      diverged_at: Number of steps after which the training diverged, or -1.
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
      step: (state, key) -> the state after one gradient step. The key draws the minibatch, in the
        steps that need a new one.
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
    """Return Algorithm 1 as a pair of functions; the arguments are those of `train`."""
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
        # The mean of differences, here and below, is exact for equal rewards: rounding would be all
        # the advantage there is.
        mean_reward = rewards[0, 0] + jnp.mean(rewards - rewards[0, 0])
        baseline = jnp.where(state.step == 0, mean_reward, state.baseline)
        groups = dataclasses.replace(
            minibatch.groups,
            baseline=jnp.broadcast_to(baseline, minibatch.groups.baseline.shape),
        )
        minibatch = dataclasses.replace(minibatch, groups=groups)
        # The value of the loss is not needed; over pairs it takes as long as the gradient.
        gradient, of_first_responses = jax.grad(_total_loss, argnums=2, has_aux=True)(
            policy, loss, state.params, minibatch
        )
        gradient = jax.tree.map(lambda total: total / len(rewards), gradient)
        # The logit −∞ of an excluded response stays, as weight decay would make it NaN. A logit
        # that gets there later has diverged.
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
    """Train a policy by Algorithm 1, and return what ``evaluate`` says of it along the way.

    The training is one compiled scan. Every number may be traced, and so swept: also B, T, and what
    ``loss``, ``collect`` and ``optimizer`` were made with.

    >>> from bandits import METHODS, Schedule, far_bandit, on_bandit, tabular_softmax
    >>> policy, bandit = tabular_softmax(), far_bandit()
    >>> schedule = Schedule(steps=50, group=10, minibatch=100, batch=100)
    >>> collect = on_bandit(policy, bandit, schedule)
    >>> loss, start = METHODS["reinforce"].bind(), bandit.reference_log_probs
    >>> def evaluate(logits): return {"reward": jax.nn.softmax(logits) @ bandit.reward}
    >>> key, adam = jax.random.key(0), optax.adam(0.1)
    >>> found = train(key, policy, start, loss, collect, schedule, adam, evaluate)
    >>> bool(found["reward"][1] > found["reward"][0]), int(found["diverged_at"])
    (True, -1)

    Args:
      key: Key of all samples and labels.
      policy: The policy whose parameters are trained.
      params: Parameters at the start.
      loss: A method with its hyperparameters, such as ``METHODS["ipo"].bind(tau=0.05)``.
      collect: What to train on, such as `on_policy` or `from_dataset`.
      schedule: B, C, M, T and the number of steps.
      optimizer: Any optax optimiser.
      evaluate: parameters -> named arrays, which are recorded.
      record: Steps at which to record, increasing; by default the start and the end.
      behaviour: Parameters that draw the first samples, by default ``params``: the law of offline
        data (C2).

    Returns:
      The records, stacked along a leading axis, and ``diverged_at``: -1, or the number of steps
      after which the probability of a response was NaN, or a recorded parameter was. Later records
      are NaN. A traced number out of range, a behaviour that is NaN, or a loss that is not finite
      at the start counts as divergence after 0 steps.

    Raises:
      InvalidInput: For numbers that do not fit together, and for records outside 0 … steps.
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

    @jax.jit  # even where nothing around it is compiled, as the steps are
    def start_loss(params: Params, behaviour: Params) -> Float[Array, ""]:
        first = collect(behaviour, key_of(jnp.int32(0)), jnp.int32(0))
        return _total_loss(policy, loss, params, first)[0]

    # What does not fit, or a winner that the policy cannot give, must not look like a result.
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

    NaN in the parameters makes the log-probability of every response NaN, so one shows it.
    """

    def score(context: Any, responses: Array, group: Responses) -> Responses:
        scores, log_normalizer = policy.score(params, context, responses)
        return dataclasses.replace(group, log_probs=scores - log_normalizer, scores=scores)

    groups = jax.vmap(score)(minibatch.contexts, minibatch.responses, minibatch.groups)
    return jnp.sum(jax.vmap(loss)(groups)), jnp.sum(groups.log_probs[:, 0])


def _without(excluded: Params, tree: Params) -> Params:
    return jax.tree.map(lambda out, leaf: jnp.where(out, 0.0, leaf), excluded, tree)


def _mark(records: dict[str, Array], diverged_at: Int[Array, ""]) -> dict[str, Array]:
    """Return the records, NaN from the step on at which the run diverged."""
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
