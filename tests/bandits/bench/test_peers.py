from dataclasses import replace

import jax
import numpy as np
import pytest

from bandits.bench import peers
from bandits.bench.peers import Sizes
from bandits.bench.updates import (
    PeerDisagrees,
    descent,
    exact_start,
    exact_target,
    far,
    require_same,
    require_same_in_mean,
    training,
)

EXACT = Sizes(runs=4, num_arms=10, steps=20).in_every_lane()
SAMPLED = Sizes(runs=64, num_arms=10, steps=20, minibatch=20, group=5).in_every_lane()
BANDIT = far(10)
"""Of few arms, so that sampled policies move far in 20 steps, and differences would show."""
BOTH = np.asarray(exact_start(EXACT)), np.asarray(exact_target(EXACT))
ARRAYS = np.asarray(BANDIT.reward), np.asarray(BANDIT.reference_log_probs)

METHODS = pytest.mark.parametrize("method", ["reinforce", "best_of_n"])
LOSSES = pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl"])


@pytest.fixture(scope="module")
def ours():
    return {method: training(method, SAMPLED)() for method in ("reinforce", "best_of_n")}


def numpy_sampled(method, sizes):
    return peers.numpy_sampled(method, np.random.default_rng(0), *ARRAYS, sizes)


@LOSSES
def test_exact_peers_end_where_descend_does(loss):
    ours = descent(loss, EXACT)()
    require_same("NumPy", peers.numpy_exact(loss, *BOTH, EXACT), ours)
    torch = pytest.importorskip("torch")
    tensors = map(torch.tensor, BOTH)
    require_same("PyTorch", peers.torch_exact(torch, loss, *tensors, EXACT), ours)


def test_an_exact_peer_with_a_step_less_is_refused():
    short = peers.numpy_exact("reverse_kl", *BOTH, replace(EXACT, steps=EXACT.steps - 1))
    with pytest.raises(PeerDisagrees, match="NumPy ends"):
        require_same("NumPy", short, descent("reverse_kl", EXACT)())


# Six standard errors of 64 independent runs: chance exceeds them once in 10^8 tries, and the seeds
# are fixed. The next test shows that half the learning rate is seen.
@METHODS
def test_sampled_peers_end_where_train_does_on_average(method, ours):
    keys = jax.random.split(jax.random.key(0), SAMPLED.runs)
    theirs = {
        "NumPy": numpy_sampled(method, SAMPLED),
        "obvious": peers.obvious_sampled(method, SAMPLED)(keys, BANDIT),
    }
    torch = peers.find_torch()
    if torch is not None:
        torch.manual_seed(0)
        tensors = [torch.tensor(array) for array in ARRAYS]
        for name, draw in peers.torch_draws(torch).items():
            theirs[name] = peers.torch_sampled(torch, method, draw, *tensors, SAMPLED)
    for name, log_probs in theirs.items():
        require_same_in_mean(name, log_probs, ours[method], BANDIT)


@METHODS
def test_a_sampled_peer_that_learns_slower_is_refused(method, ours):
    slower = replace(SAMPLED, learning_rate=0.5)
    with pytest.raises(PeerDisagrees, match="mean reward"):
        require_same_in_mean("NumPy", numpy_sampled(method, slower), ours[method], BANDIT)


def test_numpy_draws_arms_as_often_as_their_probabilities_say():
    p = np.array([[0.0, 0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    rows = np.array([[0], [5]])
    arms = peers._numpy_draw(np.random.default_rng(0), p, rows, 40_000)
    shares = np.bincount(arms.ravel(), minlength=10).reshape(2, 5) / 40_000
    # A share of 40,000 draws has a standard error of at most 0.0025.
    np.testing.assert_allclose(shares, p, atol=0.0125)
    assert not shares[p == 0].any()
