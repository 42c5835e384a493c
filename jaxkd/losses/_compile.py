"""What turns the text of a loss into the public function: check, widen, compile."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jaxkd import _check
from jaxkd._check import Range

# Arguments that hold classes of the logits, which are the first argument.
OF_CLASSES = {"labels", "samples", "teacher_top_indices"}

P = ParamSpec("P")
R = TypeVar("R")


def _widen(x: Any) -> Any:
    """Half precision becomes float32, because sums over classes need the digits.

    A Python number becomes a float, so that 4 and 4.0 share one compiled program.
    """
    if isinstance(x, int | float) and not isinstance(x, bool):
        return float(x)
    if x is not None and jnp.result_type(x) in (jnp.bfloat16, jnp.float16):
        return jnp.asarray(x, jnp.float32)
    return x


def compiled(
    *, static: tuple[str, ...] = (), **ranges: Range
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a loss run compiled when it is called eagerly, and inline when traced.

    Knobs and labels are checked here, before tracing, because inside `jit` their values
    are not known; what the caller traces himself passes unchecked. Knobs are arguments
    of the compiled program, so that another temperature does not compile again.

    Args:
      static: knobs that choose the program (a variant, a chunk size); it is compiled
        once for each of their values.
      **ranges: for a knob, the check of its value, from `jaxkd._check`.
    """

    def decorate(loss: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(loss).parameters
        defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not parameter.empty
        }
        logits, of_classes = next(iter(parameters)), OF_CLASSES & parameters.keys()
        program = jax.jit(loss, static_argnames=static, inline=True)

        @functools.wraps(loss)
        def public(*args: P.args, **kwargs: P.kwargs) -> R:
            knobs = {**defaults, **kwargs}
            for name, check in ranges.items():
                check(name, knobs[name])
            for name in knobs.keys() - set(static):
                knobs[name] = jax.tree.map(_widen, knobs[name])
            result = program(*map(_widen, args), **knobs)
            given: dict[str, Any] = {
                **dict(zip(parameters, args, strict=False)),
                **knobs,
            }
            for name in of_classes:  # after the shapes, which the program checks
                count = jnp.shape(given[logits])[-1]
                _check.classes(name, given[name], count, given["where"])
            return result

        return public

    return decorate
