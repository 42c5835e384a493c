"""Cosine distance of features."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


@compiled()
def cosine(
    student_features: Float[Array, "batch *space channels"],
    teacher_features: Float[Array, "batch *space channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """One minus the cosine of the angle between the two feature vectors.

    At each position (or token) the channels are a vector::

        loss = mean over positions of 1 - f_s' f_t / (||f_s|| ||f_t||)

    The lengths do not matter. A zero vector has cosine 0 with everything, and no
    gradient.

    Args:
      student_features: embeddings, or a map, after the adapter.
      teacher_features: the same of the teacher.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a pure number from 0 to 2.

    Raises:
      ValueError: if the shapes differ.

    Example:
      The angle is 60 degrees.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 3**0.5]])
      >>> print(losses.cosine(student, teacher).round(4))
      [0.5]

    References:
      Sanh, Debut, Chaumond, Wolf. `DistilBERT, a distilled version of BERT: smaller,
      faster, cheaper and lighter <https://arxiv.org/abs/1910.01108>`_, 2019. Section 2.
    """
    fm.check(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    _check.same_shape(
        student_features=student_features, teacher_features=teacher_features
    )
    s, t = map(fm.flat_space, without(where, student_features, teacher_features))
    similarity = jnp.sum(fm.unit(s) * fm.unit(t), axis=-1)
    return only(where, 1 - jnp.mean(similarity, axis=-1))
