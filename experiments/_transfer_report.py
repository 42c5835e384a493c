"""What is made of a transfer: its tables, and accuracy by number of images."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd import log, report

COMPARED = (
    ("fine-tuned", "from scratch"),
    ("distilled", "from scratch"),
    ("fused", "distilled"),
    ("fused", "fine-tuned"),
)


def tables(found: Mapping[str, Mapping[int, np.ndarray]]) -> tuple[list, list]:
    """Accuracy in percent by size and way; paired differences in points, with s.e."""
    sizes = list(found["teacher"])
    accuracy = [
        {"target images": f"{n:,}"}
        | {way: report.mean_sd(by_size[n], scale=100) for way, by_size in found.items()}
        for n in sizes
    ]

    def difference(way: str, other: str, n: int) -> str:
        points = 100 * (found[way][n] - found[other][n])
        mean = f"{points.mean():+.2f}"
        if len(points) == 1:
            return mean
        return f"{mean} ± {points.std(ddof=1) / np.sqrt(len(points)):.2f}"

    gains = [
        {"target images": f"{n:,}"}
        | {f"{way} - {other}": difference(way, other, n) for way, other in COMPARED}
        for n in sizes
    ]
    return accuracy, gains


def picture(
    path: str | os.PathLike, found: Mapping[str, Mapping[int, np.ndarray]]
) -> bool:
    """Draws accuracy against the number of target images; False without matplotlib."""
    pyplot = report.pyplot()
    if pyplot is None:
        return False
    from matplotlib import ticker

    figure, axis = pyplot.subplots(figsize=(6.4, 4.4))
    for way, by_size in found.items():
        values = 100 * np.stack(list(by_size.values()))
        sd = values.std(1, ddof=1) if values.shape[1] > 1 else None
        style = "--" if way == "teacher" else "-"
        axis.errorbar(
            list(by_size), values.mean(1), sd, fmt=style, marker="o", ms=4, capsize=3,
            label=way,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(list(found["teacher"]), [f"{n:,}" for n in found["teacher"]])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel="target images", ylabel="test accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    report.save(figure, path)
    return True


def write_up(
    directory: pathlib.Path, title: str, found: Any, sources: dict[str, float]
) -> None:
    """Prints the tables, and writes them with the picture to `report.md`."""
    accuracy, gains = tables(found)
    report.show(accuracy, title)
    report.show(gains, "paired differences in points")
    first = ", ".join(f"{name} {100 * value:.2f}" for name, value in sources.items())
    sentence = f"Accuracy of the source networks on their own task, %: {first}."
    print(sentence)
    drawn = picture(directory / "curves.png", found)
    image = "![Accuracy by target images](curves.png)\n\n" if drawn else ""
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\nAccuracy in percent, mean ± standard deviation over seeds:\n\n"
        f"{report.markdown(accuracy)}\nPaired differences in points, mean ± standard "
        f"error:\n\n{report.markdown(gains)}\n{sentence}\n\n{image}{made}"
    )
    print(f"report: {directory / 'report.md'}")
