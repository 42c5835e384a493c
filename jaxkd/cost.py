"""Parameters, bytes and multiply-accumulates of a network, without running it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import jaxpr


class Cost(NamedTuple):
    """The cost of one image.

    Attributes:
      parameters: numbers that training moves.
      macs: multiply-accumulates of convolutions and matrix products of one forward
        pass at batch size 1; FLOPs are about twice that.
      bytes: of the parameters.
    """

    parameters: int
    macs: int
    bytes: int


def of(net: Any, image_shape: tuple[int, ...]) -> Cost:
    """Return the cost of a network on one image; nothing is allocated or computed.

    Args:
      net: a `jaxkd.models.Net`, or anything with its `init` and `apply`.
      image_shape: of one image, without the batch axis.

    Returns:
      The three numbers, in inference mode.

    Example:
      >>> from jaxkd.models import mlp
      >>> of(mlp([4], classes=3), (2, 2, 1))  # 4 * 4 + 4 * 3 products, and 7 biases
      Cost(parameters=35, macs=28, bytes=140)
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params, state = jax.eval_shape(net.init, jax.random.key(0), x)
    forward = lambda params, state, x: net.apply(params, state, x, train=False)[0][0]
    return Cost(parameters(params), macs(forward, params, state, x), bytes(params))


def parameters(tree: Any) -> int:
    """Count the numbers in the arrays of a tree.

    Example:
      >>> parameters({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
      16
    """
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def bytes(tree: Any) -> int:
    """Count the bytes of the arrays of a tree.

    Example:
      >>> bytes({"kernel": jnp.ones((3, 4), jnp.bfloat16), "bias": jnp.ones(4)})
      40
    """
    return sum(
        math.prod(np.shape(leaf)) * jnp.result_type(leaf).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def macs(f: Callable[..., Any], *args: Any) -> int:
    """Count the multiply-accumulates of convolutions and matrix products.

    Counted in the traced program: exact for groups and dilation; positions in a
    convolution's padding count, as in the literature; additions, normalisation and
    activations do not. A scan's body counts `length` times; of a `cond`, the dearest
    branch; a `while` loop's length is not known, so that its body counts once.

    Args:
      f: any function that `jax.make_jaxpr` traces.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      Their number.

    Example:
      >>> macs(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))  # 2 * 3 * 4
      24
    """
    return program_macs(jaxpr.trace(f, *args))


def program_macs(program: jaxpr.Program) -> int:
    """Count the multiply-accumulates of a traced function, as `macs` does."""
    return sum(step_macs(program, step) for step in program.steps)


def step_macs(program: jaxpr.Program, step: jaxpr.Step) -> int:
    """Count the multiply-accumulates of one step of a program."""
    if step.name not in ("conv_general_dilated", "dot_general"):
        inside = [program_macs(body) for body in jaxpr.bodies(step)]
        if step.name == "cond":
            return max(inside)
        return jaxpr.times(step) * sum(inside)
    left, right = (program.shape(i) for i in step.inputs)
    results = math.prod(program.shape(step.outputs[0]))
    numbers = step.params["dimension_numbers"]
    if step.name == "dot_general":
        (contracted, _), _ = numbers
        return results * math.prod(left[i] for i in contracted)
    return results * (math.prod(right) // right[numbers.rhs_spec[0]])
