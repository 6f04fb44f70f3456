import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.policies import context_network, distill
from theory import distributions

KEY = jax.random.key(20240414)
POLICY = context_network(4, 3, widths=(8, 16))
REFERENCE = np.log(np.float32([0.1, 0.2, 0.3, 0.4]))
CONTEXTS = jax.random.uniform(jax.random.key(1), (10, 3))

moved = jax.jit(
    lambda params, learning_rate=1e-2: distill(
        POLICY, params, CONTEXTS, REFERENCE, learning_rate=learning_rate
    )
)


def mean_divergence(params):
    log_probs = jax.vmap(POLICY.log_probs, (None, 0))(params, CONTEXTS)
    return distributions.kl_divergence(log_probs, REFERENCE).mean()


@pytest.mark.parametrize("seed", range(3))
def test_distilling_brings_the_policy_to_the_reference(seed):
    params = POLICY.init(key=jax.random.key(seed))
    assert mean_divergence(params) > 1e-2
    assert mean_divergence(moved(params)) < 1e-3


def test_a_policy_at_the_reference_stays_there():
    assert mean_divergence(moved(POLICY.init(REFERENCE, KEY))) < 1e-4


def test_learning_rate_zero_moves_nothing():
    params = POLICY.init(key=KEY)
    for found, expected in zip(
        jax.tree.leaves(moved(params, 0.0)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_distilling_runs_under_vmap_over_seeds():
    keys = jax.random.split(KEY, 2)
    starts = [POLICY.init(key=key) for key in keys]
    together = jax.vmap(moved)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    for i, start in enumerate(starts):
        alone = jax.vmap(POLICY.log_probs, (None, 0))(moved(start), CONTEXTS)
        swept = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        found = jax.vmap(POLICY.log_probs, (None, 0))(swept, CONTEXTS)
        np.testing.assert_allclose(found, alone, atol=1e-4)
