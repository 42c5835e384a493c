"""The losses never mix number types by accident."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def strict_promotion():
    """float32 with float64, or an integer with a float, is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield
