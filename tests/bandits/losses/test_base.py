import dataclasses

import jax
import numpy as np
import pytest

from bandits.losses import METHODS, make_group, response_weights, switch
from theory.checks import InvalidInput

pytestmark = pytest.mark.usefixtures("float64")

each = pytest.mark.parametrize("name", METHODS)
LOSSES = [method.bind() for method in METHODS.values()]


def value_and_weights(loss):
    return lambda group: (loss(group), response_weights(loss, group))


def test_weights_pull_the_parameters_by_the_chain_rule(random_group):
    group, loss = random_group(0, whole_space=True), METHODS["dpo"].bind()
    in_logits = jax.grad(
        lambda x: loss(dataclasses.replace(group, log_probs=jax.nn.log_softmax(x)))
    )(group.log_probs)
    expected = -response_weights(loss, group) @ (np.eye(4) - group.shares)
    np.testing.assert_allclose(in_logits, expected, atol=1e-15)


def test_hyperparameters_are_named_with_their_defaults():
    assert METHODS["ppo"].hyperparameters == {"beta": 0.05, "clip": 0.2, "prompt_baseline": 0}
    assert METHODS["ipo"].hyperparameters == {"tau": 0.05, "label_smoothing": 0}
    assert METHODS["supervised"].hyperparameters == {}


@each
def test_bound_defaults_are_the_loss_itself_and_each_value_counts(name, random_group, evaluate):
    method = METHODS[name]
    group = random_group(1, whole_space=method.whole_space)
    plain, _ = evaluate(method.loss, group)
    np.testing.assert_allclose(method.bind(**method.hyperparameters)(group), plain, rtol=1e-11)
    for hyperparameter, default in method.hyperparameters.items():
        other = {"floor": max(default, 0.0) + 0.7, "label_smoothing": 0.3}.get(
            hyperparameter, 2 * default + 0.7
        )
        found = method.bind(**{hyperparameter: other})(group)
        assert found == method.loss(group, **{hyperparameter: other})
        assert hyperparameter == "clip" or found != plain


@pytest.mark.parametrize(
    ("name", "typo", "meant"),
    [("ipo", "tua", "tau"), ("dpo", "betta", "beta"), ("ppo", "clipp", "clip")],
)
def test_unknown_hyperparameter_is_refused_with_the_nearest(name, typo, meant):
    with pytest.raises(InvalidInput, match=f"unknown hyperparameter '{typo}'.*'{meant}'"):
        METHODS[name].bind(**{typo: 0.1})


@each
def test_values_out_of_range_are_refused_by_name(name):
    method = METHODS[name]
    for hyperparameter in method.hyperparameters:
        if hyperparameter in ("floor", "prompt_baseline"):
            continue
        takes_zero = hyperparameter in (
            "coefficient", "kl_coefficient", "regularization", "label_smoothing"
        )  # fmt: skip
        takes_zero |= hyperparameter == "beta" and method.family == "policy gradient"
        if takes_zero:
            method.bind(**{hyperparameter: 0})
        for bad in (-1.0, np.nan) if takes_zero else (-1.0, np.nan, 0.0, np.inf):
            with pytest.raises(InvalidInput, match=f"^{hyperparameter} is {bad:g};"):
                method.bind(**{hyperparameter: bad})


@pytest.mark.parametrize(("name", "hyperparameter"), [("dpo", "beta"), ("ipo", "tau")])
def test_traced_hyperparameters_are_bound(name, hyperparameter, random_group):
    group, values = random_group(0), np.array([0.1, 0.5, 2.0])

    def loss(value):
        return METHODS[name].bind(**{hyperparameter: value})(group)

    plain = [loss(value) for value in values]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(values), plain, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(loss)(values[1]), plain[1], rtol=1e-12)


def test_switch_is_each_loss_alone_and_under_vmap(random_group, evaluate):
    group = random_group(0, whole_space=True)

    @jax.jit
    def chosen(index):
        return value_and_weights(switch(index, LOSSES))(group)

    alone = [evaluate(method.loss, group) for method in METHODS.values()]
    mapped = jax.jit(jax.vmap(chosen))(np.arange(len(LOSSES)))
    for i, pair in enumerate(alone):
        for found, swept, expected in zip(chosen(i), mapped, pair, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
            np.testing.assert_allclose(swept[i], expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_switch_under_vmap_stays_finite_far_from_the_reference(dtype, far_apart):
    group = far_apart(dtype)
    found = jax.jit(jax.vmap(lambda i: value_and_weights(switch(i, LOSSES))(group)))(
        np.arange(len(LOSSES))
    )
    broken = ~np.isfinite(found[0]) | ~np.isfinite(found[1]).all(axis=1)
    assert [name for name, bad in zip(METHODS, broken, strict=True) if bad] == []


def test_switch_keeps_the_overflow_of_one_loss_from_the_others():
    group = make_group(np.log([0.5, 0.25]), [1e3, 0.0])
    losses = [METHODS["supervised"].bind(), METHODS["reward_weighted"].bind()]
    weights = jax.jit(jax.vmap(lambda i: response_weights(switch(i, losses), group)))(np.arange(2))
    assert not np.isfinite(weights[1]).all()
    np.testing.assert_array_equal(weights[0], [0.5, 0.5])
