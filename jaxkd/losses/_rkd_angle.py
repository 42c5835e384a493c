"""Relational distillation of angles, RKD-A (Park et al., 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _cosines(
    anchors: Float[Array, "anchors dims"],
    embeddings: Float[Array, "batch dims"],
    where: Bool[Array, " batch"] | None,
) -> Float[Array, "anchors batch batch"]:
    """Return the cosine of the angle at each anchor between each pair of examples."""
    direction = fm.unit(embeddings[None] - anchors[:, None])
    if where is not None:
        direction = jnp.where(where[None, :, None], direction, 0)
    return fm.einsum("ijd,ikd->ijk", direction, direction)


@compiled(static=("chunk",), chunk=_check.whole(1))
def rkd_angle(
    student_embeddings: Float[Array, "batch student_dims"],
    teacher_embeddings: Float[Array, "batch teacher_dims"],
    *,
    chunk: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Smooth L1 difference of the angles that triplets of examples form.

    With e[i, j] the unit vector from f_i to f_j and h Huber's function with threshold
    1::

        c[i, j, k] = e[i, j]' e[i, k]
        loss_i = sum_jk h(c_s[i, j, k] - c_t[i, j, k]) / B**2

    The mean over the batch is the mean over all B**3 triplets. Angles do not see
    translations, rotations and scale. Two examples that coincide have direction 0 and
    no gradient between them.

    Args:
      student_embeddings: one vector for each example.
      teacher_embeddings: one vector for each example; dimensions may differ.
      chunk: >= 1, the number of parts into which the anchors i are divided. They are
        worked off one after the other, forward and backward, so B * B * max(B, D) /
        chunk numbers are held at a time; the value is the same.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        the loss is that of a batch without them.

    Returns:
      Each example's share as the anchor, a pure number.

    Raises:
      ValueError: if the batches differ or hold one example, the embeddings have
        not two axes, or `chunk` is not a positive integer.

    Example:
      Three points on a line: cosines 1 at the ends, -1 in the middle; an equilateral
      triangle: 1/2. At each anchor 2 of 9 pairs differ, by h(1/2) = 1/8 or h(3/2) = 1.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> line = jnp.array([[0.0], [1.0], [2.0]])
      >>> print((9 * losses.rkd_angle(line, jnp.eye(3))).round(4))
      [0.25 2.   0.25]

    References:
      Park, Kim, Lu, Cho. `Relational Knowledge Distillation
      <https://arxiv.org/abs/1904.05068>`_, 2019. Equations 9 and 10.
    """
    fm.check_pairs(
        where,
        2,
        2,
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
    )
    s, t = without(where, student_embeddings, teacher_embeddings)

    def rows(anchors: tuple[Array, Array]) -> Float[Array, " anchors"]:
        difference = _cosines(anchors[0], s, where) - _cosines(anchors[1], t, where)
        return jnp.sum(fm.smooth_l1(difference), axis=(1, 2))

    return only(where, _in_parts(rows, s, t, chunk) / fm.kept(where, s) ** 2)


def _in_parts(rows, s: Array, t: Array, chunk: int) -> Float[Array, " batch"]:
    """`rows((s, t))`, for a part of the anchors at a time."""
    count = len(s)
    size = -(-count // chunk)
    if size == count:
        return rows((s, t))
    parts = -(-count // size)
    fill = lambda x: jnp.pad(x, ((0, parts * size - count), (0, 0)))
    split = lambda x: fill(x).reshape(parts, size, -1)
    # Without the checkpoint the backward pass would have kept every part's cosines.
    return jax.lax.map(jax.checkpoint(rows), (split(s), split(t))).reshape(-1)[:count]
