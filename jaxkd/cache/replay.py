"""Random views that can be shown again: each example draws from a key of its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd import _check, data
from jaxkd.data.augment import View
from jaxkd.types import Batch

VIEWS = "_views"  # ends the name of a field that has an axis of views


@dataclasses.dataclass(frozen=True)
class Replay:
    """What `View.apply` is in a replayed view, with its settings open to be read.

    Attributes:
      view: what is replayed.
      seed: of all its keys.
      views: how many different views of an example there are.
    """

    view: View
    seed: int
    views: int

    def __call__(self, key: Array, batch: Batch) -> Batch:
        """View number "view" of every example; `key` has no effect."""
        if missing := {"view", "index"} - set(batch):
            raise ValueError(
                f"a replayed view needs the fields {sorted(missing)}: take the batch "
                "from cache.showing(...), and put nothing around cache.replayed(...)"
            )
        fields = {
            name: (column.shape[1:], column.dtype)
            for name, column in batch.items()
            if name not in ("view", "label", "index") and not name.startswith("teacher")
        }
        _refuse_mixing(self.view, tuple(sorted(fields.items())))
        # The generator is named: what is stored outlives a change of JAX's default.
        root = jax.random.key(self.seed, impl="threefry2x32")

        def one(number: Array, index: Array, example: Batch) -> Batch:
            own = jax.random.fold_in(jax.random.fold_in(root, number), index)
            shown = self.view(own, jax.tree.map(lambda a: a[None], example))
            return jax.tree.map(lambda a: a[0], shown)

        return jax.vmap(one)(batch["view"] % self.views, batch["index"], batch)


def replayed(view: View, *, seed: int, views: int) -> View:
    """A random view as `views` fixed ones, so that what a teacher said can be stored.

    View v of the example with index i is drawn from the key
    fold_in(fold_in(key(seed), v), i), whatever batch it is in. Batches need the fields
    "index" and "view" (the v of each example), which `train.make_epoch` sets to the
    number of the epoch modulo `views`.

    Args:
      view: e.g. `augment.chain(flip(), crop(4), to_float())`; it must treat each
        example for itself.
      seed: >= 0.
      views: how many there are of each example, >= 1.

    Returns:
      A view that is not random: it depends on the batch alone, not on the key.

    Raises:
      ValueError: when applied, if `view` mixes the examples of a batch, as
        `augment.mixup` does.

    References:
      L. Beyer, X. Zhai, A. Royer, L. Markeeva, R. Anil, A. Kolesnikov, Knowledge
      distillation: A good teacher is patient and consistent, 2022,
      https://arxiv.org/abs/2106.05237: teacher and student should see the same views.
    """
    _check.whole(0)("seed", seed)
    _check.whole(1)("views", views)
    return View(Replay(view, seed, views), random=False)


def showing(resident: Batch, view: ArrayLike) -> Batch:
    """Return the data as it is in an epoch that shows view number `view` of each.

    Args:
      resident: from `offline.on_device`, or from `data.on_device` if the teacher is
        live.
      view: 0 to the number of views; may be traced.

    Returns:
      The same with the field "view", int32 `[n]`, for a replayed view to read; of the
      scores of several views, those of this one.
    """
    shown = {"view": jnp.full(data.count(resident), view, jnp.int32)}
    for name, field in resident.items():
        if name.endswith(VIEWS):
            shown[name.removesuffix(VIEWS)] = field[:, view]
        else:
            shown[name] = field
    return shown


def in_turn(view: View, resident: Batch, epoch: ArrayLike) -> Batch:
    """Return the data of an epoch: view number `epoch` modulo their number of each.

    Raises:
      ValueError: if the scores are of another number of views.
    """
    seed, views = settings(view)
    for name, field in resident.items():
        if name.endswith(VIEWS) and (seed is None or field.shape[1] != views):
            raise ValueError(
                f"the scores are of {field.shape[1]} views of each example, but the "
                f"view has {views}; train under the view that was scored"
            )
    return resident if seed is None else showing(resident, jnp.mod(epoch, views))


def settings(view: View) -> tuple[int | None, int]:
    """Return the seed and number of views; None and 1 if it is not replayed."""
    if isinstance(view.apply, Replay):
        return view.apply.seed, view.apply.views
    return None, 1


@functools.lru_cache
def _refuse_mixing(
    view: View, fields: tuple[tuple[str, tuple[tuple[int, ...], np.dtype]], ...]
) -> None:
    """Change one example of a small batch: the others must not notice.

    Only running it can tell. Under eight keys, since a permutation of three examples
    leaves all of them in place with probability 1/6.
    """
    n, keys = 3, 8

    def random(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The batch as it is, then with each of its examples exchanged for another."""
        noise = np.random.default_rng(0).integers(0, 256, (n + 1, *shape))
        values = noise if np.issubdtype(dtype, np.integer) else noise / 255
        batches = np.stack([values[:n]] * (n + 1))
        batches[1 + np.arange(n), np.arange(n)] = values[n]
        return batches.astype(dtype)

    def run(batches: Batch) -> Batch:
        def seen(key: Array, columns: Batch) -> Batch:
            ints = jnp.arange(n, dtype=jnp.int32)
            return view(key, {**columns, "label": ints, "index": ints})

        drawn = jax.random.split(jax.random.key(0, impl="threefry2x32"), keys)
        return jax.vmap(jax.vmap(seen, (0, None)), (None, 0))(drawn, batches)

    batches = {name: random(*about) for name, about in fields}
    # Compiled by hand, it runs on the spot although something else is being traced.
    shown = jax.tree.map(np.asarray, jax.jit(run).lower(batches).compile()(batches))
    reason = (
        "the view mixes the examples of a batch, as mixup does: what it shows of one "
        "then depends on its batch, and cannot be shown again; leave that part out"
    )
    if set(shown) != {*batches, "label", "index"}:
        raise ValueError(f"{reason} (it gives the fields {sorted(shown)})")
    for name, (plain, *exchanged) in shown.items():
        for j, after in enumerate(exchanged):
            others = np.arange(n) != j
            if not np.array_equal(after[:, others], plain[:, others]):
                raise ValueError(f"{reason} (field {name!r})")
