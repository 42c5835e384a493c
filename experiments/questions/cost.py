"""What does each network cost? Size, work, latency and throughput beside accuracy.

The plain and the distilled student are the same network: what differs between their
times is the noise of the machine.

    python -m experiments.questions.cost --archives DIR
    python -m experiments.questions.cost --preset short
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import tyro

from experiments import common as experiments
from experiments.questions import common
from jaxkd import cost, report, train
from jaxkd.models import Net


@dataclasses.dataclass(frozen=True)
class Config(common.Config):
    """Every field can be given on the command line."""

    calls: int = 300  # of which the median latency is taken


def latency(net: Net, variables: train.Variables, image: Any, calls: int) -> float:
    """Return the median milliseconds of a compiled forward pass of one image."""
    forward = jax.jit(lambda v, x: net.apply(*v, x, train=False)[0].logits)
    jax.block_until_ready(forward(variables, image))
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        jax.block_until_ready(forward(variables, image))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds))


def main(config: Config) -> dict[str, float]:
    """Measure the three networks; return the mean accuracies by name."""
    config = common.sized(config)
    spec = common.kd(config)
    setup = common.prepare("cost", config, [spec])
    taught = common.teach(setup)
    plain = common.students(setup, "plain", taught)
    distilled = common.students(setup, "distilled", taught, spec=spec)
    test, view = setup.test, setup.view
    image = train.example({"image": test.images}, view, 1)["image"]
    rows, ms = [], {}
    for name, its in {
        "teacher": taught,
        "plain": plain,
        "distilled": distilled,
    }.items():
        variables = its.run.seed(0)
        ms[name] = latency(its.net, variables, image, config.calls)
        costs = experiments.costs(its.net, variables, test, view)
        accuracy = report.mean_sd(its.metrics["accuracy"], scale=100)
        rows.append(
            {
                "network": name,
                "test accuracy %": accuracy,
                **costs,
                "ms, batch 1": f"{ms[name]:.3f}",
            }
        )
    large, small = (cost.of(n, test.images.shape[1:]) for n in (taught.net, plain.net))
    arm = common.Arm(distilled.metrics, plain.metrics, taught.metrics)
    behind = report.gain(arm.distilled["accuracy"], arm.teacher["accuracy"])
    note = (
        f"The student has {large.parameters / small.parameters:.1f} times fewer "
        f"parameters and {large.macs / small.macs:.1f} times fewer MACs, and answers "
        f"one image in {ms['distilled']:.3f} ms (the teacher: {ms['teacher']:.3f}). "
        f"Distilled, its accuracy is {behind} points against the teacher and "
        f"{arm.gain} against the plain student, which costs the same."
    )
    return common.write(setup, "network", {"distilled": arm}, [note], {"Costs": rows})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
