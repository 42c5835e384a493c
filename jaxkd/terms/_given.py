"""What comes from the teacher's variables: kept in a term's state, never moved."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.losses import _feature_math as fm


def given(tree: Any) -> Any:
    """A tree of arrays for a state: copies, or zeros where only the shape is known.

    A term's state is donated to the compiled step, which would delete the teacher's
    own buffers if they were not copied. Shapes alone (ShapeDtypeStructs) come from a
    rehearsal under `jax.eval_shape`, where the values do not matter.
    """

    def array(leaf: Any) -> Array:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.array(leaf, copy=True)

    return jax.tree.map(array, tree)


def linear(
    head: Mapping[str, Array], features: Float[Array, "batch *space channels"]
) -> Float[Array, "batch classes"]:
    """A Dense layer on the features, averaged over their positions if they have any."""
    logits = fm.average(features) @ head["kernel"]
    return logits + head["bias"][None] if "bias" in head else logits


def check_linear(head: Any, features: Any, logits: Any) -> None:
    """The head is a Dense layer that takes these features to these logits.

    Raises:
      ValueError: if it is not.
    """
    wanted = (features.shape[-1], logits.shape[-1])
    got = head["kernel"].shape if isinstance(head, Mapping) and "kernel" in head else ()
    if got != wanted:
        raise ValueError(
            "head must be the variables of a Dense layer from the teacher's features "
            f"to its logits, with a kernel {wanted}, got shapes "
            f"{jax.tree.map(jnp.shape, head)}"
        )
