"""How long a training step takes: loop or scan, teacher live, cached or absent.

    python -m experiments.bench.step_speed
    python -m experiments.bench.step_speed --experiments mnist_mlp --repeats 9
    python -m experiments.bench.step_speed --preset imagenet --dtype bfloat16
    python -m experiments.bench.step_speed --preset short

The step is the one of the experiment of the same name, with its data handling but
without augmentation: random bytes of the real shape lie on the device; shuffling,
gathering and scaling are part of what is timed. A cached teacher's logits are random
too. Of the ways to run it, `loop` calls one compiled step from Python, `scan` an epoch
at once, and `step` only the distiller's step, again and again on one batch.

Prints one JSON line a case, and a table in the end; times are medians of alternating
runs, after one that warms up. Of a row:

  gflop_per_step: of the model, not of the program: 2 FLOPs a multiply-accumulate as
    `jaxkd.cost` counts them, the teacher forwards (2 MACs), the student forwards and
    twice as much backwards (6 MACs).
  mfu: those FLOPs over the time and the device's peak in bfloat16, whatever the dtype;
    null for a device without an entry in `hardware.PEAKS`, unless `--peak` gives it.
  over_loop, over_step: a scanned epoch's time over that of the same steps taken the
    other ways, the median of the paired ratios.
  trace_s, compile_s: tracing and lowering, then XLA, without the persistent cache.
  peak_mib: what the compiled program holds: arguments (for a scan with the whole data),
    outputs and temporaries; temporaries_mib: these alone.
  error: instead of times, where a case does not fit into memory.

With `--profile DIRECTORY` one more epoch of each case is traced, for TensorBoard or
Perfetto: what the time that is not matrix products goes into.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.bench import hardware
from experiments.bench.cases import (
    CASES,
    chosen,
    flops,
    images,
    line,
    networks,
    table,
)
from jaxkd import data, distill, losses, train
from jaxkd.data import augment

Block = Callable[[], None]  # runs a number of steps to their end

# key in a row -> head of the table's column
COLUMNS = {
    "experiment": "experiment",
    "teacher": "teacher",
    "mode": "mode",
    "ms_per_step": "ms/step",
    "images_per_s": "images/s",
    "mfu": "MFU",
    "over_loop": "over loop",
    "over_step": "over step",
    "peak_mib": "peak MiB",
    "compile_s": "compile s",
    "error": "error",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    preset: Literal["own", "cifar", "imagenet", "all", "short"] = "own"
    experiments: tuple[str, ...] = ()  # any by name, instead of the preset's
    teachers: tuple[Literal["live", "cached", "none"], ...] = ("live", "cached", "none")
    modes: tuple[Literal["step", "loop", "scan"], ...] = ("loop", "scan")
    dtype: Literal["float32", "bfloat16"] = "float32"  # what networks compute in
    batch_size: int | None = None  # None is the experiment's
    steps: int | None = None  # of an epoch; None is the experiment's
    repeats: int = 5
    peak: float | None = None  # FLOP/s of the device, for the MFU
    profile: str | None = None  # a directory for the trace of an epoch of each case


class Setting(NamedTuple):
    """All that the ways of running a case share: what trains whom, on what."""

    distiller: distill.Distiller
    view: augment.View
    state: distill.TrainState
    variables: Any  # the live teacher's
    dataset: data.Dataset
    resident: dict[str, jax.Array]  # the same on the device
    batch_size: int


def scale(channels: int) -> augment.View:
    """From bytes to floats in [-2, 2]."""
    half = np.full(channels, 0.5)
    return augment.chain(augment.to_float(), augment.normalise(half, half / 2))


def variables_of(net: Any, shape: tuple[int, ...]) -> Any:
    """Fresh variables of a network."""
    return jax.jit(net.init)(_quick(1), jnp.zeros((1, *shape)))


def _quick(seed: int) -> jax.Array:
    """A key for initialising: threefry's, many times in a program, compile slowly."""
    return jax.random.key(seed, impl="rbg")


