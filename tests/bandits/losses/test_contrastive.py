import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit, log_softmax, logit, softmax

from bandits.losses import METHODS, make_group, preferences_by_reward, response_weights
from bandits.losses.contrastive import dpo, hypo, ipo
from theory.checks import InvalidInput
from theory.distributions import kl_divergence
from theory.pairs import Pairs

pytestmark = pytest.mark.usefixtures("float64")

seeds = st.integers(0, 2**32 - 1)
L = np.log(2)
PAIRWISE = ("dpo", "ipo", "hinge", "slic")
SMOOTHED = ("dpo", "ipo", "hinge", "hypo")
BY_PREFERENCES = [
    name
    for name, method in METHODS.items()
    if method.needs in ("preferences", "preferences and samples", "demonstrations")
]
BEST_MINUS = ("best_of_n_minus_worst", "best_of_n_minus_mean", "best_of_n_minus_sum")

# log π = −(1, 2, 3) L and log π/π_ref = (1, −1, 0) L: the margins of the two pairs are 2L and −L.
PROBS = np.array([0.5, 0.25, 0.125])
GROUP = {
    "rewards": np.array([1.0, 0.5, 0.0]),
    "reference_log_probs": np.log([0.25, 0.5, 0.125]),
    "preferences": np.array([[0, 0.75, 0], [0, 0, 0], [0.25, 0, 0]]),
}


def every_pair(table):
    """The table as a list of one length: pairs that nobody labelled have no weight."""
    winners, losers = np.nonzero(1 - np.eye(len(table)))
    return Pairs(winners, losers, table[winners, losers])


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
        eps, f = h.get("label_smoothing", 0), of_pair[name]
        # A label the other way round counts ε.
        loss = sum(
            g.pair_weights[i, j] * ((1 - eps) * f(i, j) + (eps * f(j, i) if eps else 0))
            for i, j in np.argwhere(g.pair_weights > 0)
        )
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
@given(seeds, st.floats(0.05, 2), st.floats(-2, 2), st.floats(0, 0.5))
def test_random_groups_follow_the_textbook(
    name, evaluate, random_group, numerical_weights, seed, scale, floor, eps
):
    group = random_group(seed)
    h = dict.fromkeys(METHODS[name].hyperparameters, scale)
    h |= {key: x for key, x in (("floor", floor), ("label_smoothing", eps)) if key in h}
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SMOOTHED)
def test_without_label_smoothing_a_loss_is_the_plain_one_to_the_bit(name, random_group, seed):
    group = random_group(seed)

    def run(**hyperparameters):
        loss = functools.partial(METHODS[name].loss, **hyperparameters)
        return jax.jit(lambda g: (loss(g), response_weights(loss, g)))(group)

    jax.tree.map(np.testing.assert_array_equal, run(), run(label_smoothing=0.0))


@given(seeds, st.floats(0.05, 2))
@pytest.mark.parametrize("name", SMOOTHED)
def test_a_label_smoothing_of_one_half_does_not_tell_winners_from_losers(
    name, evaluate, random_group, seed, scale
):
    group = random_group(seed)
    flipped = dataclasses.replace(group, preferences=group.preferences.T)
    first = next(iter(METHODS[name].hyperparameters))
    found, expected = (
        evaluate(METHODS[name].loss, g, **{first: scale}, label_smoothing=0.5)
        for g in (group, flipped)
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12, atol=1e-13)


@given(seeds, st.floats(0.05, 2), st.floats(0, 0.5))
@pytest.mark.parametrize("of", ["table", "list", "rewards"])
@pytest.mark.parametrize("name", SMOOTHED)
def test_label_smoothing_mixes_the_loss_with_that_of_flipped_labels(
    name, of, evaluate, random_group, seed, scale, eps
):
    group = random_group(seed)
    table = group.preferences
    if of == "rewards":
        table = np.asarray(preferences_by_reward(group.rewards))
    first = next(iter(METHODS[name].hyperparameters))
    h = {first: scale, "kl_coefficient": 0.3} if name == "hypo" else {first: scale}
    labels = {"table": table, "list": every_pair(table), "rewards": None}[of]
    found = evaluate(
        METHODS[name].loss,
        dataclasses.replace(group, preferences=labels),
        **h,
        label_smoothing=eps,
    )
    plain, flipped = (
        evaluate(METHODS[name].loss, dataclasses.replace(group, preferences=labels), **h)
        for labels in (table, table.T)
    )
    for f, p, q in zip(found, plain, flipped, strict=True):
        np.testing.assert_allclose(f, (1 - eps) * p + eps * q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4, 0.5])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_the_optimum_of_smoothed_dpo_is_the_logit_of_smoothed_preferences(share, eps):
    beta, reference = 0.4, np.log([0.3, 0.7])
    table = np.array([[0.0, share], [1.0 - share, 0.0]])

    @jax.jit
    @jax.value_and_grad
    def population(margin):
        log_probs = jax.nn.log_softmax(jnp.array([margin, 0.0]))
        group = make_group(log_probs, np.zeros(2), reference_log_probs=reference, preferences=table)
        return dpo(group, beta, label_smoothing=eps)

    found = optimize.minimize_scalar(
        lambda x: float(population(x)[0]), (-1.0, 1.0), options={"xtol": 1e-12}
    ).x
    smoothed = (1 - eps) * share + eps * (1 - share)
    optimum = logit(smoothed) / beta + reference[0] - reference[1]
    np.testing.assert_allclose(found, optimum, atol=1e-6)
    np.testing.assert_allclose(population(optimum)[1], 0, atol=1e-14)


