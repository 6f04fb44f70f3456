"""What all tests of closed forms share."""

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def zeros_have_logarithms():
    """Let np.log(0) be −∞ without a warning: an excluded arm."""
    with np.errstate(divide="ignore"):
        yield


@pytest.fixture
def float32():
    """Run one test in single precision, in a file whose others run in double."""
    with jax.enable_x64(False):
        yield