def procedure(
    case: dict[str, Any], teacher: str, dtype: Any = None
) -> tuple[distill.Distiller, Any]:
    """How a case trains its student, and the teacher's network."""
    student, net = networks(case, dtype)
    teaches: distill.Teacher = distill.no_teacher
    spec: dict[str, Any] = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    if teacher != "none":
        temperature, hard, soft = case["kd"]
        kd = distill.on_logits(losses.kd, temperature=temperature)
        spec = {"ce": (hard, spec["ce"][1]), "kd": (soft, kd)}
        teaches = distill.cached if teacher == "cached" else distill.frozen(net)
    tx = case.get("tx", optax.adam(1e-3))
    return distill.distiller(student, teaches, spec, tx), net


def setting(case: dict[str, Any], teacher: str, dtype: Any = None) -> Setting:
    """Puts the data of a case on the device and initialises its networks."""
    n = case["steps"] * case["batch_size"]
    hardware.require(n * math.prod(case["shape"]), "the data")
    classes, view = case.get("classes", 10), scale(case["shape"][-1])
    dataset = images(case["shape"], n, classes)
    resident = data.on_device(dataset)
    d, net = procedure(case, teacher, dtype)
    variables = variables_of(net, case["shape"]) if teacher == "live" else None
    if teacher == "cached":
        resident["teacher"] = jax.random.normal(jax.random.key(3), (n, classes))
    example = train.example(resident, view)
    state = jax.jit(d.init)(_quick(0), variables, example)
    state = state._replace(key=jax.random.key(0))  # as a training has it
    return Setting(d, view, state, variables, dataset, resident, case["batch_size"])


class Ready(NamedTuple):
    """A compiled case.

    Attributes:
      run: takes the steps of an epoch, from where it last stopped.
      trace_s: seconds of tracing and lowering.
      compile_s: seconds of XLA, nothing taken from a cache.
      memory: of the compiled program, where the compiler says.
    """

    run: Block
    trace_s: float
    compile_s: float
    memory: hardware.Memory | None