@pytest.mark.parametrize("labelled", ["table", "list", "rewards"])
@pytest.mark.parametrize("name", SMOOTHED)
def test_a_sweep_over_label_smoothing_is_its_runs_one_by_one(name, labelled, random_group):
    group = random_group(3)
    labels = {"table": group.preferences, "list": every_pair(group.preferences), "rewards": None}
    group = dataclasses.replace(group, preferences=labels[labelled])
    group = jax.tree.map(jnp.asarray, group)
    values = np.array([0.0, 0.1, 0.25, 0.5])

    def run(eps):
        loss = functools.partial(METHODS[name].loss, label_smoothing=eps)
        return loss(group), response_weights(loss, group)

    swept, compiled = jax.jit(jax.vmap(run))(values), jax.jit(run)
    alone = jax.tree.map(lambda *x: np.stack(x), *[compiled(eps) for eps in values])
    for found, expected in zip(swept, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("eps", [0.6, -0.1, np.nan])
@pytest.mark.parametrize("name", SMOOTHED)
def test_a_label_smoothing_out_of_range_is_refused_in_one_sentence(name, eps):
    group, method = make_group(np.log(PROBS), **GROUP), METHODS[name]
    for call in functools.partial(method.loss, group), method.bind:
        with pytest.raises(InvalidInput) as refusal:
            call(label_smoothing=eps)
        expected = f"label_smoothing is {eps:g}; it must lie between 0 and 0.5"
        assert str(refusal.value) == expected


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", SMOOTHED)
def test_a_traced_label_smoothing_out_of_range_is_never_a_result(name, labelled):
    group = make_group(np.log(PROBS), GROUP["rewards"], preferences=labelled * GROUP["preferences"])

    def run(eps):
        loss = functools.partial(METHODS[name].loss, label_smoothing=eps)
        return loss(group), response_weights(loss, group)

    losses, weights = jax.jit(jax.vmap(run))(np.array([0.6, -0.1, np.nan, 0.2]))
    np.testing.assert_array_equal(np.isnan(losses), [True, True, True, False])
    assert np.isfinite(weights[3]).all()
    if labelled:
        assert np.isnan(weights[:3]).any(axis=1).all()


def pairs_with_copies(seed, size=4, length=9):
    """A list of pairs, some of them twice and some with no weight, and the same as a table."""
    rng = np.random.default_rng(seed)
    winners = rng.integers(0, size, length)
    losers = (winners + rng.integers(1, size, length)) % size
    weights = rng.uniform(0.1, 1, length) * (rng.random(length) < rng.random())
    weights /= max(weights.sum(), 0.1)
    table = np.zeros((size, size))
    np.add.at(table, (winners, losers), weights)
    return Pairs(winners, losers, weights), table


@given(seeds, st.floats(0.05, 2), st.booleans())
@pytest.mark.parametrize("name", BY_PREFERENCES)
def test_a_list_of_pairs_is_its_table(name, evaluate, random_group, seed, scale, whole_space):
    group = random_group(seed, whole_space=whole_space)
    pairs, table = pairs_with_copies(seed)
    h = {key: scale for key in METHODS[name].hyperparameters if key != "label_smoothing"}
    if "label_smoothing" in METHODS[name].hyperparameters:
        h["label_smoothing"] = scale / 4
    found, expected = (
        evaluate(METHODS[name].loss, dataclasses.replace(group, preferences=labels), **h)
        for labels in (pairs, table)
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", BY_PREFERENCES)
def test_a_batch_of_lists_of_pairs_is_that_of_its_tables(name, random_group):
    groups = jax.tree.map(lambda *x: np.stack(x), *[random_group(seed) for seed in range(6)])
    made = [pairs_with_copies(seed) for seed in range(6)]
    pairs = jax.tree.map(lambda *x: np.stack(x), *[pairs for pairs, _ in made])
    table = np.stack([table for _, table in made])
    loss = METHODS[name].loss
    found, expected = (
        jax.jit(jax.vmap(lambda g: (loss(g), response_weights(loss, g))))(
            dataclasses.replace(groups, preferences=labels)
        )
        for labels in (pairs, table)
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", BY_PREFERENCES)
def test_a_list_of_pairs_leaves_an_excluded_response_out_that_is_in_none(name, evaluate):
    pair = Pairs(np.array([0, 1]), np.array([2, 0]), np.array([1.0, 0.0]))
    with_excluded = make_group(
        [-0.5, -np.inf, -1.0],
        np.zeros(3),
        shares=np.array([0.5, 0, 0.5]),
        reference_log_probs=-np.ones(3),
        preferences=pair,
    )
    kept = make_group(
        [-0.5, -1.0],
        np.zeros(2),
        reference_log_probs=-np.ones(2),
        preferences=Pairs(np.array([0]), np.array([1]), np.array([1.0])),
    )
    (loss, weights), (expected, of_kept) = (
        evaluate(METHODS[name].loss, group) for group in (with_excluded, kept)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(weights, [of_kept[0], 0, of_kept[1]], rtol=1e-14)


@pytest.mark.parametrize("labelled", ["table", "list"])
@pytest.mark.parametrize("name", ["dpo", "hinge"])
def test_an_excluded_loser_costs_nothing_in_any_form_and_all_once_labels_are_smoothed(
    name, labelled
):
    table = np.array([[0.0, 1.0], [0.0, 0.0]])
    group = make_group(
        np.array([-0.5, -np.inf]),
        np.zeros(2),
        reference_log_probs=-np.ones(2),
        preferences=table if labelled == "table" else every_pair(table),
    )
    loss = METHODS[name].loss
    losses = jax.vmap(lambda eps: loss(group, label_smoothing=eps))(np.array([0.0, 0.1]))
    np.testing.assert_array_equal(losses, [0, np.inf])
    assert jax.grad(lambda beta: loss(group, beta=beta))(0.3) == 0


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
