import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandits.losses import METHODS, preferences_by_reward, switch
from bandits.policies import tabular_softmax
from bandits.problems.environments import CategoricalBandit
from bandits.problems.metrics import DIVERGED_AT
from bandits.problems.preferences import label_pairs
from bandits.training import (
    Schedule,
    from_dataset,
    make_trainer,
    on_policy,
    on_whole_space,
    train,
)
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(20240414)
POLICY = tabular_softmax(5)
START = np.log([0.3, 0.3, 0.2, 0.1, 0.1])
ELSEWHERE = np.log([0.1, 0.1, 0.1, 0.2, 0.5])
REWARDS = np.array([0.0, 0.2, 1.0, 0.5, 0.7])
SGD = optax.sgd(0.3)
# B = 8 responses an iteration in minibatches of 4, two to a prompt: the third iteration is cut.
SCHEDULE = Schedule(steps=10, group=2, minibatch=4, batch=8, passes=2)
ENDS = np.array([0, -1])
LEARNERS = {name: m for name, m in METHODS.items() if not m.whole_space}


def collector(schedule, rewards=REWARDS, label=None):
    return on_policy(
        POLICY,
        None,
        lambda context, arms: jnp.asarray(rewards)[arms],
        schedule,
        reference_log_prob=lambda context, arms: jnp.asarray(START)[arms],
        label=label,
    )


def evaluate(params):
    return {"logits": params, "reward": jnp.exp(POLICY.log_probs(params)) @ jnp.asarray(REWARDS)}


def trained(key, schedule, loss=METHODS["dpo"].loss, optimizer=SGD, collect=None, **options):
    collect = collector(schedule) if collect is None else collect
    return train(
        key, POLICY, jnp.asarray(START), loss, collect, schedule, optimizer, evaluate, **options
    )


@functools.partial(jax.jit, static_argnames=("schedule", "method"))
def learn(key, schedule=SCHEDULE, method="dpo", behaviour=None):
    record = range(schedule.steps + 1)
    loss = METHODS[method].loss
    return trained(key, schedule, loss, record=record, behaviour=behaviour)


@functools.partial(jax.jit, static_argnames="steps")
def learn_traced(key, batch, passes, steps=10):
    return trained(key, Schedule(steps, 2, 4, batch, passes, most_batch=12))


# Algorithm 1


