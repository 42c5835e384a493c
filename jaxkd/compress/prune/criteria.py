"""How much each unit is worth: `(plan, params, ...) -> scores [units]`, lowest first.

A unit's weights are those of the kernels that make its channels, in all layers of the
group; kernels that only read them are left out. Scores are sums over these weights, or
means with `mean=True`, which compares groups whose units have different numbers of
weights. All are pure functions that can be compiled.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd import _tree
from jaxkd.compress.prune import _mirror
from jaxkd.compress.prune.plan import Plan

Scores = Float[Array, "units"]


def l1(plan: Plan, params: Any, *, mean: bool = False) -> Scores:
    """Sum the absolute weights of each unit.

    Args:
      plan: from `analyse`.
      params: the parameters, or all variables.
      mean: their mean instead of their sum.

    Returns:
      One score for each unit; the lowest matter least.

    Raises:
      ValueError: if the tree is not the plan's, or a group has no kernel.

    References:
      H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf. Pruning Filters for
      Efficient ConvNets. 2017. https://arxiv.org/abs/1608.08710
    """
    return _scores(plan, [params], jnp.abs, _kernel, mean)


def l2(plan: Plan, params: Any, *, mean: bool = False) -> Scores:
    """Take the root of the sum of the squared weights of each unit.

    Args:
      plan: from `analyse`.
      params: the parameters, or all variables.
      mean: the root of their mean instead.

    Returns:
      One score for each unit; the lowest matter least.

    Raises:
      ValueError: if the tree is not the plan's, or a group has no kernel.
    """
    return jnp.sqrt(_scores(plan, [params], jnp.square, _kernel, mean))


def batch_norm_scale(
    plan: Plan, params: Any, *, mean: bool = False, scales: str = "*/scale"
) -> Scores:
    """Sum the absolute scales of each unit's normalisations.

    Means something if training has pressed the scales towards zero, by an L1 penalty.

    Args:
      plan: from `analyse`.
      params: the parameters, or all variables.
      mean: their mean instead of their sum.
      scales: a glob of the scales' paths.

    Returns:
      One score for each unit; the lowest matter least.

    Raises:
      ValueError: if the tree is not the plan's, or a group has no scale.

    References:
      Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang. Learning Efficient
      Convolutional Networks through Network Slimming. 2017.
      https://arxiv.org/abs/1708.06519
    """
    scale = lambda path, axes: axes == 1 and _tree.matches(path, scales)
    return _scores(plan, [params], jnp.abs, scale, mean)


def taylor(
    plan: Plan, params: Any, grads: Any, *, squared: bool = False, mean: bool = False
) -> Scores:
    """Estimate how much the loss would change without each unit, to first order.

    With the loss' gradient g, a weight w set to zero changes the loss by about -w g::

        score = sum |w g|        or, squared, sum (w g)**2

    over all parameters of the unit's channels: kernels, biases and normalisations.

    Args:
      plan: from `analyse`.
      params: the parameters.
      grads: the gradient of the loss, of the same structure, averaged over as many
        examples as one likes.
      squared: the second form.
      mean: means instead of sums.

    Returns:
      One score for each unit; the lowest matter least.

    Raises:
      ValueError: if a tree is not the plan's.

    References:
      P. Molchanov, A. Mallya, S. Tyree, I. Frosio, J. Kautz. Importance Estimation for
      Neural Network Pruning. 2019. https://arxiv.org/abs/1906.10771
    """
    change = lambda w, g: jnp.square(w * g) if squared else jnp.abs(w * g)
    return _scores(plan, [params, grads], change, lambda path, axes: True, mean)


def geometric_median(plan: Plan, params: Any, *, mean: bool = False) -> Scores:
    """Measure how far a unit's filters are from the other filters of their layers.

    The sum over a layer's filters j of the distance |w_i - w_j| is least at their
    geometric median; what is near it can be replaced by the others.

    Args:
      plan: from `analyse`.
      params: the parameters, or all variables.
      mean: the mean over the unit's filters instead of the sum.

    Returns:
      One score for each unit; the lowest matter least.

    Raises:
      ValueError: if the tree is not the plan's, or a group has no kernel.

    References:
      Y. He, P. Liu, Z. Wang, Z. Hu, Y. Yang. Filter Pruning via Geometric Median for
      Deep Convolutional Neural Networks Acceleration. 2019.
      https://arxiv.org/abs/1811.00250
    """
    total, count = _empty(plan)
    for arrays, units, axis in _chosen(plan, [params], _kernel):
        filters = _rows(arrays[0], axis)
        total = _add(total, units, _distances(filters))
        np.add.at(count, units, 1)
    return _finished(plan, total, count, mean)


def _distances(filters: Array) -> Array:
    """For each row the sum of its distances to all rows."""
    filters = filters - filters.mean(
        0, keepdims=True
    )  # distances are the same, rounding is less
    squares = jnp.sum(filters**2, 1)
    products = jnp.matmul(filters, filters.T, precision=jax.lax.Precision.HIGHEST)
    squared = squares[:, None] + squares[None, :] - 2 * products
    squared = jnp.where(jnp.eye(len(filters), dtype=bool), 0.0, squared)
    return jnp.sqrt(jnp.maximum(squared, 0.0)).sum(1)


def _kernel(path: str, axes: int) -> bool:
    return axes >= 2


def _scores(
    plan: Plan,
    trees: list[Any],
    worth: Callable[..., Array],
    wanted: Callable[[str, int], bool],
    mean: bool,
) -> Scores:
    """Sums, or means, of `worth(*weights)` over each unit's weights."""
    total, count = _empty(plan)
    for arrays, units, axis in _chosen(plan, trees, wanted):
        worths = _rows(worth(*(jnp.asarray(a, jnp.float32) for a in arrays)), axis)
        total = _add(total, units, worths.sum(1))
        np.add.at(count, units, worths.shape[1])
    return _finished(plan, total, count, mean)


