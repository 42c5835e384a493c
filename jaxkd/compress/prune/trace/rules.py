"""What each primitive does to labels: `(ledger, equation, values) -> results`.

A rule passes labels on, ties those that must go together, or says why they must stay.
What has no rule here keeps the channels that enter it whole.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from jaxkd.compress.prune.trace.labels import (
    Axis,
    Equation,
    Ledger,
    Traced,
    constant,
)
from jaxkd.compress.prune.trace.sums import along, conv, dot, over, reduce, window

Rule = Callable[[Ledger, Equation, list[Traced]], list[Traced]]

# f(0) = 0: a dropped index stays zero.
THROUGH_ZERO = (
    {"neg", "sign", "abs", "floor", "ceil", "round", "sqrt", "cbrt", "sin", "tan"}
    | {"tanh", "sinh", "asin", "atan", "asinh", "atanh", "erf", "expm1", "log1p"}
    | {"square", "integer_pow", "convert_element_type", "stop_gradient", "copy"}
    | {"copy_p", "real", "imag", "reduce_precision", "mul", "and", "div"}
)
# f(0, 0, ...) = 0.
SUMS = {"add", "sub", "max", "min", "add_any", "or", "xor", "rem"}
OTHERS = (
    {"clamp", "select_n", "pow", "exp", "exp2", "log", "logistic", "rsqrt", "cos"}
    | {"cosh", "acos", "acosh", "erfc", "erf_inv", "lgamma", "digamma", "is_finite"}
    | {"not", "eq", "ne", "lt", "le", "gt", "ge", "nextafter", "atan2", "shift_left"}
    | {"shift_right_logical", "shift_right_arithmetic", "population_count"}
)
POLES = {"log", "rsqrt", "lgamma", "digamma", "acosh"}  # not finite at zero
SAME_NUMBER = {"convert_element_type", "stop_gradient", "copy", "reduce_precision"}


def elementwise(
    ledger: Ledger, equation: Equation, values: list[Traced]
) -> list[Traced]:
    """Operands share their labels; scalars and uniform axes ask for nothing."""
    shape, name = equation.outputs[0], equation.name
    full = [v for v in values if len(v.axes) == len(shape)]
    axes = []
    for k, length in enumerate(shape):
        labels = [
            v.axes[k].labels
            for v, s in zip(values, equation.inputs, strict=True)
            if len(s) == len(shape) and s[k] == length and v.axes[k].labels is not None
        ]
        for other in labels[1:]:
            ledger.tie(labels[0], other)
        if labels and _infinite(equation, k, values):
            ledger.fix([Axis(labels[0])], equation.at("not finite where it is zero"))
        zero = _zero(equation, k, values)
        axes.append(Axis(labels[0], zero) if labels else Axis())
    total = values[0].total
    if name == "div" and total is not None and values[1].number == total.terms:
        over(ledger, total.axes, total.reason)
    number = full[0].number if name in SAME_NUMBER and full else None
    out = Traced(tuple(axes), number, all(v.learned for v in values))
    return [out] * len(equation.outputs)


def _zeros(k: int, values: list[Traced]) -> list[bool]:
    """Of each operand, whether dropped indices of axis k are zero."""
    return [v.number == 0 or (k < len(v.axes) and v.axes[k].zero) for v in values]


def _infinite(equation: Equation, k: int, values: list[Traced]) -> bool:
    """Return whether dropped indices of axis k are infinite or NaN in the result."""
    zero, name = _zeros(k, values), equation.name
    if name == "div":
        return zero[1]
    if name == "integer_pow":
        return zero[0] and equation.params["y"] < 0
    if name == "pow":
        return zero[0] and (values[1].number or 0) < 0
    return zero[0] and name in POLES


def _zero(equation: Equation, k: int, values: list[Traced]) -> bool:
    """Return whether dropped indices of axis k are zero in the result."""
    zero, name = _zeros(k, values), equation.name
    if name in ("mul", "and"):
        return any(zero)
    if name == "div":
        return zero[0] and not zero[1]
    if name in ("max", "min"):  # of zero and a constant on its other side: relu6
        sign = 1 if name == "min" else -1
        harmless = lambda v: v.number is not None and sign * v.number >= 0
        return any(zero) and all(
            z or harmless(v) for z, v in zip(zero, values, strict=True)
        )
    if name == "select_n":
        return all(zero[1:])
    if name == "clamp":
        low, _, high = (v.number for v in values)
        return zero[1] and low is not None and high is not None and low <= 0 <= high
    if name == "integer_pow":
        return zero[0] and equation.params["y"] > 0
    if name in SUMS:
        return all(zero)
    return name in THROUGH_ZERO and zero[0]


def reshape(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Axes that merge or split; see `_regroup`."""
    (x,), (before,), (after,) = values, equation.inputs, equation.outputs
    axes = [Axis()] * len(after)
    for source, target in _segments(before, after):
        pairs = [(x.axes[k], before[k]) for k in source]
        lengths = [after[k] for k in target]
        for k, axis in zip(
            target, _regroup(ledger, equation, pairs, lengths), strict=True
        ):
            axes[k] = axis
    return [x._replace(axes=tuple(axes))]


def _segments(before, after):
    """The shortest runs of axes, those of length 1 left out, with equal products."""
    left = [k for k, n in enumerate(before) if n != 1]
    right = [k for k, n in enumerate(after) if n != 1]
    while left or right:
        source, target = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[k] for k in source)) != (
            b := math.prod(after[k] for k in target)
        ):
            if a < b:
                source.append(left.pop(0))
            else:
                target.append(right.pop(0))
        yield source, target


def _regroup(ledger, equation, axes, lengths) -> list[Axis]:
    """Return the axes of a run of axes after a reshape to `lengths`.

    One live axis may merge with others: its labels are then repeated. If it splits, all
    but one of the parts repeat it, or it is cut into sections: of eight channels that
    become (2, 4), the channels 0 to 3 go together and 4 to 7, or, with `ledger.equal`,
    0 with 4, 1 with 5 and so on.
    """
    if len(axes) == len(lengths) == 1:
        return [axes[0][0]]
    live = [axis for axis, _ in axes if axis.live]
    zero = all(axis.zero for axis in live)
    if not live and all(axis.labels is None for axis, _ in axes):
        return [Axis()] * len(lengths)
    stuck = ledger.stay(equation.at("positions"))
    if len(live) != 1:
        ledger.fix(live, equation.at("two kinds of channels merge"))
        return [Axis(np.full(n, stuck)) for n in lengths]
    shape = [n for _, n in axes]
    k = next(k for k, (axis, _) in enumerate(axes) if axis.live)
    spread = live[0].labels.reshape([-1 if i == k else 1 for i in range(len(shape))])
    flat = np.broadcast_to(spread, shape).reshape(lengths)
    return _split(ledger, equation, flat, zero, stuck)


def _split(ledger, equation, labels, zero, stuck) -> list[Axis]:
    """Return the axes of an array of labels that may vary along one of them only."""
    lengths = labels.shape
    for k in reversed(range(len(lengths))):
        first = labels[tuple(slice(None) if i == k else 0 for i in range(len(lengths)))]
        spread = first.reshape([-1 if i == k else 1 for i in range(len(lengths))])
        if (labels == spread).all():
            break
    else:  # no part repeats: channels that are cut into sections
        if ledger.equal:  # each section loses the same
            k, sections = len(lengths) - 1, labels.reshape(-1, lengths[-1])
        else:  # a section goes whole
            k, sections = 0, labels.reshape(lengths[0], -1).T
        first = sections[0]
        ledger.tie(first, sections)
    out = [Axis(np.full(n, stuck)) for n in lengths]
    out[k] = Axis(first, zero)
    return out


def broadcast_in_dim(
    ledger: Ledger, equation: Equation, values: list[Traced]
) -> list[Traced]:
    """New axes are uniform."""
    x = values[0]
    axes = [Axis()] * len(equation.outputs[0])
    for k, d in enumerate(equation.params["broadcast_dimensions"]):
        if equation.inputs[0][k] == equation.outputs[0][d]:
            axes[d] = x.axes[k]
    return [x._replace(axes=tuple(axes))]


