"""Small runs of whole experiments: nearly all of their time is compiling."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quickly_compiled():
    """Programs that are used once are not worth optimising; the tests of sweeps do optimise."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
