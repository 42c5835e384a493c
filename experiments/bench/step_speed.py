"""How long a training step takes: loop or scan, teacher live, cached or absent.

    python -m experiments.bench.step_speed
    python -m experiments.bench.step_speed --experiments mnist_mlp --repeats 9

The step is the one of the experiment of the same name, with its data handling: random
bytes of the real shape lie on the device; shuffling, gathering and scaling are part of
what is timed. `loop` calls one compiled step from Python, `scan` an epoch at once.
Prints one JSON line a case; times are medians of alternating runs.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxkd import data, distill, losses, train
from jaxkd.data import augment
from jaxkd.models import CNNS, MLPS, cnn, mlp

Block = Callable[[], None]  # runs a number of steps to their end

# experiment -> student, teacher, image shape, batch, temperature, weights
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "mnist_mlp": {
        "student": lambda: mlp(**MLPS["student"]),
        "teacher": lambda: mlp(**MLPS["teacher"]),
        "shape": (28, 28, 1),
        "batch_size": 64,
        "steps": 937,
        "kd": (5.0, 0.1, 0.9),
        "teachers": ("live", "cached", "none"),
    },
    "cifar10_cnn": {
        "student": lambda: cnn(**CNNS["student"]),
        "teacher": lambda: cnn(**CNNS["teacher"]),
        "shape": (32, 32, 3),
        "batch_size": 128,
        "steps": 20,
        "kd": (2.0, 0.75, 0.25),
        "teachers": ("live", "cached", "none"),
    },
    "cifar10_cnn_teacher": {
        "student": lambda: cnn(**CNNS["teacher"]),
        "teacher": None,
        "shape": (32, 32, 3),
        "batch_size": 128,
        "steps": 8,
        "kd": None,
        "teachers": ("none",),
    },
}
MODES = ("loop", "scan")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    teachers: tuple[str, ...] = ("live", "cached", "none")
    modes: tuple[str, ...] = MODES
    repeats: int = 5


def images(shape: tuple[int, ...], n: int) -> data.Dataset:
    """Random bytes in the shape of a data set."""
    rng = np.random.default_rng(0)
    return data.Dataset(
        name="random",
        split="train",
        images=rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        labels=rng.integers(0, 10, n).astype(np.int32),
        index=np.arange(n, dtype=np.int32),
        classes=tuple("0123456789"),
    )


def block(experiment: str, teacher: str, mode: str, steps: int | None = None) -> Block:
    """Builds a case: a function that takes `steps` steps from where it last stopped."""
    case = EXPERIMENTS[experiment]
    steps = steps or case["steps"]
    n = steps * case["batch_size"]
    dataset = images(case["shape"], n)
    half = np.full(case["shape"][-1], 0.5)
    view = augment.chain(augment.to_float(), augment.normalise(half, half / 2))
    resident, variables = data.on_device(dataset), None
    teaches: distill.Teacher = distill.nobody
    spec: dict[str, Any] = {"ce": (1.0, distill.on_labels(distill.cross_entropy))}
    if teacher != "none":
        net = case["teacher"]()
        variables = net.init(jax.random.key(1), jnp.zeros((1, *case["shape"])))
        teaches = distill.frozen(net)
        temperature, hard, soft = case["kd"]
        kd = distill.on_logits(losses.kd, temperature=temperature)
        spec = {"ce": (hard, spec["ce"][1]), "kd": (soft, kd)}
    if teacher == "cached":
        logits = train.cache_teacher(teaches, variables, dataset, view=view)
        resident["teacher"] = jnp.asarray(logits)
        teaches, variables = distill.cached, None
    d = distill.distiller(case["student"](), teaches, spec, optax.adam(1e-3))
    state = d.init(jax.random.key(0), variables, train.example(resident, view))
    if mode == "scan":
        epoch = train.make_epoch(d, view=view, batch_size=case["batch_size"])
        run = jax.jit(epoch, donate_argnums=0)

        def scanned() -> None:
            nonlocal state
            state, metrics = run(state, variables, resident, jax.random.key(2))
            jax.block_until_ready(metrics)

        return scanned

    def one(state: Any, variables: Any, resident: Any, rows: Any, key: Any) -> Any:
        return d.step(state, variables, view(key, data.gather(resident, rows)))

    step = jax.jit(one, donate_argnums=0)

    def looped() -> None:
        nonlocal state
        key = jax.random.key(2)
        order = data.epoch(key, n, case["batch_size"])
        for rows in order:
            state, metrics = step(state, variables, resident, rows, key)
        jax.block_until_ready(metrics)

    return looped


def alternate(
    blocks: dict[Any, Block], repeats: int, *, pause: float = 0.0
) -> dict[Any, list[float]]:
    """Seconds of each block, run in turn so that a noisy machine hurts all alike."""
    for each in blocks.values():
        each()  # compiles
    seconds: dict[Any, list[float]] = {name: [] for name in blocks}
    for _ in range(repeats):
        for name, each in blocks.items():
            time.sleep(pause)
            begin = time.perf_counter()
            each()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one row a case."""
    rows = []
    for experiment in config.experiments:
        case = EXPERIMENTS[experiment]
        blocks = {
            (teacher, mode): block(experiment, teacher, mode)
            for teacher in config.teachers
            if teacher in case["teachers"]
            for mode in config.modes
        }
        for (teacher, mode), seconds in alternate(blocks, config.repeats).items():
            per_step = float(np.median(seconds)) / case["steps"]
            row = {
                "experiment": experiment,
                "teacher": teacher,
                "mode": mode,
                "ms_per_step": round(1e3 * per_step, 4),
                "images_per_s": round(case["batch_size"] / per_step, 1),
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
