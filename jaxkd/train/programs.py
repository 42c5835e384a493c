"""Pure functions to compile: an epoch over data on the device, a step over a stream."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxkd import data, distill, mesh as meshes
from jaxkd.cache.replay import in_turn, settings
from jaxkd.data import Stream, stream as streams
from jaxkd.data.augment import View
from jaxkd.distill import Distiller, TrainState, without_masked
from jaxkd.types import Batch, Metrics

Check = Callable[[TrainState, Any], None]


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One pass over data on the device, as a pure function that knows its batch size.

    Attributes:
      run: see `make_epoch`.
      batch_size: examples in a step.
      check: `(state, resident) -> None`, raises a ValueError if the data do not fit.
    """

    run: Callable[..., tuple[TrainState, Metrics]]
    batch_size: int
    check: Check = distill.accept

    def __call__(self, *args: Any) -> tuple[TrainState, Metrics]:
        """Run the epoch, or a part of it."""
        return self.run(*args)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step on a streamed batch, as a pure function.

    Attributes:
      run: see `make_step`.
      check: `(state, stream) -> None`, raises a ValueError if the data do not fit.
    """

    run: Callable[..., tuple[TrainState, Metrics]]
    check: Check = distill.accept

    def __call__(self, *args: Any) -> tuple[TrainState, Metrics]:
        """Take the step."""
        return self.run(*args)


def stored(examples: Batch | Stream, view: View, size: int = 2) -> Batch:
    """Return a small batch as it reaches the view."""
    if isinstance(examples, Stream):
        return jax.tree.map(jnp.asarray, streams.first(examples, size))
    return jax.tree.map(lambda a: a[:size], in_turn(view, examples, 0))


def example(examples: Batch | Stream, view: View, size: int = 2) -> Batch:
    """Return a small batch as the networks see it, to make their variables from."""
    return view(jax.random.key(0), stored(examples, view, size))


def make_epoch(
    distiller: Distiller, *, view: View, batch_size: int, mesh: Mesh | None = None
) -> Epoch:
    """Build one pass over the data as a pure function, to be compiled by `fit`.

    On a mesh each device takes an equal part of every batch; the losses, BatchNorm and
    the metrics are those of the whole batch. State, teacher and data have to lie on it
    (`mesh.put`), the data replicated, the networks as is best for them.

    Args:
      distiller: whose `step` is taken for every batch.
      view: from the stored uint8 images to what the networks see; student and teacher
        see the same. With a `cache.replayed` view of k stored views, epoch e shows
        number e modulo k, where e is `state.step` divided by the steps of an epoch.
      batch_size: examples in a step, on all devices together; the last, incomplete
        batch is left out.
      mesh: of the devices, from `mesh.make`; None for one device.

    Returns:
      `(state, teacher_variables, resident, key, first=0, steps=None) -> (state,
      metrics)`, where each metric has one value per step, `[steps]`: all steps of the
      epoch, or `steps` (not traced) of them from number `first` on.

    Raises:
      ValueError: if the mesh cannot share a batch equally; when traced, if the columns
        of the data differ in length, if the batch is larger than the data, if the view
        is random while a teacher's stored outputs ("teacher...") lie beside the
        images, or if an argument is not on the mesh.
    """
    if mesh is not None:
        meshes.check_batch(batch_size, mesh)

    def epoch(
        state: TrainState,
        teacher_variables: Any,
        resident: Batch,
        key: Array,
        first: ArrayLike = 0,
        steps: int | None = None,
    ) -> tuple[TrainState, Metrics]:
        _refuse_stored(view, resident)
        meshes.check_placed(
            mesh, state=state, teacher_variables=teacher_variables, resident=resident
        )
        whole = max(1, data.count(resident) // batch_size)
        # Peers (`schemes.mutual`) are several states, without a step of their own.
        number = state.step // whole if settings(view)[0] is not None else 0
        resident = in_turn(view, resident, number)
        order_key, view_key = jax.random.split(key)
        order = data.epoch(order_key, data.count(resident), batch_size)
        keys = jax.random.split(view_key, len(order))
        if steps is not None:
            part = lambda a: jax.lax.dynamic_slice_in_dim(a, first, steps)
            order, keys = part(order), part(keys)

        def step(state: TrainState, now: tuple[Array, Array]) -> tuple:
            indices, key = now
            batch = meshes.split(data.gather(resident, indices), mesh)
            batch = without_masked(batch)
            batch = meshes.split(view(key, batch), mesh)
            return distiller.step(state, teacher_variables, batch)

        return jax.lax.scan(step, state, (order, keys))

    def check(state: TrainState, resident: Batch) -> None:
        seen = jax.eval_shape(lambda columns: example(columns, view), resident)
        distiller.check(state, resident, seen)

    return Epoch(epoch, batch_size, check)


def make_step(distiller: Distiller, stream: Stream, *, view: View) -> Step:
    """Build the step of a training on streamed data, to be compiled by `fit`.

    With the same key it is the training of `make_epoch`: the same order, the same
    views, the same updates, up to rounding.

    Args:
      distiller: whose `step` is taken.
      stream: the training data; their number decides the keys of the views.
      view: from the stored examples to what the networks see.

    Returns:
      `(state, teacher_variables, batch, key, epoch, number) -> (state, metrics)`.

    Raises:
      ValueError: if a batch is larger than the data; when traced, if the view is random
        while a teacher's stored outputs ("teacher...") come with the examples, or if an
        argument is not on the mesh.
    """
    if not stream.steps:
        raise ValueError(
            f"batch_size must be 1 to the {stream.source.examples} examples of "
            f"{stream.source.name}, got {stream.batch_size}"
        )

    def step(
        state: TrainState,
        teacher_variables: Any,
        batch: Batch,
        key: Array,
        epoch: Array,
        number: Array,
    ) -> tuple[TrainState, Metrics]:
        _refuse_stored(view, batch)
        meshes.check_placed(
            stream.mesh, state=state, teacher_variables=teacher_variables, batch=batch
        )
        key = streams.view_key(key, epoch, number, stream.steps)
        seen = view(key, without_masked(batch))
        # Each device keeps an equal part, whatever the view did.
        return distiller.step(state, teacher_variables, meshes.split(seen, stream.mesh))

    def check(state: TrainState, stream: Stream) -> None:
        # Of the labels, only the number of classes is known yet.
        classes = stream.source.classes
        known = {"label": np.array([len(classes) - 1])} if classes else {}
        distiller.check(state, known, example(stream, view))

    return Step(step, check)


def _refuse_stored(view: View, batch: Batch) -> None:
    if view.random and any(name.startswith("teacher") for name in batch):
        raise ValueError(
            "the view is random, but the teacher's outputs were stored for other "
            "images; use the live teacher, a view without augmentation, or one that "
            "can be replayed (schemes.offline)"
        )


def over_seeds(epoch: Epoch, *, together: bool = True) -> Epoch:
    """Run an epoch for several states at once, each with its own key.

    Args:
      epoch: what `make_epoch` returned.
      together: by `vmap`, right for MLPs; else one after another, since XLA is slow at
        the grouped convolutions that `vmap` makes: on an H100, three seeds of a ResNet
        took 1.4 and 2 times as long together, and on a CPU more.

    Returns:
      An epoch whose state and key have a leading axis of seeds, as the metrics have:
      `[seeds, steps]`. Teacher and data are shared.
    """

    def of_all(
        states: TrainState,
        teacher_variables: Any,
        resident: Batch,
        keys: Array,
        first: ArrayLike = 0,
        steps: int | None = None,
    ) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, key: Array) -> tuple[TrainState, Metrics]:
            return epoch(state, teacher_variables, resident, key, first, steps)

        if together:
            return jax.vmap(one)(states, keys)
        return jax.lax.map(lambda each: one(*each), (states, keys))

    return dataclasses.replace(epoch, run=of_all)
