"""What an exported file is worth and what it sees: `jaxkd eval` and `jaxkd predict`.

A file that a run wrote knows how images become its input and what its classes are
called; neither the run nor its configuration is needed.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxkd import data, export
from jaxkd.data import folders, images, own, preprocessing, tables
from jaxkd.export import Executable
from jaxkd.pipeline import directory, measuring, reading, run_data
from jaxkd.pipeline.stages import exporting as stage

TOP = 3  # classes that `predict` names


def measure(file: str, where: str | None, split: str) -> dict[str, Any]:
    """Accuracy, nll and accuracy by class of an exported file on a split.

    Args:
      file: of `jaxkd.export`.
      where: a folder of class folders, arrays, or parquet or Arrow files, by path; the
        name of a data set; or None for the data of the run that the file lies in.
      split: "train", "validation", "test", or of data by path also "all".

    Raises:
      ValueError: if it is no such file, if it is not what was recorded beside it, if
        data and file do not fit together, or there is no telling which data it is for.
    """
    stage.verify(pathlib.Path(file))
    program = export.load(file)
    if where is None:
        chosen, view = _of_run(pathlib.Path(file).absolute(), split)
    elif os.path.exists(where):
        prepared = _required(program, file)
        chosen, view = _at(where, split, prepared), prepared.view()
    else:
        chosen, known = data.load(where, split), program.preprocessing
        if known is None:  # of an earlier version
            known = preprocessing.of(data.load(where, "train_rest"))
        view = known.view()
    if tuple(chosen.images.shape[1:]) != program.image_shape:
        raise ValueError(
            f"{file} takes images {program.image_shape}, those of {chosen.name} are "
            f"{tuple(chosen.images.shape[1:])}"
        )
    if program.classes and chosen.classes != program.classes:
        raise ValueError(
            f"{file} tells {len(program.classes)} classes apart "
            f"({', '.join(program.classes[:5])}, ...), those of {chosen.name} are "
            f"{', '.join(chosen.classes[:5])}, ..."
        )
    found: dict[str, Any] = {"images": len(chosen)}
    logits = export.predict(program, chosen.images, view=view)
    quality = measuring.quality(logits, chosen.labels, None)
    found |= {name: quality[name] for name in ("accuracy", "nll")}
    accuracies = measuring.by_class(logits, chosen.labels, chosen.num_classes)
    names = zip(chosen.classes, accuracies, strict=True)
    return found | {f"accuracy/{n}": a for n, a in names if a is not None}


def _of_run(file: pathlib.Path, split: str) -> tuple[data.Dataset, Any]:
    """Return the split of the run above a file, and how its networks see images."""
    for folder in file.parents:
        if (folder / directory.CONFIG).exists() and (folder / directory.RUN).exists():
            config = reading.load(folder / directory.CONFIG)
            *parts, prepared = run_data.loaded(config.data)
            by_name = dict(zip(("train", "validation", "test"), parts, strict=True))
            if split not in by_name:
                raise ValueError(f"--split: must be one of {[*by_name]}, got {split!r}")
            return by_name[split], prepared.view()
    raise ValueError(f"{file} lies in no run: say which data it is for with --data")


def _required(program: Executable, file: str) -> data.Preprocessing:
    if program.preprocessing is None:
        raise ValueError(
            f"{file} does not say how images become its input: write it again with "
            "jaxkd export RUN, or with export's preprocessing="
        )
    return program.preprocessing


def _at(where: str, split: str, prepared: data.Preprocessing) -> data.Dataset:
    """A split of the data at a path, as the file's network was trained to see them."""
    if split not in ("train", "validation", "test", "all"):
        raise ValueError(
            f'--split: must be "train", "validation", "test" or "all", got {split!r}'
        )
    root, classes = pathlib.Path(where), prepared.classes
    shares: dict[str, Any] = {"test": prepared.test, "validation": prepared.validation}
    if root.suffix == ".npz" or any(root.glob("*.npy")):
        whole = own.read_arrays(root, classes)
        if split == "all":
            return whole
        divided = own.divide(whole, None, mean="data", deviation="data", **shares)
        return getattr(divided, split)
    if any(root.suffix == e or any(root.rglob(f"*{e}")) for e in tables.ENDINGS):
        examples, known = tables.find(root, image="image", label="label", **shares)
    else:
        examples, known = folders.find(root, classes=classes, **shares)
    if split == "all":
        examples = [e._replace(split="all") for e in examples]
    examples = [e for e in examples if e.split == split]
    if not examples:
        raise ValueError(f"{where} has no images of {split}: try --split all")
    found = images.load(
        root.resolve().name,
        examples,
        known,
        place=str(root.resolve()),
        size=prepared.size,
        resize=prepared.resize,
        channels=prepared.channels,
    )[split]
    if not isinstance(found, data.Dataset):
        raise ValueError(f"{where} does not fit into memory: evaluate parts of it")
    return found


def predict(file: str, paths: Sequence[str]) -> Iterator[str]:
    """Lines with the likeliest classes of each image file and their probabilities.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if an image cannot be read, naming it.
    """
    program = export.load(file)
    prepared = _required(program, file)
    pixels = []
    for path in paths:
        try:
            pixels.append(prepared.decode(pathlib.Path(path).read_bytes()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    logits = export.predict(program, np.stack(pixels), view=prepared.view())
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    names = program.classes or tuple(map(str, range(logits.shape[-1])))
    for path, row in zip(paths, shifted / shifted.sum(-1, keepdims=True), strict=True):
        best = np.argsort(-row, kind="stable")[:TOP]
        listed = ", ".join(f"{names[i]} {row[i]:.3f}" for i in best)
        yield f"{path}: {listed}"
