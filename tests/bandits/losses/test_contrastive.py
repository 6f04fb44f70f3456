import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit, log_softmax, softmax

from bandits.losses import METHODS, make_group, response_weights
from bandits.losses.contrastive import dpo, hypo, ipo
from theory.distributions import kl_divergence

pytestmark = pytest.mark.usefixtures("float64")

seeds = st.integers(0, 2**32 - 1)
L = np.log(2)
PAIRWISE = ("dpo", "ipo", "hinge", "slic")
BEST_MINUS = ("best_of_n_minus_worst", "best_of_n_minus_mean", "best_of_n_minus_sum")

# log π = −(1, 2, 3) L and log π/π_ref = (1, −1, 0) L: the margins of the two pairs are 2L and −L.
PROBS = np.array([0.5, 0.25, 0.125])
GROUP = {
    "rewards": np.array([1.0, 0.5, 0.0]),
    "reference_log_probs": np.log([0.25, 0.5, 0.125]),
    "preferences": np.array([[0, 0.75, 0], [0, 0, 0], [0.25, 0, 0]]),
}


def by_pairs(losses, slopes):
    """The loss and weights of pairs 0 ≻ 1 and 2 ≻ 0 that have these losses and slopes in h."""
    (a, b), (c, d) = losses, slopes
    return 0.75 * a + 0.25 * b, [0.25 * d - 0.75 * c, 0.75 * c, -0.25 * d]


# By hand on GROUP: hyperparameters, and the loss with the weights.
BY_HAND = {
    "dpo": ({"beta": 1.0}, by_pairs([np.log(5 / 4), np.log(3)], [-1 / 5, -2 / 3])),
    "ipo": (
        {"tau": 0.25},
        by_pairs([(2 * L - 2) ** 2, (L + 2) ** 2], [2 * (2 * L - 2), -2 * (L + 2)]),
    ),
    # Beside DPO's, the KL's: shares of 1/3 and log-ratios whose mean is 0.
    "hypo": (
        {"beta": 1.0, "kl_coefficient": 0.3},
        (
            0.75 * np.log(5 / 4) + 0.25 * np.log(3) + 0.1 * L**2,
            [0.15 - 1 / 6 - 0.1 * L, -0.15 + 0.1 * L, 1 / 6],
        ),
    ),
    "hinge": ({"beta": 1.0}, by_pairs([0, 1 + L], [0, -1])),
    "slic": (
        {"margin": 1.0, "regularization": 0.4},
        (0.75 * (1 - L) + 0.25 * (1 + 2 * L) + 0.6 * L, [0.5 + 0.3, -0.75, 0.25 + 0.1]),
    ),
    "best_of_n_minus_worst": ({"coefficient": 0.1}, (L - 0.3 * L, [1, 0, -0.1])),
    "best_of_n_minus_mean": ({"coefficient": 0.1}, (L - 0.25 * L, [1, -0.05, -0.05])),
    "best_of_n_minus_sum": ({"coefficient": 0.1}, (L - 0.5 * L, [1, -0.1, -0.1])),
    "unlikelihood": (
        {"coefficient": 2.0},
        (L - np.log(3 / 4) - np.log(7 / 8), [1, -1 / 3, -1 / 7]),
    ),
}


def textbook(name, x, g, **h):
    """The loss, written out pair by pair or response by response."""
    ratios = x - g.reference_log_probs
    best, rest = np.argmax(g.rewards), np.argsort(g.rewards)[:-1]
    floored = np.maximum(x, g.reference_log_probs + h.get("floor", -np.inf))
    of_pair = {
        "dpo": lambda i, j: -np.log(expit(h["beta"] * (ratios[i] - ratios[j]))),
        "ipo": lambda i, j: (ratios[i] - ratios[j] - 1 / (2 * h["tau"])) ** 2,
        "hypo": lambda i, j: -np.log(expit(h["beta"] * (ratios[i] - ratios[j]))),
        "hinge": lambda i, j: max(0, 1 - h["beta"] * (ratios[i] - ratios[j])),
        "slic": lambda i, j: max(0, h["margin"] - x[i] + x[j]) - h["regularization"] * x[i],
    }
    if name in of_pair:
        pairs = np.argwhere(g.pair_weights > 0)
        loss = sum(g.pair_weights[i, j] * of_pair[name](i, j) for i, j in pairs)
        if name == "hypo":  # the log-ratios of the KL are held at g's policy while x moves
            held = g.log_probs - g.reference_log_probs
            loss += h["kl_coefficient"] * g.shares @ ((held - g.shares @ held) * x)
        return loss
    pushed = {
        "best_of_n_minus_worst": lambda: floored[rest[0]],
        "best_of_n_minus_mean": lambda: np.mean(floored[rest]),
        "best_of_n_minus_sum": lambda: np.sum(floored[rest]),
        "unlikelihood": lambda: -np.mean(np.log(1 - np.exp(x[rest]))),
    }
    return -x[best] + h["coefficient"] * pushed[name]()


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_and_weights_are_those_computed_by_hand(name, evaluate):
    hyperparameters, expected = BY_HAND[name]
    found = evaluate(METHODS[name].loss, make_group(np.log(PROBS), **GROUP), **hyperparameters)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", BY_HAND)
