"""A frozen teacher runs once: its logits for a whole data set, kept and recognised.

logits = cache_teacher(teacher, variables, dataset, view=view, path="runs/a/teacher")
resident = {**data.on_device(dataset), "teacher": jnp.asarray(logits)}
d = distill.distiller(student, distill.cached, spec, tx)
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxkd import data
from jaxkd.data.augment import View
from jaxkd.distill import Teacher
from jaxkd.evaluate import predict


def cache_teacher(
    teacher: Teacher,
    variables: Any,
    dataset: data.Dataset,
    *,
    view: View,
    path: str | os.PathLike | None = None,
    batch_size: int = 500,
) -> np.ndarray:
    """The teacher's logits for every example, computed once.

    Args:
      teacher: e.g. `distill.frozen(net)`.
      variables: its variables.
      dataset: what to score.
      view: how the student will see the images too; it must not be random.
      path: where to keep them, as `path.npy` and `path.json`; None keeps nothing. If
        they are there already, they are checked and read instead of computed.
      batch_size: examples in one pass.

    Returns:
      Float32 logits `[examples, classes]` in the order of `dataset`, memory-mapped if
      they were kept: the field "teacher" of the resident data.

    Raises:
      ValueError: if the view is random, since the student would then be shown the
        teacher's opinion of another image; if what lies at `path` belongs to another
        teacher, other data or another view, or is damaged.
    """
    if view.random:
        raise ValueError(
            "cached logits would be inexact: the view is random, so that a live "
            "teacher would see other images in every epoch; cache under a view without "
            "augmentation, or use the live teacher"
        )
    score = jax.jit(predict, static_argnames=("teacher", "view", "batch_size"))
    if path is None:
        return np.asarray(_score(score, teacher, variables, dataset, view, batch_size))
    array, note = (pathlib.Path(f"{path}.{kind}") for kind in ("npy", "json"))
    identity = {
        "teacher": fingerprint(variables),
        "data": data.fingerprint(dataset),
        "examples": len(dataset.images),
    }
    if note.exists():
        logits = _read(array, note, identity)
        probe = dataset._replace(
            **{
                f: getattr(dataset, f)[:batch_size]
                for f in ("images", "labels", "index")
            }
        )
        now = _score(score, teacher, variables, probe, view, batch_size)
        if not np.allclose(now, logits[:batch_size], rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{array} was made under another view or by another network: its first "
                "logits differ from the teacher's; delete it to compute them anew"
            )
        return logits
    logits = _score(score, teacher, variables, dataset, view, batch_size)
    array.parent.mkdir(parents=True, exist_ok=True)
    _replace(array, lambda file: np.save(file, logits))
    identity["sha256"] = hashlib.sha256(array.read_bytes()).hexdigest()
    # The note comes last: without it the array does not count as whole.
    _replace(note, lambda file: file.write(json.dumps(identity, indent=2).encode()))
    return np.load(array, mmap_mode="r")


def fingerprint(variables: Any) -> str:
    """SHA-256 over the paths, types, shapes and values of a tree of arrays."""
    digest = hashlib.sha256()
    for key, leaf in jax.tree_util.tree_leaves_with_path(variables):
        value = np.asarray(leaf)
        head = f"{jax.tree_util.keystr(key)} {value.dtype} {value.shape}\n"
        digest.update(head.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _score(score, teacher, variables, dataset, view, batch_size) -> np.ndarray:
    resident = data.on_device(dataset)
    logits = score(teacher, variables, resident, view=view, batch_size=batch_size)
    return np.asarray(logits, np.float32)


def _read(array: pathlib.Path, note: pathlib.Path, identity: dict) -> np.ndarray:
    """The logits at `array`, if they are what `identity` says."""
    try:
        found = json.loads(note.read_text())
        digest = hashlib.sha256(array.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise ValueError(f"{array} is damaged ({error}); delete {note}") from error
    for name, wanted in identity.items():
        if found.get(name) != wanted:
            raise ValueError(
                f"{array} belongs to another run: its {name} is {found.get(name)}, "
                f"here it is {wanted}; name another path, or delete it"
            )
    if digest != found.get("sha256"):
        raise ValueError(f"{array} is damaged: its checksum differs; delete it")
    return np.load(array, mmap_mode="r")


def _replace(path: pathlib.Path, write) -> None:
    """Writes a file so that it is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
    os.replace(partial, path)
