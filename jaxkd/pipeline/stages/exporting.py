"""export: files that run without this library."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import export
from jaxkd.pipeline import memory
from jaxkd.pipeline.config import Export
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.stages.job import Job, Made, row_of
from jaxkd.pipeline.world import World


def run(stage: Export, job: Job) -> Made:
    """Writes the files and measures each on the test images."""
    held = job.models[stage.model]
    folder = job.folder / "files"
    folder.mkdir(parents=True, exist_ok=True)
    found = write(
        held,
        job.world,
        stage.formats,
        folder,
        stage.model,
        batch=stage.batch,
        latency=stage.latency,
    )
    root = job.folder.parents[1]
    files = [
        {**each, "path": (folder / each["path"]).relative_to(root).as_posix()}
        for each in found
    ]
    row = {**row_of(stage), "files": [f["path"] for f in files]}
    job.metrics.reset([])
    job.metrics.add(row)
    return Made(held, [row], files=tuple(files))


def rehearse(stage: Export, job: Job) -> Held:
    """Traces the network on a batch of the files."""
    held, shape = job.models[stage.model], job.world.image_shape
    images = jax.ShapeDtypeStruct((stage.batch or 1, *shape), jnp.float32)
    forward = lambda params, state, x: held.net.apply(params, state, x, train=False)[0]
    memory.traced(forward, held.params, held.state, images)
    return held


def write(
    held: Held,
    world: World,
    formats: Sequence[str],
    folder: pathlib.Path,
    name: str,
    *,
    batch: int = 1,
    latency: bool = True,
) -> list[dict[str, Any]]:
    """Writes a model in some formats; what `results.json` says of each file.

    Args:
      held: the model.
      world: the data, whose test images the files are measured on.
      formats: of "stablehlo", "tflite" and "onnx".
      folder: where the files go.
      name: of the model.
      batch: images in a call; 0 for any number.
      latency: whether the files are timed.
    """
    suffix = {"stablehlo": ".stablehlo", "tflite": ".tflite", "onnx": ".onnx"}
    images = jnp.asarray(world.test.images[:64])
    seen = world.plain(jax.random.key(0), {"image": images})["image"]
    found = []
    for format in formats:
        path = folder / f"{name}{suffix[format]}"
        write_one: Any = {
            "stablehlo": export.stablehlo,
            "tflite": export.tflite,
            "onnx": export.onnx,
        }[format]
        report = write_one(
            held.net,
            held.params,
            held.state,
            path,
            inputs=np.asarray(seen),
            batch=batch or None,
            name=name,
            classes=world.test.classes,
        )
        found.append(_file(report, path, world, latency))
    return found


def _file(
    report: export.Report, path: pathlib.Path, world: World, latency: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": path.name,
        "format": report.format,
        "bytes": report.bytes,
        "difference": report.difference,
        "milliseconds": None,
        "accuracy": None,
        "nll": None,
    }
    try:
        program = export.load(path)
    except ImportError:
        return row  # no runtime here
    row |= export.evaluate(program, world.test, view=world.plain)
    if latency:
        (milliseconds,) = export.latency([path])
        row["milliseconds"] = round(milliseconds, 4)
    return row
