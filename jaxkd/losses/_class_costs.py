"""How unlike two classes are to a teacher (Lv, Yang & Li, 2024)."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled


@compiled(kappa=_check.positive)
def class_costs(
    teacher_features: Float[Array, "classes examples dims"],
    *,
    kappa: ArrayLike = 1.0,
) -> Float[Array, "classes classes"]:
    """Costs between classes for `wkd_logits`, from a teacher's features; not a loss.

    With X_i the features of class i `[examples, dims]`, their mean subtracted, and CKA
    the linear centred kernel alignment::

        CKA_ij = ||X_i' X_j||_F**2 / (||X_i' X_i||_F * ||X_j' X_j||_F)
        cost_ij = 1 - exp(-kappa * (1 - CKA_ij))

    A class has cost 0 to itself. Example n of one class is paired with example n of the
    other, so the same number is needed of each; their order is arbitrary, as in the
    authors' program. A class whose features are constant has CKA 0 with all.

    Args:
      teacher_features: logits or penultimate features of equally many examples of each
        class.
      kappa: > 0; larger makes classes of middling likeness farther apart. The authors
        have 1.

    Returns:
      The costs, symmetric, from 0 to 1 - exp(-kappa).

    Raises:
      ValueError: if the features have not three axes, or `kappa` is not positive.

    Example:
      Along the same line, and along a line at right angles in the space of examples.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> same, other = [[-1.0], [0.0], [1.0]], [[1.0], [-2.0], [1.0]]
      >>> print(losses.class_costs(jnp.array([same, same, other])).round(4)[0] + 0)
      [0.     0.     0.6321]

    References:
      Lv, Yang, Li. `Wasserstein Distance Rivals Kullback-Leibler Divergence for
      Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, NeurIPS 2024.
      Section 3.1.
    """
    _check.real(teacher_features=teacher_features)
    _check.rank(3, 3, teacher_features=teacher_features)
    _check.not_empty(teacher_features=teacher_features)
    x = teacher_features - jnp.mean(teacher_features, axis=1, keepdims=True)
    # CKA is the cosine of the two Gram matrices between examples.
    x = fm.unit(fm.flat(x)).reshape(x.shape)  # against overflow
    grams = fm.unit(fm.flat(fm.einsum("cnd,cmd->cnm", x, x)))
    unlike = 1 - fm.einsum("id,jd->ij", grams, grams)
    return -jnp.expm1(-jnp.asarray(kappa, x.dtype) * unlike)
