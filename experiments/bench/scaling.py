"""Weak scaling: what one device computes, keeps and sends, on 1 to 64 of them.

    python -m experiments.bench.scaling
    python -m experiments.bench.scaling --pair resnet8_resnet14 --model 2 --no-simulate

Every device has the same share of the batch, so that a step should cost each of them
the same on any number of devices. All of that is read from the compiled step: its
collectives and their bytes from the program's text, FLOPs and memory from XLA's
analyses, all per device. Up to `--devices` the step is also run; `--compile-only` ones
are compiled for, which needs no array. Simulated devices share one processor, hence no
times; convolutions have the gradients that they have on accelerators.

Prints one JSON line a case and a table of all.
"""

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from jaxkd import data, distill, losses, mesh as meshes, terms
from jaxkd.data import augment
from jaxkd.models import MLPS, RESNETS, mlp, resnet
from jaxkd.models.convolution import plain_convolutions

# pair -> student, teacher, image shape
PAIRS: dict[str, tuple[Any, Any, tuple[int, int, int]]] = {
    "mnist_mlp": (
        lambda: mlp(**MLPS["student"]),
        lambda: mlp(**MLPS["teacher"]),
        (28, 28, 1),
    ),
    "resnet8_resnet14": (
        lambda: resnet(**RESNETS["resnet8"], classes=100),
        lambda: resnet(**RESNETS["resnet14"], classes=100),
        (32, 32, 3),
    ),
    "resnet8x4_resnet32x4": (
        lambda: resnet(**RESNETS["resnet8x4"], classes=100),
        lambda: resnet(**RESNETS["resnet32x4"], classes=100),
        (32, 32, 3),
    ),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
ARRAY = re.compile(r"([a-z]+[0-9]*)[a-z0-9]*\[([0-9,]*)\]")
# The machine code is not run for long, and its quality changes nothing that is counted.
QUICK: Any = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    pair: str = "resnet8_resnet14"
    devices: tuple[int, ...] = (1, 2, 4, 8)
    compile_only: tuple[int, ...] = (16, 32, 64)
    batch_size: int = 16
    """Images in a step on each device."""
    images: int = 2048
    """In the data set, which every device has."""
    model: int = 1
    """Over how many devices the teacher's parameters are split."""
    relational: bool = True
    """Whether the similarities of the whole batch are part of the objective."""
    simulate: bool = True
    """In a process with as many CPU devices as it takes; else the devices there are."""


def collectives(program: str) -> Iterator[tuple[str, int]]:
    """The kind and the bytes of every collective operation in a compiled program.

    Args:
      program: its text, `compiled.as_text()`.

    Yields:
      The name without "-start", and the size of what a device has of the result.

    Example:
      >>> text = " %g = (f32[16,3]{1,0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=1"
      >>> list(collectives(text))
      [('all-reduce', 200)]
    """
    for shape, kind, begins in COLLECTIVE.findall(program):
        sizes = [_bytes(*array) for array in ARRAY.findall(shape)]
        if begins and kind != "all-reduce":
            sizes = sizes[len(sizes) // 2 :]  # the operands come first
        yield kind, sum(sizes)


def _bytes(dtype: str, shape: str) -> int:
    bits = re.search(r"\d+", dtype)
    size = int(bits[0]) // 8 if bits else 1  # pred
    return size * int(np.prod([int(n) for n in shape.split(",") if n], initial=1))


def learner(config: Config) -> tuple[distill.Distiller, Any, augment.View]:
    """The procedure, the teacher network and how both see the images."""
    student, teacher, shape = PAIRS[config.pair]
    spec: dict[str, Any] = {
        "ce": (0.1, distill.on_labels(losses.cross_entropy)),
        "kd": (0.9, distill.on_logits(losses.kd, temperature=4.0)),
    }
    if config.relational:
        spec["sp"] = (1.0, terms.sp("pooled"))
    net = teacher()
    half = np.full(shape[-1], 0.5)
    view = augment.chain(
        augment.flip(),
        augment.crop(4),
        augment.to_float(),
        augment.normalise(half, half),
    )
    tx = optax.sgd(0.05, momentum=0.9)
    return distill.distiller(student(), distill.frozen(net), spec, tx), net, view


def resident(config: Config) -> Any:
    """Random images and labels."""
    shape = PAIRS[config.pair][2]
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (config.images, *shape), np.uint8),
        "label": rng.integers(0, 10, config.images).astype(np.int32),
        "index": np.arange(config.images, dtype=np.int32),
    }