def reference_algorithm(key, schedule, method):
    """Nested loops: iterations, minibatches drawn, passes, minibatches learnt from."""
    s, loss, collect = schedule, METHODS[method].bind(), jax.jit(collector(schedule))
    params, baseline, history = jnp.asarray(START), None, [START]
    slots = s.batch // s.minibatch

    def minibatch_loss(params, minibatch, baseline):
        total = 0.0
        for p in range(s.minibatch // s.group):
            group = jax.tree.map(lambda leaf, p=p: leaf[p], minibatch.groups)
            log_probs = params[minibatch.responses[p]] - jax.nn.logsumexp(params)
            total += loss(dataclasses.replace(group, log_probs=log_probs, baseline=baseline))
        return total / (s.minibatch // s.group)

    gradient = jax.jit(jax.grad(minibatch_loss))
    for iteration in range(s.steps):
        batch = [
            collect(params, jax.random.fold_in(jax.random.fold_in(key, iteration), number), number)
            for number in range(slots)
        ]
        for passed in range(s.passes):
            for minibatch in batch:
                mean = minibatch.groups.rewards.mean()
                baseline = mean if baseline is None else baseline
                params = params - 0.3 * gradient(params, minibatch, baseline)
                baseline = baseline if passed else 0.9 * baseline + 0.1 * mean
                history.append(params)
                if len(history) > s.steps:
                    return np.array(history)
    return None


ONCE = Schedule(steps=10, group=2, minibatch=4, batch=4, passes=1)


@pytest.mark.parametrize("schedule", [SCHEDULE, ONCE], ids=["again", "once"])
@pytest.mark.parametrize("method", ["best_of_n", "ppo", "dpo"])
def test_training_is_algorithm_1_written_as_nested_loops(method, schedule):
    expected = reference_algorithm(KEY, schedule, method)
    found = learn(KEY, schedule, method)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("behaviour", [None, ELSEWHERE], ids=["own", "elsewhere"])
@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_a_run_that_keeps_no_store_is_the_one_that_does(method, behaviour):
    @jax.jit
    def run(batch, passes):
        schedule = Schedule(10, 2, 4, batch, passes, most_batch=12)
        assert not schedule.uses_once()
        loss = METHODS[method].loss
        return trained(KEY, schedule, loss, record=range(11), behaviour=behaviour)

    assert ONCE.uses_once()
    found, expected = learn(KEY, ONCE, method, behaviour), run(4, 1)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14)
    if behaviour is not None:
        own = learn(KEY, ONCE, method)["logits"]
        assert np.abs(found["logits"] - own)[1:].max(axis=1).min() > 1e-3


def test_a_loop_by_hand_over_init_and_step_trains():
    schedule = Schedule.whole_space(4, 5)
    exact = on_whole_space(POLICY, CategoricalBandit(jnp.asarray(REWARDS), jnp.asarray(START)))
    trainer = make_trainer(POLICY, METHODS["dpo"].loss, exact, schedule, SGD)
    state = trainer.init(jnp.asarray(START))
    step = jax.jit(trainer.step)
    for key in jax.random.split(KEY, schedule.steps):
        state = step(state, key)
    assert int(state.step) == schedule.steps
    found = trained(KEY, schedule, collect=exact)["logits"][-1]
    np.testing.assert_allclose(state.params, found, rtol=1e-12)


def test_training_is_reproducible_and_another_key_gives_another_run():
    first, again, other = learn(KEY), learn(KEY), learn(jax.random.key(1))
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert np.abs(first["logits"] - other["logits"])[-1].max() > 1e-3
    assert first[DIVERGED_AT] == -1


def test_a_run_is_the_same_alone_and_in_a_sweep_over_seeds():
    keys = jax.random.split(KEY, 4)
    swept = jax.vmap(learn)(keys)
    for i, key in enumerate(keys):
        jax.tree.map(
            lambda found, expected, i=i: np.testing.assert_allclose(found[i], expected, rtol=1e-12),
            swept,
            learn(key),
        )


BATCHES, PASSES = np.array([4, 8, 12]), np.array([1, 2, 10])


def test_batch_and_passes_sweep_as_static_ones_do():
    swept = jax.vmap(learn_traced, (None, 0, 0))(KEY, BATCHES, PASSES)["logits"]
    for found, batch, passes in zip(swept, BATCHES, PASSES, strict=True):
        schedule = Schedule(10, 2, 4, int(batch), int(passes), most_batch=12)
        np.testing.assert_allclose(found, learn(KEY, schedule)["logits"][ENDS], rtol=1e-12)
    assert np.unique(np.asarray(swept)[:, 1].round(9), axis=0).shape == (3, 5)


def test_the_size_of_the_store_does_not_change_the_run():
    small, large = Schedule(10, 2, 4, 8, 1), Schedule(10, 2, 4, 8, 1, most_batch=12)
    np.testing.assert_allclose(learn(KEY, large)["logits"], learn(KEY, small)["logits"], rtol=1e-12)


def test_passes_may_be_any_number_that_lasts():
    runs = [learn(KEY, Schedule(10, 2, 4, 12, passes))["logits"] for passes in (10, 10**9)]
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-12)


def test_the_methods_learn_without_nan():
    losses = [method.bind() for method in LEARNERS.values()]
    schedule = Schedule(steps=60, group=4, minibatch=16, batch=32, passes=2)

    @jax.jit
    @jax.vmap
    def run(index):
        loss = switch(index, losses)
        return trained(KEY, schedule, loss, optax.adam(3e-2), record=range(61))

    runs = run(np.arange(len(losses)))
    assert (runs[DIVERGED_AT] == -1).all()
    assert np.isfinite(runs["logits"]).all()
    gained = dict(zip(LEARNERS, runs["reward"][:, -1] - runs["reward"][:, 0], strict=True))
    assert min(gained[name] for name in gained if name != "supervised") > 0.1


