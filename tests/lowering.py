"""What a program holds when it is lowered for a platform that this machine lacks.

    python -m tests.lowering results.json

does so for steps sharded over the eight simulated devices of a process of its own.
"""

import collections
import functools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import optax
from jax import export

from jaxkd import distill, jaxpr, losses, mesh, train
from jaxkd.data import augment
from jaxkd.models import resnet
from jaxkd.models.convolution import plain_convolutions

ACCELERATORS = ("cuda", "tpu")
# What may be called: annotations of shardings, and the LU decomposition of the linear
# equations of `terms.vkd`, for which either platform has a program of its own.
SHARDINGS = {
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "xla.sdy.FuncResultSharding",
}
NATIVE = {
    "cuda": SHARDINGS | {"cusolver_getrf_ffi", "cu_lu_pivots_to_permutation"},
    "tpu": SHARDINGS | {"LuDecomposition"},
}
# Of a choice of platform one branch is left, wrapped in these and in an index.
CHOICE = {"stablehlo.case", "stablehlo.return", "stablehlo.constant"}


def lower(f, *args, platform):
    """The StableHLO text of `f(*args)` for one platform."""
    f = f if hasattr(f, "trace") else jax.jit(f)
    return export.export(f, platforms=(platform,))(*args).mlir_module()


def operations(module):
    """How often each operation stands in a module."""
    return collections.Counter(
        re.findall(r'(?:= |^ +)"?((?:stablehlo|chlo)\.\w+)', module, re.M)
    )


def primitives(program):
    """The names of the primitives of a traced function, also of those inside others."""
    for step in program.steps:
        yield step.name
        for body in jaxpr.bodies(step):
            yield from primitives(body)


def problems(f, *args, platforms=ACCELERATORS):
    """What an accelerator could not run, or would run in a form made for the CPU.

    Args:
      f: a function; it is traced twice, once with plain convolutions.
      *args: arrays or `jax.ShapeDtypeStruct`s.
      platforms: to lower for.

    Returns:
      A line for each kind of operation that should not be there; empty if none.
    """
    ours, plain = (jax.jit(functools.partial(f)) for _ in range(2))  # traced once each
    with plain_convolutions():
        plain.trace(*args)
    names = {*primitives(jaxpr.flatten(ours.trace(*args).jaxpr))}
    called = sorted(n for n in names if "callback" in n or "debug" in n)
    if called:  # which cannot be exported
        return [f"host callbacks: {called}"]
    found = []
    for platform in platforms:
        module = lower(ours, *args, platform=platform)
        targets = {*re.findall(r"custom_call @([\w.]+)", module)}
        if foreign := sorted(targets - NATIVE[platform]):
            found.append(f"{platform}: calls of {foreign}")
        if re.search(r"\bf64\b|xf64>|<f64>", module):
            found.append(f"{platform}: float64")
        have = operations(module)
        want = operations(lower(plain, *args, platform=platform))
        for name in sorted(({*have} | {*want}) - CHOICE):
            if have[name] != want[name]:
                found.append(f"{platform}: {have[name]} {name}, {want[name]} if plain")
    return found


def shapes(tree, sharding=None):
    """The same tree without its numbers."""
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.tree.map(shape, tree)


VIEW = augment.chain(augment.flip(), augment.crop(1), augment.to_float())
KD = {
    "ce": (0.5, distill.on_labels(losses.cross_entropy)),
    "kd": (0.5, distill.on_logits(losses.kd, temperature=4.0)),
}


def resident(n=16, side=8, channels=3, **more):
    """The shapes of images as they are stored, and of further columns."""
    shape = jax.ShapeDtypeStruct
    return {
        "image": shape((n, side, side, channels), jnp.uint8),
        "label": shape((n,), jnp.int32),
        **more,
    }


def seen(columns, view):
    """The shapes of a batch of all of these examples, as networks see them."""
    return jax.eval_shape(view, jax.random.key(0), columns)


def variables_of(net, batch):
    """The shapes of a network's variables."""
    return jax.eval_shape(net.init, jax.random.key(0), batch["image"])


def sharded():
    """Problems of an epoch on eight devices, and over how many it is sharded."""
    net = resnet(8, classes=10, widths=(2, 2, 3, 4))
    d = distill.distiller(net, distill.frozen(net), KD, optax.sgd(0.1, momentum=0.9))
    columns, found = resident(), {}
    batch = seen(columns, VIEW)
    variables = variables_of(net, batch)
    state = jax.eval_shape(d.init, jax.random.key(0), variables, batch)
    on = mesh.make()
    args = shapes((state, variables, columns), mesh.replicated(on))
    key = jax.ShapeDtypeStruct(
        (), jax.random.key(0).dtype, sharding=mesh.replicated(on)
    )
    epoch = train.make_epoch(d, view=VIEW, batch_size=8, mesh=on)
    found["problems"] = problems(epoch, *args, key)
    exported = export.export(jax.jit(epoch), platforms=("cuda",))(*args, key)
    found["devices"] = exported.nr_devices
    return found


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(json.dumps(sharded()))
