"""What `learn` is given: brought into one form, and refused where it cannot work."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxkd import _check, _tree, data, distill
from jaxkd.data import Stream
from jaxkd.distill import Inputs, Teacher
from jaxkd.models.net import Net
from jaxkd.types import Batch


def teacher_of(teacher: Any, inputs: Inputs) -> tuple[Teacher, Any]:
    """Return the teacher and its variables, of what `learn` was given."""
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


def check_labelled(name: str, columns: Batch) -> None:
    """Refuse integer labels that are all -1: nothing would be learnt, or measured."""
    label = columns.get("label")
    if label is None or not jnp.issubdtype(label.dtype, jnp.integer):
        return
    if label.size and not bool(jnp.any(label != -1)):
        raise ValueError(f"{name}: every label is -1, for an example without one")


def check_start(start: Any, fresh: Any, *, several: bool) -> None:
    """Refuse variables to start from that are not of the student's names and shapes.

    Args:
      start: `(params, state)`.
      fresh: the student's own, of one seed or, with a leading axis, of several.
      several: whether of several.
    """
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise ValueError(f"start must be (params, state), got {type(start).__name__}")
    found, wanted = (_tree.flatten(list(tree)) for tree in (start, fresh))
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())[0]
        raise ValueError(f"start must have the student's variables, and {odd} differs")
    for path, leaf in wanted.items():
        shapes = {leaf.shape, leaf.shape[1:] if several else leaf.shape}
        if (got := jnp.shape(found[path])) not in shapes:
            part, _, rest = path.partition("/")
            where = f"{'params' if part == '0' else 'state'}/{rest}"
            raise ValueError(
                f"start does not fit the student: {where} has shape {got}, and the "
                f"student's has {min(shapes, key=len)}"
            )


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