# What is collected


def test_the_learned_reward_takes_the_place_of_the_true_one():
    reversed_reward = collector(SCHEDULE, rewards=1 - REWARDS)
    loss = METHODS["ppo"].bind(prompt_baseline=1.0)
    run = jax.jit(lambda: trained(KEY, SCHEDULE, loss, collect=reversed_reward))()
    assert run["reward"][-1] < run["reward"][0] - 1e-3
    assert learn(KEY)["reward"][-1] > run["reward"][0] + 1e-3


def test_labels_are_those_of_the_function_given():
    """Labels that are always flipped are those of the reward turned around."""

    @functools.partial(jax.jit, static_argnames="sign")
    def run(noise, sign=1):
        label = functools.partial(label_pairs, label_noise=noise)
        return trained(KEY, SCHEDULE, collect=collector(SCHEDULE, sign * REWARDS, label))["logits"]

    clean = learn(KEY)["logits"][ENDS]
    np.testing.assert_allclose(run(0.0), clean, rtol=1e-12)
    np.testing.assert_allclose(run(1.0), run(0.0, sign=-1), rtol=1e-12)
    assert np.abs(run(0.5) - clean)[-1].max() > 1e-3


# Offline


def collected(behaviour, batch, schedule):
    collect = collector(schedule)
    parts = [
        collect(behaviour, jax.random.fold_in(jax.random.fold_in(KEY, 0), number), number)
        for number in range(batch // schedule.minibatch)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@pytest.mark.parametrize("passes", [1, 10])
def test_a_loop_that_never_collects_again_is_offline_training(passes):
    forever = dataclasses.replace(SCHEDULE, passes=10)
    expected = learn(KEY, forever, behaviour=ELSEWHERE)["logits"]
    schedule = dataclasses.replace(SCHEDULE, passes=passes)
    collect = from_dataset(collected(ELSEWHERE, 8, SCHEDULE), schedule)
    found = jax.jit(lambda: trained(jax.random.key(7), schedule, collect=collect))()["logits"]
    np.testing.assert_allclose(found, expected[ENDS], rtol=1e-12)
    assert np.abs(expected[-1] - learn(KEY)["logits"][-1]).max() > 1e-3


# Records and divergence


def test_records_do_not_change_the_run():
    every = learn(KEY)
    for record in ((0, 3, 4, 10), np.array([5])):
        run = jax.jit(functools.partial(trained, schedule=SCHEDULE, record=record))(KEY)
        np.testing.assert_allclose(run["logits"], every["logits"][np.array(record)], rtol=1e-12)


@functools.cache
def runs_that_diverge():
    """The first does not."""
    ipo = METHODS["ipo"].bind()

    @jax.vmap
    def run(learning_rate):
        return trained(KEY, SCHEDULE, ipo, optax.sgd(learning_rate), record=range(11))

    return jax.tree.map(np.asarray, jax.jit(run)(np.array([1e-3, 1e160, 1e300])))


@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("name", ["logits", "reward"])
def test_a_run_that_diverges_says_when_and_is_nan_after_and_finite_before(run, name):
    diverged_at = runs_that_diverge()[DIVERGED_AT][run]
    records = runs_that_diverge()[name][run]
    assert 0 < diverged_at < 10
    assert np.isnan(records[diverged_at + 1 :]).all()
    assert np.isfinite(records[:diverged_at]).all()


def test_a_run_beside_one_that_diverges_is_not_touched():
    assert runs_that_diverge()[DIVERGED_AT][0] == -1
    assert np.isfinite(runs_that_diverge()["logits"][0]).all()


def test_an_integer_record_survives_divergence():
    def count(params):
        return {"best": jnp.argmax(params), "top": jnp.max(params)}

    loss = METHODS["ipo"].bind()
    run = jax.jit(
        lambda: train(
            KEY, POLICY, jnp.asarray(START), loss, collector(SCHEDULE), SCHEDULE,
            optax.sgd(1e300), count,
        )
    )()  # fmt: skip
    assert np.issubdtype(run["best"].dtype, np.integer)
    assert np.isnan(run["top"][-1])


@pytest.mark.parametrize(
    "record", [[], [3, 2], [1, 1], [-1, 2], [0, 11], [0.5, 1.0], [[0, 1], [2, 3]]]
)
def test_records_that_are_no_steps_are_refused(record):
    with pytest.raises(InvalidInput, match="give increasing whole numbers from 0 to 10"):
        trained(KEY, SCHEDULE, record=record)


# The schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 6}, "batch is 6; it must be a multiple of minibatch, 4"),
        ({"steps": 0}, "steps is 0"),
        ({"most_batch": 4}, "batch is 8; most_batch allows 4"),
    ],
)
def test_numbers_that_do_not_fit_together_are_not_trained_with(changes, message):
    schedule = dataclasses.replace(SCHEDULE, **changes)
    with pytest.raises(InvalidInput, match=message):
        trained(KEY, schedule, collect=collector(SCHEDULE))


