"""What is made of quantized networks: latencies, table, sentences, picture."""

import pathlib
from typing import Any

import numpy as np

from experiments import _quantize_files as files
from jaxkd import log, report

Row = dict[str, Any]
ALONE, TAUGHT = "float, alone", "float, distilled"
FLOATS = (ALONE, TAUGHT)


def finish(config: Any, directory: pathlib.Path, found: list[Row], n: int) -> list[Row]:
    """Measures the latencies together, prints the table, writes table and picture."""
    whole = next(row for row in found if row["name"] == TAUGHT)
    paths = {row["name"]: directory / row["file"] for row in found}
    xla = (directory / whole["file"]).with_suffix(".stablehlo")
    paths["float of XLA"] = xla
    times = files.latencies(paths, config.repeats)
    base = {
        "LiteRT": (times[TAUGHT], whole["bytes"][0]),
        "XLA": (times["float of XLA"], xla.stat().st_size),
    }
    found = [
        row
        | {
            "milliseconds": times[row["name"]],
            "faster": base[row["runtime"]][0] / times[row["name"]],
            "share": row["bytes"][0] / base[row["runtime"]][1],
            "gap": "" if row is whole else in_points(row, whole),
        }
        for row in found
    ]
    rows = [table_row(row) for row in found]
    title = (
        f"quantize: {config.net} taught by {config.teacher.partition(':')[0]}, "
        f"{config.dataset}, {n:,} {config.evaluate_on} images, {config.seeds} seeds"
    )
    said = sentences(found)
    report.show(rows, title)
    print(*said, sep="\n")
    drawn = picture(directory / "accuracy.png", found)
    image = "![Accuracy against bytes](accuracy.png)\n\n" if drawn else ""
    notes = "".join(f"* {sentence}\n" for sentence in said)
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\n{LEGEND}\n\n{notes}\n{image}{made}"
    )
    print(f"report: {directory / 'report.md'}")
    return found


LEGEND = (
    "Every accuracy is that of the exported file, run by the runtime of its row on all "
    "test images; mean ± standard deviation over seeds. The difference is to the "
    "distilled network in float, paired by seed, ± standard error. W4A8: kernels of 4 "
    "bits, activations of 8. Bytes, their share and the latency (one image, one "
    "thread, median, the files taking turns) are of the first seed's file, against the "
    "float file of the same runtime. Agreement: test images put into the same class as "
    "by the float file. To JAX: the largest difference of a logit between the file and "
    f"the network as it was trained, over {files.COMPARED} images and all seeds, in "
    "steps of the output's grid, or in logits where it has none."
)


def table_row(row: Row) -> dict[str, str]:
    """A row of the table."""
    agreement = row.get("agreement")
    return {
        "network": row["name"],
        "accuracy %": report.mean_sd(row["accuracy"]),
        "difference": row.get("gap", ""),
        "agreement %": report.mean_sd(agreement) if agreement else "",
        "bytes": f"{row['bytes'][0]:,}",
        "share": f"{row['share']:.1%}",
        "latency ms": f"{row['milliseconds']:.3f}",
        "times faster": f"{row['faster']:.2f}",
        "to JAX": _apart(row),
        "runtime": row["runtime"],
        "integer, float ops": f"{row['integer_ops']}, {row['float_ops']}",
    }


def _apart(row: Row) -> str:
    if "difference" not in row:
        return ""
    if None in row["steps"]:
        return f"{max(row['difference']):.2g}"
    return f"{max(row['steps']):.2f} steps"


def gap(row: Row, other: Row) -> tuple[float, float]:
    """Mean difference of paired seeds in points, and its standard error (nan of one).

    >>> gap({"accuracy": [88.0, 91.0]}, {"accuracy": [90.0, 92.0]})
    (-1.5, 0.5)
    """
    points = np.subtract(row["accuracy"], other["accuracy"])
    error = points.std(ddof=1) / np.sqrt(len(points)) if len(points) > 1 else np.nan
    return round(float(points.mean()), 4), round(float(error), 4)


