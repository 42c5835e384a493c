"""What the command line offers beside runs: check, features, export."""

import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import _check, cost, models
from jaxkd._text import alternatives, did_you_mean
from jaxkd.models.net import Net
from jaxkd.pipeline import (
    directory,
    loading,
    networks,
    reading,
    run as runs,
    run_data,
    summary,
)
from jaxkd.pipeline.config import Config, SpaceTable
from jaxkd.pipeline.stages import exporting as stage


def check(config: Config, to: str | os.PathLike | None) -> None:
    """Check all that can be checked before a run trains anything.

    Args:
      config: from `reading.load`.
      to: the directory of the run; by default it would be in `config.out`.

    Raises:
      ValueError: naming what cannot work.
      FileNotFoundError: if weights or data are missing.
    """
    directory.require_free(to)
    key = "out" if to is None else "--to"
    _check_writable(key, pathlib.Path(config.out if to is None else to))
    runs.rehearse(config, run_data.make(config.data))


def _check_writable(key: str, path: pathlib.Path) -> None:
    """Check that a folder can be made, by making one beside it for a moment.

    Permissions do not tell: root may write everywhere but in /proc.
    """
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".jaxkd-", dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{key}: {path} cannot be made: {folder}: {error.strerror}"
        ) from error


def features(name: str, image: str, classes: int) -> Iterator[str]:
    """Lines with the taps of a network of the zoo, or of a configuration's models.

    Raises:
      ValueError: if it is neither, with near names.
    """
    if name in models.ZOO:
        _check.whole(1)("classes", classes)
        yield from _taps(name, models.ZOO[name](classes=classes), _shape(image))
        return
    try:
        config = reading.load(name)
    except FileNotFoundError as error:
        hint = did_you_mean(name, [*models.ZOO, *reading.shipped()])
        raise ValueError(
            f"{name} is no network of the zoo and no configuration{hint}"
        ) from error
    splits = run_data.make(config.data)
    for key, model in config.models.items():
        if isinstance(model, SpaceTable):
            space = networks.space(model, splits.classes)
            net = space.net(tuple(0 for _ in space.sizes))
        else:
            net = networks.base(model, splits.classes)
        yield from _taps(key, net, splits.image_shape)


def _shape(image: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in image.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"--image must be H,W,C, as 32,32,3; got {image!r}")
    return shape


def _taps(name: str, net: Net, shape: tuple[int, ...]) -> Iterator[str]:
    """Return a network's cost and taps, from shapes alone."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    order: list[str] = []  # as the network made them: jax sorts the names of a dict

    def taps(key, x):
        outputs, _ = net.apply(*net.init(key, x), x, train=False)
        order.extend(outputs.taps)
        return outputs.taps

    found = jax.eval_shape(taps, jax.random.key(0), x)
    size = cost.of(net, shape)
    yield f"{name}: {size.parameters:,} parameters, {size.macs:,} multiply-accumulates"
    for tap in order:
        yield f"  {tap:12} {' x '.join(map(str, found[tap].shape[1:]))}"


def export(
    run: str | os.PathLike,
    model: str | None,
    formats: Sequence[str],
    to: str | os.PathLike | None,
) -> list[dict[str, Any]]:
    """Write a model of a finished run as files; what each of them is.

    Raises:
      ValueError: if the run is not finished, or has no such model; if a file would be
        replaced that is not of an earlier export.
    """
    folder = pathlib.Path(run).absolute()
    results = summary.results(folder)
    if not results.finished:
        raise ValueError(f"{run} is not finished: python -m jaxkd resume {run}")
    if not results.rows:
        raise ValueError(f"{run} has trained no model: there is nothing to export")
    name = model or results.rows[-1].model
    config = reading.load(folder / directory.CONFIG)
    weights = folder / "models" / name
    if name not in config.models or not weights.is_dir():
        there = sorted(p.name for p in (folder / "models").iterdir())
        raise ValueError(f"{run} has no model {name!r}{alternatives(name, there)}")
    target = pathlib.Path(to) if to else folder / "exported"
    stage.refuse_foreign(target, name, formats)
    splits = run_data.make(config.data)
    held = loading.loaded(config, name, str(weights), splits)
    target.mkdir(parents=True, exist_ok=True)
    found = stage.write(held, splits, formats, target, name)
    return [{**row, "path": str(target / row["path"])} for row in found]
