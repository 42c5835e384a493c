"""Wasserstein distance of logits, WKD-L (Lv, Yang & Li, 2024)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _math
from jaxkd.losses._compile import compiled
from jaxkd.losses._math import labelled, lowest, narrowed, normalize, only, without


@compiled(
    static=("iterations",),
    iterations=_check.whole(1),
    gamma=_check.not_negative,
    temperature=_check.positive,
    epsilon=_check.positive,
)
def wkd_logits(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    cost: Float[Array, "classes classes"],
    *,
    gamma: ArrayLike = 30.0,
    temperature: ArrayLike = 2.0,
    epsilon: ArrayLike = 0.05,
    iterations: int = 10,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cost of moving the student's probabilities to the teacher's; the label apart.

    With p, q the softmax at temperature 1, y the label, p', q' the softmax at T of the
    other classes alone, and C the cost of moving probability between two classes::

        loss = -p_y * log q_y + gamma * <P, C>
        P = argmin over plans of <P, C> - epsilon * H(P),
            whose rows sum to q' and whose columns sum to p'

    H is the entropy. Unlike a divergence, which compares class with class, transport
    between like classes is cheap. The plan is that of `iterations` rounds of Sinkhorn's
    algorithm, in log space, and gradients pass through the rounds: its rows sum to q'
    exactly, its columns to p' in the limit. There is no factor T**2.

    The authors' values: gamma 30 and T = 2 on ImageNet, 600 and 8 on CIFAR-100, beside
    a cross-entropy of weight 1. Each round takes batch * classes**2 operations.

    Args:
      student_logits: unnormalised log-probabilities.
      teacher_logits: the same of the teacher; gradients flow to it too.
      labels: the true class of each example; -1 for an example without one, which
        gets loss 0 and no gradient.
      cost: C, with row i the costs from class i, from `class_costs`.
      gamma: weight of the transport, >= 0.
      temperature: T > 0; larger is softer.
      epsilon: > 0, weight of the entropy; a smaller one needs more iterations.
      iterations: rounds of Sinkhorn's algorithm, >= 1.
      class_mask: true for the classes that exist, broadcastable to the logits; the
        others get probability 0, as do logits of -inf.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example: nats, and units of the cost times `gamma`.

    Raises:
      ValueError: if the shapes differ, a label is not a class, or an argument is out
        of its range.

    Example:
      Of two classes only one is not the label: nothing is moved, and 3/4 * log 2 is
      left.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
      >>> cost = 1 - jnp.eye(2)
      >>> loss = losses.wkd_logits(student, teacher, jnp.array([0]), cost)
      >>> print(f"{loss[0]:.4f}")
      0.5199

    References:
      Lv, Yang, Li. `Wasserstein Distance Rivals Kullback-Leibler Divergence for
      Knowledge Distillation <https://arxiv.org/abs/2412.08139>`_, NeurIPS 2024.
      Section 3.1.
    """
    _check.logits(
        class_mask, where, student_logits=student_logits, teacher_logits=teacher_logits
    )
    _check.labels(labels, student_logits.shape[:-1])
    classes = student_logits.shape[-1]
    _check.real(cost=cost)
    if jnp.shape(cost) != (classes, classes):
        raise ValueError(
            f"cost must have shape {(classes, classes)}, got {jnp.shape(cost)}"
        )
    where = labelled(labels, classes, where)
    student_logits, teacher_logits = without(where, student_logits, teacher_logits)
    target = _math.one_hot(labels, classes)
    p_label = _math.pick(target, _math.softmax(teacher_logits, class_mask))
    of_label = p_label * _math.cross_entropy(target, student_logits, class_mask)
    others = narrowed(class_mask, ~target)
    log_q, exists = normalize(student_logits, others, temperature=temperature)
    log_p, taught = normalize(teacher_logits, others, temperature=temperature)
    moved = _transport(log_q, log_p, cost, epsilon, iterations)
    moved = jnp.where(taught & exists, moved, 0)
    return only(where, of_label + gamma * moved)


def _transport(
    log_rows: Float[Array, "*batch classes"],
    log_columns: Float[Array, "*batch classes"],
    cost: Float[Array, "classes classes"],
    epsilon: ArrayLike,
    iterations: int,
) -> Float[Array, "*batch"]:
    """<P, C> of Sinkhorn's plan P = u_i exp(-C_ij / epsilon) v_j.

    The rounds are products with the kernel exp(-C / epsilon) while it is far from
    underflow, else sums in log space, one example after another, so that nothing of
    size batch * classes**2 is ever held: the backward pass does each round again.
    """
    exponent = cost / epsilon
    # u and v are scaled to at most 1: what then underflows beside exp(-40) is nothing.
    close = jnp.max(jnp.abs(exponent)) <= 40
    sinkhorn = lambda *given: _sinkhorn(*given, iterations=iterations)

    def by_products(log_rows, log_columns, exponent, cost):
        kernel = jnp.exp(-exponent)
        into_columns = lambda log_u: _log_product(log_u, kernel)
        into_rows = lambda log_v: _log_product(log_v, kernel.T)
        log_u, log_v = sinkhorn(log_rows, log_columns, into_columns, into_rows)
        (u, u_most), (v, v_most) = _scaled(log_u), _scaled(log_v)
        moved = jnp.sum(u * _product(v, (kernel * cost).T), axis=-1)
        return moved * jnp.exp(u_most + v_most)[..., 0]

    def in_log_space(log_rows, log_columns, exponent, cost):
        @jax.checkpoint
        def into_columns(log_u):
            return jax.nn.logsumexp(log_u[:, None] - exponent, 0)

        @jax.checkpoint
        def into_rows(log_v):
            return jax.nn.logsumexp(log_v[None, :] - exponent, 1)

        @jax.checkpoint
        def moved(log_u, log_v):
            log_plan = log_u[:, None] + log_v[None, :] - exponent
            return jnp.sum(jnp.exp(log_plan) * cost)

        def of_one(marginals):
            return moved(*sinkhorn(*marginals, into_columns, into_rows))

        flat = (log_rows.reshape(-1, len(cost)), log_columns.reshape(-1, len(cost)))
        return jax.lax.map(of_one, flat).reshape(log_rows.shape[:-1])

    operands = (log_rows, log_columns, exponent, cost)
    return jax.lax.cond(close, by_products, in_log_space, *operands)


def _sinkhorn(
    log_rows: Array,
    log_columns: Array,
    into_columns: Callable[[Array], Array],
    into_rows: Callable[[Array], Array],
    *,
    iterations: int,
) -> tuple[Array, Array]:
    """Return the logarithms of u and v after so many rounds."""

    def round_(log_u: Array, _: None) -> tuple[Array, Array]:
        log_v = log_columns - into_columns(log_u)
        return log_rows - into_rows(log_v), log_v

    start = jnp.where(log_rows <= lowest(log_rows.dtype) / 2, log_rows, 0)
    log_u, log_v = jax.lax.scan(round_, start, length=iterations)
    return log_u, log_v[-1]


def _scaled(log_x: Array) -> tuple[Array, Array]:
    """exp(log_x - most) and most, the largest of the last axis."""
    most = jax.lax.stop_gradient(jnp.max(log_x, axis=-1, keepdims=True))
    return jnp.exp(log_x - most), most


def _log_product(log_x: Array, kernel: Array) -> Array:
    """Return the logarithm of exp(log_x) @ kernel."""
    x, most = _scaled(log_x)
    return jnp.log(_product(x, kernel)) + most


def _product(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
