"""The numbers of a run: what matters most, the tables, accuracy against size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxkd.report import charts
from jaxkd.report.merging import MISSING, MergedRow, RunGroup
from jaxkd.report.tables import mean_sd

TableRow = dict[str, str]
_MINUS = "\u2212"


def sections(group: RunGroup) -> dict[str, Any]:
    """Return what the template shows of results."""
    n = len(group.runs)
    pending = [
        (f"{stage} (seed {run.seed})" if n > 1 else stage, sentence)
        for run in group.runs
        for stage, sentence in run.pending().items()
    ]
    made: dict[str, Any] = {"pending": pending}
    if group.rows:
        made["tiles"] = tiles(group)
        made["table"], made["kinds"] = stage_table(group)
        made["over"] = (
            f" Mean ± sample standard deviation over {n} seeds." if n > 1 else ""
        )
        made["files"] = file_table(group.rows)
        made["sizes"] = size_chart([group])
    return made


def stage_table(group: RunGroup) -> tuple[list[TableRow], list[str]]:
    """Return a row for each stage and exported file, and the kind of each row."""
    table, kinds = [], []
    for row in group.rows:
        kind = "" if row.kind in row.stage else f" ({row.kind})"
        partly = len(row.runs) < len(group.runs)
        some = f", {len(row.runs)} of {len(group.runs)} runs" if partly else ""
        table.append(
            {
                "after": f"{row.stage}{kind}{some}",
                "model": row.model,
                **_quality(row.values),
                **_size(row.values),
                "latency ms": "",
                "images/s": count(row.values["images_per_second"]),
            }
        )
        taught = group.teacher is not None and row.model == group.teacher.model
        kinds.append("teacher" if taught else "")
        for file in row.files:
            table.append(
                {
                    "after": file.name,
                    "model": row.model,
                    "accuracy %": number(file.values["accuracy"], 100),
                    "NLL": number(file.values["nll"], 1, 4),
                    "bytes": count(file.values["bytes"]),
                    "latency ms": number(file.values["milliseconds"], 1, 3),
                }
            )
            kinds.append("file")
    return table, kinds


def file_table(rows: Sequence[MergedRow]) -> list[TableRow]:
    """Return a row for each exported file."""
    table = []
    for row in rows:
        for file in row.files:
            ours, theirs = file.values["accuracy"], row.values["accuracy"]
            gaps = ours - theirs if len(ours) == len(theirs) else ours[:0]
            worst = file.values["difference"]
            table.append(
                {
                    "file": file.name,
                    "model": row.model,
                    "format": file.format,
                    "bytes": count(file.values["bytes"]),
                    "parity": f"{worst.max():.2g}" if len(worst) else MISSING,
                    "accuracy %": number(ours, 100),
                    "to JAX, points": points(gaps),
                    "NLL": number(file.values["nll"], 1, 4),
                    "latency ms": number(file.values["milliseconds"], 1, 3),
                }
            )
    return table


def comparison(groups: Sequence[RunGroup]) -> list[TableRow]:
    """Return a row for each configuration: its student after the last stage."""
    table = []
    for group in groups:
        row, taught = group.student, group.teacher
        about = {"configuration": group.name, "after": row.stage if row else MISSING}
        about["runs"] = str(len(group.runs))
        if row is None:
            table.append(about)
            continue
        quality = _quality(row.values)
        theirs = number(taught.values["accuracy"], 100) if taught else MISSING
        smallest = _smallest(row)
        table.append(
            {
                **about,
                "accuracy %": quality.pop("accuracy %"),
                "teacher's": theirs,
                **quality,
                **_size(row.values),
                "smallest file": smallest[1] if smallest else MISSING,
            }
        )
    # The columns of a table are the keys of its first row.
    columns = dict.fromkeys(key for row in table for key in row)
    return [{key: row.get(key, MISSING) for key in columns} for row in table]


def size_chart(groups: Sequence[RunGroup]) -> Markup | None:
    """Return accuracy against bytes, of stages and files; None of fewer than two.

    Of one configuration each point has a colour; of several, each configuration has,
    and the markers tell the stages.
    """
    dots: list[tuple[RunGroup, MergedRow | None, str, Mapping[str, np.ndarray]]] = []
    for group in groups:
        for row in group.rows:
            if row.kind != "export":
                dots.append((group, row, f"{row.stage}, {row.model}", row.values))
            dots += [(group, None, file.name, file.values) for file in row.files]
    dots = [dot for dot in dots if len(dot[3]["bytes"]) and len(dot[3]["accuracy"])]
    if len(dots) < 2:
        return None
    mean = lambda values: (values["bytes"].mean(), 100 * values["accuracy"].mean())
    series, labels = [], list(dict.fromkeys(label for _, _, label, _ in dots))
    for group in groups:
        for model in dict.fromkeys(row.model for row in group.rows):
            path = [
                mean(values)
                for of, row, _, values in dots
                if of is group and row is not None and row.model == model
            ]
            if path:
                x, y = zip(*path, strict=True)
                series.append(charts.Series("", x, y, draw="arrows", color="grid"))
    several = len(groups) > 1
    for place, (group, stage, label, values) in enumerate(dots):
        x, y = mean(values)
        accuracy = 100 * values["accuracy"]
        mark = labels.index(label) if several else place // 7
        marker = (
            charts.MARKERS[mark % len(charts.MARKERS)] if stage or several else "square"
        )
        name = f"{group.name}: {label}" if several else label
        color = groups.index(group) if several else place
        sd = [accuracy.std(ddof=1)] if len(accuracy) > 1 else None
        series.append(
            charts.Series(name, [x], [y], sd, draw="points", marker=marker, color=color)
        )
    text = "; ".join(
        f"{series.label}: {series.x[0]:,.0f} bytes, {series.y[0]:.2f} %"
        for series in series
        if series.label
    )
    panel = charts.Panel(
        series, "", "size", "test accuracy, %", charts.size_ticks, log_x=True,
        width=480, height=max(260, 17 * len(dots)),
    )  # fmt: skip
    return charts.chart([panel], f"Accuracy against size. {text}")


def tiles(group: RunGroup) -> list[tuple[str, str, str]]:
    """Return (what, value, remark) of the numbers that matter most of the student."""
    row, teacher = group.student, group.teacher
    assert row is not None
    teacher = None if row is teacher else teacher
    remark = f"after {row.stage}"
    if teacher:
        both = row.runs.keys() & teacher.runs.keys()
        gaps = [row.runs[i].accuracy - teacher.runs[i].accuracy for i in both]
        remark = f"{points(gaps)} points to {teacher.model}"
    made = [(f"accuracy of {row.model}", number(row.values["accuracy"], 100), remark)]
    if teacher:
        agreement = number(row.values["agreement"], 100)
        made.append(("agreement", agreement, f"with {teacher.model}"))
    for key, what in (
        ("parameters", "parameters"),
        ("macs", "MACs"),
        ("bytes", "bytes"),
    ):
        times = _times(teacher.values[key], row.values[key]) if teacher else ""
        made.append((what, count(row.values[key]), times))
    if smallest := _smallest(row):
        made.append(("smallest file, bytes", smallest[1], smallest[0]))
    # The mean is large, its deviation a remark.
    split = [(what, *value.partition(" ± "), remark) for what, value, remark in made]
    return [
        (
            what,
            f"{mean} %" if what.startswith("a") and mean != MISSING else mean,
            ", ".join(filter(None, (f"± {sd}" if sd else "", remark))),
        )
        for what, mean, _, sd, remark in split
    ]


def number(values: np.ndarray, scale: float = 1.0, digits: int = 2) -> str:
    """Return the mean and the deviation of known values."""
    return mean_sd(values, scale=scale, digits=digits) if len(values) else MISSING


def count(values: np.ndarray) -> str:
    """Return the mean of whole numbers, and the deviation if they differ.

    >>> count(np.array([1000, 1000])), count(np.array([1000, 1002]))
    ('1,000', '1,001 ± 1')
    """
    if not len(values):
        return MISSING
    if len(set(values)) == 1:
        return f"{values[0]:,.0f}"
    return f"{values.mean():,.0f} ± {values.std(ddof=1):,.0f}"


def points(gaps: Any) -> str:
    """Return the mean gap in percentage points, with its sign."""
    if not len(gaps):
        return MISSING
    text = f"{100 * float(np.mean(gaps)):+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", _MINUS)


def _quality(values: Mapping[str, np.ndarray]) -> TableRow:
    return {
        "accuracy %": number(values["accuracy"], 100),
        "NLL": number(values["nll"], 1, 4),
        "ECE %": number(values["ece"], 100),
        "agreement %": number(values["agreement"], 100),
    }


def _size(values: Mapping[str, np.ndarray]) -> TableRow:
    return {
        "parameters": count(values["parameters"]),
        "MACs": count(values["macs"]),
        "bytes": count(values["bytes"]),
    }


def _smallest(row: MergedRow) -> tuple[str, str] | None:
    """Return the name and the bytes of the smallest exported file."""
    if not row.files:
        return None
    file = min(row.files, key=lambda file: file.values["bytes"].mean())
    return file.name, count(file.values["bytes"])


def _times(many: np.ndarray, few: np.ndarray) -> str:
    if not len(many) or not len(few) or not few.mean() > 0 < many.mean():
        return ""
    ratio = many.mean() / few.mean()
    return f"{ratio:.1f} times fewer" if ratio >= 1 else f"{1 / ratio:.1f} times more"
