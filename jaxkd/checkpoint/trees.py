"""Trees of arrays: as nested dicts, and in files through orbax."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _tree, store

DATA = "data"
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA")  # one or both, by its version


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree of arrays into the directory `path`, whole or not at all.

    Args:
      path: the directory; a checkpoint or an empty directory there is replaced.
      tree: nested dicts, tuples and lists of arrays.

    Raises:
      ValueError: if something else is at `path`.
      OSError: if it cannot be written; what was there before stays.
    """
    write_dir(path, lambda folder: save_data(folder / DATA, tree))


def load(path: str | os.PathLike, like: Any = None) -> Any:
    """Read the tree that `save` or `write` wrote, or a plain orbax checkpoint.

    Args:
      path: the directory.
      like: a tree of the same structure, arrays or ShapeDtypeStructs, whose containers
        and types are wanted; without it, dicts come back and shapes are the file's.
        Of many processes, each reads by itself, so that these must be its own arrays.

    Raises:
      FileNotFoundError: if there is no checkpoint at `path`.
      ValueError: if it is damaged, or `like` has another structure or other shapes.
    """
    path = pathlib.Path(path).absolute()
    store.recover(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not store.is_ours(path):
        if not any((path / name).exists() for name in ORBAX):
            raise ValueError(
                f"{path} is no checkpoint: it has no {store.MANIFEST}, and none of "
                f"orbax's {', '.join(ORBAX)}"
            )
        return load_data(path, like)
    if problem := store.damage(path):
        raise ValueError(f"{path} is damaged: {problem}")
    return load_data(path / DATA, like)


def write_dir(path: str | os.PathLike, fill: Callable[[pathlib.Path], None]) -> None:
    """`store.write_dir`, with tensorstore's errors, of a full disk, as OSErrors."""

    def fill_or_oserror(folder: pathlib.Path) -> None:
        try:
            fill(folder)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    store.write_dir(path, fill_or_oserror)


def save_data(path: pathlib.Path, tree: Any) -> None:
    """Write a tree as orbax does, into a new directory."""
    with _orbax() as checkpointer:
        checkpointer.save(path, tree)


def load_data(path: pathlib.Path, like: Any = None) -> Any:
    """Read a tree that orbax wrote."""
    import orbax.checkpoint as ocp

    abstract = (
        None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    )
    with _orbax() as checkpointer:
        return checkpointer.restore(path, abstract)


def _orbax() -> Any:
    """A checkpointer of this process alone: orbax would have all of them take part."""
    import orbax.checkpoint as ocp  # costs a second, and most imports never save

    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own,
        active_processes={own} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"process{own}" if own else None,
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def as_dicts(tree: Any) -> dict[str, Any]:
    """The leaves of any tree as nested dicts of arrays on the host, by their paths.

    PRNG keys become their numbers. Empty containers vanish.

    Example:
      >>> as_dicts({"a": (np.ones(2), {}), "b": np.zeros(())})
      {'a': {'0': array([1., 1.])}, 'b': array(0.)}
    """
    nested: dict[str, Any] = {}
    for path, leaf in _tree.flatten(tree).items():
        *above, name = path.split("/")
        inside = nested
        for key in above:
            inside = inside.setdefault(key, {})
        inside[name] = _on_host(leaf)
    return nested


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)  # a copy: the device's may be donated to the next step


def like(tree: Mapping[str, Any], template: Any) -> Any:
    """Return the arrays of `as_dicts` in the containers and types of a template.

    Args:
      tree: from `as_dicts`, perhaps through a file.
      template: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: if paths, shapes or types differ, naming the first that does.
    """
    found = _tree.flatten(dict(tree))
    wanted = _tree.flatten(template)
    if odd := sorted(set(found) ^ set(wanted)):
        raise ValueError(f"the checkpoint and the state differ at {odd[0]!r}")

    def leaf(path: str, wanted: Any) -> Any:
        array = jnp.asarray(found[path])
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            array = jax.random.wrap_key_data(array)
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            raise ValueError(
                f"{path} is {array.dtype} {array.shape} in the checkpoint, expected "
                f"{wanted.dtype} {wanted.shape}"
            )
        return array

    return _tree.map_with_path(leaf, template)
