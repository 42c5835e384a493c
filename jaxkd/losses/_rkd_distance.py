"""Relational distillation of distances, RKD-D (Park et al., 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import count, only, safe_sqrt, without

# Up to this many numbers B * B * D, squared distances are sums of squared differences.
EXACT = 2**24


@jax.custom_jvp
def _squared_distances(x: Float[Array, "batch dims"]) -> Float[Array, "batch batch"]:
    """All squared distances, 0 exactly on the diagonal and for equal vectors.

    The Gram matrix costs far less than B * B * D differences, but leaves an error of
    some float epsilons of ||x||**2: what is below that counts as 0. The derivative is
    always by way of products of matrices: there the error stays in proportion.
    """
    count, dims = x.shape
    if count * count * dims <= EXACT:
        return jnp.sum(jnp.square(x[:, None] - x[None]), axis=-1)
    # Distances do not change, and the norms that are to cancel become smaller.
    x = x - jnp.mean(x, axis=0, keepdims=True)
    size = jnp.sum(jnp.square(x), axis=-1)
    sizes = size[:, None] + size[None]
    square = sizes - 2 * fm.gram(x)
    noise = 16 * float(jnp.finfo(x.dtype).eps)
    distinct = (square > noise * sizes) & ~jnp.eye(count, dtype=bool)
    return jnp.where(distinct, square, 0)


@_squared_distances.defjvp
def _jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # 2 (x_i - x_j)' (dx_i - dx_j), multiplied out; the origin is arbitrary.
    (x,), (dx,) = primals, tangents
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    own = jnp.sum(centred * dx, axis=-1)
    cross = fm.einsum("id,jd->ij", centred, dx)
    return _squared_distances(x), 2 * (own[:, None] + own[None] - cross - cross.T)


def _distances(
    embeddings: Float[Array, "batch dims"], where: Bool[Array, " batch"] | None
) -> Float[Array, "batch batch"]:
    """Distances over the mean of those that are not 0."""
    square = _squared_distances(embeddings)
    if where is not None:
        square = jnp.where(where[:, None] & where[None], square, 0)
    distance = safe_sqrt(square)
    mean = jnp.sum(distance) / count(square > 0, distance)
    return distance / jnp.where(mean > 0, mean, 1)


@compiled()
def rkd_distance(
    student_embeddings: Float[Array, "batch student_dims"],
    teacher_embeddings: Float[Array, "batch teacher_dims"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Smooth L1 difference of the relative distances between examples.

    With d[i, j] = ||f_i - f_j|| over the mean of the distances that are not 0, and h
    Huber's function with threshold 1::

        loss_i = sum_j h(d_s[i, j] - d_t[i, j]) / B

    The mean over the batch is the mean over all B**2 pairs, the diagonal included.
    Distances relative to their mean do not see translations, rotations and scale.
    Examples that coincide have distance 0 and no gradient between them. Up to 2**24
    numbers B * B * D distances come from differences, which is accurate however close
    two examples are; beyond, from the Gram matrix, and in float32 distances under some
    thousandths of the embeddings' spread count as 0.

    Args:
      student_embeddings: one vector for each example.
      teacher_embeddings: one vector for each example; dimensions may differ.
      where: true for the examples to use; the others get loss 0 and no gradient, and
        the loss is that of a batch without them.

    Returns:
      Each example's row of the mean, a pure number.

    Raises:
      ValueError: if the batches differ or hold one example, or the embeddings
        have not two axes.

    Example:
      Three points on a line at 0, 1, 2 (distances 1, 1, 2 over 4/3) and an equilateral
      triangle: the differences are 1/4, 1/4 and 1/2.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> line = jnp.array([[0.0], [1.0], [2.0]])
      >>> print(losses.rkd_distance(line, jnp.eye(3)).round(4))
      [0.0521 0.0208 0.0521]

    References:
      Park, Kim, Lu, Cho. `Relational Knowledge Distillation
      <https://arxiv.org/abs/1904.05068>`_, 2019. Equations 5 to 8.
    """
    fm.check_pairs(
        where,
        2,
        2,
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
    )
    student_embeddings, teacher_embeddings = without(
        where, student_embeddings, teacher_embeddings
    )
    difference = _distances(student_embeddings, where) - _distances(
        teacher_embeddings, where
    )
    row = jnp.sum(fm.smooth_l1(difference), axis=-1)
    return only(where, row / fm.kept(where, difference))