def transpose(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Axes in another order."""
    x = values[0]
    return [x._replace(axes=tuple(x.axes[k] for k in equation.params["permutation"]))]


def squeeze(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Axes of length one go."""
    gone = equation.params["dimensions"]
    axes = tuple(a for k, a in enumerate(values[0].axes) if k not in gone)
    return [values[0]._replace(axes=axes)]


def rev(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Axes turned round."""
    x, turned = values[0], equation.params["dimensions"]
    flip = lambda a: a if a.labels is None else a._replace(labels=a.labels[::-1])
    axes = [flip(a) if k in turned else a for k, a in enumerate(x.axes)]
    return [x._replace(axes=tuple(axes))]


def tile(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Each axis is repeated as a whole, `reps` times."""
    again = lambda a, n: a if a.labels is None else Axis(np.tile(a.labels, n), a.zero)
    pairs = zip(values[0].axes, equation.params["reps"], strict=True)
    return [values[0]._replace(axes=tuple(again(a, n) for a, n in pairs))]


def concatenate(
    ledger: Ledger, equation: Equation, values: list[Traced]
) -> list[Traced]:
    """Labels one behind the other."""
    d = equation.params["dimension"]
    axes = []
    for k in range(len(equation.outputs[0])):
        each = [v.axes[k] for v in values]
        if k == d:
            joined = [
                ledger.solid(a, s[d], equation.at("a constant beside it"))
                for a, s in zip(each, equation.inputs, strict=True)
            ]
            axes.append(Axis(np.concatenate(joined), all(a.zero for a in each)))
            continue
        known = [a.labels for a in each if a.labels is not None]
        for other in known[1:]:
            ledger.tie(known[0], other)
        zero = all(a.zero for a in each)
        axes.append(Axis(known[0], zero) if known else Axis())
    return [Traced(tuple(axes), learned=all(v.learned for v in values))]


def slice_(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """A part of an axis is cut out; of channels only equal sections, if allowed."""
    x, p = values[0], equation.params
    steps = p["strides"] or (1,) * len(x.axes)
    cut = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    axes = tuple(
        _part(ledger, equation, axis, slice(*bounds))
        for axis, bounds in zip(x.axes, cut, strict=True)
    )
    return [x._replace(axes=axes)]


def _part(ledger, equation, axis, part: slice) -> Axis:
    if axis.labels is None:
        return axis
    if not axis.live:
        return axis._replace(labels=axis.labels[part])
    total, length = len(axis.labels), part.stop - part.start
    if length == total and part.step == 1:
        return axis
    sections = total % length == 0 and part.start % length == 0 and part.step == 1
    if ledger.equal and sections:
        rows = axis.labels.reshape(-1, length)
        ledger.tie(rows[:1], rows)
    else:
        ledger.fix([axis], equation.at("a part of it is cut out"))
    return axis._replace(labels=axis.labels[part])


def split(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Slices one behind the other."""
    x, d = values[0], equation.params["axis"]
    ends = np.cumsum([0, *equation.params["sizes"]])
    out = []
    for start, stop in itertools.pairwise(ends):
        axes = list(x.axes)
        part = slice(int(start), int(stop), 1)
        axes[d] = _part(ledger, equation, axes[d], part)
        out.append(x._replace(axes=tuple(axes)))
    return out


def pad(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """What is put around channels stays; the channels themselves are free."""
    x, value = values
    axes = []
    for axis, n, (low, high, inner) in zip(
        x.axes, equation.inputs[0], equation.params["padding_config"], strict=True
    ):
        if low == high == inner == 0:
            axes.append(axis)
        elif inner or low < 0 or high < 0:
            ledger.fix([axis], equation.at("padding inside or cropping"))
            length = equation.outputs[0][len(axes)]
            axes.append(Axis(np.full(length, ledger.stay(equation.at("padding")))))
        else:
            why = ledger.stay(equation.at("what is padded beside it stays"))
            labels = ledger.solid(axis, n, equation.at("padding"))
            labels = np.pad(labels, (low, high), constant_values=why)
            axes.append(Axis(labels, axis.zero))
    learned = x.learned and value.learned
    return [Traced(tuple(axes), learned=learned)]


def gather(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Axes that are taken whole pass; those that are indexed must stay."""
    x, indices = values
    numbers = equation.params["dimension_numbers"]
    sizes = equation.params["slice_sizes"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    out = list(constant(ledger, equation.outputs[0], equation.at("positions")).axes)
    passing = [
        k
        for k in range(len(x.axes))
        if k not in numbers.collapsed_slice_dims and k not in batching
    ]
    for k, axis in enumerate(x.axes):
        if k in passing and sizes[k] == equation.inputs[0][k]:
            out[numbers.offset_dims[passing.index(k)]] = axis
        else:
            ledger.fix([axis], equation.at("it is indexed"))
    ledger.fix(indices.axes, equation.at("used as indices"))
    return [Traced(tuple(out), learned=x.learned and indices.learned)]


def dynamic_slice(
    ledger: Ledger, equation: Equation, values: list[Traced]
) -> list[Traced]:
    """Axes that are taken whole pass."""
    axes = list(values[0].axes)
    for k, n in enumerate(equation.outputs[0]):
        if n != equation.inputs[0][k]:
            ledger.fix([axes[k]], equation.at("a part of it is cut out"))
            axes[k] = constant(ledger, (n,), equation.at("positions")).axes[0]
    learned = all(v.learned for v in values)
    return [Traced(tuple(axes), learned=learned)]


def iota(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """Numbers along one axis: positions."""
    axes = [Axis()] * len(equation.outputs[0])
    k = equation.params["dimension"]
    axes[k] = constant(ledger, equation.outputs[0], equation.at("numbered")).axes[k]
    return [Traced(tuple(axes))]


def unknown(ledger: Ledger, equation: Equation, values: list[Traced]) -> list[Traced]:
    """All channels that enter must stay."""
    for value in values:
        ledger.fix(value.axes, equation.at("an operation without a rule"))
    reason = equation.at("a result of an operation without a rule")
    learned = bool(values) and all(v.learned for v in values)
    return [constant(ledger, s, reason, learned=learned) for s in equation.outputs]


RULES: dict[str, Rule] = {
    **dict.fromkeys(THROUGH_ZERO | SUMS | OTHERS, elementwise),
    **dict.fromkeys(("reduce_window", "reduce_window_sum"), window),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), window),
    **dict.fromkeys(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"], reduce),
    **dict.fromkeys(["reduce_and", "reduce_or"], reduce),
    **dict.fromkeys(("argmax", "argmin"), reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "sort"), along),
    "conv_general_dilated": conv,
    "dot_general": dot,
    "reshape": reshape,
    "broadcast_in_dim": broadcast_in_dim,
    "transpose": transpose,
    "squeeze": squeeze,
    "rev": rev,
    "tile": tile,
    "concatenate": concatenate,
    "slice": slice_,
    "split": split,
    "pad": pad,
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "iota": iota,
}
