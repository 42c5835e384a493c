"""Correlation congruence (Peng et al., 2019)."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _kernel(
    embeddings: Float[Array, "batch dims"], gamma: ArrayLike, order: int
) -> Float[Array, "batch batch"]:
    """Return the Gaussian kernel of unit vectors, as a polynomial of their cosines."""
    cosine = 2 * gamma * fm.gram(fm.unit(embeddings))
    # Horner's scheme needs no powers: a power's derivative at 0 is a trap.
    series = jnp.ones_like(cosine) / math.factorial(order)
    for p in reversed(range(order)):
        series = series * cosine + 1 / math.factorial(p)
    return jnp.exp(-2 * gamma) * series


@compiled(static=("order",), gamma=_check.positive, order=_check.whole(1, 34))
def cc(
    student_embeddings: Float[Array, "batch student_dims"],
    teacher_embeddings: Float[Array, "batch teacher_dims"],
    *,
    gamma: ArrayLike = 0.4,
    order: int = 2,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of Gaussian kernels between examples.

    With f divided by its norm, exp(-gamma ||f_i - f_j||**2) is expanded in the cosine
    c = f_i' f_j up to `order` P::

        k[i, j] = exp(-2 gamma) * sum_{p=0..P} (2 gamma)**p / p! * c**p
        loss_i = sum_j (k_s[i, j] - k_t[i, j])**2 / B

    The mean over the batch is the mean over all B**2 pairs. The truncation is the
    paper's, and so part of the method. A zero embedding has cosine 0 with all.

    Args:
      student_embeddings: one vector for each example.
      teacher_embeddings: one vector for each example; dimensions may differ.
      gamma: > 0, the inverse width of the Gaussian.
      order: P in 1 to 34, the order of the expansion; 35! is infinite in float32.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        the loss is that of a batch without them.

    Returns:
      Each example's row of the mean, a pure number.

    Raises:
      ValueError: if the batches differ or hold one example, the embeddings have
        not two axes, or a knob is out of its range.

    Example:
      Orthogonal against equal embeddings at gamma = 1/2, order 1: the kernels of the
      pair are 1/e and 2/e, and a row has one such pair of two.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> print(losses.cc(jnp.eye(2), jnp.ones((2, 1)), gamma=0.5, order=1).round(4))
      [0.0677 0.0677]

    References:
      Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang. `Correlation Congruence for Knowledge
      Distillation <https://arxiv.org/abs/1904.01802>`_, 2019.
    """
    fm.check_pairs(
        where,
        2,
        2,
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
    )
    s, t = without(where, student_embeddings, teacher_embeddings)
    difference = _kernel(s, gamma, order) - _kernel(t, gamma, order)
    row = jnp.sum(jnp.square(difference), axis=-1)
    return only(where, row / fm.kept(where, s))
