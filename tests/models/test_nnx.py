"""A network of flax.nnx computes what the same network of linen does, and is a Net."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxkd import train
from jaxkd.models import from_linen, from_nnx
from jaxkd.types import Outputs
from tests import toys

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 6, 6, 3))


class Block(nnx.Module):
    """y = relu(norm(conv(x))) dropped out, + x."""

    def __init__(self, width, *, rngs):
        self.conv = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(nnx.relu(self.norm(self.conv(x))))


class Small(nnx.Module):
    """A residual network of two blocks."""

    def __init__(self, width=8, *, rngs):
        self.stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Linen(nn.Module):
    """`Small` in linen, with its names."""

    width: int = 8

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), name="stem")(x)
        for i in range(2):
            x = LinenBlock(self.width, name=f"blocks_{i}")(x, train)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class LinenBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(x)
        y = nn.BatchNorm(not train, momentum=0.9, name="norm")(y)
        return x + nn.relu(y)


class Undropped(Small):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        for block in self.blocks:
            block.drop.rate = 0.0


def as_linen(tree):
    """The names of `Small` as those of `Linen`."""
    tree = dict(tree)
    return {f"blocks_{i}": b for i, b in tree.pop("blocks").items()} | tree


def same(a, b, **near):
    near = near or {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(partial(np.testing.assert_allclose, **near), a, b)


def test_the_network_computes_what_it_does_in_linen():
    net, linen = from_nnx(Undropped), from_linen(Linen())
    params, state = net.init(KEY, X)
    state = jax.tree.map(lambda s: s + 0.25, state)  # not zero and one
    theirs = as_linen(params), {"batch_stats": as_linen(state["batch_stats"])}
    assert jax.tree.structure(theirs) == jax.tree.structure(linen.init(KEY, X))
    for training in (True, False):

        @partial(jax.jit, static_argnums=0)
        def step(net, params, state, training=training):
            def loss(params):
                out, new = net.apply(params, state, X, train=training)
                return (out.logits**2).sum(), (out.logits, new)

            return jax.grad(loss, has_aux=True)(params)

        gradient, (logits, new) = step(net, params, state)
        expected, (their_logits, their_new) = step(linen, *theirs)
        same(logits, their_logits)
        same(as_linen(gradient), expected, rtol=1e-3, atol=1e-4)
        same(as_linen(new["batch_stats"]), their_new["batch_stats"])


@pytest.mark.parametrize("path", ["blocks/0", "blocks.0"])
def test_a_tap_is_the_output_at_its_path(path):
    net = from_nnx(Small, taps={"first": path, "stem": "stem", "head": "head"})
    params, state = net.init(KEY, X)
    out, same_state = net.apply(params, state, X, train=False)
    assert same_state is state
    same(out.taps["head"], out.logits)
    model = Small(rngs=nnx.Rngs(KEY))
    model.eval()
    same(out.taps["stem"], model.stem(X))
    same(out.taps["first"], model.blocks[0](model.stem(X)))
    # A later model of the class is as its author wrote it.
    assert type(model.blocks[0]) is Block and type(model.stem) is nnx.Conv


def test_training_draws_from_the_key_alone():
    net = from_nnx(Small)
    params, state = net.init(KEY, X)
    logits = lambda key: net.apply(params, state, X, train=True, key=key)[0].logits
    one, again, other = map(logits, (KEY, KEY, jax.random.key(9)))
    same(one, again, rtol=0)
    assert np.abs(one - other).max() > 0.01
    same(one, logits(jax.random.key_data(KEY)), rtol=0)
    with pytest.raises(ValueError, match=r"'default' at 'blocks/0/drop/rngs'.*key"):
        net.apply(params, state, X, train=True)
    with pytest.raises(ValueError, match="key must be a PRNG key, got 3"):
        net.apply(params, state, X, train=True, key=3)


def test_two_dropouts_of_one_stream_draw_differently():
    class Twice(nnx.Module):
        def __init__(self, *, rngs):
            self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return jnp.stack([drop(x * self.scale) for drop in self.drops])

    net = from_nnx(Twice)
    ones = jnp.ones((100,))
    a, b = net.apply(*net.init(KEY, ones), ones, train=True, key=KEY)[0].logits
    assert 25 < (a != b).sum() < 75


def test_inference_has_no_random_numbers_in_its_program():
    net = from_nnx(Small, taps={"first": "blocks/0"})
    params, state = net.init(KEY, X)
    program = str(jax.make_jaxpr(partial(net.apply, train=False))(params, state, X))
    assert "random" not in program and "key<" not in program


def test_it_is_a_pure_function_under_scan_and_vmap():
    net = from_nnx(Small, taps={"first": "blocks/0"})
    keys = jax.random.split(KEY, 2)
    params, state = jax.vmap(lambda key: net.init(key, X))(keys)

    def step(state, key):
        out, state = jax.vmap(lambda p, s: net.apply(p, s, X, train=True, key=key))(
            params, state
        )
        return state, (out.logits, out.taps["first"])

    with jax.checking_leaks():
        scanned = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    for i in range(2):
        p, s = jax.tree.map(lambda leaf, i=i: leaf[i], (params, state))
        same(p, net.init(keys[i], X)[0])
        for j, key in enumerate(keys):
            out, s = net.apply(p, s, X, train=True, key=key)
            same(scanned[1][0][j, i], out.logits, rtol=1e-4, atol=1e-5)
            same(scanned[1][1][j, i], out.taps["first"], rtol=1e-4, atol=1e-5)


class Returns(nnx.Module):
    """Returns its logits in one of several forms, and is told how it runs."""

    def __init__(self, form, *, rngs):
        self.form = form
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.unused = nnx.Linear(4, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), int))

    def __call__(self, x, *, train):
        if train:
            self.calls[...] += 1
        z = self.dense(x)
        return {"bare": z, "pair": (z, {"x": x}), "outputs": Outputs(z, {"x": x})}.get(
            self.form, (z, z)
        )


@pytest.mark.parametrize("form", ["bare", "pair", "outputs"])
def test_what_a_module_returns_and_keeps_is_understood(form):
    net, x = from_nnx(partial(Returns, form)), jnp.ones((2, 4))
    params, state = net.init(KEY, x)
    assert state == {"Variable": {"calls": 0}}
    out, after = net.apply(params, state, x, train=True)
    assert after == {"Variable": {"calls": 1}}
    same(out.logits, x @ params["dense"]["kernel"])  # the bias is zero at first
    assert set(out.taps) == (set() if form == "bare" else {"x"})


def test_refusals():
    x = jnp.ones((2, 4))
    bare = partial(Returns, "bare")
    with pytest.raises(KeyError, match="'densee'.*did you mean dense"):
        from_nnx(bare, taps={"z": "densee"})
    with pytest.raises(KeyError, match=r"no submodule was called at \['unused'\]"):
        from_nnx(bare, taps={"z": "unused"}).init(KEY, x)
    with pytest.raises(ValueError, match="must return logits"):
        from_nnx(partial(Returns, "two")).init(KEY, x)
    with pytest.raises(ValueError, match="module of flax.nnx, got"):
        from_nnx(lambda rngs: nn.Dense(3))
    net = from_nnx(bare)
    params, state = net.init(KEY, x)
    with pytest.raises(ValueError, match="has no .*params/unused/kernel"):
        net.apply({"dense": params["dense"]}, state, x, train=False)
    with pytest.raises(ValueError, match="has not,.*params/more"):
        net.apply({**params, "more": x}, state, x, train=False)

    class Bare(nnx.Module):
        def __init__(self, *, rngs):
            self.mean = jnp.ones(3)

    with pytest.raises(ValueError, match="'mean' .*nnx.Variable"):
        from_nnx(Bare)


def test_a_rematerialised_block_trains():
    class Remat(Small):
        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = nnx.remat(lambda block, x: block(x))(block, x)
            return self.head(x.mean((1, 2)))

    net, plain = from_nnx(Remat, taps={"stem": "stem"}), from_nnx(Small)
    params, state = net.init(KEY, X)

    def gradient(net):
        def loss(params):
            out, new = net.apply(params, state, X, train=True, key=KEY)
            return (out.logits**2).sum(), new

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    same(gradient(net), gradient(plain), rtol=1e-3, atol=1e-4)


class Toy(nnx.Module):
    """Has batch statistics, and dropout if it is asked for."""

    def __init__(self, width, drop=0.1, *, rngs):
        self.inner = nnx.Linear(48, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(drop, rngs=rngs)
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.inner(x.reshape(len(x), -1))))
        return self.head(self.drop(x))


class LinenToy(nn.Module):
    """`Toy` in linen, with its names, without dropout."""

    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.width, name="inner")(x.reshape(len(x), -1))
        x = hidden = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        return nn.Dense(5, name="head")(nn.relu(x)), {"hidden": hidden}


learn = partial(
    train.learn,
    examples=toys.dataset(),
    spec=toys.spec,
    view=toys.view,
    batch_size=8,
    tx=optax.sgd(0.05),
    progress=False,
)


def test_a_student_learns_logits_and_a_feature_as_it_does_in_linen():
    tapped = {"taps": {"hidden": "norm"}}
    teacher = from_nnx(partial(Toy, 9), **tapped)
    student = from_nnx(partial(Toy, 6, 0.0), **tapped)
    x = jnp.zeros((2, 4, 4, 3))
    taught, start = teacher.init(KEY, x), student.init(jax.random.key(1), x)
    ours = learn(student, teacher=(teacher, taught), start=start, epochs=3)
    linen_teacher, linen = from_linen(LinenToy(9)), from_linen(LinenToy(6))
    theirs = learn(linen, teacher=(linen_teacher, taught), start=start, epochs=3)
    same(ours.variables, theirs.variables, rtol=1e-3, atol=1e-4)
    for loss in ("loss/kd", "loss/hint"):
        same(*(run.history[-1][loss] for run in (ours, theirs)), rtol=1e-3)


def test_a_training_of_several_seeds_is_known_by_its_program(tmp_path):
    def run(checkpoints, width=6):
        tapped = {"taps": {"hidden": "norm"}}
        teacher, student = (from_nnx(partial(Toy, n), **tapped) for n in (9, width))
        taught = teacher.init(KEY, jnp.zeros((2, 4, 4, 3)))
        given = {"teacher": (teacher, taught), "checkpoints": checkpoints}
        return learn(student, seeds=2, epochs=2, **given)

    stored, read, fresh = run(tmp_path), run(tmp_path), run(None)
    same(stored.variables, fresh.variables)
    same(read.variables, stored.variables, rtol=0)
    a, b = (stored.seed(i)[0]["inner"]["kernel"] for i in range(2))
    assert np.abs(a - b).max() > 0.01
    with pytest.raises(ValueError, match="belongs to another run"):
        run(tmp_path, width=7)