def test_a_traced_batch_needs_its_largest_value():
    with pytest.raises(InvalidInput, match="batch is traced; give most_batch"):
        jax.jit(lambda batch: trained(KEY, Schedule(10, 2, 4, batch)))(8)


@pytest.mark.parametrize(
    ("batch", "passes"), [(6, 1), (2, 1), (16, 1), (8, 0)], ids=["part", "small", "large", "none"]
)
def test_a_traced_batch_or_number_of_passes_that_does_not_fit_is_no_result(batch, passes):
    found = learn_traced(KEY, batch, passes)
    assert found[DIVERGED_AT] == 0
    assert np.isnan(found["logits"]).all()


HYPERPARAMETERS = [(name, h) for name, m in LEARNERS.items() for h in m.hyperparameters]


@functools.partial(jax.jit, static_argnames=("method", "name"))
def learn_with(method, name, value):
    schedule = Schedule(steps=3, group=2, minibatch=4, batch=4)
    loss = METHODS[method].bind(**{name: value})
    return trained(KEY, schedule, loss, record=range(4))


@pytest.mark.parametrize(("method", "name"), HYPERPARAMETERS)
def test_a_traced_hyperparameter_out_of_range_is_no_result(method, name):
    bad = learn_with(method, name, np.nan)
    assert bad[DIVERGED_AT] == 0
    assert np.isnan(bad["logits"]).all()
    good = learn_with(method, name, METHODS[method].hyperparameters[name])
    assert good[DIVERGED_AT] == -1
    assert np.isfinite(good["logits"]).all()


@pytest.mark.parametrize("method", ["best_of_n", "preference_likelihood", "dpo", "slic"])
def test_raising_a_response_that_the_policy_cannot_give_is_no_result(method):
    start = np.log([0.4, 0.3, 0.3, 1e-300, 1e-300])
    start[3:] = -np.inf
    bandit = CategoricalBandit(jnp.asarray(REWARDS[::-1]).at[4].set(2.0), jnp.asarray(start))
    pairs = preferences_by_reward(bandit.reward)
    schedule = Schedule(4, 5, 5, 5)
    found = train(
        KEY, POLICY, jnp.asarray(start), METHODS[method].bind(),
        on_whole_space(POLICY, bandit, pairs), schedule, optax.sgd(0.1), evaluate,
    )  # fmt: skip
    assert found[DIVERGED_AT] == 0
    assert np.isnan(found["logits"]).all()


@pytest.mark.parametrize("batch", [4, 8])
def test_a_behaviour_without_data_is_no_result(batch):
    schedule = Schedule(4, 2, 4, batch)
    nowhere = jnp.full(len(START), jnp.nan)
    found = train(
        KEY, POLICY, jnp.asarray(START), METHODS["best_of_n"].bind(), collector(schedule), schedule,
        optax.sgd(0.1), lambda logits: {"logits": logits}, behaviour=nowhere,
    )  # fmt: skip
    assert found[DIVERGED_AT] == 0
