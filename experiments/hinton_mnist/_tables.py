"""Rows of the table, the picture and the report."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.hinton_mnist._biases import best_bias, bias_for_share, errors, moved
from experiments.hinton_mnist._training import Lab, Students, answers, students
from jaxkd import log, report

PUBLISHED_WITHOUT_3 = {
    "before": "206, of which 133 on 3s",
    "bias": 3.5,
    "after": "109, of which 14 on 3s: 98.6 % of them right",
}
PUBLISHED_7_AND_8 = {"before": "47.3 %", "bias": -7.6, "after": "13.2 %"}


def row(
    lab: Lab, network: str, logits: np.ndarray, published: str, bias: Any = None
) -> dict:
    """A row of the table, also written to the log; `logits` are those of the test."""
    labels = lab.task.test.labels
    threes, n = labels == 3, int((labels == 3).sum())
    wrong, of_threes = errors(logits, labels), errors(logits[:, threes], labels[threes])
    digits = 1 if len(logits) > 1 else 0
    lab.write(
        {"run": "result", "network": network, "errors": wrong.tolist()}
        | {"errors on 3s": of_threes.tolist()}
        | ({} if bias is None else {"bias": np.asarray(bias).tolist()})
    )
    return {
        "network": network,
        "bias": "" if bias is None else report.mean_sd(bias),
        "test errors": report.mean_sd(wrong, digits=digits),
        "test error %": report.mean_sd(wrong, scale=100 / len(labels)),
        "on 3s": report.mean_sd(of_threes, digits=digits),
        "3s right %": report.mean_sd(1 - of_threes / n, scale=100),
        "published": published,
    }


def rows_with_biases(
    lab: Lab,
    label: str,
    found: Students,
    classes: Sequence[int],
    published: dict[str, Any],
) -> list[dict]:
    """As they are, and with the bias of some classes chosen in three ways."""
    task, test = lab.task, found.test_logits
    # Labels only tell how common these classes are, not which images are theirs.
    share = float(np.isin(task.train.labels, classes).mean())
    unlabelled = answers(found.net, found.variables, task.resident, task.view)
    own, paper = bias_for_share(unlabelled, classes, share), published["bias"]
    best = best_bias(test, task.test.labels, classes)
    of = " and ".join(map(str, classes))
    ways = (
        (f"bias of {of} for their share of the training images", own, ""),
        (f"bias of {of} by {paper:+}, as published", np.full(len(test), paper), ""),
        (f"bias of {of} best on the test set, as published", best, published["after"]),
    )
    rows = [row(lab, label, test, published["before"])]
    for way, bias, number in ways:
        shifted = moved(test, classes, bias)
        rows.append(row(lab, f"{label}; {way}", shifted, number, bias))
    return rows


def at_temperatures(
    lab: Lab, units: int, temperatures: Sequence[float], *, seeds: int
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Rows and errors of students of one size: alone, and at each temperature."""
    rows, found = [], {}
    for t in (None, *temperatures):
        how = "alone" if t is None else f"T={t:g}"
        some = students(
            lab,
            f"{units} units {how.lower()}",
            units,
            epochs=lab.config.small_epochs,
            seeds=seeds,
            temperature=t,
        )
        rows.append(row(lab, f"student {units}-{units}, {how}", some.test_logits, ""))
        found[how] = errors(some.test_logits, lab.task.test.labels)
    return rows, found


def picture(
    path: pathlib.Path, large: dict[str, Any], by_size: dict[int, dict]
) -> bool:
    """Errors of the large networks, and of the others against temperature.

    Args:
      path: the PNG.
      large: from a network to its errors `[seeds]` and the published number.
      by_size: from units to the errors `[seeds]` "alone" and at each "T=...".

    Returns:
      Whether it could be drawn: False without matplotlib (the extra `plots`).
    """
    pyplot = report.pyplot()
    if pyplot is None:
        return False

    n = 1 + len(by_size)
    figure, axes = pyplot.subplots(1, n, figsize=(4.6 * n, 3.8), squeeze=False)
    first, *others = axes[0]
    sd = lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0
    measured = [found for found, _ in large.values()]
    first.bar(list(large), [m.mean() for m in measured], yerr=[sd(m) for m in measured])
    first.plot(
        list(large), [number for _, number in large.values()], "kD", label="2015"
    )
    first.set(title="1200-1200 to 800-800", ylabel="test errors")
    for axis, (units, found) in zip(others, by_size.items(), strict=True):
        at = {float(how[2:]): e for how, e in found.items() if how != "alone"}
        means, sds = [e.mean() for e in at.values()], [sd(e) for e in at.values()]
        axis.errorbar(list(at), means, sds, fmt="o-", capsize=3, label="distilled")
        axis.axhline(found["alone"].mean(), color="grey", ls="--", label="alone")
        axis.set(title=f"{units}-{units}", xlabel="temperature", xscale="log")
        axis.set_xticks(list(at), [f"{t:g}" for t in at])
        axis.minorticks_off()
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend()
    report.save(figure, path)
    return True


def write_report(lab: Lab, rows: list[dict], *, drawn: bool = False) -> None:
    """Writes `report.md` from what there is so far."""
    test, config = lab.task.test, lab.config
    title = f"hinton_mnist: {test.name}, {len(test.images):,} {test.split} images"
    shown = "![Errors](errors.png)\n\n" if drawn else ""
    made = report.listed(log.versions())
    (lab.directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nErrors after the last epoch, mean ± "
        f"standard deviation over the students' {config.seeds} seeds "
        f"({config.small_seeds} with {config.small_units} units); one teacher. "
        "Biases for the share of the training images were chosen without labels, "
        "from the students' logits on all of them; those best on the test set are "
        "optimistic, as the published ones are.\n\n"
        f"{shown}{made}"
    )
