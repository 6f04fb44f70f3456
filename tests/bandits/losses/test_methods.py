import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.losses import DIVERGENCES, METHODS, make_group, response_weights

pytestmark = pytest.mark.usefixtures("float64")

each = pytest.mark.parametrize("name", METHODS)
BEST_OF_N = [name for name in METHODS if "best_of_n" in name or name == "unlikelihood"]

# On-policy, reuses samples, negative gradient: T24's table 1, and from hinge on the project's own.
MARKS = {
    "ppo": (True, True, True),
    "reinforce": (True, False, True),
    "reward_weighted": (True, True, False),
    "advantage_weighted": (True, True, False),
    "best_of_n": (True, True, False),
    "preference_likelihood": (False, True, False),
    "dpo": (False, True, True),
    "ipo": (False, True, True),
    "online_dpo": (True, True, True),
    "online_ipo": (True, True, True),
    "best_of_n_minus_worst": (False, True, True),
    "best_of_n_minus_mean": (False, True, True),
    "best_of_n_minus_sum": (False, True, True),
    "unlikelihood": (False, True, True),
    "hypo": (True, True, True),
    "spin": (True, True, True),
    "rlhf": (True, False, True),
    "hinge": (False, True, True),
    "slic": (False, True, True),
    "supervised": (False, True, False),
    "forward_kl": (False, False, False),
    "reverse_kl": (True, False, True),
    "jeffreys": (True, False, True),
    "jensen_shannon": (True, False, True),
}


def stack(groups):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *groups)


def test_methods_carry_their_published_marks():
    found = {
        name: (method.on_policy, method.reuses_samples, method.negative_gradient)
        for name, method in METHODS.items()
    }
    assert found == MARKS
    assert {name for name, method in METHODS.items() if method.whole_space} == {
        *DIVERGENCES,
        "rlhf",
    }


@each
def test_negative_gradient_mark_says_whether_some_weight_is_negative(name, random_group):
    method = METHODS[name]
    groups = stack([random_group(seed, whole_space=method.whole_space) for seed in range(200)])
    weights = jax.jit(jax.vmap(lambda group: response_weights(method.bind(), group)))(groups)
    assert np.isfinite(weights).all()
    assert (weights < 0).any() == method.negative_gradient
    assert (weights > 0).any()


@each
def test_transformations_agree_and_leave_float32_alone(name, random_group):
    method = METHODS[name]
    groups = [random_group(seed, whole_space=method.whole_space) for seed in range(3)]
    loss = method.bind()

    def both(group):
        return loss(group), response_weights(loss, group)

    plain = both(groups[0])
    mapped = jax.jit(jax.vmap(both))(stack(groups))
    for found, expected in zip(mapped, plain, strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-11, atol=1e-14)
    for i, group in enumerate(groups):
        compiled = jax.jit(both)(group)
        for found, expected in zip(mapped, compiled, strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-11, atol=1e-14)

    single = jax.tree.map(np.float32, groups[0])
    assert [x.dtype for x in jax.eval_shape(both, single)] == [jnp.float32, jnp.float32]


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_and_weights_stay_finite_far_from_the_reference(name, dtype, far_apart, evaluate):
    loss, weights = evaluate(METHODS[name].loss, far_apart(dtype))
    assert np.isfinite(loss)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BEST_OF_N])
def test_excluded_response_without_share_or_label_adds_nothing(name, random_group, evaluate):
    held = random_group(0, size=3, whole_space=True)
    expected = evaluate(METHODS[name].loss, held)
    for elsewhere in [-np.inf] if METHODS[name].whole_space else [-np.inf, -1.0]:
        group = make_group(
            np.append(held.log_probs, -np.inf),
            np.append(held.rewards, 0.5),
            reference_log_probs=np.append(held.reference_log_probs, elsewhere),
            behaviour_log_probs=np.append(held.behaviour_log_probs, elsewhere),
            preferences=np.pad(held.pair_weights, (0, 1)),
            shares=np.append(held.shares, 0),
            baseline=held.baseline,
        )
        loss, weights = evaluate(METHODS[name].loss, group)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        np.testing.assert_allclose(weights, [*expected[1], 0], rtol=1e-12)


@pytest.mark.parametrize("name", BEST_OF_N)
def test_excluded_response_leaves_best_of_n_finite(name, evaluate):
    group = make_group([-1.0, -np.inf, -2.0], [1.0, 0.5, 0.0], shares=np.array([0.5, 0.0, 0.5]))
    loss, weights = evaluate(METHODS[name].loss, group)
    assert np.isfinite(loss)
    assert np.isfinite(weights).all()
    assert weights[1] == 0
