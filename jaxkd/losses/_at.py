"""Attention transfer (Zagoruyko & Komodakis, 2017)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, safe_sqrt, without


def _attention(
    features: Float[Array, "batch *space channels"], p: int
) -> Float[Array, "batch positions"]:
    """Return the mean of |F|**p over channels, as a vector of length 1."""
    size = features if p % 2 == 0 else jnp.abs(features)
    return fm.unit(fm.flat(jnp.mean(size**p, axis=-1)))


@compiled(
    static=("p", "variant"),
    p=_check.whole(1, 32),
    variant=_check.one_of("code", "paper"),
)
def at(
    student_features: Float[Array, "batch *student_space student_channels"],
    teacher_features: Float[Array, "batch *teacher_space teacher_channels"],
    *,
    p: int = 2,
    variant: str = "code",
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Distance of the normalised spatial attention maps.

    With A = mean over channels of abs(F)**p, flattened and divided by its norm::

        loss = mean over positions of (A_s - A_t)**2       variant "code"
        loss = sqrt(sum over positions of (A_s - A_t)**2)  variant "paper"

    The norm makes the loss blind to the scale of an example's features, so networks of
    different widths can be compared; a map that is zero everywhere counts as A = 0.
    Where the maps differ in size the larger is averaged down to the smaller.

    Args:
      student_features: the student's map; any number of channels.
      teacher_features: the teacher's map; any number of channels.
      p: 1 to 32; larger weighs the strongest channels more.
      variant: "code", what the authors released and the usual weight of 1000 belongs
        to, or "paper", the formula of the article.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, a pure number: at most 2 / positions ("code"; the maps
      are not negative) or sqrt(2) ("paper").

    Raises:
      ValueError: if the batches, the numbers of spatial axes or the lengths of token
        sequences differ, or a knob is out of its range.

    Example:
      The student looks at the first of two positions, the teacher at the second.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[0.0], [7.0]]])
      >>> print(losses.at(student, teacher))
      [1.]

    References:
      Zagoruyko, Komodakis. `Paying More Attention to Attention: Improving the
      Performance of Convolutional Neural Networks via Attention Transfer
      <https://arxiv.org/abs/1612.03928>`_, 2017. Equation 2.
    """
    fm.check(
        where, 3, student_features=student_features, teacher_features=teacher_features
    )
    student_features, teacher_features = fm.to_smaller(
        *without(where, student_features, teacher_features)
    )
    difference = _attention(student_features, p) - _attention(teacher_features, p)
    square = jnp.square(difference)
    if variant == "code":
        return only(where, jnp.mean(square, axis=-1))
    return only(where, safe_sqrt(jnp.sum(square, axis=-1)))
