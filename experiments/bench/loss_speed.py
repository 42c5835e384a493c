"""Time and memory of every loss, compiled, against a few lines of eager PyTorch.

    pip install '.[bench]'
    python -m experiments.bench.loss_speed --losses kd at --repeats 21

One JSON line for each loss: medians in milliseconds of the mean over the batch, and of
that with its gradient for the first argument; `temp_bytes` is what the compiled program
with the gradient holds beside its inputs and outputs. The two libraries alternate in
one process with the same number of threads; a ratio is the median of PyTorch's time
over jaxkd's, pair by pair: above 1, jaxkd is faster. Without torch, or without an
expression in `torch_losses.py`, its columns are null.
"""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxkd import losses

torch: Any = None
torch_losses: Any = None
with contextlib.suppress(ImportError):
    torch = importlib.import_module("torch")
    torch_losses = importlib.import_module("experiments.bench.torch_losses")

LOGITS, MAP, EMBEDDING, DATA, CHANNELS = (
    (1024, 1000),
    (128, 16, 16, 64),
    128,
    10_000,
    64,
)
SHAPES = {
    "peer_logits": (2, *LOGITS),
    "teacher_top_logits": (LOGITS[0], 32),
    "teacher_logsumexp": LOGITS[:1],
    "logits": LOGITS,
    "_logit_maps": (LOGITS[0], 4, 4, LOGITS[1]),
    "cost": (LOGITS[1], LOGITS[1]),
    "_embeddings": (MAP[0], EMBEDDING),
    "_bank": (DATA, EMBEDDING),
    "raw_scale": (CHANNELS,),
    "margin": (CHANNELS,),
    "": MAP,
}
INDICES = {
    "labels": (LOGITS[1], LOGITS[:1]),
    "samples": (LOGITS[1], LOGITS[:1]),
    "teacher_top_indices": (LOGITS[1], (LOGITS[0], 32)),
    "positives": (DATA, MAP[:1]),
    "negatives": (DATA, (MAP[0], 1024)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    losses: tuple[str, ...] = ()
    repeats: int = 5


def draw(loss: Callable[..., Any]) -> list[np.ndarray]:
    """Random inputs, from the names of the arguments."""
    rng = np.random.default_rng(0)
    arrays = []
    for name, parameter in inspect.signature(loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if name in INDICES:
            end, shape = INDICES[name]
            arrays.append(rng.integers(end, size=shape))
        else:
            shape = next(s for suffix, s in SHAPES.items() if name.endswith(suffix))
            drawn = rng.normal(size=shape)
            # Costs of `class_costs` are between 0 and 1.
            drawn = np.abs(np.tanh(drawn)) if name == "cost" else drawn
            arrays.append(drawn.astype(np.float32))
    return arrays


def seconds(run: Callable[[], Any], calls: int = 5) -> float:
    """The median time of a few calls in a row."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def in_jax(loss: Callable[..., Any], arrays: list[np.ndarray]) -> tuple[Any, Any, int]:
    """Forward, forward with backward, and the latter's temporary memory."""
    inputs = [jnp.asarray(array) for array in arrays]
    mean = lambda *inputs: loss(*inputs).mean()
    forward = jax.jit(mean).lower(*inputs).compile()
    both = jax.jit(jax.value_and_grad(mean)).lower(*inputs).compile()
    memory: Any = both.memory_analysis()
    ready = lambda program: lambda: jax.block_until_ready(program(*inputs))
    return ready(forward), ready(both), memory.temp_size_in_bytes


def in_torch(mean: Callable[..., Any], arrays: list[np.ndarray]) -> tuple[Any, Any]:
    """The same of a PyTorch expression, on maps with channels first."""
    first = lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1)) if a.ndim == 4 else a
    inputs = [torch.from_numpy(first(array)) for array in arrays]

    def forward() -> None:
        with torch.no_grad():
            mean(*inputs)

    def both() -> None:
        student = inputs[0].detach().requires_grad_()
        mean(student, *inputs[1:]).backward()

    return forward, both


def in_turns(ours: Any, theirs: Any, repeats: int) -> tuple[Any, Any, Any]:
    """Median milliseconds of both and the median of the paired ratios."""
    pairs = []
    for _ in range(repeats + 1):
        if theirs:
            # PyTorch's threads spin for 0.2 s after their last operation: let them
            # rest, or they take the cores from what is measured next.
            time.sleep(0.3)
        pairs.append((seconds(ours), seconds(theirs) if theirs else np.nan))
    mine, others = 1e3 * np.array(pairs[1:]).T  # the first warms up
    rounded = lambda x, digits: round(float(np.median(x)), digits)
    if theirs is None:
        return rounded(mine, 3), None, None
    return rounded(mine, 3), rounded(others, 3), rounded(others / mine, 2)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """One row."""
    loss = getattr(losses, name)
    arrays = draw(loss)
    forward, both, memory = in_jax(loss, arrays)
    expression = getattr(torch_losses, name, None)
    theirs = in_torch(expression, arrays) if expression else (None, None)
    ours_f, theirs_f, ratio_f = in_turns(forward, theirs[0], repeats)
    ours_b, theirs_b, ratio_b = in_turns(both, theirs[1], repeats)
    return {
        "loss": name,
        "shape": arrays[0].shape,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "forward_ms": ours_f,
        "forward_backward_ms": ours_b,
        "temp_bytes": memory,
        "torch_forward_ms": theirs_f,
        "torch_forward_backward_ms": theirs_b,
        "ratio_forward": ratio_f,
        "ratio_forward_backward": ratio_b,
    }


def chosen(names: tuple[str, ...]) -> Iterator[str]:
    """The losses to measure: what has a student."""
    for name in names or losses.__all__:
        first = next(iter(inspect.signature(getattr(losses, name)).parameters))
        if not first.startswith("teacher"):
            yield name


def main(config: Config) -> None:
    """Prints one JSON line for each loss."""
    if torch is not None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in chosen(config.losses):
        print(json.dumps(measure(name, config.repeats)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
