"""What does each network cost? Size, work, latency and throughput beside accuracy.

The plain and the distilled student are the same network: what differs between their
times is the noise of the machine.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from experiments import _outcome as outcome
from experiments.studies import _finding as f, _picture, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher
from experiments.studies._probe import Metrics
from jaxkd import cost, report
from jaxkd.models import Net

CALLS = 300  # of which the median is taken


def latency(net: Net, variables: tuple[Any, Any], image: Any) -> float:
    """Median milliseconds of a compiled forward pass of one image."""

    @jax.jit
    def forward(variables: tuple[Any, Any], x: jax.Array) -> jax.Array:
        return net.apply(*variables, x, train=False)[0].logits

    jax.block_until_ready(forward(variables, image))
    seconds = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(forward(variables, image))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds))


def run(lab: Lab) -> f.Finding:
    """Measures the three networks; says what the student saves and what it loses."""
    taught, it = teacher(lab), novice(lab)
    train, resident = course(lab, it), with_logits(lab, taught)
    plain = train("plain", knobs(), taught, resident=resident)
    distilled = train("distilled", configured(lab), taught, resident=resident)
    networks = {
        "teacher": (taught.net, taught.variables, taught.metrics),
        "plain student": (it.net, plain.seed(0), plain.metrics),
        "distilled student": (it.net, distilled.seed(0), distilled.metrics),
    }
    test, view = lab.task.test, lab.task.view
    one = view(
        jax.random.key(0), jax.tree.map(lambda a: a[:1], lab.task.resident_test)
    )["image"]
    rows, numbers = [], {}
    for name, (net, variables, metrics) in networks.items():
        ms = latency(net, variables, one)
        costs = outcome.costs(net, variables, test, view)
        of = cost.of(net, test.images.shape[1:])
        numbers[name] = {**of._asdict(), "ms": ms, **_lists(metrics)}
        accuracy = report.mean_sd(metrics["accuracy"], scale=100)
        rows.append(
            {
                "network": name,
                "test accuracy %": accuracy,
                **costs,
                "ms, batch 1": f"{ms:.3f}",
            }
        )
    arm = f.Arm("distilled", distilled.metrics, plain.metrics)
    return f.Finding(
        rows,
        [sentence(numbers, arm, float(taught.metrics["accuracy"]))],
        lambda path: draw(path, numbers, study.title(lab)),
        numbers,
    )


def _lists(metrics: Metrics) -> dict[str, list[float]]:
    return {name: np.ravel(value).tolist() for name, value in metrics.items()}


def sentence(numbers: dict[str, Any], arm: f.Arm, teacher_accuracy: float) -> str:
    """What the student saves and loses."""
    large, small = numbers["teacher"], numbers["distilled student"]
    n = len(arm.metrics["accuracy"])
    behind = f.paired(arm.metrics["accuracy"], [teacher_accuracy] * n)
    ratio = {k: large[k] / small[k] for k in ("parameters", "macs")}
    return (
        f"The student has {ratio['parameters']:.1f} times fewer parameters and "
        f"{ratio['macs']:.1f} times fewer MACs, and answers one image in "
        f"{small['ms']:.3f} ms (the teacher: {large['ms']:.3f}); distilled, it makes "
        f"{f.changes(behind)} against the teacher and {f.changes(f.gain(arm))} against "
        "the plain student, which costs the same."
    )


def draw(path: pathlib.Path, numbers: dict[str, Any], title: str) -> bool:
    """Accuracy against parameters, MACs and latency."""
    blank = _picture.figure(3)
    if blank is None:
        return False
    made, axes = blank
    colours = (_picture.TEACHER, _picture.PLAIN, _picture.DISTILLED)
    kinds = {"parameters": "parameters", "macs": "MACs", "ms": "latency, ms (batch 1)"}
    for axis, (key, label) in zip(axes, kinds.items(), strict=True):
        for colour, (name, its) in zip(colours, numbers.items(), strict=True):
            values = 100 * np.asarray(its["accuracy"])
            sd = values.std(ddof=1) if len(values) > 1 else None
            style = {"color": colour, "marker": "o", "capsize": 3, "linestyle": "none"}
            axis.errorbar(its[key], values.mean(), sd, label=name, **style)
        axis.set(xlabel=label, ylabel="test accuracy, %")
        axis.set_xlim(0, 1.1 * max(its[key] for its in numbers.values()))
        axis.set_title("mean ± standard deviation")
    return _picture.save(made, axes[0], title, path)
