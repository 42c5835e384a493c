"""Scale decoupled distillation (Wei et al., 2024)."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxkd import _check
from jaxkd.losses import _feature_math as fm
from jaxkd.losses._compile import compiled
from jaxkd.losses._kd import kd
from jaxkd.losses._math import labelled, live, only, without


def _scales(name: str, value: object) -> None:
    """The check of `scales`."""
    if not isinstance(value, tuple) or not value:
        raise ValueError(f"{name} must be a tuple of integers >= 1, got {value!r}")
    for scale in value:
        _check.whole(1)(name, scale)


@compiled(static=("loss", "scales"), scales=_scales, complementary=_check.not_negative)
def sdd(
    student_logit_maps: Float[Array, "batch height width classes"],
    teacher_logit_maps: Float[Array, "batch height width classes"],
    labels: Int[Array, " batch"],
    *,
    loss: Callable[..., Any] = kd,
    scales: tuple[int, ...] = (1, 2, 4),
    complementary: ArrayLike = 2.0,
    class_mask: Bool[Array, "..."] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """A loss of logits on regions of the image, more where the teacher disagrees.

    At scale m the maps of logits are averaged in m * m cells; with R all cells of all
    scales, s_r and t_r the logits of a cell, and w_r = `complementary` where exactly
    one of the teacher's predictions is right, that of the cell or that of the whole
    image, else 1::

        loss = 1/|R| * sum_r w_r * loss(s_r, t_r)

    The mean over regions is the authors' program's; the paper has the sum, 21 times as
    large for the scales 1, 2, 4. Predictions do not have a gradient.

    Maps of logits come from a network whose head is applied before the averaging over
    positions: `features @ kernel + bias`. Their average is the network's logits.

    Args:
      student_logit_maps: unnormalised log-probabilities at each position.
      teacher_logit_maps: the same of the teacher; gradients flow to it too.
      labels: the true class of each image; -1 for an example without one, which gets
        loss 0 and no gradient.
      loss: `(student_logits, teacher_logits)` or `(student_logits, teacher_logits,
        labels)`, with `where=` and `class_mask=`, e.g. `losses.dkd` or
        `functools.partial(losses.kd, temperature=2.0)`. It is part of the program,
        which is compiled once for each such function.
      scales: numbers of cells along each side, >= 1 and at most the map's size.
      complementary: weight of regions where exactly one prediction is right, >= 0.
      class_mask: true for the classes that exist, broadcastable to `[batch, classes]`;
        the others get probability 0, as do those with a logit of -inf at any position.
      where: true for the examples to use; the others get loss 0 and no gradient.

    Returns:
      The loss of each example, in the unit of `loss`.

    Raises:
      ValueError: if the shapes differ, a label is not a class, a scale is larger than
        the map, or an argument is out of its range.

    Example:
      The two halves say (3/4, 1/4) and (1/4, 3/4): one is right, and the whole, a tie,
      counts as the first class, which is the label. The student knows nothing: the
      second half counts twice, and the whole adds nothing.

      >>> import functools
      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> teacher = jnp.log(jnp.array([[[[3.0, 1.0]], [[1.0, 3.0]]]]))
      >>> teacher, labels = jnp.tile(teacher, (1, 1, 2, 1)), jnp.array([0])
      >>> kd = functools.partial(losses.kd, temperature=1.0)
      >>> knobs = {"loss": kd, "scales": (1, 2)}
      >>> loss = losses.sdd(jnp.zeros((1, 2, 2, 2)), teacher, labels, **knobs)
      >>> print(f"{loss[0]:.4f}")
      0.1570

    References:
      Wei, Luo, Luo. `Scale Decoupled Distillation
      <https://arxiv.org/abs/2403.13512>`_, CVPR 2024.
    """
    maps = {
        "student_logit_maps": student_logit_maps,
        "teacher_logit_maps": teacher_logit_maps,
    }
    _check.real(**maps)
    _check.rank(4, 4, **maps)
    _check.same_shape(**maps)
    _check.not_empty(**maps)
    batch, *space, classes = student_logit_maps.shape
    _check.class_mask(class_mask, (batch, classes))
    _check.mask("where", where, (batch,))
    _check.labels(labels, (batch,))
    if max(scales) > min(space):
        raise ValueError(f"scales must be at most the map's size {space}, got {scales}")
    where = labelled(labels, classes, where)
    s, t = without(where, student_logit_maps, teacher_logit_maps)
    if class_mask is not None and class_mask.ndim > 1:
        class_mask = class_mask[:, None]
    _, s = _regions(s, scales)
    whole, t = _regions(t, scales)
    regions = t.shape[1]
    spread = lambda x: jnp.broadcast_to(x[:, None], (batch, regions))
    answer = spread(labels.astype(jnp.int32))
    right = _prediction(t, class_mask) == answer
    right_as_a_whole = _prediction(whole, class_mask) == answer[:, :1]
    masks: dict[str, Any] = {"where": spread(where), "class_mask": class_mask}
    with_labels = "labels" in inspect.signature(loss).parameters
    each = loss(s, t, *([answer] if with_labels else []), **masks)
    weight = jnp.where(right != right_as_a_whole, complementary, 1)
    return only(where, jnp.mean(weight * each, axis=1))


def _regions(
    maps: Float[Array, "batch height width classes"], scales: tuple[int, ...]
) -> tuple[Float[Array, "batch 1 classes"], Float[Array, "batch regions classes"]]:
    """Return the average logits of the whole and of all cells."""
    alive = jnp.all(live(maps, None), axis=(1, 2), keepdims=True)
    maps = jnp.where(alive, maps, 0)
    alive = alive[:, 0]
    average = lambda m: jnp.where(
        alive, fm.pool(maps, (m, m)).reshape(len(maps), m * m, -1), -jnp.inf
    )
    return average(1), jnp.concatenate([average(m) for m in scales], axis=1)


def _prediction(
    logits: Float[Array, "batch regions classes"], class_mask: Array | None
) -> Int[Array, "batch regions"]:
    exists = live(logits, class_mask)
    return jnp.argmax(jnp.where(exists, logits, -jnp.inf), axis=-1).astype(jnp.int32)