def make(config: Config, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """The step to be compiled, and a function that makes its arguments."""
    d, net, view = learner(config)
    batch_size = config.batch_size * mesh.size
    meshes.check_batch(batch_size, mesh)

    def step(state: Any, variables: Any, images: Any, rows: Any, key: Any) -> Any:
        batch = meshes.split(data.gather(images, rows), mesh)
        batch = meshes.split(view(key, batch), mesh)
        return d.step(state, variables, batch)

    def arguments(images: Any) -> Any:
        # Keys of this kind compile in a fraction of the time.
        key = jax.random.key(0, impl="unsafe_rbg")
        few = view(key, jax.tree.map(lambda a: a[:2], images))
        variables = net.init(key, few["image"])
        state = d.init(key, variables, few)
        key = jax.random.key(0)
        state = state._replace(key=key)
        return state, variables, images, jnp.arange(batch_size, dtype=jnp.int32), key

    return step, arguments


def measure(config: Config, devices: Sequence[jax.Device], *, run: bool) -> dict:
    """Compiles a step for these devices, and perhaps runs it; one row."""
    mesh = meshes.make(min(config.model, len(devices)), devices)
    step, arguments = make(config, mesh)
    images = resident(config)
    shapes = jax.eval_shape(arguments, images)
    lies = jax.tree.map(lambda _: meshes.replicated(mesh), shapes)
    lies = (lies[0], meshes.sharded(shapes[1], mesh, at_least=2**10), *lies[2:])
    out = (lies[0], meshes.replicated(mesh))
    jitted = jax.jit(step, in_shardings=lies, out_shardings=out, donate_argnums=0)
    begin = time.perf_counter()
    with plain_convolutions():  # as accelerators have them
        lowered = jitted.lower(*shapes)
    compiled = lowered.compile(compiler_options=QUICK)
    seconds = time.perf_counter() - begin
    row = {
        "pair": config.pair,
        "devices": mesh.size,
        "model": mesh.shape["model"],
        "batch_size": config.batch_size * mesh.size,
        **costs(compiled),
        "compile_s": round(seconds, 2),
        "device": devices[0].device_kind,
        "jax": jax.__version__,
    }
    if run:
        made = jax.jit(arguments, out_shardings=lies)(images)
        row["loss"] = round(float(compiled(*made)[1]["loss"]), 4)
    return row


def costs(compiled: Any) -> dict[str, Any]:
    """What a step costs one device."""
    memory, moved = compiled.memory_analysis(), 0
    count: collections.Counter[str] = collections.Counter()
    for kind, size in collectives(compiled.as_text()):
        count[kind] += 1
        moved += size
    return {
        "collectives": dict(sorted(count.items())),
        "collective_bytes": moved,
        "mflops": round(compiled.cost_analysis()["flops"] / 1e6, 2),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table of the rows."""
    table = Table(title=f"one step of {rows[0]['pair']}, per device")
    for name in ("devices", "model", "batch", "MFLOPs", "memory MiB", "moved KiB"):
        table.add_column(name, justify="right")
    table.add_column("collectives")
    for row in rows:
        memory = (row["argument_bytes"] + row["temporary_bytes"]) / 2**20
        kinds = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
        numbers = (row["devices"], row["model"], row["batch_size"])
        table.add_row(
            *map(str, numbers),
            f"{row['mflops']:,.1f}",
            f"{memory:.1f}",
            f"{row['collective_bytes'] / 2**10:,.1f}",
            kinds,
        )
    Console().print(table)


def simulated(config: Config) -> list[dict[str, Any]]:
    """The rows from a process with enough devices, printed as they come."""
    count = max(config.devices + config.compile_only)
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = (
        "import sys; from experiments.bench import scaling; scaling.child(sys.argv[1])"
    )
    asked = json.dumps(dataclasses.asdict(config) | {"simulate": False})
    rows = []
    with subprocess.Popen(
        [sys.executable, "-c", code, asked],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            rows.append(json.loads(line))
    if process.returncode:
        raise RuntimeError(f"the process with {count} devices ended with an error")
    return rows


def here(config: Config) -> Iterator[dict[str, Any]]:
    """The rows, on the devices of this process."""
    there = jax.devices()
    for count in sorted({*config.devices, *config.compile_only}):
        if count > len(there):
            raise ValueError(f"devices must be at most {len(there)}, got {count}")
    for count in config.devices:
        yield measure(config, there[:count], run=True)
    for count in config.compile_only:
        yield measure(config, there[:count], run=False)


def child(asked: str) -> None:
    """What the process with many devices does."""
    config: dict[str, Any] = json.loads(asked)
    for name in ("devices", "compile_only"):
        config[name] = tuple(config[name])
    for row in here(Config(**config)):
        print(json.dumps(row), flush=True)


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one row a number of devices."""
    if config.pair not in PAIRS:
        raise ValueError(f"pair must be one of {sorted(PAIRS)}, got {config.pair!r}")
    if config.simulate:
        rows = simulated(config)
    else:
        rows = []
        for row in here(config):
            print(json.dumps(row), flush=True)
            rows.append(row)
    show(rows)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
