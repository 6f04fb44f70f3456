"""Every twin gives what its plain definition gives, and the switch turns all of them off."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandits import kernels
from bandits.kernels import threefry
from bandits.kernels.lookup import look_up
from bandits.losses import reverse_kl

SCORES = jnp.array([0.3, -1.2, 0.0, 2.5])
REWARDS = jnp.array([1.0, 0.0, 1.0, 0.5])
LAW = jax.nn.log_softmax(SCORES)

EXAMPLES = {
    "bandits.training.descent.follow": (
        reverse_kl, optax.adam, False, (0, 3, 9), LAW, LAW[::-1], jnp.float32(0.1)
    ),
    "bandits.losses.pairs.mean_over_pairs": (jnp.square, SCORES, REWARDS),
    "bandits.losses.pairs.sum_over_pairs": (jnp.square, SCORES, jnp.eye(4, k=1) / 3),
    "bandits.losses.responses.label": (REWARDS, jnp.float32(0.6)),
    "bandits.policies.sampling.find_arms": (
        jnp.array([2, 2, 5, 9], jnp.uint32), jnp.array([0, 2, 4, 5, 8], jnp.uint32)
    ),
    "bandits.policies.sampling.running_sum": (jnp.array([2, 0, 3, 4], jnp.uint32),),
}  # fmt: skip


def definition(name):
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("name", kernels.TWINS)
def test_a_twin_gives_what_its_plain_definition_gives(name):
    either, arguments = definition(name), EXAMPLES[name]
    np.testing.assert_allclose(either(*arguments), either.plain(*arguments), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", kernels.TWINS)
def test_switched_off_only_the_plain_definition_is_called(name, monkeypatch):
    called = []
    module, twin = kernels.TWINS[name].split(".")
    monkeypatch.setattr(f"bandits.kernels.{module}.{twin}", lambda *_, **__: called.append(name))
    with kernels.off():
        definition(name)(*EXAMPLES[name])
    assert not called
    definition(name)(*EXAMPLES[name])
    assert called == [name]


def test_the_environment_turns_kernels_off(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert not kernels.are_on()


def test_random_numbers_and_lookups_do_not_depend_on_the_switch():
    def drawn():
        key = jax.random.key(7)
        return (
            threefry.bits(key, (5,)),
            jax.random.key_data(threefry.split(key, 3)),
            jax.random.key_data(threefry.fold_in(key, 4)),
            look_up(SCORES, jnp.array([3, 0, 9])),
        )

    with kernels.off():
        plain = drawn()
    for one, other in zip(drawn(), plain, strict=True):
        np.testing.assert_array_equal(one, other)
