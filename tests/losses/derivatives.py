"""Second derivatives against finite differences, compiled once.

`jax.test_util.check_grads` asks the same, and compiles every derivative by itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

MODES = ("rev rev", "fwd rev", "rev fwd", "fwd fwd")


def assert_two_derivatives(
    f: Callable[..., Any],
    *point: Any,
    modes: tuple[str, ...] = MODES,
    tolerance: float = 1e-5,
) -> None:
    """The Hessian times a direction, differentiated by each pair of modes."""
    x, unravel = ravel_pytree(point)
    v = np.random.default_rng(0).normal(size=x.shape)
    step = 1e-5

    def derivatives(x):
        value = lambda x: f(*unravel(x))
        gradient = jax.grad(value)
        along = lambda x: jax.jvp(value, (x,), (v,))[1]
        of = {
            "rev rev": lambda: jax.grad(lambda x: gradient(x) @ v)(x),
            "fwd rev": lambda: jax.jvp(gradient, (x,), (v,))[1],
            "rev fwd": lambda: jax.grad(along)(x),
            "fwd fwd": lambda: jax.jvp(along, (x,), (v,))[1],
        }
        return gradient(x), {mode: of[mode]() for mode in modes}

    compiled = jax.jit(
        derivatives, compiler_options={"xla_backend_optimization_level": 0}
    )
    want = (compiled(x + step * v)[0] - compiled(x - step * v)[0]) / (2 * step)
    for mode, got in compiled(x)[1].items():
        expected = v @ want if mode == "fwd fwd" else want
        np.testing.assert_allclose(
            got, expected, rtol=tolerance, atol=tolerance, err_msg=mode
        )
