r"""What to measure first on an accelerator: one command, within a budget of seconds.

    python -m experiments.bench.device --out DIR --budget 300
    python -m experiments.bench.device --out DIR --jobs step:resnet50 torch:resnet50
    python -m experiments.bench.device --out DIR --tiny

Jobs are processes of their own. All of them prepare at the same time: they compile and
run once, for at most 0.7 of the budget. (On a GPU, XLA chooses algorithms by timing
them meanwhile.) Those that are not ready are ended; the others are timed one after
another, each alone on the device. A job writes its lines to `DIR/JOB.jsonl` when it is
done, and is not run again while they are there; one that fails, or for which the time
is too short, leaves `DIR/JOB.log` and does not stop the others. Jobs are:

  check: every loss and its gradient against the CPU's in float32, and the losses of
    twenty steps of three trainings.
  step:CASE: `step_speed`, a scanned epoch against bare steps on one batch.
  torch:PAIR: the same training in PyTorch, by `torch.compile` in bfloat16 with channels
    last, on random bytes that lie on the device as jaxkd's do.
  seeds:NETWORK: three seeds in one program, by `vmap` and one after another, against
    one seed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import hardware, loss_speed, step_speed
from experiments.bench.cases import CASES, of_zoo
from jaxkd import losses, store, train

Lines = list[dict[str, Any]]
Measure = Callable[[], Lines]
JOBS = (
    "check",
    "seeds:resnet8",
    "seeds:resnet20",
    "step:mnist_mlp",
    "step:resnet56-resnet20",
    "step:resnet32x4-resnet8x4",
    "step:resnet50",
    "torch:resnet56-resnet20",
    "torch:resnet32x4-resnet8x4",
    "torch:resnet50",
)
IN_TORCH = tuple(job.partition(":")[2] for job in JOBS if job.startswith("torch:"))
SEEDED = {"resnet8": 512, "resnet20": 64}  # batch sizes
READY, GO = "ready\n", "go\n"  # what a job says, and what it is told
EXACT = {"jax_default_matmul_precision": "highest"}
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long at most."""

    out: str
    jobs: tuple[str, ...] = JOBS
    budget: float = 300.0  # seconds
    repeats: int = 5
    tiny: bool = False  # a rehearsal: small cases, two steps, two losses
    job: str | None = None  # runs this one here; the command starts itself with it


def main(config: Config) -> Lines:
    """Run the jobs that have no lines yet; return the lines of all of them.

    Raises:
      SystemExit: before anything is started, for a job that there is not, or if the
        directory holds lines of a rehearsal, and this is none, or the reverse.
    """
    out = pathlib.Path(config.out)
    for job in config.jobs:
        require(job)
    out.mkdir(parents=True, exist_ok=True)
    if config.job is not None:
        return run(config.job, config)
    found = written(config)
    if any(line["tiny"] != config.tiny for line in found):
        kind = "a real run" if config.tiny else "a rehearsal"
        raise SystemExit(f"{out} holds lines of {kind}: name another directory")
    begin = time.monotonic()
    end = begin + config.budget
    enough = begin + 0.7 * config.budget  # for preparing; the rest is for measuring
    missing = [job for job in config.jobs if not path(out, job).exists()]
    with contextlib.ExitStack() as stack, stopped_by_sigterm():
        running = {job: stack.enter_context(started(job, config)) for job in missing}
        ready, failed = prepared(running, enough)
        for job in running.keys() - ready:  # nothing else is on the device from here on
            running[job].kill()
        for job in sorted(ready, key=missing.index):
            measure(running[job], end)
    for job in missing:
        if not path(out, job).exists():
            why = "failed" if job in failed else "no time left"
            print(f"{job}: {why}; see {path(out, job, 'log')}", file=sys.stderr)
    return written(config)


def require(job: str) -> None:
    """Refuse a job that there is not."""
    kind, _, case = job.partition(":")
    known = {"check": [""], "seeds": SEEDED, "step": CASES, "torch": IN_TORCH}
    if kind not in known or case not in known[kind]:
        names = [f"{k}:{c}" if c else k for k, cases in known.items() for c in cases]
        raise SystemExit(f"no job {job!r}; there are {', '.join(names)}")


