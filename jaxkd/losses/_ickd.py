"""Inter-channel correlation distillation (Liu et al., 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _correlation(
    features: Float[Array, "batch *space channels"],
) -> Float[Array, "batch channels channels"]:
    """Return the channels' Gram matrix, each row divided by its norm."""
    features = fm.flat_space(features)
    return fm.unit(fm.einsum("bnc,bnd->bcd", features, features))


@compiled()
def ickd(
    student_features: Float[Array, "batch *student_space channels"],
    teacher_features: Float[Array, "batch *teacher_space channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of the correlations between an example's channels.

    With F as a matrix of N positions by C channels and G = F' F, its rows divided by
    their norms::

        loss = ||G_s - G_t||_F**2 / C

    The norm makes the size of the map and the scale of the features immaterial. The
    mean over the batch is the loss of the authors' program for CIFAR-100
    (ADLab-AutoDrive/ICKD, `distiller_zoo/ICKD.py`). torchdistill's port divides by the
    batch size once more: a weight from there is to be divided by it.

    Args:
      student_features: the student's map, with the teacher's number of channels.
      teacher_features: the teacher's map; it may have another size.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a pure number from 0 to 4.

    Raises:
      ValueError: if the batches, the numbers of channels or the lengths of token
        sequences differ.

    Example:
      One channel each, however different, has correlation 1 with itself.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[0.0], [7.0]]])
      >>> print(losses.ickd(student, teacher).round(4))
      [0.]

    References:
      Liu, Huang, Lin, Xie, Wang, Chang, Liang. `Exploring Inter-Channel Correlation for
      Diversity-Preserved Knowledge Distillation <https://arxiv.org/abs/2202.03680>`_,
      ICCV 2021.
    """
    fm.check(
        where, 2, student_features=student_features, teacher_features=teacher_features
    )
    fm.same_channels(
        student_features=student_features, teacher_features=teacher_features
    )
    fm.same_length(student_features.shape, teacher_features.shape)
    student_features, teacher_features = without(
        where, student_features, teacher_features
    )
    difference = _correlation(student_features) - _correlation(teacher_features)
    loss = jnp.sum(jnp.square(difference), axis=(1, 2)) / difference.shape[-1]
    return only(where, loss)
