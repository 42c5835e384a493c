"""The digest of a program: what it depends on, and that processes agree on it."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.train import fingerprint

X = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
KERNEL = np.ones((3, 3, 2, 2), np.float32)
LARGE = np.arange(2.0 * fingerprint.LARGEST, dtype=np.float32)


def digest(f, x=X):
    return fingerprint.of(jax.make_jaxpr(f)(x))


def conv(strides=(2, 2), padding=((1, 1), (1, 1)), layout="HWIO", **more):
    dims = ("NHWC", layout, "NHWC")
    how = {"window_strides": strides, "padding": padding, "dimension_numbers": dims}
    return lambda x: jax.lax.conv_general_dilated(x, KERNEL, **how, **more)


def pool(strides):
    return lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), strides, "SAME"
    )


def added(constant):
    return lambda x: x.reshape(-1)[:1] + constant


def changed(place):
    array = LARGE.copy()
    array[place] += 1
    return array


# Each pair has the same operations on the same shapes; the two differ in one thing.
PAIRS = {
    "padding": (conv(), conv(padding=((0, 2), (1, 1)))),
    "strides": (conv(), conv((1, 1), ((-2, -1), (-2, -1)))),
    "dilation": (conv(), conv(padding=((2, 2), (2, 2)), rhs_dilation=(2, 2))),
    "layout": (conv(), conv(layout="WHIO")),
    "precision": (conv(), conv(precision=jax.lax.Precision.HIGHEST)),
    "window": (pool((1, 1, 1, 1)), pool((1, 2, 2, 1))),
    "axes": (lambda x: x.sum(1), lambda x: x.sum(2)),
    "order of operands": (lambda x: x[0] - x[:, 0], lambda x: x[:, 0] - x[0]),
    "which value": (
        lambda x: (jnp.sin(x), jnp.cos(x))[0],
        lambda x: (jnp.sin(x), jnp.cos(x))[1],
    ),
    "inside a loop": (
        lambda x: jax.lax.map(lambda y: jnp.cumsum(y, 0), x),
        lambda x: jax.lax.map(lambda y: jnp.cumsum(y, 1), x),
    ),
    "inside a call": (
        lambda x: jax.checkpoint(lambda y: jnp.flip(y, 1))(x),
        lambda x: jax.checkpoint(lambda y: jnp.flip(y, 2))(x),
    ),
    "large constant": (added(LARGE), added(changed(5000))),
    "type of a large constant": (added(LARGE), added(LARGE.astype(np.float16))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_depends_on(name):
    first, second = PAIRS[name]
    assert digest(first) == digest(first) != digest(second)


def test_equal_constants_count_by_their_numbers():
    assert digest(added(LARGE)) == digest(added(LARGE.copy()))
    one_bit = np.float32(1) + np.finfo(np.float32).eps  # as another device rounds
    assert digest(lambda x: x * np.float32(1)) == digest(lambda x: x * one_bit)


PRINTED = """
    import sys
    import jax, jax.numpy as jnp, optax
    if "other things first" in sys.argv:
        junk = [object() for _ in range(1000)]
        jax.jit(lambda x: jnp.where(x > 0, x, 0))(jnp.ones(3))
    from jaxkd import distill, losses, models
    from jaxkd.data import augment
    from jaxkd.train import fingerprint, learning

    net = models.cnn([[4], [4]], hidden=[8], classes=5, dropout=0.1)
    teacher, labels = distill.frozen(net), distill.on_labels(losses.cross_entropy)
    spec = {
        "ce": (optax.cosine_decay_schedule(1.0, 9), labels),
        "rkd": (1.0, distill.on_logits(losses.dist)),
    }
    d = distill.distiller(net, teacher, spec, optax.adamw(1e-3))
    batch = {"image": jnp.zeros((2, 8, 8, 3)), "label": jnp.zeros(2, jnp.int32)}
    variables = net.init(jax.random.key(0), batch["image"])
    print(learning._step_facts(d, jax.random.key(0), variables, batch)["digest"])
    view = augment.chain(augment.crop(2), augment.flip(), augment.to_float())
    stored = {**batch, "image": jnp.zeros((2, 8, 8, 3), jnp.uint8)}
    print(learning._view_fact(view, stored))
"""


@pytest.mark.slow
def test_it_is_the_same_in_every_process():
    run = lambda *more: subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRINTED), *more],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    first, second = run(), run("other things first")
    assert first == second and [len(line) for line in first] == [64, 64]
