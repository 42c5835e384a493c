"""export: files that run without this library."""

import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxkd import export, store
from jaxkd.pipeline import memory
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.parts import about, whole
from jaxkd.pipeline.stages.job import Job, Made, row_of
from jaxkd.pipeline.stages.stage import Known, Stage
from jaxkd.pipeline.world import World

RECORD = ".files.json"
AGAIN = "write it again with python -m jaxkd export RUN"
PACKAGES = {
    "tflite": ("litert_converter", "litert"),
    "onnx": ("onnx", "onnx"),
}


class Export(Stage, frozen=True, kw_only=True, tag="export", tag_field="kind"):
    """Files that run without this library, compared with the model and timed."""

    formats: Annotated[
        tuple[Literal["stablehlo", "tflite", "onnx"], ...],
        Meta(description="which", min_length=1, max_length=3),
    ] = ("stablehlo",)
    batch: Annotated[int, whole("images in a call; 0: any number", 0, 10**5)] = 1
    int8: Annotated[bool, about("refuse a model that is not quantized")] = False
    latency: Annotated[bool, about("time the files, one image, one thread")] = True

    needs_weights: ClassVar = True

    def check(self, models: Mapping[str, Known]) -> Known:
        """Refuse formats that the model or this installation cannot have."""
        after = super().check(models)
        if self.int8 and not after.quantized:
            raise ValueError(
                f"int8: {self.model!r} is not quantized; put a quantize stage before "
                "this one"
            )
        if len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats: names one twice, {list(self.formats)}")
        if not self.batch and "tflite" in self.formats:
            raise ValueError(
                "batch: a tflite file takes a fixed number of images, not 0"
            )
        for format in self.formats:
            package, extra = PACKAGES.get(format, ("", ""))
            if package and importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"formats: {format} needs {package}: "
                    f"pip install 'jaxkd-distill[{extra}]'"
                )
        return after

    def run(self, job: Job) -> Made:
        """Writes the files and measures each on the test images."""
        held = job.models[self.model]
        folder = job.folder / "files"
        folder.mkdir(parents=True, exist_ok=True)
        found = write(
            held,
            job.world,
            self.formats,
            folder,
            self.model,
            batch=self.batch,
            latency=self.latency,
        )
        root = job.folder.parents[1]
        files = [
            {**each, "path": (folder / each["path"]).relative_to(root).as_posix()}
            for each in found
        ]
        row = {**row_of(self), "files": [f["path"] for f in files]}
        job.metrics.reset([])
        job.metrics.add(row)
        return Made(held, [row], files=tuple(files))

    def rehearse(self, job: Job) -> Held:
        """Traces the network on a batch of the files."""
        held, shape = job.models[self.model], job.world.image_shape
        images = jax.ShapeDtypeStruct((self.batch or 1, *shape), jnp.float32)
        forward = lambda params, state, x: held.net.apply(
            params, state, x, train=False
        )[0]
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

    The same is written beside the files, as NAME.files.json, for `verify`.

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
    _record(folder / f"{name}{RECORD}", found)
    return found


def _record(path: pathlib.Path, found: list[dict[str, Any]]) -> None:
    """Add rows to those of the folder's other files."""
    try:
        before = store.read_json(path, AGAIN).get("files", [])
    except (FileNotFoundError, ValueError):
        before = []
    new = {row["path"] for row in found}
    store.write_json(
        path, {"files": [r for r in before if r["path"] not in new] + found}
    )


def verify(path: pathlib.Path) -> None:
    """Refuse a file that is no longer what `write` wrote.

    Files that are not recorded beside them are passed over.

    Raises:
      ValueError: naming the file that is damaged.
    """
    for record in path.parent.glob(f"*{RECORD}"):
        for row in store.read_json(record, AGAIN).get("files", []):
            known = row.get("path") == path.name and row.get("sha256")
            if known and known != store.sha256(path):
                raise ValueError(
                    f"{path} is damaged: its checksum is not that in {record.name}; "
                    f"{AGAIN}"
                )


def _file(
    report: export.Report, path: pathlib.Path, world: World, latency: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": path.name,
        "format": report.format,
        "bytes": report.bytes,
        "sha256": store.sha256(path),
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
