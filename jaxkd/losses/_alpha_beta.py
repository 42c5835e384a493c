"""Alpha-beta divergence (Wang et al., 2025)."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxkd import _check
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import normalize, only, without


def _exponent(name: str, value: object) -> None:
    """The check of `alpha` and `beta`: they choose the formula, so none is traced."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{name} must be a number >= 0, got {value!r}")
    _check.not_negative(name, value)


@compiled(
    static=("alpha", "beta"),
    alpha=_exponent,
    beta=_exponent,
    temperature=_check.positive,
)
def alpha_beta(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: ArrayLike = 1.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Alpha-beta divergence from the softened teacher to the softened student.

    With p = softmax(teacher_logits / T), q = softmax(student_logits / T), a = alpha,
    b = beta and s = a + b::

        loss = -1/(a b) * sum_k (p_k**a * q_k**b - a/s * p_k**s - b/s * q_k**s)

    At a = 1 it goes to KL(p, q) as b goes to 0, and at b = 1 to KL(q, p) as a goes to
    0; at a = b = 1/2 it is 4 times the squared Hellinger distance, at a = b = 1 half
    the squared distance. At a = b = 0 it is half the sum of squared differences of the
    log-probabilities. alpha weighs classes by the teacher's probability, beta by the
    student's. The limits are computed by formulas of their own, and near them nothing
    cancels. There is no factor T**2.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      alpha: a, a Python number >= 0; the program is compiled for each.
      beta: b, a Python number >= 0, likewise.
      temperature: T > 0; larger is softer.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example; in nats at a + b = 1.

    Raises:
      ValueError: if the shapes differ, or an argument is out of its range.

    Example:
      (3/4, 1/4) and (1/2, 1/2): half of 1/16 + 1/16.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> print(losses.alpha_beta(student, teacher, alpha=1.0, beta=1.0).round(4))
      [0.0625]

    References:
      Wang, Yang, Wang, Xu, Huang. `ABKD: Pursuing a Proper Allocation of the
      Probability Mass in Knowledge Distillation via alpha-beta-Divergence
      <https://arxiv.org/abs/2505.04560>`_, ICML 2025.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    log_p, taught = normalize(teacher_logits, class_mask, temperature=temperature)
    log_q, exists = normalize(student_logits, class_mask, temperature=temperature)
    if alpha >= beta:
        each = _divergence(log_p, log_q, float(alpha), float(beta))
    else:  # the divergence with both pairs exchanged is the same
        each = _divergence(log_q, log_p, float(beta), float(alpha))
    loss = jnp.where(taught & exists, jnp.sum(each, axis=-1), 0)
    return only(where, loss)


def _divergence(log_p: Array, log_q: Array, a: float, b: float) -> Array:
    """Return the summands, for a >= b >= 0.

    With r = log q - log p the sum is 1/a * sum_k p**s * (phi(s r) / s - phi(b r) / b)
    with phi = expm1: each quotient goes to r, where its exponent goes to 0.
    """
    if a == 0:
        return jnp.square(log_p - log_q) / 2
    direct = (_moment(log_p, log_q, a + b, 0.0) - _moment(log_p, log_q, b, a)) / a
    if a > 0.1:
        return direct
    # Both exponents are small: the two moments are about r, and their difference is
    # taken term by term.
    ratio = log_q - log_p
    near = (a + b) * jnp.abs(ratio) < 0.3
    series = jnp.exp((a + b) * log_p) * _series(jnp.where(near, ratio, 0), a, b)
    return jnp.where(near, series, direct)


def _series(r: Array, a: float, b: float) -> Array:
    """(expm1(s r) / s - expm1(b r) / b) / a for s = a + b, from its power series.

    The coefficient of r**n is (s**(n - 1) - b**(n - 1)) / a / n!, and the division by
    a = s - b leaves a geometric sum. For s r < 0.3 the rest is below 1e-15.
    """
    total = jnp.zeros_like(r)
    for n in range(13, 1, -1):
        geometric = sum((a + b) ** j * b ** (n - 2 - j) for j in range(n - 1))
        total = total * r + geometric / math.factorial(n)
    return total * jnp.square(r)


def _moment(log_p: Array, log_q: Array, x: float, rest: float) -> Array:
    """p**rest * (q**x - p**x) / x, without cancellation; for x = 0 its limit."""
    ratio = log_q - log_p
    p_to_rest = jnp.exp(rest * log_p)
    if x == 0:
        return p_to_rest * ratio
    # The larger power is taken out of the difference, so that no power overflows.
    above = ratio > 0
    larger = jnp.exp(x * jnp.where(above, log_q, log_p))
    below_one = jnp.expm1(x * jnp.where(above, -ratio, ratio))
    return p_to_rest * larger * jnp.where(above, -below_one, below_one) / x
