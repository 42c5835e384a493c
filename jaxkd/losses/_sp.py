"""Similarity-preserving distillation (Tung & Mori, 2019)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _similarity(
    features: Float[Array, "batch *rest"],
) -> Float[Array, "batch batch"]:
    """Return the examples' Gram matrix, each row divided by its norm."""
    return fm.unit(fm.gram(fm.flat(features)))


@compiled()
def sp(
    student_features: Float[Array, "batch *student_rest"],
    teacher_features: Float[Array, "batch *teacher_rest"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of the similarities between the examples of a batch.

    With F the flattened features of B examples and G = F F', its rows divided by their
    Euclidean norms::

        loss_i = sum_j (G_s[i, j] - G_t[i, j])**2 / B

    The mean over the batch is ||G_s - G_t||_F**2 / B**2, as in the paper. The norms
    make the scale of the features immaterial, and rotating them changes nothing. A zero
    example has similarity 0 with all.

    Args:
      student_features: features of any shape.
      teacher_features: features of any shape, of the same examples.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        the loss is that of a batch without them.

    Returns:
      Each example's row of the sum, a pure number.

    Raises:
      ValueError: if the batches differ or hold one example.

    Example:
      The student tells the two examples apart, the teacher does not: the rows are
      (1, 0) and (1, 1) / sqrt(2).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> print(losses.sp(jnp.eye(2), jnp.ones((2, 1))).round(4))
      [0.2929 0.2929]

    References:
      Tung, Mori. `Similarity-Preserving Knowledge Distillation
      <https://arxiv.org/abs/1907.09682>`_, 2019.
    """
    fm.check_pairs(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    difference = _similarity(student_features) - _similarity(teacher_features)
    row = jnp.sum(jnp.square(difference), axis=-1)
    return only(where, row / fm.kept(where, difference))
