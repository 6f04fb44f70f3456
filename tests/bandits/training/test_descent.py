import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from bandits.losses import forward_kl, reverse_kl
from bandits.training.descent import descend, log_spaced_steps
from theory import mass_relocation
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

LOSSES = [forward_kl, reverse_kl]
P = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
Q = np.array([0.35, 0.05, 0.3, 0.1, 0.2])
# The same with an arm that both exclude.
P_ZERO, Q_ZERO = np.insert(P, 2, 0.0), np.insert(Q, 2, 0.0)
STEPS = (0, 1, 5)

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=0.1),
    # Divides zero by zero on an arm whose gradient is always zero.
    "rmsprop": functools.partial(optax.rmsprop, eps=0.0),
    "momentum": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "clipped": lambda rate: optax.chain(
        optax.add_decayed_weights(0.1), optax.clip_by_global_norm(0.1), optax.sgd(rate)
    ),
}


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


STATIC = ("loss", "steps", "optimizer", "natural_gradient")
jitted = jax.jit(descend, static_argnames=STATIC)


def run(loss, p, q, learning_rate, steps, **options):
    """Log-probabilities, by a program that is compiled once for tests that share it."""
    return np.asarray(jitted(loss, log(p), log(q), learning_rate, steps=tuple(steps), **options))


@pytest.mark.parametrize(
    ("loss", "theory"),
    [(forward_kl, mass_relocation.forward_kl_step), (reverse_kl, mass_relocation.reverse_kl_step)],
)
@pytest.mark.parametrize(("p", "q"), [(P, Q), (P_ZERO, Q_ZERO)], ids=["positive", "with zeros"])
def test_each_step_is_the_theorems_closed_form(loss, theory, p, q):
    expected = [p, theory(p, q, 0.7), theory(theory(p, q, 0.7), q, 0.7)]
    log_probs = run(loss, p, q, 0.7, [0, 1, 2])
    np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_natural_gradient_is_preconditioned_by_the_inverse_fisher_matrix(loss):
    fisher = np.diag(P) - np.outer(P, P)
    gradient = {forward_kl: P - Q, reverse_kl: P * (np.log(P / Q) - special.rel_entr(P, Q).sum())}
    logits = np.log(P) - 0.3 * np.linalg.pinv(fisher) @ gradient[loss]
    log_probs = run(loss, P, Q, 0.3, [1], natural_gradient=True)
    np.testing.assert_allclose(log_probs[0], special.log_softmax(logits), rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), [(P, Q), (P_ZERO, Q_ZERO)], ids=["positive", "with zeros"])
def test_natural_reverse_kl_gradient_of_rate_one_reaches_the_target_in_one_step(p, q):
    log_probs = run(reverse_kl, p, q, 1.0, [1, 2], natural_gradient=True)
    np.testing.assert_allclose(np.exp(log_probs), [q, q], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("optimizer", "natural_gradient"),
    [*((optimizer, False) for optimizer in OPTIMIZERS.values()), (optax.adam, True)],
    ids=[*OPTIMIZERS, "natural adam"],
)
def test_optimizer_gives_what_a_plain_loop_does_on_the_arms_that_are_not_excluded(
    optimizer, natural_gradient
):
    transform = optimizer(0.1)

    @jax.jit
    def step(logits, state):
        gradient = jax.grad(lambda x: reverse_kl(x - jax.nn.logsumexp(x), jnp.log(Q)))(logits)
        if natural_gradient:
            gradient = gradient / jax.nn.softmax(logits)
        updates, state = transform.update(gradient, state, logits)
        return logits + updates, state

    logits, state = jnp.log(P), transform.init(jnp.log(P))
    expected = [special.log_softmax(logits)]
    for _ in range(STEPS[-1]):
        logits, state = step(logits, state)
        expected.append(special.log_softmax(logits))
    options = {"optimizer": optimizer, "natural_gradient": natural_gradient}
    found = run(reverse_kl, P_ZERO, Q_ZERO, 0.1, STEPS, **options)
    assert (np.exp(found[:, 2]) == 0).all()
    expected = np.array(expected)[list(STEPS)]
    np.testing.assert_allclose(np.delete(found, 2, axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [optax.sgd, OPTIMIZERS["adamw"]], ids=["sgd", "adamw"])
def test_excluded_arm_stays_at_exactly_zero_where_the_target_wants_it(optimizer):
    log_probs = run(
        forward_kl, P_ZERO, [0.2, 0.2, 0.2, 0.2, 0.1, 0.1], 0.5, [50], optimizer=optimizer
    )
    assert np.exp(log_probs[0, 2]) == 0
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-12)