@given(seeds, st.floats(0.05, 2), st.floats(-2, 2))
def test_random_groups_follow_the_textbook(
    name, evaluate, random_group, numerical_weights, seed, scale, floor
):
    group = random_group(seed)
    h = dict.fromkeys(METHODS[name].hyperparameters, scale)
    if "floor" in h:
        h["floor"] = floor
    loss, weights = evaluate(METHODS[name].loss, group, **h)

    def expected(x):
        return textbook(name, x, group, **h)

    np.testing.assert_allclose(loss, expected(group.log_probs), rtol=1e-10, atol=1e-12)
    slopes = numerical_weights(expected, group.log_probs)
    np.testing.assert_allclose(weights, slopes, rtol=1e-5, atol=1e-6)


def test_online_forms_are_the_offline_losses():
    assert METHODS["online_dpo"].loss is METHODS["dpo"].loss
    assert METHODS["online_ipo"].loss is METHODS["ipo"].loss


@given(st.floats(0.01, 5), *[st.floats(-10, 0)] * 4)
def test_dpo_with_one_pair_is_the_published_loss(evaluate, beta, w, loser, ref_w, ref_l):
    group = make_group([w, loser], [1.0, 0.0], reference_log_probs=np.array([ref_w, ref_l]))
    margin = beta * (w - ref_w) - beta * (loser - ref_l)
    loss, weights = evaluate(dpo, group, beta=beta)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-margin)), rtol=1e-10)
    np.testing.assert_allclose(weights, beta * expit(-margin) * np.array([1, -1]), rtol=1e-10)


@functools.partial(jax.jit, static_argnums=0)
def derivatives(loss, group, beta):
    """The loss in the log-probabilities: its value, slopes and curvatures."""

    def value(log_probs):
        return loss(dataclasses.replace(group, log_probs=log_probs), beta)

    return [f(value)(group.log_probs) for f in (lambda f: f, jax.grad, jax.hessian)]


def dpo_by_autodiff(group, beta):
    ratios = group.log_probs - group.reference_log_probs
    losses = -jax.nn.log_sigmoid(beta * (ratios[:, None] - ratios[None, :]))
    return jnp.sum(group.pair_weights * losses)


@given(seeds, st.floats(0.01, 5), st.sampled_from([1.0, 20.0]))
def test_derivatives_of_dpo_are_those_that_autodiff_finds(random_group, seed, beta, scale):
    group = random_group(seed)
    group = dataclasses.replace(group, log_probs=scale * group.log_probs)
    found, expected = derivatives(dpo, group, beta), derivatives(dpo_by_autodiff, group, beta)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-13)
    assert (found[2].diagonal() > 0).any() or not group.pair_weights.any()


@pytest.mark.parametrize("count", [1, 5])
def test_dpo_is_as_smooth_where_a_policy_starts_as_elsewhere(random_group, count):
    group = random_group(0)
    start = dataclasses.replace(group, log_probs=group.reference_log_probs)

    def curvature(loss, times):
        def of_log_probs(x):
            return loss(dataclasses.replace(start, log_probs=x), 0.5)

        for _ in range(times):
            of_log_probs = jax.jacfwd(of_log_probs)
        return jax.vmap(of_log_probs)(np.tile(start.log_probs, (count, 1)))

    for times in (2, 3, 4):
        found, expected = curvature(dpo, times), curvature(dpo_by_autodiff, times)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert expected.any()


def test_dpo_neither_pushes_an_excluded_loser_nor_forgives_an_excluded_winner():
    log_probs = np.array([-1.0, -np.inf, -2.0])
    pairs = np.zeros((3, 3))
    pairs[0, 1] = 1.0
    group = make_group(log_probs, np.zeros(3), reference_log_probs=-np.ones(3), preferences=pairs)
    for found in derivatives(dpo, group, 0.5):
        np.testing.assert_array_equal(found, np.zeros_like(found))
    swapped = dataclasses.replace(group, preferences=jnp.asarray(pairs.T))
    loss, slopes, _ = derivatives(dpo, swapped, 0.5)
    assert loss == np.inf
    np.testing.assert_array_equal(slopes, [0.5, -0.5, 0])


