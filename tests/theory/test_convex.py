import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize, special

from theory.convex import minimize

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(12, 3))
LABELS = np.where(RNG.random(12) < 0.5, 1.0, -1.0)
ONE_STEP = 1


def logistic(params, rows=ROWS, labels=LABELS, ridge=0.1):
    return jnp.mean(jax.nn.softplus(-labels * (rows @ params))) + ridge / 2 * params @ params


def logistic_by_scipy(rows, labels, ridge=0.1):
    def loss(params):
        margins = labels * (rows @ params)
        gradient = -(labels * special.expit(-margins)) @ rows / len(rows) + ridge * params
        return -special.log_expit(margins).mean() + ridge / 2 * params @ params, gradient

    options = {"gtol": 1e-12}
    return optimize.minimize(loss, np.zeros(rows.shape[1]), jac=True, options=options).x


def log_cosh(params):
    return jnp.sum(jnp.logaddexp(params, -params))


minimize_logistic = jax.jit(lambda start, rows, labels: minimize(
    lambda params: logistic(params, rows, labels), start
))  # fmt: skip
minimize_quadratic = jax.jit(lambda matrix, vector, start: minimize(
    lambda x: 0.5 * x @ matrix @ x - vector @ x, start, most_steps=ONE_STEP
))  # fmt: skip
minimize_log_cosh = jax.jit(lambda start: minimize(log_cosh, start))


@given(st.integers(0, 10**6))
def test_one_step_ends_at_the_minimum_of_a_quadratic(seed):
    rng = np.random.default_rng(seed)
    factor, vector, start = rng.normal(size=(4, 4)), rng.normal(size=4), 10 * rng.normal(size=4)
    matrix = factor @ factor.T + 0.1 * np.eye(4)
    found = minimize_quadratic(matrix, vector, start)
    assert_allclose(found, np.linalg.solve(matrix, vector), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10**6))
def test_flat_directions_stay_where_they_started(seed):
    rng = np.random.default_rng(seed)
    factor, target, start = rng.normal(size=(2, 4)), rng.normal(size=2), rng.normal(size=4)
    found = minimize_quadratic(factor.T @ factor, factor.T @ target, start)
    nearest = start + np.linalg.pinv(factor) @ (target - factor @ start)
    assert_allclose(found, nearest, atol=1e-8 * (1 + np.abs(nearest).max()))


def test_a_loss_blind_to_some_parameters_leaves_them():
    def loss(x):
        return jax.nn.softplus(x[0] + x[1]) - 0.25 * (x[0] + x[1])

    found = minimize(loss, jnp.array([1.0, 0.0, 7.0]))
    assert_allclose(found[0] + found[1], special.logit(0.25), rtol=1e-12)
    assert_allclose(found[0] - found[1], 1.0, rtol=1e-12)
    assert found[2] == 7.0


@given(st.integers(0, 10**6))
def test_logistic_regression_ends_where_scipy_does_from_any_start(seed):
    rng = np.random.default_rng(seed)
    rows, labels = rng.normal(size=(12, 3)), rng.choice([-1.0, 1.0], 12)
    expected = logistic_by_scipy(rows, labels)
    for scale in (0.0, 1.0, 20.0):
        found = minimize_logistic(scale * rng.normal(size=3), rows, labels)
        assert_allclose(found, expected, atol=1e-7)
        gradient = jax.grad(logistic)(found, rows, labels)
        assert_allclose(gradient, 0, atol=1e-14)


@pytest.mark.parametrize("start", [1.2, -3.0, 8.0])
def test_starts_from_which_full_steps_diverge_still_end_at_the_minimum(start):
    full_step = start - np.sinh(start) * np.cosh(start)
    assert abs(full_step) > abs(start)
    found = minimize_log_cosh(np.array([start, 0.0, -start / 2]))
    assert_allclose(found, 0, atol=1e-12)


def test_a_start_where_the_curvature_is_almost_gone_still_ends_at_the_minimum():
    found = minimize_log_cosh(np.array([14.0, 0.0, 0.0]))
    assert_allclose(found, 0, atol=1e-12)


def test_a_step_out_of_the_domain_is_halved():
    def loss(x):
        return jnp.sum(x - jnp.log(x))

    assert np.isnan(loss(jnp.array([10.0 - 90.0])))
    assert_allclose(minimize(loss, jnp.array([10.0, 3.0])), 1.0, rtol=1e-12)


def test_the_minimum_is_a_fixed_point():
    expected = logistic_by_scipy(ROWS, LABELS)
    once = minimize_logistic(expected, ROWS, LABELS)
    assert_allclose(minimize_logistic(once, ROWS, LABELS), once, atol=1e-15)


def test_no_steps_leave_the_start():
    start = jnp.array([0.3, -0.2, 5.0])
    assert_array_equal(minimize(logistic, start, most_steps=0), start)


def test_another_curvature_leads_to_the_same_minimum():
    bound = ROWS.T @ ROWS / (4 * len(ROWS)) + 0.1 * np.eye(3)
    found = minimize(
        logistic, jnp.full(3, 4.0), curvature=lambda _: jnp.asarray(bound), most_steps=300
    )
    assert_allclose(found, logistic_by_scipy(ROWS, LABELS), atol=1e-7)


def test_with_another_curvature_a_loss_that_is_not_convex_ends_where_it_is_stationary():
    def wells(x):
        return jnp.sum((x**2 - 1) ** 2)

    def curvature(x):
        return jnp.diag(8 * x**2 + 1.0)

    start = jnp.array([0.2, -0.1, 3.0])
    assert (jnp.diag(jax.hessian(wells)(start)) < 0).any()
    found = minimize(wells, start, curvature=curvature, most_steps=300)
    assert_allclose(found, [1.0, -1.0, 1.0], atol=1e-9)


def test_starts_and_data_can_be_batched():
    starts = 3 * RNG.normal(size=(4, 3))
    rows, labels = RNG.normal(size=(4, 12, 3)), RNG.choice([-1.0, 1.0], (4, 12))
    swept = jax.jit(jax.vmap(minimize_logistic))(starts, rows, labels)
    one_by_one = [minimize_logistic(*row) for row in zip(starts, rows, labels, strict=True)]
    assert_allclose(swept, one_by_one, atol=1e-12)


def test_a_batch_of_far_and_near_starts_ends_at_one_minimum():
    starts = np.array([0.0, 1e-9, -1.5, 9.0])[:, None] * np.array([1.0, 0.5, -1.0])
    assert_allclose(jax.vmap(minimize_log_cosh)(starts), 0, atol=1e-12)


def test_float32_is_kept_and_exact_to_its_precision():
    expected = logistic_by_scipy(ROWS, LABELS)
    with jax.enable_x64(False):
        rows, labels = np.float32(ROWS), np.float32(LABELS)
        found = minimize(lambda x: logistic(x, rows, labels), jnp.full(3, 2.0))
        far = minimize(log_cosh, jnp.array([5.0, -2.0]))
    assert found.dtype == far.dtype == np.float32
    assert_allclose(found, expected, atol=3e-6)
    assert_allclose(far, 0, atol=1e-6)