def _way(
    s: Setting, mode: str
) -> tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any]]:
    """The program of a way, its arguments beside the state, and the epoch made of it.

    The last takes the compiled program and a state and gives the state and metrics.
    """
    n, size, key = len(s.resident["image"]), s.batch_size, jax.random.key(2)

    def one(state: Any, variables: Any, resident: Any, rows: Any, key: Any) -> Any:
        batch = s.view(key, data.gather(resident, rows))
        return s.distiller.step(state, variables, batch)

    def looped(call: Any, state: Any) -> Any:
        for rows in data.epoch(key, n, size):
            state, metrics = call(state, s.variables, s.resident, rows, key)
        return state, metrics

    def repeated(call: Any, state: Any) -> Any:
        for _ in range(n // size):
            state, metrics = call(state, *arguments)
        return state, metrics

    if mode == "loop":
        rows = data.epoch(key, n, size)[0]
        return one, (s.variables, s.resident, rows, key), looped
    if mode == "step":
        batch = s.view(key, data.gather(s.resident, jnp.arange(size)))
        arguments: tuple[Any, ...] = (s.variables, batch)
        return s.distiller.step, arguments, repeated
    program = train.make_epoch(s.distiller, view=s.view, batch_size=size)
    arguments = (s.variables, s.resident, key)
    return program, arguments, lambda call, state: call(state, *arguments)


def ready(s: Setting, mode: str) -> Ready:
    """Compiles one way of running a case.

    Raises:
      MemoryError: if the program holds more than there is.
    """
    program, arguments, epoch = _way(s, mode)
    call = jax.jit(program, donate_argnums=0)
    state = jax.tree.map(jnp.copy, s.state)  # it is donated, and others start from it
    with hardware.cold():
        start = time.perf_counter()
        lowered = call.lower(state, *arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
    memory = hardware.memory(compiled)
    if memory is not None:
        hardware.require(memory.peak, "the program")

    def run() -> None:
        nonlocal state
        state, metrics = epoch(call, state)  # which is not compiled again
        jax.block_until_ready(metrics)

    return Ready(run, traced - start, end - traced, memory)


def block(experiment: str, teacher: str, mode: str, steps: int | None = None) -> Block:
    """Builds a case: a function that takes `steps` steps from where it last stopped."""
    case = CASES[experiment]
    case = case | {"steps": steps or case["steps"]}
    return ready(setting(case, teacher), mode).run


def alternate(
    blocks: dict[Any, Block],
    repeats: int,
    *,
    pause: float = 0.0,
    failures: dict[Any, str] | None = None,
) -> dict[Any, list[float]]:
    """Seconds of each block, run in turn so that a noisy machine hurts all alike.

    With `failures`, a block for which memory runs out is noted there and left out.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in blocks}
    for round in range(repeats + 1):
        for name, each in blocks.items():
            if failures is not None and name in failures:
                continue
            guard = contextlib.nullcontext()
            with guard if failures is None else hardware.fitting(failures, name):
                time.sleep(pause if round else 0)
                begin = time.perf_counter()
                each()
                if round:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
    return seconds


def _ratio(seconds: dict[Any, list[float]], teacher: str, other: str) -> float | None:
    """A scanned epoch's time over another way's."""
    if (teacher, other) not in seconds:
        return None
    pairs = np.divide(seconds[teacher, "scan"], seconds[teacher, other])
    return round(float(np.median(pairs)), 3)


def _measured(
    case: dict[str, Any],
    way: tuple[str, str],
    made: Ready,
    seconds: dict[Any, list[float]],
    peak: float | None,
) -> dict[str, Any]:
    """What is reported of a case that ran."""
    teacher, mode = way
    per_step = float(np.median(seconds[way])) / case["steps"]
    work = flops(case, teacher)
    row = {
        "ms_per_step": round(1e3 * per_step, 4),
        "images_per_s": round(case["batch_size"] / per_step, 1),
        "gflop_per_step": round(work / 1e9, 4),
        "tflop_per_s": round(work / per_step / 1e12, 4),
        "mfu": None if peak is None else round(work / per_step / peak, 4),
    }
    if mode == "scan":
        row["over_loop"] = _ratio(seconds, teacher, "loop")
        row["over_step"] = _ratio(seconds, teacher, "step")
    row |= {"trace_s": round(made.trace_s, 2), "compile_s": round(made.compile_s, 2)}
    if made.memory is not None:
        row["peak_mib"] = round(made.memory.peak / hardware.MIB, 3)
        row["temporaries_mib"] = round(made.memory.temporaries / hardware.MIB, 3)
    return row


def _made(
    case: dict[str, Any], config: Config, failures: dict[Any, str]
) -> dict[tuple[str, str], Ready]:
    """All that was asked of a case, compiled; what does not fit is in `failures`."""
    teachers = [t for t in config.teachers if t in case["teachers"]]
    made: dict[tuple[str, str], Ready] = {}
    shared: dict[str, Setting] = {}
    for way in itertools.product(teachers, config.modes):
        teacher, mode = way
        with hardware.fitting(failures, way):
            if teacher not in shared:
                shared[teacher] = setting(case, teacher, jnp.dtype(config.dtype))
            made[way] = ready(shared[teacher], mode)
    return made


def measure(
    case: dict[str, Any], config: Config, name: str = "case"
) -> dict[tuple[str, str], dict[str, Any]]:
    """What was found for each teacher and way of a case, as far as it fits."""
    return prepare(case, config, name)()


def prepare(
    case: dict[str, Any], config: Config, name: str = "case"
) -> Callable[[], dict[tuple[str, str], dict[str, Any]]]:
    """Compile all that was asked of a case; return the function that times it."""
    failures: dict[tuple[str, str], str] = {}
    made = _made(case, config, failures)
    runs = {way: each.run for way, each in made.items()}

    def timed() -> dict[tuple[str, str], dict[str, Any]]:
        seconds = alternate(runs, config.repeats, failures=failures)
        found: dict[Any, dict[str, Any]] = {
            w: {"error": e} for w, e in failures.items()
        }
        seconds = {way: s for way, s in seconds.items() if way not in failures}
        peak = config.peak or hardware.peak(hardware.kind())
        for way in seconds:
            found[way] = _measured(case, way, made[way], seconds, peak)
            if config.profile is not None:
                folder = pathlib.Path(config.profile) / "-".join((name, *way))
                with jax.profiler.trace(folder):
                    runs[way]()
        return found

    return timed


def main(config: Config) -> list[dict[str, Any]]:
    """Prints and returns one row a case."""
    rows = []
    for experiment, case in chosen(config).items():
        for (teacher, mode), found in measure(case, config, experiment).items():
            way = {"experiment": experiment, "teacher": teacher, "mode": mode}
            rows.append(line({**way, **found}, case, config))
    table(rows, COLUMNS)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