def _empty(plan: Plan) -> tuple[Array, np.ndarray]:
    # One place more, for indices that must stay.
    return jnp.zeros(plan.units + 1), np.zeros(plan.units + 1, np.float32)


def _rows(a: Array, axis: int) -> Array:
    """One row for each index of the axis."""
    return jnp.moveaxis(jnp.asarray(a, jnp.float32), axis, 0).reshape(a.shape[axis], -1)


def _add(total: Array, units: np.ndarray, values: Array) -> Array:
    return total.at[units].add(values)


def _finished(plan: Plan, total: Array, count: np.ndarray, mean: bool) -> Scores:
    for group in plan.groups:
        if (count[group.units.start : group.units.stop] == 0).any():
            raise ValueError(
                f"group {group.name!r} has no weights for this criterion: leave it "
                "out of the plan (exclude=), or take another"
            )
    total, count = total[:-1], count[:-1]
    return total / np.maximum(count, 1) if mean else total


def _chosen(
    plan: Plan, trees: list[Any], wanted: Callable[[str, int], bool]
) -> Iterator[tuple[list[Any], np.ndarray, int]]:
    """(arrays, unit of each index, axis) of what makes the units' channels."""
    found = [_found(plan, tree) for tree in trees]
    members = [m for group in plan.groups for m in group.members]
    making = {(m.path, m.axis) for m in members if m.role == "out"}
    for i, leaf in enumerate(plan.leaves):
        for axis, units in enumerate(leaf.units):
            makes = (leaf.path, axis) in making and not leaf.path.startswith("state/")
            if units is None or not makes or not wanted(leaf.path, len(leaf.shape)):
                continue
            if all(i in arrays for arrays in found):
                yield [arrays[i] for arrays in found], units, axis


def _found(plan: Plan, tree: Any) -> dict[int, Any]:
    """Return the arrays of a tree by the number of the variable that they are."""
    pairs, _ = _mirror.flatten(tree)
    paths = [tuple(leaf.path.split("/")) for leaf in plan.leaves]
    places = _mirror.find(paths, [leaf.shape for leaf in plan.leaves], pairs)
    known = [i for i in places if i is not None]
    if len(set(known)) < len(known) or len(known) < len(pairs):
        raise ValueError("the tree must be the parameters, or the variables, only")
    return {i: a for i, (_, a) in zip(places, pairs, strict=True) if i is not None}