def test_step_is_the_same_whichever_others_are_recorded():
    options = {"optimizer": optax.adam}
    together = run(reverse_kl, P, Q, 0.1, [0, 3, 7], **options)
    np.testing.assert_allclose(together[0], np.log(P), rtol=1e-12)
    alone = run(reverse_kl, P, Q, 0.1, [7], **options)
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-12)
    consecutive = run(reverse_kl, P, Q, 0.1, range(8), **options)
    np.testing.assert_allclose(consecutive[[0, 3, 7]], together, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("natural_gradient", [False, True])
def test_descent_converges_to_the_target(loss, natural_gradient):
    options = {"natural_gradient": natural_gradient}
    log_probs = run(loss, P, Q, 0.5, [10, 3000], **options)
    assert np.abs(np.exp(log_probs[0]) - Q).max() > 1e-5
    np.testing.assert_allclose(np.exp(log_probs[1]), Q, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_steps_may_be_integers_of_any_type(dtype):
    found = descend(reverse_kl, np.log(P), np.log(Q), 0.1, np.array(STEPS, dtype))
    np.testing.assert_allclose(found, run(reverse_kl, P, Q, 0.1, STEPS), rtol=1e-12)
    with pytest.raises(InvalidInput, match=r"steps is .*; they must be >= 0 and strictly increase"):
        descend(reverse_kl, np.log(P), np.log(Q), 0.1, np.array([3, 0], dtype))


def test_any_loss_can_be_descended():
    def squared_distance(log_probs, target_log_probs):
        return jnp.sum((jnp.exp(log_probs) - jnp.exp(target_log_probs)) ** 2)

    jacobian = np.diag(P) - np.outer(P, P)
    expected = special.log_softmax(np.log(P) - 0.4 * jacobian @ (2 * (P - Q)))
    np.testing.assert_allclose(run(squared_distance, P, Q, 0.4, [1])[0], expected, rtol=1e-12)


def test_float32_and_numpy_arguments_are_taken_as_they_are():
    with jax.enable_x64(False):
        log_probs = descend(reverse_kl, np.log(P), np.log(Q), 0.5, [1], optax.adam)
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(
        log_probs, run(reverse_kl, P, Q, 0.5, [1], optimizer=optax.adam), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [(forward_kl, {"natural_gradient": True}), (reverse_kl, {"optimizer": optax.adam})],
    ids=["natural", "adam"],
)
def test_descent_is_swept_by_vmap_as_by_a_loop(loss, options):
    rates, starts, targets = np.array([0.01, 1.0]), np.log([P, Q]), np.log([Q, Q[::-1]])

    def point(rate, start, target):
        return descend(loss, start, target, rate, STEPS, **options)

    loop = [point(*arguments) for arguments in zip(rates, starts, targets, strict=True)]
    swept = jax.jit(jax.vmap(point))(rates, starts, targets)
    np.testing.assert_allclose(swept, loop, rtol=1e-12)
    assert np.abs(swept[0] - swept[1]).max() > 0.01


def test_derivative_in_the_learning_rate_is_the_finite_difference():
    def point(rate):
        return jitted(reverse_kl, np.log(P), np.log(Q), rate, steps=STEPS)

    difference = (point(0.5 + 1e-6) - point(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.jacfwd(point))(0.5), difference, rtol=1e-6, atol=1e-8)


@given(st.permutations(range(5)), st.floats(0.01, 5))
def test_relabelling_the_arms_relabels_the_descent(order, learning_rate):
    for loss in LOSSES:
        straight = run(loss, P, Q, learning_rate, STEPS)
        relabelled = run(loss, P[order], Q[order], learning_rate, STEPS)
        np.testing.assert_allclose(relabelled, straight[:, order], rtol=1e-11)


@given(st.integers(1, 10_000), st.integers(1, 30))
def test_log_spaced_steps_start_at_zero_end_at_the_last_and_fill_each_decade(last, per_decade):
    steps = log_spaced_steps(last, per_decade)
    assert steps[:2] == (0, 1)
    assert steps[-1] == last
    assert all(isinstance(step, int) for step in steps)
    gaps = np.diff(steps)
    assert (gaps > 0).all()
    # No factor between neighbours beyond the spacing, but for rounding both to whole steps.
    assert (steps[2:] <= (np.array(steps[1:-1]) + 0.5) * 10 ** (1 / per_decade) + 0.5).all()


def test_log_spaced_steps_are_those_of_a_ruler():
    assert log_spaced_steps(1000, 1) == (0, 1, 10, 100, 1000)
    assert log_spaced_steps(100, 2) == (0, 1, 3, 10, 32, 100)


HALVES, THIRDS = np.log([0.5, 0.5]), np.log(np.full(3, 1 / 3))


@pytest.mark.parametrize(
    ("start", "target", "learning_rate", "steps", "message"),
    [
        (np.zeros(2), HALVES, 1.0, [1], r"exp\(initial_log_probs\) sums to 2; .* must sum to 1"),
        (HALVES, np.zeros(2), 1.0, [1], r"exp\(target_log_probs\) sums to 2; .* must sum to 1"),
        ([np.nan, 0.0], HALVES, 1.0, [1], r"exp\(initial_log_probs\)\[0\] is nan"),
        (np.zeros(1), np.zeros(1), 1.0, [1], "initial_log_probs.* has 1 arms; at least 2 are"),
        (HALVES, THIRDS, 1.0, [1], "target_log_probs has 3 arms but initial_log_probs has 2"),
        (HALVES, HALVES, 0.0, [1], "learning_rate is 0; it must be a finite number > 0"),
        (HALVES, HALVES, -1.0, [1], "learning_rate is -1; it must be a finite number > 0"),
        (HALVES, HALVES, np.inf, [1], "learning_rate is inf; it must be a finite number > 0"),
        (HALVES, HALVES, 1.0, [], r"steps is \[\]; give a list of at least one whole number"),
        (HALVES, HALVES, 1.0, [1.5], r"steps is \[1.5\]; give a list of .* whole number"),
        (HALVES, HALVES, 1.0, 3, "steps is 3; give a list of at least one whole number"),
        (HALVES, HALVES, 1.0, [-1, 2], r"steps is \[-1, 2\]; they must be >= 0 and strictly"),
        (HALVES, HALVES, 1.0, [2, 2], r"steps is \[2, 2\]; they must be >= 0 and strictly incr"),
    ],
)
def test_bad_descent_is_refused(start, target, learning_rate, steps, message):
    with pytest.raises(InvalidInput, match=message):
        descend(reverse_kl, start, target, learning_rate, steps)


@pytest.mark.parametrize(("last", "per_decade"), [(0, 20), (10, 0), (-3, 1)])
def test_bad_log_spacing_is_refused(last, per_decade):
    message = f"last is {last} and per_decade {per_decade}; both must be at least 1"
    with pytest.raises(InvalidInput, match=message):
        log_spaced_steps(last, per_decade)


@pytest.mark.parametrize(
    ("start", "target", "learning_rate", "message"),
    [
        (np.log([P, P]), np.log(Q), 0.1, r"initial_log_probs has shape \(2, 5\); descend is of"),
        (np.log(P), np.log([Q, Q]), 0.1, r"target_log_probs has shape \(2, 5\); descend is of"),
        (np.log(P), np.log(Q), [0.1, 0.2], r"learning_rate has shape \(2,\); descend is of"),
    ],
)
def test_several_policies_at_once_are_refused(start, target, learning_rate, message):
    with pytest.raises(InvalidInput, match=message):
        descend(reverse_kl, start, target, learning_rate, STEPS)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_descents_of_many_policies_at_once_are_those_of_each(loss, optimizer):
    starts = np.stack([log(P), log(P_ZERO[[0, 1, 3, 4, 2]])[:5], log(Q)])
    starts = starts - special.logsumexp(starts, axis=1, keepdims=True)
    rates = np.array([0.1, 0.7])

    def one(start, rate):
        return descend(loss, start, np.log(Q), rate, STEPS, optimizer)

    over_rates = jax.vmap(one, in_axes=(None, 0))
    grid = jax.jit(jax.vmap(over_rates, in_axes=(0, None)))(starts, rates)
    assert grid.shape == (3, 2, len(STEPS), 5)
    for i, start in enumerate(starts):
        for j, rate in enumerate(rates):
            np.testing.assert_allclose(grid[i, j], jax.jit(one)(start, rate), rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_the_closed_gradients_descend_as_autodiff_does(loss, optimizer):
    def same(log_probs, target):  # a loss that is not known to have a closed gradient
        return loss(log_probs, target)

    for p, q in ((P, Q), (P_ZERO, Q_ZERO), (P_ZERO, np.insert(Q * 0.9, 2, 0.1))):
        expected = run(same, p, q, 0.3, (1, 40), optimizer=optimizer)
        found = run(loss, p, q, 0.3, (1, 40), optimizer=optimizer)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_reverse_kl_to_a_target_that_excludes_what_the_start_holds_is_not_finite():
    log_probs = run(reverse_kl, P, np.array([0.5, 0.5, 0, 0, 0]), 0.3, (0, 1))
    assert np.isfinite(log_probs[0]).all()
    assert not np.isfinite(log_probs[1]).any()
