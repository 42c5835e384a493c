"""Contrastive representation distillation (Tian, Krishnan & Isola, 2020)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import only, without


def _contrast(
    anchors: Float[Array, "batch dims"],
    bank: Float[Array, "data dims"],
    candidates: Int[Array, "batch candidates"],
    log_odds: Float[Array, ""],
    temperature: ArrayLike,
) -> Float[Array, " batch"]:
    """Noise-contrastive loss of picking candidate 0; the others are noise."""
    # All scores at once are [batch, data]; the candidates' vectors would be [batch,
    # candidates, dims], usually forty times as much.
    scores = fm.einsum("bd,nd->bn", anchors, bank) / temperature
    scores = jnp.take_along_axis(scores, candidates, axis=1, mode="clip") - log_odds
    noise = jnp.sum(jax.nn.softplus(scores[:, 1:]), axis=1)
    return jax.nn.softplus(-scores[:, 0]) + noise


@compiled(
    temperature=_check.positive,
    student_normalizer=_check.positive,
    teacher_normalizer=_check.positive,
)
def crd(
    student_embeddings: Float[Array, "batch dims"],
    teacher_embeddings: Float[Array, "batch dims"],
    student_bank: Float[Array, "data dims"],
    teacher_bank: Float[Array, "data dims"],
    positives: Int[Array, " batch"],
    negatives: Int[Array, "batch negatives"],
    *,
    temperature: ArrayLike = 0.07,
    student_normalizer: ArrayLike = 1.0,
    teacher_normalizer: ArrayLike = 1.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Noise-contrastive loss of recognising an example across the two networks.

    The banks hold an embedding of every example of a data set of n. For an anchor a
    from one network and the entries b of the other's bank, N of them negatives::

        x_b = exp(a' b / T) / Z        h_b = x_b / (x_b + N / n)
        loss = -log h_positive - sum over negatives of log(1 - h_b)

    summed over both directions (student against the teacher's bank and the reverse).
    N / n is how much more likely noise is. Z turns exp(...) into a probability over the
    bank; the authors fix it at the first batch to n times the mean of exp(a' b / T)
    over that batch's candidates, and here it is an argument. Everything is in log
    space, so the 1e-7 in the authors' logarithms is not needed.

    Args:
      student_embeddings: of length 1, from the student's projection head.
      teacher_embeddings: of length 1, from the teacher's projection head.
      student_bank: the student's embeddings of all examples.
      teacher_bank: the teacher's, in the same order.
      positives: each example's row in the banks.
      negatives: rows of N examples drawn from all; the positive may be among them.
      temperature: T > 0.
      student_normalizer: Z > 0 where the student is the anchor.
      teacher_normalizer: Z > 0 where the teacher is the anchor.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in nats, summed over its N + 1 candidates and both
      directions.

    Raises:
      ValueError: if shapes do not fit, rows are not integers, or a knob is not
        positive.

    Example:
      All embeddings are orthogonal, so x = 1, and N / n = 1/2: h = 2/3 for the positive
      and for the one negative, in both directions: 2 (log(3/2) + log 3).

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> anchor, bank = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, -1.0]])
      >>> rows = jnp.array([0]), jnp.array([[1]])
      >>> print(losses.crd(anchor, anchor, bank, bank, *rows).round(4))
      [3.0082]

    References:
      Tian, Krishnan, Isola. `Contrastive Representation Distillation
      <https://arxiv.org/abs/1910.10699>`_, ICLR 2020. Equation 18.
    """
    fm.check(
        where,
        2,
        2,
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
    )
    banks = {"student_bank": student_bank, "teacher_bank": teacher_bank}
    _check.real(**banks)
    _check.rank(2, 2, **banks)
    _check.not_empty(**banks)
    _check.same_shape(**banks)
    fm.same_channels(
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
        **banks,
    )
    count = student_embeddings.shape[:1]
    _check.labels(positives, count, "positives")
    _check.rank(2, 2, negatives=negatives)
    _check.labels(negatives, (*count, negatives.shape[1]), "negatives")

    s, t = without(where, student_embeddings, teacher_embeddings)
    positives = positives[:, None].astype(negatives.dtype)
    candidates = jnp.concatenate([positives, negatives], axis=1)
    log_odds = jnp.log(negatives.shape[1] / len(student_bank))
    from_student = _contrast(
        s, teacher_bank, candidates, log_odds + jnp.log(student_normalizer), temperature
    )
    from_teacher = _contrast(
        t, student_bank, candidates, log_odds + jnp.log(teacher_normalizer), temperature
    )
    return only(where, from_student + from_teacher)
