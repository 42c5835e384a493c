"""Distillation through an orthogonal projection (Miles, Elezi & Deng, 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.distill import Term, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.terms import _pairs
from jaxkd.types import Batch, Outputs, Params, State


def vkd(pair: _pairs.Pairs = "pooled") -> Term:
    """Smooth L1 distance of an orthogonal projection to the normalised teacher.

    With s and t the features averaged over their positions, LN a LayerNorm without
    scale and shift, and Q a matrix with orthonormal rows (columns, if the student is
    the wider)::

        loss = mean_u h((s Q)_u - LN(t)_u),   h(x) = x**2 / 2 up to 1, |x| - 1/2 beyond

    An orthogonal projection keeps the student's inner products: it cannot learn a
    relation of the features in the student's place. Q is trained without a constraint,
    as the Cayley transform of a skew-symmetric matrix A, of the larger dimension n,
    whose first rows and columns are taken::

        Q = (I + A)**-1 (I - A)

    (the authors take torch's orthogonal parametrisation; every rotation without an
    eigenvalue of -1 is a Cayley transform). For generative teachers the paper whitens
    the features in place of LN; this is not offered.

    Args:
      pair: the taps, embeddings or maps; tokens without class tokens.

    Returns:
      The term. Its parameter is "skew" `[n, n]`, of which the part above the diagonal
      counts.

    Raises:
      ValueError: at `init`, if taps are token sequences of different lengths.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"vkd": (1.0, terms.vkd())}

    References:
      Miles, Elezi, Deng. `VkD: Improving Knowledge Distillation using Orthogonal
      Projections <https://arxiv.org/abs/2403.06213>`_, CVPR 2024.
    """
    student, teacher = _pairs.one(pair)

    def features(s: Outputs, t: Outputs) -> tuple[Array, Array]:
        here, there = s.tap(student), t.tap(teacher)
        fm.same_length(here.shape, there.shape)
        return fm.average(here), fm.average(there)

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        here, there = features(s, t)
        n = max(here.shape[-1], there.shape[-1])
        return {"skew": jax.random.normal(key, (n, n)) / n**0.5}, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        here, there = features(s, t)
        q = orthogonal(params["skew"])[: here.shape[-1], : there.shape[-1]]
        error = fm.einsum("bi,ij->bj", here, q) - layer_norm(there)
        return jnp.mean(fm.smooth_l1(error), axis=-1), state

    return fitting(Term(init, apply))


def orthogonal(skew: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the Cayley transform of the part above the diagonal, made skew-symmetric.

    Example:
      A = [[0, 1], [-1, 0]] is turned into a rotation by a right angle.

      >>> print(orthogonal(jnp.array([[0.0, 1.0], [0.0, 0.0]])).round(4) + 0)
      [[ 0. -1.]
       [ 1.  0.]]
    """
    upper = jnp.triu(skew, 1)
    a, eye = upper - upper.T, jnp.eye(len(skew), dtype=skew.dtype)
    # I + A is never singular: the eigenvalues of A are imaginary.
    return jnp.linalg.solve(eye + a, eye - a)


def layer_norm(x: Float[Array, "batch dims"]) -> Float[Array, "batch dims"]:
    """Standardise each example over its units, with torch's epsilon of 1e-5."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)
