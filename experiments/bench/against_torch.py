"""The same training programs in PyTorch (eager, CPU) and in jaxkd, in turns.

    pip install '.[bench]'
    python -m experiments.bench.against_torch

PyTorch gets what makes it fast here: the data set as one float tensor in memory,
batches by index, a teacher under `no_grad`, the same number of threads. jaxkd runs its
scanned epoch. For each case the two alternate in one process; a row has the medians and
the median of the paired ratios (above 1: jaxkd is faster).
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from experiments.bench import cases, step_speed


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    experiments: tuple[str, ...] = tuple(cases.EXPERIMENTS)
    repeats: int = 7
    threads: int = 2


def mlp(*widths: int) -> nn.Module:
    """Dense layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(stages: tuple[tuple[int, ...], ...], flat: int, hidden: int) -> nn.Module:
    """Stages of 3x3 convolutions, each ended by a pooling; a hidden layer, dropout."""
    layers, channels = [], 3
    for widths in stages:
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "mnist_mlp": (
        lambda: mlp(784, 200, 200, 10),
        lambda: mlp(784, 1200, 1200, 10),
    ),
    "cifar10_cnn": (
        lambda: cnn(((16,), (16,)), 1024, 256),
        lambda: cnn(((128, 64), (64, 32)), 2048, 512),
    ),
    "cifar10_cnn_teacher": (lambda: cnn(((128, 64), (64, 32)), 2048, 512), None),
}


def torch_block(experiment: str, teacher: str) -> step_speed.Block:
    """The program of `step_speed.block`, written in PyTorch as its users write it."""
    case = cases.EXPERIMENTS[experiment]
    make_student, make_teacher = NETWORKS[experiment]
    size, n = case["batch_size"], case["steps"] * case["batch_size"]
    dataset = cases.images(case["shape"], n)
    x = torch.from_numpy(dataset.images).permute(0, 3, 1, 2).contiguous().float()
    x = (x / 255 - 0.5) / 0.25
    labels = torch.from_numpy(dataset.labels).long()
    student = make_student()
    tutor = make_teacher().eval() if teacher != "none" and make_teacher else None
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)

    def run() -> None:
        for rows in torch.randperm(n).split(size):
            image, label = x[rows], labels[rows]
            s = student(image)
            loss = F.cross_entropy(s, label)
            if tutor is not None:
                with torch.no_grad():
                    t = tutor(image)
                temperature, hard, soft = case["kd"]
                kl = F.kl_div(
                    F.log_softmax(s / temperature, -1),
                    F.softmax(t / temperature, -1),
                    reduction="batchmean",
                )
                loss = hard * loss + soft * temperature**2 * kl
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return run


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one row a case."""
    torch.set_num_threads(config.threads)
    rows = []
    for experiment in config.experiments:
        case = cases.EXPERIMENTS[experiment]
        ours = [
            t for t in case["teachers"] if t != "none" or len(case["teachers"]) == 1
        ]
        theirs = "live" if "live" in ours else "none"
        blocks: dict[str, step_speed.Block] = {"torch": torch_block(experiment, theirs)}
        for teacher in ours:
            blocks[teacher] = step_speed.block(experiment, teacher, "scan")
        # PyTorch's threads spin for 0.2 s after their last operation: let them rest,
        # or they take the cores from whatever is measured next.
        seconds = step_speed.alternate(blocks, config.repeats, pause=0.4)
        for teacher in ours:
            ratios = np.divide(seconds["torch"], seconds[teacher])
            ms = {k: 1e3 * np.median(v) / case["steps"] for k, v in seconds.items()}
            row = {
                "experiment": experiment,
                "teacher": teacher,
                "torch_teacher": theirs,
                "ms_per_step": round(ms[teacher], 4),
                "torch_ms_per_step": round(ms["torch"], 4),
                "times_as_fast": round(float(np.median(ratios)), 3),
                "device": jax.devices()[0].device_kind,
                "threads": config.threads,
                "jax": jax.__version__,
                "torch": torch.__version__,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