def written(config: Config) -> Lines:
    """Read the lines that there are."""
    out = pathlib.Path(config.out)
    files = [path(out, job) for job in config.jobs]
    return [
        json.loads(line)
        for file in files
        if file.exists()
        for line in file.read_text().splitlines()
    ]


def command(job: str, config: Config) -> list[str]:
    """Return what starts a job."""
    options = ["--out", config.out, "--repeats", str(config.repeats)]
    options += ["--tiny"] * config.tiny
    return [sys.executable, "-m", "experiments.bench.device", "--job", job, *options]


@contextlib.contextmanager
def started(job: str, config: Config) -> Iterator[subprocess.Popen]:
    """Start a job, which does not outlive the block."""
    with path(pathlib.Path(config.out), job, "log").open("w") as log:
        process = subprocess.Popen(
            command(job, config),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
    try:
        yield process
    finally:
        process.kill()
        with process:  # closes its pipes
            process.wait()


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Leave the block on SIGTERM as on Ctrl-C, so that jobs are ended."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepared(
    running: Mapping[str, subprocess.Popen], until: float
) -> tuple[set[str], set[str]]:
    """Wait for what jobs say first, and no longer; return who is ready, who failed."""
    waiting: dict[Any, str] = {each.stdout: job for job, each in running.items()}
    ready: set[str] = set()
    failed: set[str] = set()
    while waiting and (left := until - time.monotonic()) > 0:
        for stream in select.select([*waiting], [], [], left)[0]:
            job = waiting.pop(stream)
            (ready if stream.readline() == READY else failed).add(job)
    return ready, failed


def path(out: pathlib.Path, job: str, suffix: str = "jsonl") -> pathlib.Path:
    """Return the file of a job."""
    return out / f"{re.sub('[^A-Za-z0-9_]+', '-', job)}.{suffix}"


def measure(process: subprocess.Popen, end: float) -> None:
    """Let a prepared job go, until it is done or the time is over."""
    try:
        process.communicate(GO, timeout=max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, BrokenPipeError):
        process.kill()


