r"""Tiny's files: the students of `experiments.tiny` in float and in int8, measured.

Each student is quantized to int8 on the ranges of a few training images, and written
for LiteRT and ONNX Runtime, in float too. Accuracies are those of the files, on all
test images. MLPerf Tiny's own int8 file has 98,496 bytes and 86.97 %.

    pip install '.[litert,onnx]'
    python -m experiments.tiny_files --run runs/tiny/TIME --archives DIR

So a run can be trained where an accelerator is and its files be written where the two
runtimes are. Measured results are in experiments/README.md.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import tyro

from experiments import common, tiny
from jaxkd import checkpoint, data, export, models, report, store
from jaxkd.compress import prune, quantize
from jaxkd.data import augment

EIGHT_BITS = quantize.Quantization(
    weights=8, activations=8, per_channel=True, activation="static", estimator="ema"
)
WRITERS = {"tflite": export.tflite, "onnx": export.onnx}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field can be given on the command line."""

    run: str  # directory of a finished run of `experiments.tiny`
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where decoded data are kept
    calibration_images: int = 1024
    repeats: int = 200  # timed calls of each file


def main(config: Config) -> list[dict[str, Any]]:
    """Write and measure the files; return a row of each line, in float and in int8."""
    # What was trained, and the data, as it saw them.
    run = pathlib.Path(config.run)
    with common.refusing("no run of experiments.tiny"):
        facts = store.read_json(run / "config.json", "name a run's directory")
        for name in ("calibration_images", "repeats"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
    where = {"archives": config.archives, "data_dir": config.data_dir}
    of = tiny.Config(**{**facts, **where})
    images, test = common.load(of, of.dataset, of.train_images)
    shape = images.images.shape[1:]
    normalise = augment.normalise(*data.channel_statistics(images))
    plain = augment.chain(augment.to_float(), normalise)
    look = jax.jit(lambda x: plain(jax.random.key(0), {"image": x})["image"])
    some = images.images[: config.calibration_images]
    calibration = [look(some[i : i + 128]) for i in range(0, len(some), 128)]

    # The files of all seeds, in float as they were trained (files have no bfloat16).
    student = models.ZOO[of.student](classes=images.num_classes)
    nets = {
        "alone": student,
        "distilled": student,
        "pruned": prune.resized(student),
    }
    rows: list[dict[str, Any]] = []
    for line, net in nets.items():
        with common.refusing(f"no finished training in {run / line}"):
            found = checkpoint.newest(run / line, print)
            if found is None:
                raise FileNotFoundError("there is no whole checkpoint")
        trained = [found.tree[part]["student"] for part in ("params", "state")]
        for kind in ("float", "int8"):
            row: dict[str, Any] = {"line": line, "kind": kind, "tflite": [], "onnx": []}
            for seed in range(of.seeds):
                params, state = jax.tree.map(lambda leaf, i=seed: leaf[i], trained)
                ready = net
                if kind == "int8":
                    ready, params, state = quantize.fold(net, params, state, shape)
                    ready, params, state = quantize.quantized(
                        ready, params, state, EIGHT_BITS, shape
                    )
                    state = quantize.calibrate(ready, params, state, calibration)
                for suffix, write in WRITERS.items():
                    path = run / f"{line}-{kind}-{seed}.{suffix}"
                    write(ready, params, state, path, image_shape=shape)
                    measured = export.evaluate(export.load(path), test, view=plain)
                    row[suffix].append(measured["accuracy"])
            rows.append(row)

    # Bytes, and latencies of files that take turns: those of the first seed.
    for suffix in WRITERS:
        paths = [run / f"{row['line']}-{row['kind']}-0.{suffix}" for row in rows]
        times = export.latency(paths, repeats=config.repeats)
        for row, path, milliseconds in zip(rows, paths, times, strict=True):
            row[f"{suffix}_bytes"] = path.stat().st_size
            row[f"{suffix}_ms"] = milliseconds

    # The table.
    shown = [
        {
            "student": f"{row['line']}, {row['kind']}",
            ".tflite %": report.mean_sd(row["tflite"], scale=100),
            ".onnx %": report.mean_sd(row["onnx"], scale=100),
            ".tflite bytes": f"{row['tflite_bytes']:,}",
            ".onnx bytes": f"{row['onnx_bytes']:,}",
            "LiteRT ms": f"{row['tflite_ms']:.3f}",
            "ONNX Runtime ms": f"{row['onnx_ms']:.3f}",
        }
        for row in rows
    ]
    out = run / "files"
    out.mkdir(exist_ok=True)
    title = f"tiny_files: {len(test.images):,} {test.split} images, {of.seeds} seeds"
    common.write_report(out, title, {"Files; one image, one thread": shown})
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
