"""The numbers and keys are JAX's own, without JAX's loops where they are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.kernels import threefry

KEY = jax.random.key(20261121)

OURS = {
    "bits": lambda key: threefry.bits(key, (3, 5)),
    "one number": lambda key: threefry.bits(key, ()),
    "none": lambda key: threefry.bits(key, (0,)),
    "keys": lambda key: threefry.split(key, 4),
    "a pair of keys": lambda key: threefry.split(key),
    "a key": lambda key: threefry.fold_in(key, 2**31 + 5),
}
THEIRS = {
    "bits": lambda key: jax.random.bits(key, (3, 5), "uint32"),
    "one number": lambda key: jax.random.bits(key, (), "uint32"),
    "none": lambda key: jax.random.bits(key, (0,), "uint32"),
    "keys": lambda key: jax.random.split(key, 4),
    "a pair of keys": lambda key: jax.random.split(key),
    "a key": lambda key: jax.random.fold_in(key, 2**31 + 5),
}
KEYS = {
    "default": KEY,
    "raw": jax.random.PRNGKey(5),
    "rbg": jax.random.key(3, impl="rbg"),
}


def words(values):
    is_key = jnp.issubdtype(values.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(values) if is_key else values)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize("what", OURS)
def test_numbers_and_keys_are_those_of_jax_and_of_the_same_type(what, key):
    ours, theirs = OURS[what](key), THEIRS[what](key)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(words(ours), words(theirs))


@pytest.mark.parametrize("what", OURS)
def test_they_are_also_under_vmap_and_with_64_bits(what):
    keys = jax.random.split(KEY, (2, 3))
    found, expected = (jax.vmap(jax.vmap(draw[what]))(keys) for draw in (OURS, THEIRS))
    np.testing.assert_array_equal(words(found), words(expected))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(words(OURS[what](KEY)), words(THEIRS[what](KEY)))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_every_key_folds_every_number_as_in_jax(first, second, data):
    key = jax.random.wrap_key_data(jnp.array([first, second], jnp.uint32))
    ours, theirs = (f(key, jnp.uint32(data)) for f in (threefry.fold_in, jax.random.fold_in))
    np.testing.assert_array_equal(words(ours), words(theirs))


@pytest.mark.parametrize("what", OURS)
def test_the_generator_of_jax_is_called_for_keys_of_others_only(what):
    names = ("random_bits", "random_split", "random_fold_in")
    calls = [str(jax.make_jaxpr(OURS[what])(key)) for key in KEYS.values()]
    assert [any(name in call for name in names) for call in calls] == [False, True, True]


@pytest.mark.parametrize("what", OURS)
def test_where_jax_is_set_to_other_counters_the_numbers_stay_its_own(what):
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(words(OURS[what](KEY)), words(THEIRS[what](KEY)))


def test_a_row_of_keys_is_refused_as_in_jax():
    with pytest.raises(ValueError, match="single key"):
        threefry.bits(jax.random.split(KEY), (3,))
