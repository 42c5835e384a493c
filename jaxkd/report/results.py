"""What came out: the figures that matter most, the tables, accuracy against size."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxkd.report import charts
from jaxkd.report.blocks import MISSING, Block, Heading, Picture, Table, Text, Tiles
from jaxkd.report.merging import Group, Merged, differences, last, merged, student
from jaxkd.report.reading import number
from jaxkd.report.tables import mean_sd

_MINUS = "\u2212"
_EXPLAINED = (
    "Measured on the test images. NLL: negative log-likelihood in nats; ECE: expected "
    "calibration error; agreement: share of images on which the model names the "
    "teacher's class; MACs: multiply-accumulates for one image; bytes: of the "
    "variables, or of the file; latency: one image, one thread; images/s: in training."
)


def blocks(group: Group, name: str) -> list[Block]:
    """The results of runs of one configuration."""
    rows = merged(group)
    if not rows:
        return [Text("No model has been measured yet.")]
    n = len(group.runs)
    over = f" Mean ± sample standard deviation over {n} seeds." if n > 1 else ""
    made: list[Block] = [Tiles(_tiles(group, rows))]
    table, kinds = stages(group, rows)
    made += [
        Heading("Results", 3),
        Table(table, f"The models after each stage.{over}", 2, kinds),
        Text(_EXPLAINED),
    ]
    picture = sizes({group.name: rows}, f"{name}-sizes")
    made += [] if picture is None else [Heading("Accuracy against size", 3), picture]
    exported = files(rows)
    if exported:
        caption = (
            "Each file is measured by its own runtime. Parity: the largest difference "
            "of its logits to those of JAX on test images."
        )
        made += [Heading("Exported files", 3), Table(exported, caption, 3)]
    return made


def stages(
    group: Group, rows: Sequence[Merged]
) -> tuple[list[dict[str, str]], list[str]]:
    """The table of the stages and their files, and the kind of each row."""
    table, kinds = [], []
    for row in rows:
        partly = len(row.runs) < len(group.runs)
        some = f", {len(row.runs)} of {len(group.runs)} runs" if partly else ""
        table.append(
            {
                "after": f"{row.title}{some}",
                "model": row.model,
                "accuracy %": _shown(row.values, "accuracy", 100),
                "NLL": _shown(row.values, "nll", 1, 4),
                "ECE %": _shown(row.values, "ece", 100),
                "agreement %": _shown(row.values, "agreement", 100),
                "parameters": _count(row.values, "parameters"),
                "MACs": _count(row.values, "macs"),
                "bytes": _count(row.values, "bytes"),
                "latency ms": "",
                "images/s": _count(row.values, "images/s"),
            }
        )
        kinds.append("teacher" if row.model == group.teacher else "")
        for file in row.files:
            table.append(
                {
                    "after": file.name,
                    "model": row.model,
                    "accuracy %": _shown(file.values, "accuracy", 100),
                    "NLL": _shown(file.values, "nll", 1, 4),
                    "bytes": _count(file.values, "bytes"),
                    "latency ms": _shown(file.values, "milliseconds", 1, 3),
                }
            )
            kinds.append("file")
    return table, kinds


def files(rows: Sequence[Merged]) -> list[dict[str, str]]:
    """The table of the exported files."""
    table = []
    for row in rows:
        for file in row.files:
            both = (file.values["accuracy"], row.values["accuracy"])
            lost = _points(np.subtract(*both) if len(both[0]) == len(both[1]) else ())
            table.append(
                {
                    "file": file.name,
                    "model": row.model,
                    "format": file.format,
                    "bytes": _count(file.values, "bytes"),
                    "parity": _small(file.values["difference"]),
                    "accuracy %": _shown(file.values, "accuracy", 100),
                    "to JAX, points": lost,
                    "NLL": _shown(file.values, "nll", 1, 4),
                    "latency ms": _shown(file.values, "milliseconds", 1, 3),
                }
            )
    return table


def comparison(groups: Sequence[Group]) -> list[Block]:
    """Runs of several configurations beside each other."""
    found = {group.name: merged(group) for group in groups}
    table = [_compared(group, found[group.name]) for group in groups]
    made: list[Block] = [
        Heading("Comparison", 2),
        Table(table, "The student after the last stage of each configuration.", 2),
    ]
    changed = differences(groups)
    if changed:
        made.append(
            Table(changed, "What the configurations differ in.", len(groups) + 1)
        )
    picture = sizes(found, "comparison-sizes")
    return made + ([] if picture is None else [picture])


def sizes(found: Mapping[str, Sequence[Merged]], name: str) -> Picture | None:
    """Accuracy against bytes of all stages and files."""
    points = []
    for group, rows in found.items():
        for row in rows:
            point = (row.values["bytes"], 100 * row.values["accuracy"])
            if all(map(len, point)) and row.kind != "export":
                label = f"{row.stage}, {row.model}"
                points.append(charts.Point(group, label, row.model, False, *point))
            for file in row.files:
                point = (file.values["bytes"], 100 * file.values["accuracy"])
                if all(map(len, point)):
                    points.append(
                        charts.Point(group, file.name, row.model, True, *point)
                    )
    if len(points) < 2:
        return None
    svg = charts.sizes(points)
    if svg is None:
        return None
    said = "; ".join(
        (f"{p.group}, " if len(found) > 1 else "")
        + f"{p.label}: {p.bytes.mean():,.0f} bytes, {p.accuracy.mean():.2f} %"
        for p in points
    )
    caption = (
        "Test accuracy against bytes: of the variables after each stage, joined in "
        "their order, and of the exported files (squares)."
    )
    return Picture(name, svg, f"Accuracy against size. {said}", caption)


def _tiles(group: Group, rows: Sequence[Merged]) -> list[tuple[str, str, str]]:
    """The student at the end, and how that compares to the teacher."""
    teacher = last(rows, group.teacher)
    row = last(rows, student(group, rows)) or rows[-1]
    if row is teacher:
        teacher = None
    remark = f"after {row.stage}"
    if teacher:
        lost = _points(_gaps(row, teacher))
        remark = f"{lost} points to {teacher.model}"
    shown = _shown(row.values, "accuracy", 100)
    made = [_tile(f"accuracy of {row.model}", shown, remark, " %")]
    if teacher:
        shown = _shown(row.values, "agreement", 100)
        made.append(_tile("agreement", shown, f"with {teacher.model}", " %"))
    for key, what in (
        ("parameters", "parameters"),
        ("macs", "MACs"),
        ("bytes", "bytes"),
    ):
        fewer = _times(teacher.values[key], row.values[key]) if teacher else ""
        made.append(_tile(what, _count(row.values, key), fewer))
    exported = [f for f in row.files if len(f.values["bytes"])]
    if exported:
        file = min(exported, key=lambda f: f.values["bytes"].mean())
        made.append(
            _tile("smallest file, bytes", _count(file.values, "bytes"), file.name)
        )
    return made


def _tile(what: str, value: str, remark: str, unit: str = "") -> tuple[str, str, str]:
    """The mean is large, its deviation a remark."""
    mean, _, sd = value.partition(" ± ")
    remark = ", ".join(part for part in (f"± {sd}" if sd else "", remark) if part)
    return what, mean + (unit if mean != MISSING else ""), remark


def _compared(group: Group, rows: Sequence[Merged]) -> dict[str, str]:
    teacher, row = last(rows, group.teacher), last(rows, student(group, rows))
    row = row or (rows[-1] if rows else None)
    shown = lambda at, *how: MISSING if at is None else _shown(at.values, *how)
    count = lambda key: MISSING if row is None else _count(row.values, key)
    sizes = [f.values["bytes"] for f in row.files] if row else []
    smallest = min((s for s in sizes if len(s)), key=np.mean, default=np.zeros(0))
    return {
        "configuration": group.name,
        "after": MISSING if row is None else row.stage,
        "runs": str(len(group.runs)),
        "accuracy %": shown(row, "accuracy", 100),
        "teacher's": shown(teacher, "accuracy", 100),
        "agreement %": shown(row, "agreement", 100),
        "NLL": shown(row, "nll", 1, 4),
        "ECE %": shown(row, "ece", 100),
        "parameters": count("parameters"),
        "MACs": count("macs"),
        "bytes": count("bytes"),
        "smallest file": _count({"bytes": smallest}, "bytes"),
    }


def _shown(
    values: Mapping[str, np.ndarray], key: str, scale: float = 1.0, digits: int = 2
) -> str:
    found = values[key]
    return mean_sd(found, scale=scale, digits=digits) if len(found) else MISSING


def _count(values: Mapping[str, np.ndarray], key: str) -> str:
    """Whole numbers, which often are the same for each seed."""
    found = values[key]
    if not len(found) or not np.isfinite(found).all():
        return MISSING
    if len(set(found)) == 1:
        return f"{found[0]:,.0f}"
    return f"{found.mean():,.0f} ± {found.std(ddof=1):,.0f}"


def _small(values: np.ndarray) -> str:
    return f"{values.max():.2g}" if len(values) else MISSING


def _gaps(row: Merged, other: Merged) -> list[float]:
    """How much more accurate one is than the other, in each run that has both."""
    before = {id(run): number(found.get("accuracy")) for run, found in other.runs}
    pairs = [
        (number(found.get("accuracy")), before.get(id(run))) for run, found in row.runs
    ]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _points(gaps: Sequence[float]) -> str:
    """The mean gap in points, with its sign."""
    if not len(gaps):
        return MISSING
    mean = 100 * float(np.mean(gaps))
    said = f"{mean:+.2f}".replace("-", _MINUS)
    return "0.00" if said in ("+0.00", f"{_MINUS}0.00") else said


def _times(many: np.ndarray, few: np.ndarray) -> str:
    """How many times fewer."""
    if not len(many) or not len(few) or not few.mean() > 0 < many.mean():
        return ""
    ratio = many.mean() / few.mean()
    return f"{ratio:.1f} times fewer" if ratio >= 1 else f"{1 / ratio:.1f} times more"