def in_points(row: Row, other: Row) -> str:
    """The difference in words.

    >>> in_points({"accuracy": [88.0, 91.0]}, {"accuracy": [90.0, 92.0]})
    '-1.50 ± 0.50'
    """
    mean, error = gap(row, other)
    return f"{mean:+.2f}" if np.isnan(error) else f"{mean:+.2f} ± {error:.2f}"


def sentences(found: list[Row]) -> list[str]:
    """What the numbers say."""
    rows = {row["name"]: row for row in found}
    whole = rows[TAUGHT]
    said = []
    if ALONE in rows:
        change = in_points(whole, rows[ALONE])
        said.append(f"Distillation changes the float student by {change} points.")
    said += _against_training(rows)
    said += [_best(row, whole, rows.get(ALONE)) for row in _notable(found)]
    for why in dict.fromkeys(row["why"] for row in found if row["why"]):
        names = [row["name"] for row in found if row["why"] == why]
        said.append(f"Not by LiteRT, as {why}: {'; '.join(names)}. XLA ran them.")
    return said


def _against_training(rows: dict[str, Row]) -> list[str]:
    """What training the quantized network gives over only measuring its ranges."""
    pairs = [
        (row, rows["PTQ" + name[3:]])
        for name, row in rows.items()
        if name.startswith("QAT") and "PTQ" + name[3:] in rows
    ]
    if not pairs:
        return []
    clear = lambda a, b: abs(gap(a, b)[0]) > 2 * np.nan_to_num(gap(a, b)[1], nan=np.inf)
    better = sum(clear(a, b) and gap(a, b)[0] > 0 for a, b in pairs)
    worse = sum(clear(a, b) and gap(a, b)[0] < 0 for a, b in pairs)
    most = max(pairs, key=lambda pair: gap(*pair)[0])
    return [
        f"Of {len(pairs)} ways to quantize, QAT is better than PTQ in {better} and "
        f"worse in {worse} by more than two standard errors; the most in "
        f"{most[0]['name'][4:]}: {in_points(*most)} points."
    ]


def _notable(found: list[Row]) -> list[Row]:
    """Static int8 per channel after training and in it, the smallest, the pruned."""
    names = {f"{method} static per channel W8A8" for method in ("PTQ", "QAT")}
    grid = [row for row in found if row["name"] not in FLOATS]
    rows = [row for row in grid if row["name"] in names or "pruned" in row["name"]]
    smallest = min(grid, key=lambda row: row["bytes"][0], default=None)
    return rows if smallest is None or smallest in rows else [*rows, smallest]


def _best(row: Row, whole: Row, alone: Row | None) -> str:
    against = f"{in_points(row, whole)} points to its float network"
    if alone is not None:
        against += f", {in_points(row, alone)} to the student alone in float"
    return (
        f"{row['name']} ({row['runtime']}): {report.mean_sd(row['accuracy'])} %, "
        f"{against}; {row['share']:.1%} of the float file's bytes, "
        f"{row['faster']:.2f} times as fast."
    )


def picture(path: pathlib.Path, found: list[Row]) -> bool:
    """Draws accuracy against the bytes of the files; False without matplotlib."""
    pyplot = report.pyplot()
    if pyplot is None:
        return False
    figure, axis = pyplot.subplots(figsize=(8.4, 4.8))
    markers = {"LiteRT": "o", "XLA": "s"}
    for number, row in enumerate(found):
        values = np.asarray(row["accuracy"], float)
        sd = values.std(ddof=1) if len(values) > 1 else None
        colour = pyplot.get_cmap("tab20")(number % 20)
        axis.errorbar(
            row["bytes"][0] / 1000, values.mean(), sd, ms=5, capsize=2, ls="none",
            marker=markers[row["runtime"]], color=colour,
            label=f"{row['name']} ({row['runtime']})",
        )  # fmt: skip
    axis.set(xlabel="bytes of the file, thousands", ylabel="accuracy, %")
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)
    return True
