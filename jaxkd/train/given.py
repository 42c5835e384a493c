"""What `learn` is given: brought into one form, and refused where it cannot work."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import _check, data, distill
from jaxkd.data import Stream
from jaxkd.distill import Inputs, Teacher, TrainState
from jaxkd.models.net import Net
from jaxkd.types import Batch


def teacher_of(teacher: Any, inputs: Inputs) -> tuple[Teacher, Any]:
    """The teacher and its variables, of what `learn` was given."""
    if teacher is None:
        return distill.no_teacher, None
    if isinstance(teacher, str) and teacher == "cached":
        return distill.cached, None
    if isinstance(teacher, Net) or not isinstance(teacher, tuple) or len(teacher) != 2:
        raise ValueError(
            'teacher must be (net, variables), (function, variables), "cached" or '
            f"None, got {type(teacher).__name__}"
        )
    net, variables = teacher
    if not callable(net) and not isinstance(net, Net):
        raise ValueError(f"a teacher must be a Net or a function, got {net!r}")
    if hasattr(net, "init") and not isinstance(net, Net):
        kind = type(net).__name__
        raise ValueError(
            f"the teacher is no Net: models.from_linen makes one of {kind}"
        )
    return distill.frozen(net, inputs=inputs) if isinstance(
        net, Net
    ) else net, variables


def check_teacher(teach: Teacher, variables: Any, batch: Batch) -> None:
    """Refuse a teacher whose variables are those of another network."""
    try:
        jax.eval_shape(teach, variables, batch)
    except flax.errors.FlaxError as error:
        raise ValueError(
            "teacher must be (net, variables) of one network, but these variables do "
            f"not fit this net: {error}"
        ) from error


def columns_of(
    examples: data.Dataset | Batch | Stream, inputs: Inputs
) -> Batch | Stream:
    """The columns on the device, or the stream, with numbers that can be trained on."""
    if isinstance(examples, Stream):
        return examples
    columns = _on_device(examples)
    for keys, column in jax.tree_util.tree_leaves_with_path(columns):
        if jnp.issubdtype(column.dtype, jnp.floating):
            name = jax.tree_util.keystr(keys)
            seen = name == f"['{inputs}']"
            _check_numbers(name, column, columns.get("where"), finite=seen)
    return columns


def _check_numbers(
    name: str, column: Array, where: Array | None, *, finite: bool
) -> None:
    """Refuse a column with NaN where the mask counts, and infinities if `finite`.

    What is not the networks' input may be infinite: a teacher's logit may be -inf.
    """
    bad = ~jnp.isfinite(column) if finite else jnp.isnan(column)
    if where is not None:
        bad &= distill.counted(where, column)
    if number := int(jnp.sum(bad)):
        rows = jnp.any(bad.reshape(len(bad), -1), 1)
        kinds = "NaN or infinities" if jnp.any(bad & jnp.isinf(column)) else "NaN"
        raise ValueError(
            f"column {name} has {number} {kinds}, in {int(jnp.sum(rows))} of "
            f"{len(bad)} examples, the first of which is {int(jnp.argmax(rows))}; "
            'leave these out, or mask them by a column "where", boolean, false for them'
        )


def _on_device(examples: data.Dataset | Batch) -> Batch:
    if isinstance(examples, data.Dataset):
        return data.on_device(examples)
    if not isinstance(examples, Mapping):
        raise ValueError(
            "examples must be a data.Dataset, a dict of columns or a data.Stream, got "
            f"{type(examples).__name__}"
        )
    data.count(dict(examples))
    _check.columns(dict(examples))
    return jax.tree.map(jnp.asarray, dict(examples))


def check_fit(
    net: Net, state: TrainState, columns: Batch | Stream, batch: Batch, inputs: Inputs
) -> None:
    """Refuse bytes that reach a network, and labels that it has no output for."""
    seen = distill.select(inputs, batch)
    for leaf in jax.tree.leaves(seen):
        if inputs == "image" and jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"the network would see images as stored, {leaf.dtype}: pass a view "
                "that scales them, e.g. view=augment.to_float()"
            )
    if not isinstance(columns, Stream):
        check_labels(net, state, columns, batch, inputs)
    elif columns.source.classes:  # only the number of its classes is known yet
        last = {"label": np.array([len(columns.source.classes) - 1])}
        check_labels(net, state, last, batch, inputs)


def check_labels(
    net: Net, state: TrainState, columns: Batch, batch: Batch, inputs: Inputs
) -> None:
    """Refuse class labels that the network has no output for, and data without any."""
    label = columns.get("label")
    if "where" in columns and not np.any(columns["where"]):
        raise ValueError('the column "where" excludes everything')
    if label is None or not jnp.issubdtype(label.dtype, jnp.integer):
        return
    variables = state.student
    if state.key.ndim:
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    seen = distill.select(inputs, batch)
    run = lambda v, x: net.apply(*v, x, train=False)[0].logits
    classes = jax.eval_shape(run, variables, seen).shape[-1]
    if "where" in columns:
        label = jnp.where(distill.fit_mask(columns["where"], label.shape), label, 0)
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels must be in [0, {classes}), the student's outputs, or -1 for an "
            f"example without one, got {low} to {high}; mask what has no label with a "
            'boolean column "where"'
        )