def run(job: str, config: Config) -> Lines:
    """Prepare a job, wait for the word, measure, and write its lines."""
    kind, _, case = job.partition(":")
    prepare = {"check": check, "seeds": seeds, "step": step, "torch": in_torch}[kind]
    begin = time.perf_counter()
    measured = prepare(case, config)
    seconds = round(time.perf_counter() - begin, 1)
    print(READY, end="", flush=True)
    if sys.stdin.readline() != GO:  # whoever started it is gone
        return []
    about = {"device": hardware.kind(), "jax": jax.__version__, "tiny": config.tiny}
    about |= {"repeats": config.repeats, "prepared_s": seconds}
    lines = [{"job": job, **row, **about} for row in measured()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    store.write_file(path(pathlib.Path(config.out), job), text.encode())
    return lines


# --- check ---


def check(_: str, config: Config) -> Measure:
    """Compare with the CPU: the losses with their gradients, and twenty steps."""
    for name, value in EXACT.items():
        jax.config.update(name, value)
    names = [*loss_speed.chosen(())][: 2 if config.tiny else None]
    cases = ["mnist_mlp"]
    if not config.tiny:
        cases += ["cifar10_cnn", "resnet56-resnet20"]
    host, here = jax.devices("cpu")[0], jax.devices()[0]

    def of_loss(name: str) -> dict[str, Any]:
        loss, found = getattr(losses, name), []
        arrays = loss_speed.draw(loss)
        for place in (host, here):
            inputs = [jax.device_put(a, place) for a in map(jnp.asarray, arrays)]
            mean = lambda *inputs: loss(*inputs).mean()
            value, gradient = jax.jit(jax.value_and_grad(mean))(*inputs)
            found.append((np.asarray(value), np.asarray(gradient)))
        return {"loss": name, "value": apart(0, found), "gradient": apart(1, found)}

    def of_steps(name: str) -> dict[str, Any]:
        steps = 2 if config.tiny else 20
        case, found = {**CASES[name], "steps": steps}, []
        for place in (host, here):
            with jax.default_device(place):
                s = step_speed.setting(case, "live")
                epoch = train.make_epoch(
                    s.distiller, view=s.view, batch_size=s.batch_size
                )
                key = jax.random.key(2)
                _, metrics = jax.jit(epoch)(s.state, s.variables, s.resident, key)
            found.append((np.asarray(metrics["loss"]),))
        return {"training": name, "steps": steps, "value": apart(0, found)}

    with ThreadPoolExecutor(8) as pool:
        rows = [*pool.map(of_loss, names), *map(of_steps, cases)]
    return lambda: rows


def apart(i: int, found: Sequence[tuple[np.ndarray, ...]]) -> float:
    """Return ‖a - b‖ / ‖b‖ of what two devices computed; b is the CPU's."""
    theirs, ours = (np.asarray(each[i], np.float64) for each in found)
    size = float(np.linalg.norm(theirs)) or 1.0
    return float(np.linalg.norm(ours - theirs)) / size


# --- speed ---


def step(name: str, config: Config) -> Measure:
    """Time the steps of a case."""
    case = case_of(name, config)
    teacher: Any = "live" if "live" in case["teachers"] else "none"
    options = step_speed.Config(
        teachers=(teacher,),
        modes=("step", "scan"),
        dtype="float32" if name == "mnist_mlp" or config.tiny else "bfloat16",
        repeats=config.repeats,
    )
    timed = step_speed.prepare(case, options, name)

    def rows() -> Lines:
        about = {"batch_size": case["batch_size"], "dtype": options.dtype}
        return [
            {"case": name, "teacher": t, "mode": mode, **about, **found}
            for (t, mode), found in timed().items()
        ]

    return rows


def case_of(name: str, config: Config) -> dict[str, Any]:
    """Return a case, small for a rehearsal."""
    case = CASES[name]
    return {**case, "steps": 2, "batch_size": 4} if config.tiny else case


def seeds(name: str, config: Config) -> Measure:
    """Time three seeds, together and apart, and one of them."""
    how = {"classes": 10, "shape": (32, 32, 3), "kd": None, "steps": 20}
    how["batch_size"] = SEEDED[name]
    case = of_zoo(name, None, **how)
    if config.tiny:
        case |= {"steps": 2, "batch_size": 4}
    s = step_speed.setting(case, "none", None if config.tiny else jnp.bfloat16)
    one = train.make_epoch(s.distiller, view=s.view, batch_size=case["batch_size"])
    states = jax.tree.map(lambda a: jnp.stack([a] * SEEDS), s.state)
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    blocks = {
        "one": timed(one, s.state, s.resident, jax.random.key(0)),
        "together": timed(train.over_seeds(one), states, s.resident, keys),
        "apart": timed(train.over_seeds(one, together=False), states, s.resident, keys),
    }

    def rows() -> Lines:
        seconds = step_speed.alternate(blocks, config.repeats)
        per_step = {k: 1e3 * np.median(v) / case["steps"] for k, v in seconds.items()}
        return [
            {
                "network": name,
                "batch_size": case["batch_size"],
                "seeds": 1 if way == "one" else SEEDS,
                "way": way,
                "ms_per_step": round(float(ms), 4),
                "over_one": round(float(ms / per_step["one"]), 3),
            }
            for way, ms in per_step.items()
        ]

    return rows


def timed(epoch: Any, state: Any, resident: Any, key: Any) -> step_speed.Block:
    """Compile an epoch, run it once, and return what runs it again."""
    program = jax.jit(epoch)
    go = lambda: jax.block_until_ready(program(state, None, resident, key))
    go()
    return go


def in_torch(name: str, config: Config) -> Measure:
    """Time the training of a case in PyTorch."""
    from experiments.bench import torch_step  # needs torch

    case = case_of(name, config)
    go, about = torch_step.block(name, case, tiny=config.tiny)

    def rows() -> Lines:
        seconds = step_speed.alternate({name: go}, config.repeats)[name]
        per_step = float(np.median(seconds)) / case["steps"]
        found = {
            "ms_per_step": round(1e3 * per_step, 4),
            "images_per_s": round(case["batch_size"] / per_step, 1),
        }
        return [{"case": name, "batch_size": case["batch_size"], **found, **about}]

    return rows


if __name__ == "__main__":
    chosen = tyro.cli(Config, description=__doc__)
    for found in main(chosen):
        print(json.dumps(found))
    if chosen.job is None and not all(
        path(pathlib.Path(chosen.out), job).exists() for job in chosen.jobs
    ):
        sys.exit(1)
