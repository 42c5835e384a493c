"""Probabilistic knowledge transfer (Passalis & Tefas, 2018)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, safe_sqrt, without


def _probabilities(
    embeddings: Float[Array, "batch dims"],
    where: Bool[Array, " batch"] | None,
    epsilon: ArrayLike,
) -> Float[Array, "batch batch"]:
    """Return the cosine kernel (c + 1) / 2, each row divided by its sum."""
    norm = safe_sqrt(jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True))
    # The second `where` stops 1 / epsilon from being a zero embedding's derivative.
    scale = jnp.where(norm > 0, 1 / (jnp.where(norm > 0, norm, 1) + epsilon), 0)
    kernel = (fm.gram(embeddings * scale) + 1) / 2
    if where is not None:
        kernel = jnp.where(where[None], kernel, 0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return kernel / jnp.where(total > 0, total, 1)


@compiled(epsilon=_check.positive)
def pkt(
    student_embeddings: Float[Array, "batch student_dims"],
    teacher_embeddings: Float[Array, "batch teacher_dims"],
    *,
    epsilon: ArrayLike = 1e-7,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Divergence from the teacher's to the student's neighbour probabilities.

    With the kernel k[i, j] = (cos(f_i, f_j) + 1) / 2 and p[i, j] = k[i, j] / sum_j
    k[i, j]::

        loss_i = sum_j p_t[i, j] * log(p_t[i, j] / p_s[i, j]) / B

    The mean over the batch is the mean over all B**2 pairs (1/B of the mean KL), which
    the usual weight of 3e4 belongs to. The cosine makes rotations and each embedding's
    length immaterial. `epsilon` is added to the norms and to both probabilities in the
    logarithm, as in the authors' program: opposite embeddings have p = 0. A zero
    embedding has cosine 0 with all.

    Args:
      student_embeddings: one vector for each example.
      teacher_embeddings: one vector for each example; dimensions may differ.
      epsilon: > 0.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        the loss is that of a batch without them.

    Returns:
      Each example's row of the mean, in nats over B.

    Raises:
      ValueError: if the batches differ or hold one example, the embeddings have
        not two axes, or `epsilon` is not positive.

    Example:
      Orthogonal embeddings, p = (2/3, 1/3), against equal ones, p = (1/2, 1/2):
      log(9/8) / 2 / 2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> print(losses.pkt(jnp.eye(2), jnp.ones((2, 1))).round(4))
      [0.0294 0.0294]

    References:
      Passalis, Tefas. `Learning Deep Representations with Probabilistic Knowledge
      Transfer <https://arxiv.org/abs/1803.10837>`_, 2018.
    """
    fm.check_pairs(
        where,
        2,
        2,
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
    )
    s, t = without(where, student_embeddings, teacher_embeddings)
    p, q = _probabilities(t, where, epsilon), _probabilities(s, where, epsilon)
    row = jnp.sum(p * (jnp.log(p + epsilon) - jnp.log(q + epsilon)), axis=-1)
    return only(where, row / fm.kept(where, s))
