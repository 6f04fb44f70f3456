"""What all tests share: float64, hypothesis' settings, the check of transformations."""

import chex
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "modeseek",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("modeseek")


AS_USED = {
    "bench", "explorer", "kernels", "losses", "sweeps",
    "test_descent.py", "test_environments.py", "test_sampling.py",
}  # fmt: skip
"""Tests of bits, of digits and of speed: folders, and files."""


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled(request):
    """Elsewhere programs run once, and most of the time would go into optimising them."""
    optimised = AS_USED & set(request.path.parts) or request.path.name.startswith("test_cli")
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64():
    """Run one test in float64; the switch is never global."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def assert_transforms():
    """Hold f under vmap, and under jit over batches that broadcast, to plain calls on rows.

    All arguments have one leading batch axis, of the same length.
    """

    def check(function, *args):
        size = len(args[0])
        first, *rest = args
        # Entry [i, j] takes row i of the first argument and row j of all others.
        calls = [
            function(first[i], *(a[j] for a in rest)) for i in range(size) for j in range(size)
        ]
        crossed = jax.tree.map(lambda *x: np.reshape(x, (size, size, *np.shape(x[0]))), *calls)
        matched = jax.tree.map(lambda x: x[np.arange(size), np.arange(size)], crossed)
        swept = jax.jit(jax.vmap(function))(*args)
        broadcast = jax.jit(function)(first[:, None], *rest)
        chex.assert_trees_all_close(swept, matched, rtol=1e-12, atol=1e-14)
        chex.assert_trees_all_close(broadcast, crossed, rtol=1e-12, atol=1e-14)

    return check
