"""What is made of pruned networks: files for a runtime, latencies, table, pictures."""

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd import export, log, report
from jaxkd.compress import prune
from jaxkd.models import Net


class Runtime(NamedTuple):
    """Where a pruned network is to run.

    Attributes:
      name: as the table says it.
      suffix: of its files.
    """

    name: str
    suffix: str


def runtime() -> Runtime:
    """LiteRT where its packages are installed, else XLA."""
    packages = ("litert_converter", "ai_edge_litert")
    if all(importlib.util.find_spec(package) for package in packages):
        return Runtime("LiteRT", "tflite")
    return Runtime("XLA", "stablehlo")


def export_net(
    net: Net, variables: Any, image_shape: tuple[int, ...], path: pathlib.Path
) -> None:
    """Writes a pruned network as a file for the runtime."""
    write: Any = export.tflite if runtime().suffix == "tflite" else export.stablehlo
    write(prune.resized(net), *variables, path, image_shape=image_shape)


def latency(paths: Sequence[pathlib.Path]) -> list[float]:
    """Median milliseconds of one image on one thread, the files taking turns."""
    return export.latency(paths, threads=1, repeats=50)


def finish(
    config: Any, directory: pathlib.Path, found: list[dict[str, Any]], images: int
) -> list[dict[str, Any]]:
    """Measures the latencies together, prints the table, writes table and pictures."""
    times = latency([directory / row["file"] for row in found])
    found = [row | {"milliseconds": t} for row, t in zip(found, times, strict=True)]
    whole = next(row for row in found if not row["method"])
    rows = [_row(row, whole) for row in found]
    title = (
        f"prune: {config.net} on {config.dataset}, {images:,} {config.evaluate_on} "
        f"images, {config.seeds} seeds of fine-tuning"
    )
    report.show(rows, title)
    pictures = ""
    if accuracy_picture(directory / "accuracy.png", found):
        pictures += "![Accuracy against MACs](accuracy.png)\n\n"
    file = directory / "sensitivity.json"
    if file.exists() and sensitivity_picture(directory / "sensitivity.png", file):
        pictures += "![Sensitivity of each group](sensitivity.png)\n\n"
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nAfter the last epoch, mean ± standard "
        "deviation over seeds. Before that, untrained: on the same images with the "
        "statistics of the whole network, and as it was measured to decide, on "
        "validation images. The difference is to the network that was not pruned "
        "and fine-tuned as long, paired, ± standard error. Latency is of one image on "
        f"one thread, by {runtime().name}, the median of 50 calls.\n\n{pictures}{made}"
    )
    print(f"report: {directory / 'report.md'}")
    return found


def _row(row: dict[str, Any], whole: dict[str, Any]) -> dict[str, str]:
    unit = f"latency ms ({runtime().name})"
    return {
        "network": row["name"],
        "before %": f"{row['before']:.2f}",
        "validation %": f"{row['validation']:.2f}",
        "fine-tuned %": report.mean_sd(row["accuracy"]),
        "difference": _difference(row, whole),
        "parameters": f"{row['parameters']:,}",
        "MACs": f"{row['macs']:,} ({row['macs'] / whole['macs']:.0%})",
        "bytes": f"{row['bytes']:,}",
        unit: f"{row['milliseconds']:.3f}",
        "times faster": f"{whole['milliseconds'] / row['milliseconds']:.2f}",
    }


def _difference(row: dict[str, Any], whole: dict[str, Any]) -> str:
    if row is whole:
        return ""
    points = np.asarray(row["accuracy"]) - np.asarray(whole["accuracy"])
    if len(points) == 1:
        return f"{points.mean():+.2f}"
    return f"{points.mean():+.2f} ± {points.std(ddof=1) / np.sqrt(len(points)):.2f}"


def accuracy_picture(path: pathlib.Path, found: list[dict[str, Any]]) -> bool:
    """Draws accuracy after fine-tuning against MACs; False without matplotlib."""
    pyplot = report.pyplot()
    if pyplot is None:
        return False
    figure, axis = pyplot.subplots(figsize=(6.4, 4.4))
    for method in dict.fromkeys(row["method"] for row in found):
        rows = sorted(
            (row for row in found if row["method"] == method), key=lambda r: r["macs"]
        )
        values = np.asarray([row["accuracy"] for row in rows], float)
        sd = values.std(1, ddof=1) if values.shape[1] > 1 else None
        macs = [row["macs"] / 1e6 for row in rows]
        axis.errorbar(
            macs, values.mean(1), sd, marker="o", ms=4, capsize=3,
            label=method or "not pruned",
        )  # fmt: skip
    axis.set(xlabel="multiply-accumulates, millions", ylabel="accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    report.save(figure, path)
    return True


def sensitivity_picture(path: pathlib.Path, file: pathlib.Path) -> bool:
    """Draws the metric against a group's width; False without matplotlib."""
    pyplot = report.pyplot()
    if pyplot is None:
        return False
    content = json.loads(file.read_text())
    figure, axis = pyplot.subplots(figsize=(7.6, 4.4))
    for name, points in content["points"].items():
        kept = sorted(map(int, points), reverse=True)
        axis.plot(
            kept, [points[str(k)] for k in kept], marker="o", ms=3, lw=1, label=name
        )
    axis.axhline(content["whole"], color="0.4", linestyle="--", linewidth=1)
    name = content["settings"].get("metric", "metric")
    axis.set(xlabel="units that the group keeps", ylabel=f"validation {name}")
    axis.grid(alpha=0.3)
    if len(content["points"]) <= 20:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)
    return True
