"""export: files that run without this library."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Meta

from jaxkd import export, store
from jaxkd.pipeline import memory
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.parts import about, whole
from jaxkd.pipeline.run_data import RunData
from jaxkd.pipeline.stages.context import StageContext, StageResult, row_of
from jaxkd.pipeline.stages.stage import ModelStatus, Stage

RECORD = ".files.json"
SUFFIXES = {"stablehlo": ".stablehlo", "tflite": ".tflite", "onnx": ".onnx"}
AGAIN = "delete it and write it again with python -m jaxkd export RUN"
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

    def check(self, models: Mapping[str, ModelStatus]) -> ModelStatus:
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

    def run(self, context: StageContext) -> StageResult:
        """Write the files and measure each on the test images."""
        held = context.models[self.model]
        folder = context.folder / "files"
        folder.mkdir(parents=True, exist_ok=True)
        for path in foreign(folder, self.model, self.formats):
            context.warn(f"{_not_ours(path)}; it is now {store.set_aside(path).name}")
        found = write(
            held,
            context.splits,
            self.formats,
            folder,
            self.model,
            batch=self.batch,
            latency=self.latency,
        )
        root = context.folder.parents[1]
        files = [
            {**each, "path": (folder / each["path"]).relative_to(root).as_posix()}
            for each in found
        ]
        row = {**row_of(self), "files": [f["path"] for f in files]}
        context.metrics.reset([])
        context.metrics.add(row)
        return StageResult(held, [row], files=tuple(files))

    def rehearse(self, context: StageContext) -> Model:
        """Trace the network on a batch of the files."""
        held, shape = context.models[self.model], context.splits.image_shape
        images = jax.ShapeDtypeStruct((self.batch or 1, *shape), jnp.float32)
        forward = lambda params, state, x: held.net.apply(
            params, state, x, train=False
        )[0]
        memory.traced(forward, held.params, held.state, images)
        return held


def write(
    held: Model,
    splits: RunData,
    formats: Sequence[str],
    folder: pathlib.Path,
    name: str,
    *,
    batch: int = 1,
    latency: bool = True,
) -> list[dict[str, Any]]:
    """Write a model in some formats; what `results.json` says of each file.

    The same is written beside the files, as NAME.files.json, for `verify` and
    `foreign`. Files that have these names already are replaced.

    Args:
      held: the model.
      splits: the data, whose test images the files are measured on.
      formats: of "stablehlo", "tflite" and "onnx".
      folder: where the files go.
      name: of the model.
      batch: images in a call; 0 for any number.
      latency: whether the files are timed.
    """
    images = jnp.asarray(splits.test.images[:64])
    seen = splits.plain(jax.random.key(0), {"image": images})["image"]
    found = []
    for format in formats:
        path = folder / f"{name}{SUFFIXES[format]}"
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
            classes=splits.test.classes,
            preprocessing=splits.preprocessing,
        )
        row = _row(report, path)
        _record(folder / f"{name}{RECORD}", row)  # at once: it says whose the file is
        found.append({**row, **_measured(path, splits, latency)})
        _record(folder / f"{name}{RECORD}", found[-1])
    return found


def _record(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Add a row to those of the folder's other files."""
    others = [r for r in _rows(path) or [] if r["path"] != row["path"]]
    store.write_json(path, {"files": [*others, row]})


def _rows(path: pathlib.Path) -> list[dict[str, Any]] | None:
    """The rows of a record; None if `write` did not write it, or it is damaged."""
    try:
        rows: Any = store.read_json(path, AGAIN).get("files")
    except (OSError, ValueError):
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    needed = {"path", "format", "bytes", "sha256"}
    return rows if all(needed <= row.keys() for row in rows) else None


def recorded(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the records of a folder, and the files that are as `write` left them."""
    found = []
    for record in sorted(folder.glob(f"*{RECORD}")):
        rows = _rows(record)
        found += [record] * (rows is not None)
        for row in rows or []:
            path = folder / str(row["path"])
            if path.is_file() and store.sha256(path) == row["sha256"]:
                found.append(path)
    return found


def foreign(
    folder: pathlib.Path, name: str, formats: Sequence[str]
) -> list[pathlib.Path]:
    """What `write` would replace though it did not write it, or it was changed since.

    Args:
      folder: where the files would go.
      name: of the model.
      formats: as for `write`.
    """
    ours = recorded(folder)
    endings = [RECORD, *(SUFFIXES[format] for format in formats)]
    paths = [folder / f"{name}{ending}" for ending in endings]
    return [path for path in paths if os.path.lexists(path) and path not in ours]


def refuse_foreign(folder: pathlib.Path, name: str, formats: Sequence[str]) -> None:
    """Refuse to replace files that `write` did not write.

    Raises:
      ValueError: naming the file.
    """
    for path in foreign(folder, name, formats):
        raise ValueError(
            f"{_not_ours(path)}, and is not replaced: move it away, or name another "
            "folder with --to"
        )


def _not_ours(path: pathlib.Path) -> str:
    return f"{path} was not written by jaxkd export, or was changed since"


def verify(path: pathlib.Path) -> None:
    """Refuse a file that is no longer what `write` wrote.

    Files that are not recorded beside them are passed over, and so is what is named as
    a record and is none.

    Raises:
      ValueError: naming the file that is damaged.
    """
    for record in path.parent.glob(f"*{RECORD}"):
        for row in _rows(record) or []:
            if row["path"] == path.name and row["sha256"] != store.sha256(path):
                raise ValueError(
                    f"{path} is damaged: its checksum is not that in {record.name}; "
                    f"{AGAIN}"
                )


def _row(report: export.ExportReport, path: pathlib.Path) -> dict[str, Any]:
    return {
        "path": path.name,
        "format": report.format,
        "bytes": report.bytes,
        "sha256": store.sha256(path),
        "difference": report.difference,
        "milliseconds": None,
        "accuracy": None,
        "nll": None,
    }


def _measured(path: pathlib.Path, splits: RunData, latency: bool) -> dict[str, Any]:
    try:
        program = export.load(path)
    except ImportError:
        return {}  # no runtime here
    row: dict[str, Any] = export.evaluate(program, splits.test, view=splits.plain)
    if latency:
        (milliseconds,) = export.latency([path])
        row["milliseconds"] = round(milliseconds, 4)
    return row
