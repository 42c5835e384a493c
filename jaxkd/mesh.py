"""Many devices: a mesh, and where on it arrays lie. XLA's partitioner does the rest.

    devices = mesh.make(model=2)
    state = mesh.put(state, mesh.replicated(devices))
    teacher = mesh.put(teacher, mesh.sharded(teacher, devices))  # a large one
    resident = mesh.put(resident, mesh.replicated(devices))
    epoch = train.make_epoch(distiller, view=view, batch_size=1024, mesh=devices)

A program keeps its global meaning, whatever the mesh: BatchNorm and relational losses
see the global batch, and 8 devices compute what one computes, up to rounding.

The axes are "data" and "model". A batch is split over both. Large parameters may be
split over "model", so that a device keeps only a part of each: the student's with its
optimiser's state, the teacher's, or both. The partitioner then moves features or
parameters between devices where a layer needs them, in every step.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

AXES = ("data", "model")


def make(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as a mesh of `len(devices) / model` times `model`.

    The devices are in the order of their processes, so that the rows of a batch that a
    process holds are one block, and those of process 0 are the first.

    Args:
      model: over how many devices parameters may be split; it divides their number.
      devices: which; None for all of all processes.

    Returns:
      A mesh with the axes "data" and "model". Both are of type Auto: shardings follow
      from those of the inputs, and only need to be said where `jaxkd` says them.

    Raises:
      ValueError: if `model` does not divide the number of devices, or there is none.
    """
    devices = list(jax.devices() if devices is None else devices)
    devices.sort(key=lambda device: (device.process_index, device.id))
    if isinstance(model, bool) or not isinstance(model, int) or model < 1:
        raise ValueError(f"model must be an integer >= 1, got {model!r}")
    if not devices or len(devices) % model:
        raise ValueError(
            f"model must divide the number of devices, got {model} and {len(devices)}"
        )
    arranged = np.array(devices).reshape(-1, model)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices: each has an equal part of a batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def split(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a compiled program: arrays `[batch, ...]`, each device with its rows.

    Args:
      tree: a batch, of arrays with one leading axis.
      mesh: None changes nothing.
    """
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, rows(mesh))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuse a global batch that cannot be split equally.

    Raises:
      ValueError: if the number of devices does not divide it.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, got {batch_size} "
            f"on {mesh.size} devices"
        )


def check_placed(mesh: Mesh | None, **trees: Any) -> None:
    """While tracing: refuses arguments that do not lie where the program runs.

    Raises:
      ValueError: naming the argument, if it is not on this mesh; without a mesh, if it
        is on one, since every device would then compute the whole batch.
    """
    wanted = {} if mesh is None or mesh.size == 1 else dict(mesh.shape)
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            found = dict(jax.typeof(leaf).sharding.mesh.shape)
            if math.prod(found.values()) == math.prod(wanted.values()) == 1:
                continue
            if not wanted:
                raise ValueError(f"{name} lies on a mesh {found}: say it, mesh=...")
            if found != wanted:
                raise ValueError(
                    f"{name} must lie on the mesh {wanted}, got {found or 'one device'}"
                    f": put it there first, mesh.put({name}, mesh.replicated(...))"
                )


def sharded(tree: Any, mesh: Mesh, *, at_least: int = 2**16) -> Any:
    """Split the large arrays of a tree over the axis "model" (as FSDP does).

    An array is split along its longest axis of those that the mesh's axis divides, the
    last of equally long ones; if there is none, or if the array is small, it is
    replicated. The rule sees shapes only, so that an optimiser's state is split as the
    parameters that it belongs to.

    Args:
      tree: of arrays, or of anything with a shape: what is too large for one device is
        made where it shall lie, by `jax.jit(init, out_shardings=sharded(
        jax.eval_shape(init, key), mesh))`.
      mesh: from `make`.
      at_least: how many elements an array that is split has.

    Returns:
      A tree of shardings for `put`.
    """

    def one(leaf: Any) -> NamedSharding:
        shape, parts = np.shape(leaf), mesh.shape["model"]
        fits = [i for i, length in enumerate(shape) if length and not length % parts]
        if parts == 1 or not fits or math.prod(shape) < at_least:
            return replicated(mesh)
        along = max(fits, key=lambda i: (shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(None,) * along, "model"))

    return jax.tree.map(one, tree)


def is_placed(tree: Any, mesh: Mesh) -> bool:
    """Return whether all arrays of a tree lie on a mesh, split or not."""
    leaves = jax.tree.leaves(tree)
    on = [getattr(getattr(leaf, "sharding", None), "mesh", None) for leaf in leaves]
    return bool(on) and all(found == mesh for found in on)


def shardings(tree: Any) -> Any:
    """How the arrays of a tree lie: a tree of shardings, as `out_shardings` wants it.

    A compiled step whose outputs lie as its inputs do can be given them again, without
    being compiled again, and can donate them.
    """
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def put(tree: Any, shardings: Any) -> Any:
    """Make global arrays of what every process has whole.

    Args:
      tree: of arrays, equal in all processes; random keys are allowed.
      shardings: one, or a tree of them that is a prefix of `tree`.

    Returns:
      The tree on the mesh. It never shares memory with what was put, so that donating
      it leaves the original alone.
    """

    def under(sharding: Sharding, subtree: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(leaf, sharding), subtree)

    return jax.tree.map(under, shardings, tree)


def _put(leaf: Any, sharding: Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        # Only a copy of ours may end up as one of the parts.
        leaf = jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
    if _is_key(leaf):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


def put_rows(tree: Any, mesh: Mesh) -> Any:
    """Make a global batch of each process's own rows.

    Args:
      tree: of arrays `[rows, ...]`, equally many in every process. Those of process 0
        are the first rows of the global batch.
      mesh: from `make`.

    Returns:
      A tree of arrays `[processes * rows, ...]`, split as `rows(mesh)` says.

    Raises:
      ValueError: if this process's devices cannot share its rows equally.
    """
    here = len(mesh.local_devices)

    def one(leaf: Any) -> jax.Array:
        if not np.ndim(leaf) or not here or len(leaf) % here:
            raise ValueError(
                f"the rows of a process must be a multiple of its {here} devices, got "
                f"an array of shape {np.shape(leaf)}"
            )
        return jax.make_array_from_process_local_data(rows(mesh), np.asarray(leaf))

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Whole arrays in the memory of every host, however they lie.

    All processes must call it, on the same tree: what lies on other hosts is gathered.

    Returns:
      The tree as numpy arrays; random keys stay keys, on one device.
    """
    return jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> Any:
    if _is_key(leaf):
        data = _fetch(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
