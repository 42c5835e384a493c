"""From any inference function to a plain program that runtimes and emitters know.

What training needs is taken out: custom gradients, checkpointed blocks and nested jits
are written in place, BatchNorm's constants are computed, what only scales and shifts
channels after a convolution moves into its kernel and one bias, and what the result
does not depend on is left out. For runtimes other than XLA, loops are written out,
transposed convolutions become convolutions, and views of many axes views of few.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _check, jaxpr
from jaxkd.export import fold, operands, tiles, views
from jaxkd.export.channels import Widened, channelwise, value, within
from jaxkd.export.loops import unrolled
from jaxkd.models.net import naming_images

Function = Callable[[Array], Array]
NOTHING = ("stop_gradient", "copy", "copy_p", "name", "optimization_barrier")


class _Seen(NamedTuple):
    """What is known of values on the way, by their id.

    Attributes:
      before: of a reshaped value, what it was before, and the value itself.
      marks: of a marked value, its `views.Mark`.
      target: "xla", "litert" or "onnx".
      exact: whether arrays that meet quantized values stay in float.
      folded: operands and results of constant equations, by the ids of equation and
        operands: each step of a loop has the same constants.
    """

    before: dict[int, tuple[Any, Any]]
    marks: dict[int, views.Mark]
    target: str
    exact: bool
    folded: dict[tuple, tuple[list, list]]


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of positive integers."""
    shape = tuple(image_shape)
    for size in shape:
        _check.whole(1)("image_shape", size)
    return shape


def image(image_shape: Sequence[int], batch: int | None) -> jax.ShapeDtypeStruct:
    """Images without values; `batch=None` is any number of them."""
    shape = check_image_shape(image_shape)
    if batch is not None:
        _check.whole(1)("batch", batch)
    first = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    return jax.ShapeDtypeStruct((first, *shape), jnp.float32)


def trace(
    f: Function,
    image_shape: Sequence[int],
    batch: int | None,
    *,
    target: str = "onnx",
    exact: bool = False,
) -> Any:
    """Return the plain program of `f` as a closed jaxpr of images to logits.

    Args:
      f: images to logits, its parameters closed over.
      image_shape: of one image.
      batch: how many images; None for any number.
      target: see `plain`.
      exact: see `plain`.

    Raises:
      ValueError: if `f` does not take images of this shape, if it cannot take any
        number of images and `batch` is None, or if it does not return one array
        `[batch, ...]`.
    """
    x = image(image_shape, batch)
    try:
        one = jax.ShapeDtypeStruct((batch or 1, *x.shape[1:]), x.dtype)
        with naming_images(f, one):
            closed = jax.make_jaxpr(plain(f, target=target, exact=exact))(x)
    except Exception as error:
        symbolic = "_DimExpr" in str(error) or "symbolic dim" in str(error).lower()
        if batch is None and (symbolic or "Inconclusive" in type(error).__name__):
            raise ValueError(
                f"the network needs to know how many images there are ({error}): pass "
                "batch=1"
            ) from error
        raise
    out = closed.out_avals
    if len(out) != 1 or not out[0].shape or out[0].shape[0] != x.shape[0]:
        raise ValueError(f"f must return logits [batch, classes], got {out}")
    return closed


@contextlib.contextmanager
def without_locations() -> Iterator[None]:
    """Operations are located by their modules alone, not by lines of code.

    The file is then the same whoever calls, and a converter's error names the module.
    """
    limit = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, limit)
    jax.config.update(limit, 0)
    try:
        yield
    finally:
        jax.config.update(limit, before)


def call(closed: Any, x: Array) -> Array:
    """Run a plain program, e.g. to export it."""
    return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x)[0]


def plain(f: Function, *, target: str = "onnx", exact: bool = False) -> Function:
    """Return the same function, traced anew as a plain program.

    Calls marked for quantization (`jax.lax.composite`) stay as they are.

    Args:
      f: images to logits, its parameters closed over.
      target: the runtime, "xla", "litert" or "onnx". For others than XLA loops,
        transposed convolutions and views of many axes are written out.
      exact: keep constant arrays that meet quantized values in float. If not, they are
        rounded to 8 bits, so that sums and products with them are of integers.

    Returns:
      A function equal to `f` up to rounding.
    """

    def g(x: Array) -> Array:
        closed = jax.make_jaxpr(f)(jax.ShapeDtypeStruct(x.shape, x.dtype))
        if len(closed.out_avals) != 1:
            raise ValueError(f"f must return logits alone, got {closed.out_avals}")
        seen = _Seen({}, {}, target, exact, {})
        return value(_run(_flat(closed), [x], seen, "")[0])

    return g


