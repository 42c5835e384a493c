"""Flow of solution procedure (Yim et al., 2017)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _flow(
    first: Float[Array, "batch *first_space c1"],
    second: Float[Array, "batch *second_space c2"],
) -> Float[Array, "batch c1 c2"]:
    """Return the mean over positions of every product of two channels."""
    first, second = map(fm.flat_space, fm.to_smaller(first, second))
    return fm.einsum("bnc,bnd->bcd", first, second) / first.shape[1]


@compiled()
def fsp(
    student_first: Float[Array, "batch *student_space1 channels1"],
    student_second: Float[Array, "batch *student_space2 channels2"],
    teacher_first: Float[Array, "batch *teacher_space1 channels1"],
    teacher_second: Float[Array, "batch *teacher_space2 channels2"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of the Gram matrices between two layers.

    With F1 and F2 as matrices of N positions by channels::

        G = F1' F2 / N
        loss = mean over c1, c2 of (G_s - G_t)**2

    1/N makes G independent of the size of the map, so the two networks may have maps of
    different sizes. Within a network the larger of the two maps is averaged down to the
    smaller, as in RepDistiller (the paper takes the maximum).

    Args:
      student_first: the map at the start of the student's block.
      student_second: the map at its end.
      teacher_first: the map at the start of the teacher's block, with as many channels
        as the student's.
      teacher_second: the map at its end, likewise.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in features to the fourth power.

    Raises:
      ValueError: if the batches, or the student's and the teacher's numbers of channels
        or lengths of token sequences, differ.

    Example:
      G_s = 2 * 3 and G_t = 1 * 4.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> maps = [jnp.full((1, 2, 2, 1), x) for x in (2.0, 3.0, 1.0, 4.0)]
      >>> print(losses.fsp(*maps))
      [4.]

    References:
      Yim, Joo, Bae, Kim. `A Gift from Knowledge Distillation: Fast Optimization,
      Network Minimization and Transfer Learning
      <https://doi.org/10.1109/CVPR.2017.754>`_, CVPR 2017. Equations 1 and 2.
    """
    fm.check(
        where,
        3,
        student_first=student_first,
        student_second=student_second,
        teacher_first=teacher_first,
        teacher_second=teacher_second,
    )
    fm.same_channels(student_first=student_first, teacher_first=teacher_first)
    fm.same_channels(student_second=student_second, teacher_second=teacher_second)
    fm.same_length(student_first.shape, teacher_first.shape)
    fm.same_length(student_second.shape, teacher_second.shape)
    student_first, student_second, teacher_first, teacher_second = without(
        where, student_first, student_second, teacher_first, teacher_second
    )
    student_flow = _flow(student_first, student_second)
    teacher_flow = _flow(teacher_first, teacher_second)
    return only(where, fm.mean_of_example(jnp.square(student_flow - teacher_flow)))
