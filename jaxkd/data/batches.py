"""Batches of a data set that lies on the device: no host in the loop."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkd import _check
from jaxkd.data import dataset as datasets
from jaxkd.types import Batch


def on_device(dataset: datasets.Dataset) -> Batch:
    """Put a whole split on the device, images as uint8.

    CIFAR takes 147 MiB of device memory; scaling to floats belongs into the step (see
    `jaxkd.data.augment.to_float`), where it costs nothing that can be measured.

    Args:
      dataset: a split as `load` returns it, or your own arrays in a `Dataset`.

    Returns:
      Its columns, "image" uint8 `[n, h, w, c]`, "label" int32 `[n]` and "index" int32
      `[n]` for images: a batch of everything.

    Raises:
      ValueError: if the columns do not fit together or a label has no class.
    """
    datasets.check(dataset)
    return {name: jnp.asarray(array) for name, array in dataset.columns.items()}


def count(resident: Batch) -> int:
    """Return the number of examples: the one length of all columns.

    Raises:
      ValueError: if there is no column, or columns differ in length, naming them.
    """
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(column)
        for path, column in jax.tree_util.tree_leaves_with_path(resident)
    }
    lengths = {
        name: shape[0] if shape else "a number" for name, shape in shapes.items()
    }
    if len(set(lengths.values())) != 1:
        got = ", ".join(f"{name} {n}" for name, n in lengths.items()) or "no column"
        raise ValueError(f"all columns must have one entry for each example, got {got}")
    (n,) = set(lengths.values())
    if not isinstance(n, int) or n < 1:
        raise ValueError(
            f"columns must be arrays of one example or more, got {lengths}"
        )
    return n


def epoch(key: Array, n: int, batch_size: int) -> Int[Array, "steps batch"]:
    """Return the shuffled order of an epoch, one row for each step.

    Each of the n positions occurs at most once; the n modulo `batch_size` that would
    make an incomplete batch are left out, different ones in each epoch.

    Args:
      key: decides the order.
      n: how many examples there are.
      batch_size: how many go into a step, 1 to n.

    Returns:
      int32 positions, with n // batch_size rows.

    Raises:
      ValueError: if `batch_size` is larger than n.

    Example:
      >>> epoch(jax.random.key(0), 10, 4).shape
      (2, 4)
    """
    _check.whole(1)("n", n)
    _check.whole(1)("batch_size", batch_size)
    if batch_size > n:
        raise ValueError(
            f"batch_size must be at most n = {n} examples, got {batch_size}"
        )
    steps = n // batch_size
    order = jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))
    return order[: steps * batch_size].reshape(steps, batch_size)


def gather(resident: Batch, indices: Int[Array, " batch"]) -> Batch:
    """Return the examples at these positions; runs inside a compiled epoch.

    Args:
      resident: what `on_device` returned, and whatever else has one entry for each
        example, such as a teacher's outputs under "teacher".
      indices: positions in [0, n), a row of `epoch`.

    Returns:
      A batch with the same names.
    """
    return jax.tree.map(
        lambda column: jnp.take(column, indices, 0, mode="clip"), resident
    )
