"""What bounds a training step on an accelerator, on paper: nothing is run or compiled.

    python -m experiments.bench.roofline --names mnist_mlp resnet50

The step is traced in bfloat16, with the convolutions that accelerators get, and cut
into the launches of a compiler that fuses well: a convolution or matrix product, a
reduction or anything else that is not elementwise, each with the elementwise operations
before it. What launches end with and what products read lies in memory, as does what is
used several times where that moves fewer bytes than computing it anew. Launches that
are not products are one if they read the same; so are all casts of variables, and all
elementwise results of the step (the optimiser's update). Nothing stays in caches.

Prints one JSON line for each case, teacher and device, and a table in the end:

  gflop: 2 a multiply-accumulate of convolutions and matrix products, none for the zeros
    in the gradient of a strided one. mb: read and written. intensity: FLOPs a byte.
  compute_ms, memory_ms, launch_ms: of the whole step, at the maker's bfloat16 peak, at
    the memory's full speed, at 2.5 microseconds a launch on a GPU (on a TPU a step is
    one program). bound: the longest of the three.
  in_turn_ms: the launches one after another, each at its own longest; mfu: at that.
"""

import collections
import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.bench import hardware
from experiments.bench.cases import CASES, table
from experiments.bench.step_speed import procedure
from jaxkd import cost, jaxpr
from jaxkd.models import ZOO
from jaxkd.models.convolution import plain_convolutions

# FLOP/s in bfloat16; bytes/s, stated where `hardware.PEAKS` says; seconds a launch.
DEVICES = {
    "H100": (hardware.PEAKS["H100"][0], 3.35e12, 2.5e-6),
    "TPU v5e": (hardware.PEAKS["TPU v5e"][0], 819e9, 0.0),
}
RESNET8 = functools.partial(ZOO["resnet8"], classes=100)
ALONE = CASES["resnet32x4"] | {"student": RESNET8}
ROWS = CASES | {f"resnet8-{n}": ALONE | {"batch_size": n} for n in (128, 512)}
CIFAR = ("resnet56-resnet20", "resnet32x4-resnet8x4", "resnet8-128", "resnet8-512")
PRODUCTS = ("conv_general_dilated", "dot_general")
FREE = ("reshape", "squeeze", "expand_dims", "transpose", "copy")  # another shape
# Prefixes of what a launch ends with; all else is computed where it is read.
ENDS = (*PRODUCTS, "reduce", "argm", "select_and", "gather", "scatter", "sort", "top_k")
SMALL = 2**16  # bytes; what is smaller is always computed anew


@dataclasses.dataclass(frozen=True)
class Config:
    """What to count."""

    names: tuple[str, ...] = ("mnist_mlp", *CIFAR, "resnet50")


def step(case: dict[str, Any], teacher: str) -> tuple[Any, tuple[Any, ...]]:
    """The step of a case in bfloat16, and the shapes of its arguments."""
    d, net = procedure(case, teacher, jnp.bfloat16)
    n, of, key = case["batch_size"], jax.ShapeDtypeStruct, jax.random.key(0)
    images, labels = of((n, *case["shape"]), jnp.float32), of((n,), jnp.int32)
    batch = {"image": images, "label": labels}
    if teacher == "cached":
        batch["teacher"] = of((n, case.get("classes", 10)), jnp.float32)
    variables = jax.eval_shape(net.init, key, images) if teacher == "live" else None
    return d.step, (jax.eval_shape(d.init, key, variables, batch), variables, batch)


def launches(program: jaxpr.Program) -> list[tuple[int, int]]:
    """Cut a traced step into launches: the FLOPs of each, and the bytes it moves."""
    steps, same = jaxpr.needed(program), dict[int, int]()
    for s in steps:
        if s.name in FREE:
            same[s.outputs[0]] = same.get(s.inputs[0], s.inputs[0])
    root = lambda values: frozenset(same.get(v, v) for v in values)
    steps = [s for s in steps if s.name not in FREE]
    inputs, results = root(program.inputs), root(program.outputs)
    size = lambda v: math.prod(program.shape(v)) * program.avals[v].dtype.itemsize
    uses = collections.Counter(v for s in steps for v in root(s.inputs))
    stored = set(inputs | results)
    for s in steps:
        stored |= root(s.outputs) if s.name.startswith(ENDS) else set()
        stored |= root(s.inputs) if s.name in PRODUCTS else set()
    behind = {v: frozenset([v]) for v in inputs}  # what is read to compute a value
    groups: dict[Any, tuple[int, frozenset[int], frozenset[int]]] = {}
    for s in steps:
        read = frozenset().union(*(behind.get(v, frozenset()) for v in root(s.inputs)))
        for v in (written := root(s.outputs)):
            # Written once and read n times, against n times what it is computed from.
            anew = (uses[v] - 1) * sum(map(size, read))
            if SMALL < size(v) < anew / (uses[v] + 1):
                stored.add(v)
            behind[v] = frozenset([v]) if v in stored else read
        if not written & stored:
            continue
        name: Any = s.outputs if s.name in PRODUCTS else (s.name.startswith(ENDS), read)
        if not s.name.startswith(ENDS) and (written & results or read <= inputs):
            name = "results" if written & results else "casts"
        work, reads, writes = groups.get(name, (0, frozenset(), frozenset()))
        zeros = math.prod(s.params.get("lhs_dilation", ()))
        work += 2 * cost.step_macs(program, s) // zeros if s.name in PRODUCTS else 0
        groups[name] = work, reads | read, writes | (written & stored)
    return [(work, sum(map(size, [*r, *w]))) for work, r, w in groups.values()]


def row(parts: list[tuple[int, int]], name: str) -> dict[str, Any]:
    """What the launches of a step take on a device at least."""
    peak, speed, launch = DEVICES[name]
    work, moved = (sum(numbers) for numbers in zip(*parts, strict=True))
    each = (work / peak, moved / speed, len(parts) * launch)
    times = dict(zip(("compute", "memory", "launch"), each, strict=True))
    turns = sum(max(flops / peak, bytes / speed, launch) for flops, bytes in parts)
    found = {"gflop": work / 1e9, "mb": moved / 1e6, "intensity": work / moved}
    found |= {f"{kind}_ms": 1e3 * time for kind, time in times.items()}
    found |= {"in_turn_ms": 1e3 * turns, "mfu": work / peak / turns}
    found = {key: float(f"{value:.4g}") for key, value in found.items()}
    found |= {"bound": max(times, key=lambda kind: times[kind])}
    return {"launches": len(parts), "device": name, **found}


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns a row for each case, teacher and device."""
    if unknown := sorted(set(config.names) - set(ROWS)):
        raise SystemExit(f"no case {unknown[0]!r}; there are {sorted(ROWS)}")
    rows = []
    for name, case in ((name, ROWS[name]) for name in config.names):
        for teacher in case["teachers"][: 2 if case["teacher"] else 1]:  # not "none"
            with plain_convolutions():
                f, args = step(case, teacher)
                parts = launches(jaxpr.trace(f, *args))
            for kind in DEVICES:
                head = {"experiment": name, "batch_size": case["batch_size"]}
                rows.append({**head, "teacher": teacher, **row(parts, kind)})
                print(json.dumps(rows[-1]), flush=True)
    table(rows, {name: name.replace("_", " ") for name in rows[0]})
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
