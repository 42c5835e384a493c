"""How long convolutions and their gradients take: lax's and ours, in jit and in a scan.

    python -m experiments.bench.convolution
    python -m experiments.bench.convolution --cases 16-16@16 student --repeats 9

A layer's case is value and gradients (of the kernel only, for a first layer: 3
channels) of a 3x3 convolution at batch 128; a network's is a whole step of SGD. lax's
own gradients inside a scan take seconds: ask for them with `--plain-scan`.
Prints one JSON line a case; times are medians of alternating runs.
"""

import argparse
import contextlib
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.models import CNNS, cnn, conv_general_dilated, plain_convolutions
from jaxkd.models.convolution import LAYOUT

BATCH = 128
LAYERS = ("3-128@32", "128-64@32", "64-64@16", "64-32@16", "16-16@16")
NETWORKS = ("student", "teacher")
STEPS = {"teacher": 3, "128-64@32": 3}  # of one timed run; 10 for the others


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def layer(case):
    """The first carry and the step of one layer's case."""
    channels, size = case.split("@")
    (inputs, outputs), size = map(int, channels.split("-")), int(size)
    x, g = normal(0, BATCH, size, size, inputs), normal(1, BATCH, size, size, outputs)
    convolve = functools.partial(
        conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=LAYOUT,
    )

    def step(carry, _):
        x, w = carry
        y, pull = jax.vjp(convolve, x, w)
        dx, dw = pull(g + y[:, :1, :1] * 1e-9)  # so that the value is needed
        return (x if inputs == 3 else x + 1e-9 * dx, w + 1e-9 * dw), None

    return (x, normal(2, 3, 3, inputs, outputs)), step


def network(name):
    """The first carry and the training step of one network."""
    net = cnn(**CNNS[name])
    x, labels = normal(0, BATCH, 32, 32, 3), jnp.arange(BATCH) % 10
    params, state = net.init(jax.random.key(0), x[:1])
    optimiser = optax.sgd(0.01, momentum=0.9)

    def step(carry, i):
        params, moments = carry

        def loss(params):
            key = jax.random.key(i)
            out, _ = net.apply(params, state, x, train=True, key=key)
            return optax.softmax_cross_entropy_with_integer_labels(
                out.logits, labels
            ).mean()

        updates, moments = optimiser.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    return (params, optimiser.init(params)), step


def compiled(case, mode, implementation):
    """A function that runs the case and returns milliseconds for one step."""
    carry, step = network(case) if case in NETWORKS else layer(case)
    steps = jnp.arange(STEPS.get(case, 10))
    whole = (lambda c: jax.lax.scan(step, c, steps)[0]) if mode == "scan" else None
    plain = implementation == "plain"
    with plain_convolutions() if plain else contextlib.nullcontext():
        if whole is None:
            program = jax.jit(step).lower(carry, steps[0]).compile()
        else:
            program = jax.jit(whole).lower(carry).compile()

    def run():
        start, now = time.perf_counter(), carry
        if whole is None:
            for i in steps:
                now, _ = program(now, i)
        else:
            now = program(now)
        jax.block_until_ready(now)
        return (time.perf_counter() - start) / len(steps) * 1e3

    run()
    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=[*LAYERS, *NETWORKS])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plain-scan", action="store_true")
    args = parser.parse_args()
    ways = [("jit", "plain"), ("jit", "ours"), ("scan", "ours")]
    ways += [("scan", "plain")] if args.plain_scan else []
    for case in args.cases:
        runs = {way: compiled(case, *way) for way in ways}
        times = [{way: run() for way, run in runs.items()} for _ in range(args.repeats)]
        for mode, implementation in ways:
            taken = [t[mode, implementation] for t in times]
            row = {
                "case": case,
                "mode": mode,
                "implementation": implementation,
                "ms": round(float(np.median(taken)), 2),
                "least_ms": round(min(taken), 2),
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
