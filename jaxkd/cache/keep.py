"""What is kept of a teacher's logits: all, the largest, or only the largest's class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check

FIELDS = {
    "hard": ("teacher_label",),
    "soft": ("teacher",),
    "topk": ("teacher_top", "teacher_top_index", "teacher_logsumexp"),
}


class Kept(NamedTuple):
    """Which part of the logits; see `score`."""

    kind: str
    k: int | None
    temperature: float | None
    dtype: str


def kept(kind: str, k: int | None, temperature: float | None, dtype: str) -> Kept:
    """Return the choice, checked.

    Raises:
      ValueError: if it does not exist, or a knob is missing or without a meaning.
    """
    _check.one_of(*FIELDS)("kind", kind)
    _check.one_of("float32", "float16")("dtype", dtype)
    if kind != "topk":
        if k is not None or temperature is not None:
            raise ValueError(
                f'k and temperature belong to kind "topk", got k = {k!r} and '
                f"temperature = {temperature!r} with {kind!r}"
            )
        return Kept(kind, None, None, dtype)
    if k is None or temperature is None:
        raise ValueError(
            'kind "topk" needs k and temperature: the sum over all classes is kept at '
            f"one temperature, got k = {k!r} and temperature = {temperature!r}"
        )
    _check.whole(1)("k", k)
    _check.positive("temperature", temperature)
    return Kept(kind, int(k), float(temperature), dtype)


def fits(kept: Kept, classes: int) -> None:
    """There are k classes to keep."""
    if kept.k is not None and kept.k > classes:
        raise ValueError(f"k must be at most the {classes} classes, got {kept.k}")


def reduce(logits: np.ndarray, kept: Kept) -> dict[str, np.ndarray]:
    """Return what is kept of float32 logits `[..., classes]`, by field.

    Raises:
      ValueError: if a logit is NaN or infinite, or overflows the type. -inf is allowed,
        which says that a class does not exist.
    """
    with np.errstate(over="ignore"):
        rounded = logits.astype(kept.dtype)
    bad = np.isnan(logits) | (logits == np.inf)
    bad |= np.isinf(rounded) != np.isinf(logits)
    if bad.any():
        where = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"the teacher's logit is {logits[where]}, which {kept.dtype} cannot keep; "
            "look at its variables and inputs, or keep float32"
        )
    small = np.min_scalar_type(logits.shape[-1] - 1)
    if kept.kind == "hard":
        return {"teacher_label": np.argmax(logits, -1).astype(small)}
    if kept.k is None or kept.temperature is None:
        return {"teacher": rounded}
    # The sum is that of the rounded logits, so that the kept shares are at most 1.
    exact = jnp.asarray(rounded, jnp.float32)
    top, index = jax.lax.top_k(exact, kept.k)
    total = jax.nn.logsumexp(exact / kept.temperature, axis=-1)
    return {
        "teacher_top": np.asarray(top).astype(kept.dtype),
        "teacher_top_index": np.asarray(index).astype(small),
        "teacher_logsumexp": np.asarray(total),
    }


def compare(
    kept: Kept, fields: dict[str, np.ndarray], logits: np.ndarray
) -> tuple[bool, float]:
    """Compare the fields with what is kept of these logits.

    Returns:
      Whether they are the same but for rounding, and the largest difference; of "hard",
      how far the logit of the kept class is from the largest.
    """
    if kept.kind == "soft":
        stored, now = fields["teacher"], logits
    elif kept.kind == "topk":
        index = fields["teacher_top_index"].astype(np.int64)
        stored, now = fields["teacher_top"], np.take_along_axis(logits, index, -1)
    else:
        index = fields["teacher_label"].astype(np.int64)[..., None]
        stored = logits.max(-1, keepdims=True)
        now = np.take_along_axis(logits, index, -1)
    close = 1e-3 if kept.dtype == "float32" else 1e-2
    stored = np.asarray(stored, np.float32)
    with np.errstate(invalid="ignore"):  # -inf of both is no difference
        apart = np.where(now == stored, 0, np.abs(now - stored))
    return bool(np.allclose(now, stored, rtol=close, atol=close)), float(apart.max())
