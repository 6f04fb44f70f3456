"""Where network policies start: near the reference, each seed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.policies import pretraining
from bandits.problems.environments import tanh_cauchy_reference
from theory.distributions import kl_divergence

SEEDS = jnp.array([5, 0, 3])
SIZES = {"context_size": 4, "training_contexts": 70, "fresh_contexts": 4}


@pytest.fixture(scope="module")
def network():
    return pretraining.published_network(100, 4)


@pytest.fixture(scope="module")
def starts(network):
    return pretraining.make_starts(network, SEEDS, tanh_cauchy_reference(), **SIZES)


def test_the_network_is_the_same_object_for_equal_sizes(network):
    assert network is pretraining.published_network(100, 4)
    assert network is not pretraining.published_network(100, 5)


def test_every_seed_has_contexts_of_its_own_uniform_in_the_unit_cube(starts):
    assert starts.contexts.shape == (3, 70, 4)
    assert starts.fresh.shape == (3, 4, 4)
    rows = np.concatenate([starts.contexts, starts.fresh], axis=1).reshape(-1, 4)
    assert len(np.unique(rows, axis=0)) == 3 * 74
    assert rows.min() >= 0
    assert rows.max() <= 1
    assert rows.mean() == pytest.approx(0.5, abs=0.05)


def test_every_network_is_near_the_reference_on_contexts_that_it_has_not_seen(network, starts):
    log_probs = jax.vmap(jax.vmap(network.log_probs, (None, 0)))(starts.params, starts.fresh)
    divergences = kl_divergence(log_probs, tanh_cauchy_reference())
    assert (divergences < 0.05).all()
    assert len(np.unique(divergences)) == divergences.size


def test_a_seed_alone_starts_where_it_does_beside_others(network, starts):
    alone = pretraining.make_starts(network, SEEDS[2:], tanh_cauchy_reference(), **SIZES)
    for one, among in zip(jax.tree.leaves(alone), jax.tree.leaves(starts), strict=True):
        np.testing.assert_allclose(one[0], among[2], rtol=1e-3, atol=1e-4)


def test_the_command_and_python_start_from_the_same_networks(do):
    # A store that one began is refused to the other where they differ in a bit.
    code = (
        "import jax, jax.numpy as jnp, numpy as np\n"
        "from bandits import cli\n"
        "from bandits.policies import pretraining\n"
        "if {}: cli._prepare()\n"
        "reference = jax.nn.log_softmax(jnp.arange(20.0) / 7)\n"
        "network = pretraining.published_network(20, 4)\n"
        "sizes = dict(context_size=4, training_contexts=70, fresh_contexts=4)\n"
        "made = pretraining.make_starts(network, jnp.arange(2), reference, **sizes)\n"
        "print([np.asarray(leaf).tobytes().hex()[:80] for leaf in jax.tree.leaves(made)])"
    )
    (_, by_command, _), (_, in_python, _) = (do(code.format(how)) for how in (True, False))
    assert by_command == in_python != ""