OF_PAIRS = (*PAIRWISE, "hypo")


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_response_that_is_in_no_pair_has_no_say_in_hyperparameters(name, count):
    pairs = np.zeros((3, 3))
    pairs[0, 2] = 1.0
    excluded = {"shares": np.array([0.5, 0, 0.5]), "reference_log_probs": -np.ones(3)}
    group = make_group([-0.5, -np.inf, -1.0], np.zeros(3), preferences=pairs, **excluded)
    kept = make_group(
        [-0.5, -1.0],
        np.zeros(2),
        preferences=[[0.0, 1.0], [0.0, 0.0]],
        reference_log_probs=-np.ones(2),
    )
    method = METHODS[name]
    first = next(iter(method.hyperparameters))

    def slope(group):
        def of_hyperparameter(value):
            return jax.grad(lambda h: method.loss(group, **{first: h}))(value)

        return jax.vmap(of_hyperparameter)(jnp.full(count, 0.4))

    assert np.isfinite(slope(group)).all()
    np.testing.assert_allclose(slope(group), slope(kept), rtol=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_traced_hyperparameter_out_of_range_is_never_a_result(name, count, labelled):
    pairs = np.array([[0.0, 1.0], [0.0, 0.0]]) * labelled
    group = make_group(np.log([0.5, 0.25]), np.zeros(2), preferences=pairs)
    first = next(iter(METHODS[name].hyperparameters))
    losses = jax.vmap(lambda h: METHODS[name].loss(group, **{first: h}))(jnp.full(count, -1.0))
    assert np.isnan(losses).all()


@pytest.mark.parametrize("tau", [0.05, 0.25, 2.0])
def test_ipo_is_least_at_a_margin_of_half_over_tau(tau, evaluate):
    reference = np.array([-3.0, -4.0])
    for excess, sign in (0, 0), (0.1, -1), (-0.1, 1):
        log_probs = reference + np.array([0, -0.5 / tau - excess])
        group = make_group(log_probs, [1.0, 0.0], reference_log_probs=reference)
        loss, weights = evaluate(ipo, group, tau=tau)
        np.testing.assert_allclose(loss, excess**2, atol=1e-12)
        np.testing.assert_allclose(weights, sign * np.array([0.2, -0.2]), atol=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_nothing_labelled_is_no_loss_and_no_weight(name, evaluate):
    group = make_group(np.log(PROBS), np.ones(3), reference_log_probs=np.log(PROBS[::-1]))
    loss, weights = evaluate(METHODS[name].loss, group)
    assert loss == 0
    assert (weights == 0).all()


@pytest.mark.parametrize("name", [*BEST_MINUS, "unlikelihood"])
def test_copies_of_the_best_are_not_pushed_and_equal_rewards_push_nothing(name, evaluate):
    log_probs = np.log([0.3, 0.3, 0.2, 0.1])
    copied = evaluate(METHODS[name].loss, make_group(log_probs, [1.0, 1.0, 0.5, 0.0]))[1]
    assert (copied[:2] == [1, 0]).all()
    assert copied[3] < 0
    loss, weights = evaluate(METHODS[name].loss, make_group(log_probs, np.ones(4)))
    np.testing.assert_allclose(loss, -log_probs[0], rtol=1e-15)
    np.testing.assert_array_equal(weights, [1, 0, 0, 0])


def test_only_the_first_of_equally_bad_responses_is_the_worst(evaluate):
    group = make_group(np.log([0.3, 0.3, 0.2, 0.1]), [1.0, 0.0, 0.5, 0.0])
    weights = evaluate(METHODS["best_of_n_minus_worst"].loss, group)[1]
    np.testing.assert_allclose(weights, [1, -0.1, 0, 0])


@pytest.mark.parametrize("name", BEST_MINUS)
@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_no_response_is_pushed_below_the_floor(name, floor, evaluate):
    reference = np.log([0.25, 0.25, 0.25])
    for ratio, pushed in (floor + 0.1, True), (floor, False), (floor - 0.1, False):
        log_probs = reference + np.array([0, ratio, ratio])
        group = make_group(log_probs, [1.0, 0.0, 0.0], reference_log_probs=reference)
        weights = evaluate(METHODS[name].loss, group, floor=floor)[1]
        assert weights[0] == 1
        assert (weights[1] < 0) == pushed
        assert (weights[2] < 0) == (pushed and name != "best_of_n_minus_worst")


def test_unlikelihood_stays_finite_for_a_bad_response_that_is_certain(evaluate):
    for certain in (0.0, -1e-300, -1e-17):
        group = make_group([-50.0, certain], [1.0, 0.0])
        loss, weights = evaluate(METHODS["unlikelihood"].loss, group)
        assert np.isfinite(loss)
        assert np.isfinite(weights).all()


@given(seeds, st.floats(0.05, 2))
def test_hypo_without_the_kl_is_dpo(evaluate, random_group, seed, beta):
    group = random_group(seed)
    found = evaluate(hypo, group, beta=beta, kl_coefficient=0.0)
    expected = evaluate(dpo, group, beta=beta)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@jax.jit
def slope_of_dpo_and_kl(logits, group, beta, coefficient):
    """By autodiff of the exact KL, in the logits."""

    def value(logits):
        log_probs = jax.nn.log_softmax(logits)
        ratios = log_probs - group.reference_log_probs
        losses = -jax.nn.log_sigmoid(beta * (ratios[:, None] - ratios[None, :]))
        kl = kl_divergence(log_probs, group.reference_log_probs)
        return jnp.sum(group.pair_weights * losses) + coefficient * kl

    return jax.grad(value)(logits)


@given(seeds, st.floats(0.05, 2), st.floats(0, 3))
def test_exact_hypo_descends_dpo_and_the_kl_to_the_reference(
    evaluate, random_group, seed, beta, coefficient
):
    group = random_group(seed, whole_space=True)
    weights = evaluate(hypo, group, beta=beta, kl_coefficient=coefficient)[1]
    in_logits = weights @ (np.eye(4) - group.shares)
    expected = -slope_of_dpo_and_kl(group.log_probs, group, beta, coefficient)
    np.testing.assert_allclose(in_logits, expected, rtol=1e-9, atol=1e-12)


REFERENCE = np.array([0.2, 0.3, 0.4, 0.1])


@jax.jit
def flow(beta, coefficient):
    """Gradient descent from the reference, 0 preferred to 1, over the whole space of four."""
    pair = jnp.zeros((4, 4)).at[0, 1].set(1.0)

    def step(_, logits):
        log_probs = jax.nn.log_softmax(logits)
        probs = jnp.exp(log_probs)
        group = make_group(
            log_probs,
            jnp.zeros(4),
            reference_log_probs=jnp.log(REFERENCE),
            preferences=pair,
            shares=probs,
        )
        weights = response_weights(lambda g: hypo(g, beta=beta, kl_coefficient=coefficient), group)
        return logits + weights - probs * weights.sum()

    return jax.nn.softmax(jax.lax.fori_loop(0, 20_000, step, jnp.log(REFERENCE)))


@pytest.mark.parametrize(("beta", "coefficient"), [(2.0, 0.5), (1.0, 0.6), (0.1, 1.0)])
def test_a_strong_kl_keeps_the_optimum_of_hypo_on_one_separable_pair_interior(beta, coefficient):
    def objective(logits):
        ratios = log_softmax(logits) - np.log(REFERENCE)
        dpo_loss = -np.log(expit(beta * (ratios[0] - ratios[1])))
        return dpo_loss + coefficient * softmax(logits) @ ratios

    best = optimize.minimize(objective, np.log(REFERENCE), options={"gtol": 1e-9}).x
    found = flow(beta, coefficient)
    np.testing.assert_allclose(found, softmax(best), rtol=1e-4)
    assert found[1] > 0.01
    assert flow(beta, 0.0)[1] < 0.1 * found[1]  # DPO goes on for ever


@pytest.mark.parametrize("coefficient", [0.1, 0.03])
def test_a_weak_kl_gives_the_loser_up_and_holds_the_rest_at_the_reference(coefficient):
    """For the KL is finite without the loser, and rises from there as p log p, DPO's loss as p^β.

    The rest ends where the KL alone puts it: the reference, given that the loser is out.
    """
    found = flow(0.5, coefficient)
    assert found[1] < 1e-6
    expected = np.where([True, False, True, True], REFERENCE, 0) / (1 - REFERENCE[1])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    of_dpo = flow(0.5, 0.0)
    assert np.abs(of_dpo - expected).max() > 0.05


def test_the_kl_of_hypo_is_over_the_shares_and_not_over_the_pairs(evaluate):
    reference = np.log([0.25, 0.25, 0.25, 0.25])
    pair = np.zeros((4, 4))
    pair[0, 1] = 1.0
    group = make_group(
        np.log([0.4, 0.1, 0.3, 0.2]),
        np.ones(4),
        reference_log_probs=reference,
        preferences=pair,
        shares=np.array([0, 0, 0.5, 0.5]),
    )
    of_dpo = evaluate(dpo, group)[1]
    of_kl = evaluate(hypo, group, kl_coefficient=2.0)[1] - of_dpo
    half = 0.5 * np.log(0.3 / 0.2)
    np.testing.assert_allclose(of_kl, [0, 0, -half, half], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("coefficient", [-0.1, np.nan])
def test_hypo_refuses_a_negative_coefficient(coefficient):
    with pytest.raises(ValueError, match="kl_coefficient is"):
        hypo(make_group(np.log(PROBS), **GROUP), kl_coefficient=coefficient)
