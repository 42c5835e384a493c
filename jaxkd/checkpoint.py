"""Trees of arrays on disk, through orbax."""

import os
import pathlib
from typing import Any

import jax


def save(path: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays into the directory `path`, whole or not at all.

    Args:
      path: the directory; replaced if it is there.
      tree: nested dicts, tuples and lists of arrays.
    """
    import orbax.checkpoint as ocp  # costs a second, and most imports never save

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), tree, force=True)


def load(path: str | os.PathLike, like: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
      path: the directory.
      like: a tree of the same structure, arrays or ShapeDtypeStructs, whose containers
        and types are wanted; without it, dicts come back and shapes are the file's.

    Raises:
      FileNotFoundError: if there is no checkpoint at `path`.
      ValueError: if `like` has another structure or other shapes.
    """
    import orbax.checkpoint as ocp

    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    abstract = (
        None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, abstract)
