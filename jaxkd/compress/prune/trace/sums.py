"""Rules of what sums over axes: convolutions, products, reductions, pooling."""

import math

import numpy as np

from jaxkd.compress.prune.trace.labels import (
    Axis,
    Equation,
    Ledger,
    Product,
    Total,
    Traced,
    constant,
)

WINDOW = "the window of a convolution"


def conv(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Sums over input channels; depthwise and grouped ones tie outputs to inputs."""
    x, kernel = values
    (x_shape, k_shape), (out_shape,) = equation.inputs, equation.outputs
    numbers = equation.params["dimension_numbers"]
    groups = equation.params["feature_group_count"]
    (batch, feature, *space), (o, i, *window) = numbers.lhs_spec, numbers.rhs_spec
    ledger.fix([x.axes[k] for k in space], equation.at("a convolution's space"))
    ledger.fix([kernel.axes[k] for k in window], WINDOW)
    x_in, outs, ins = x.axes[feature], kernel.axes[o], kernel.axes[i]
    if equation.params["batch_group_count"] != 1:
        everything = (x_in, outs, ins, x.axes[batch])
        ledger.fix(everything, equation.at("groups of the batch"))
    elif groups == 1:
        _contract(ledger, equation, (x, x_in), (kernel, ins))
    elif k_shape[i] == 1:  # depthwise, with any multiplier
        per_input = k_shape[o] // x_shape[feature]
        if x_in.labels is not None:
            ledger.tie(outs.labels, np.repeat(x_in.labels, per_input))
    else:
        _grouped(ledger, equation, groups, (x, x_in), (kernel, ins), outs)
    _made(ledger, kernel, outs)
    varying = {numbers.out_spec[1]: k_shape[o]}
    rest = math.prod(n for k, n in enumerate(out_shape) if k not in varying)
    rest *= math.prod(k_shape[k] for k in window)
    _count(ledger, rest, [(outs, k_shape[o]), (ins, k_shape[i])])
    out = list(constant(ledger, out_shape, equation.at("positions")).axes)
    out[numbers.out_spec[0]] = x.axes[batch]
    zero = outs.zero or (groups > 1 and k_shape[i] == 1 and x_in.zero)
    out[numbers.out_spec[1]] = outs._replace(zero=zero)
    return [Traced(tuple(out), learned=x.learned and kernel.learned)]


def _grouped(ledger, equation, groups, x, kernel, outs):
    """The same inputs and the same outputs go in every group."""
    (x_value, x_in), (kernel_value, ins) = x, kernel
    if x_in.labels is not None:
        rows = x_in.labels.reshape(groups, -1)
        ledger.tie(rows[:1], rows)
        x_in = Axis(rows[0], x_in.zero)
    _contract(ledger, equation, (x_value, x_in), (kernel_value, ins))
    if outs.labels is not None:
        rows = outs.labels.reshape(groups, -1)
        ledger.tie(rows[:1], rows)


def dot(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Sums over contracted axes; the others pass."""
    left, right = values
    contracted, batched = equation.params["dimension_numbers"]
    for i, j in zip(*contracted, strict=True):
        _contract(ledger, equation, (left, left.axes[i]), (right, right.axes[j]))
    axes, lengths = [], []
    for i, j in zip(*batched, strict=True):
        a, b = left.axes[i], right.axes[j]
        ledger.tie(a.labels, b.labels)
        axes.append(Axis(b.labels if a.labels is None else a.labels, a.zero or b.zero))
        lengths.append(equation.inputs[0][i])
    for side, value in enumerate(values):
        for k, axis in enumerate(value.axes):
            if k not in contracted[side] and k not in batched[side]:
                axes.append(axis)
                lengths.append(equation.inputs[side][k])
                _made(ledger, value, axis)
    summed = []
    for i, j in zip(*contracted, strict=True):
        a, b = left.axes[i], right.axes[j]
        summed.append((b if a.labels is None else a, equation.inputs[0][i]))
    _count(ledger, 1, [*zip(axes, lengths, strict=True), *summed])
    return [Traced(tuple(axes), learned=left.learned and right.learned)]


def _contract(ledger, equation, a, b):
    """A sum over one axis of two arrays, of which one is a kernel, zero if dropped."""
    (left, i), (right, j) = a, b
    ledger.tie(i.labels, j.labels)
    for value, axis in (a, b):
        if value.learned and axis.live:
            ledger.contracted.append(axis.labels)
    if not (left.learned or right.learned):
        over(ledger, (i, j), equation.at("a product of two activations sums over it"))
    elif not (i.zero or j.zero):
        ledger.fix((i, j), equation.at("a sum over what is not zero when dropped"))


def _made(ledger, kernel, axis):
    if kernel.learned and axis.live:
        ledger.makers.append(axis.labels)


def _count(ledger, rest, axes):
    live = tuple(axis.labels for axis, _ in axes if axis.live)
    rest *= math.prod(length for axis, length in axes if not axis.live)
    ledger.products.append(Product(rest * ledger.times, live))


def over(ledger: Ledger, axes, reason: str) -> None:
    """A reduction over channels: fewer of them give another result, not less of it."""
    if not ledger.allow:
        ledger.fix(axes, reason)
    elif any(axis.live for axis in axes) and reason not in ledger.inexact:
        ledger.inexact.append(reason)


def reduce(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Reduced axes go; channels among them must stay, unless allowed otherwise.

    A sum is exact where dropped channels are zero; a mean is not (see `Total`).
    """
    gone = equation.params["axes"]
    keep = lambda v: tuple(a for k, a in enumerate(v.axes) if k not in gone)
    total, reason = None, equation.at("a reduction over it")
    for value in values:
        axes = [value.axes[k] for k in gone if value.axes[k].live]
        if equation.name == "reduce_sum" and all(axis.zero for axis in axes):
            count = math.prod(equation.inputs[0][k] for k in gone)
            total = Total(axes, count, reason)
        else:
            over(ledger, axes, reason)
    learned = all(v.learned for v in values)
    out = Traced(keep(values[0]), values[0].number, learned, total)
    if equation.name in ("reduce_sum", "reduce_prod") and values[0].number != 0:
        out = out._replace(number=None)
    return [out] * len(equation.outputs)


def along(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Cumulative operations and sorting, along one axis."""
    p = equation.params
    k = p["dimension"] if equation.name == "sort" else p["axis"]
    for value in values:
        over(ledger, [value.axes[k]], equation.at("an order along it"))
    return [v._replace(number=None) for v in values][: len(equation.outputs)]


def window(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Pooling: axes with a window of one pass."""
    x, p = values[0], equation.params
    out = list(constant(ledger, equation.outputs[0], equation.at("positions")).axes)
    for k, axis in enumerate(x.axes):
        alone = (p["window_dimensions"][k], p["window_strides"][k], *p["padding"][k])
        if alone == (1, 1, 0, 0):
            out[k] = axis
        else:
            ledger.fix([axis], equation.at("pooling along it"))
    return [Traced(tuple(out), learned=x.learned)] * len(equation.outputs)