def _flat(closed: Any) -> jaxpr.Program:
    """List the steps of a traced function; a maximum over tiles stays one step."""
    return jaxpr.flatten(closed, lambda *call: tiles.tile_window(*call) is None)


def _run(program: jaxpr.Program, args: Sequence[Any], seen: _Seen, scope: str) -> list:
    """Evaluate a program; `scope` is the module that it is called in."""
    steps = jaxpr.needed(program)  # without random keys of initialisers
    read = [i for step in steps for i in step.inputs] + program.outputs
    uses = Counter(read)
    # Used twice, a value is computed here, once, and not deferred any further.
    once = lambda i, x: x if uses[i] == 1 else value(x)
    constants = program.constants
    known = {i: fold.constant(constants[i]) for i in uses if i in constants}
    known |= {i: once(i, arg) for i, arg in zip(program.inputs, args, strict=True)}
    for step in steps:
        here = jaxpr.place("/".join(filter(None, (scope, step.scope))), step)
        outs = _step(step, [known[i] for i in step.inputs], seen, here)
        for i, out in zip(step.outputs, outs, strict=True):
            known[i] = once(i, out)
    return [known[i] for i in program.outputs]


def _step(step: jaxpr.Step, values: list, seen: _Seen, scope: str) -> list:
    name, params, equation = step.name, step.params, step.equation
    if name in jaxpr.CALLS and (window := tiles.tile_window(name, *jaxpr.bodies(step))):
        tile, whole = values[0], None
        if isinstance(tile, views.Viewed):
            whole = tile.base
        elif id(tile) in seen.before:
            whole = seen.before[id(tile)][0]
        with within(scope):
            return [tiles.tile_max(tile, window, whole)]
    if name in NOTHING:
        return values
    if name == "select_n" and fold.is_uniform(values[0]):
        # What is never chosen is not written: `jnp.var` has a NaN for no numbers.
        return [values[1 + int(values[0].flat[0])]]
    if name == "scan" and seen.target != "xla":
        loop = jaxpr.scan(params)
        inner = _flat(loop.body)
        body = lambda args, i: _run(inner, args, seen, scope)
        return unrolled(loop, values, body, scope)
    if name == "reduce_sum" and isinstance(values[0], Widened):
        wide = values[0].narrow.astype(equation.outvars[0].aval.dtype)
        return [wide.sum(params["axes"], dtype=wide.dtype)]
    if fold.folds(equation, values):
        key = (id(equation), *map(id, values))
        if key not in seen.folded:
            seen.folded[key] = (values, fold.evaluate(equation, values))
        return list(seen.folded[key][1])
    if name == "convert_element_type" and fold.is_constant(values[0]):
        return [Widened(values[0], params)]
    if seen.target != "xla":
        rewritten = views.rewritten(equation, values, seen.marks, scope)
        if rewritten is not None:
            return [rewritten]
    moved = channelwise(equation, values, scope)
    if moved is not None:
        return [moved]
    values = [value(v) for v in values]
    with within(scope):
        return _bound(equation, values, seen)


def _bound(equation: Any, values: list, seen: _Seen) -> list:
    """Return the results of an equation as it is, all that it reads being computed."""
    name, params = equation.primitive.name, equation.params
    if name == "gather" and (cut := tiles.slice_of(params, values)) is not None:
        return [cut]
    if name == "reshape" and seen.before.get(id(values[0]), (None,))[0] is not None:
        values[0] = seen.before[id(values[0])][0]
    found = operands.with_grids(equation, values, seen.marks, exact=seen.exact)
    if seen.target != "xla" and found is not None:
        primitive, both = found
        return [primitive.bind(*both)]
    if name == "reduce_window_sum" and seen.target == "litert":
        wide = operands.padded_first(equation, values[0], seen.marks)
        if wide is not None:
            return [wide]
    outs = equation.primitive.bind(*values, **params)
    if name == "reshape":  # kept with the result, whose id is then not used again
        seen.before[id(outs)] = (values[0], outs)
    if name == "composite":
        views.remember(seen.marks, equation, values[-1], outs)
    return list(outs) if equation.primitive.multiple_results else [outs]
