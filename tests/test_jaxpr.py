"""A flat program has no calls left and computes what the function does."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd import jaxpr

W = np.linspace(-1, 1, 9, dtype="f4").reshape(3, 3)


@jax.custom_jvp
def with_jvp(x):
    return jnp.sin(x) @ W


with_jvp.defjvp(lambda x, dx: (with_jvp(*x), jnp.cos(x[0]) * dx[0]))


@jax.custom_vjp
def with_vjp(x):
    return jnp.sin(x) @ W


with_vjp.defvjp(lambda x: (with_vjp(x), x), lambda x, g: (jnp.cos(x) * g,))

plain = lambda x: jnp.sin(x) @ W
WRAPPED = {
    "plain": plain,
    "jit": jax.jit(plain),
    "checkpoint": jax.checkpoint(plain),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "nested": jax.jit(jax.checkpoint(lambda x: jax.jit(with_jvp)(x))),
    "vmap": jax.vmap(plain),
}
X = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.mark.parametrize("name", WRAPPED)
def test_calls_are_written_out(name):
    program = jaxpr.trace(WRAPPED[name], X)
    assert [s.name for s in program.steps] == ["sin", "dot_general"]
    np.testing.assert_allclose(*jaxpr.run(program, [X]), plain(X), rtol=1e-6)


def test_the_table_holds_every_call_of_this_version_of_jax():
    """A primitive that holds one program with its own operands is a call or listed."""
    left = {"scan", "while", "cond", "composite"}
    functions = [
        *WRAPPED.values(),
        jax.value_and_grad(lambda x: jax.checkpoint(with_vjp)(x).sum()),
        lambda x: jax.jvp(with_jvp, (x,), (x,)),
        lambda x: jax.linearize(plain, x)[1](x),
        nn.remat(nn.Dense)(3).init_with_output,
    ]
    for f in functions:
        args = (jax.random.key(0), X) if f is functions[-1] else (X,)
        for step in jaxpr.trace(f, *args).steps:
            assert not jaxpr.bodies(step) or step.name in left, step.name


def test_results_that_are_arguments_literals_and_constants():
    f = lambda x, y: (y, 2.0, jnp.asarray(W), jax.jit(lambda a: (a, a + 1))(x)[0])
    program = jaxpr.trace(f, X, 3.0)
    for a, b in zip(jaxpr.run(program, [X, 3.0]), f(X, 3.0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scopes_are_paths_through_calls():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tanh(nn.Dense(3, name="dense")(x))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(Block)(name="block")(jax.jit(jnp.sin)(x))

    variables = jax.eval_shape(Outer().init, jax.random.key(0), X)
    program = jaxpr.trace(Outer().apply, variables, X)
    where = {step.name: step.scope for step in program.steps}
    assert where["sin"] == "Outer"
    assert where["dot_general"].endswith("block/dense")
    assert where["tanh"].endswith("block") and where["tanh"].startswith("Outer/")


def test_steps_that_nothing_depends_on_are_not_needed():
    def f(x):
        unused = jax.jit(lambda x: (jnp.cos(x), jnp.sin(x)))(x)
        return unused[1] @ W

    program = jaxpr.trace(f, X)
    assert [s.name for s in program.steps] == ["cos", "sin", "dot_general"]
    assert [s.name for s in jaxpr.needed(program)] == ["sin", "dot_general"]


def test_loops_keep_their_bodies_and_say_how_often_they_run():
    f = lambda x: lax.scan(lambda x, _: (jax.jit(plain)(x), x), x, length=7)
    (step,) = jaxpr.trace(f, X).steps
    assert step.name in jaxpr.LOOPS and jaxpr.times(step) == 7
    (body,) = jaxpr.bodies(step)
    assert [s.name for s in body.steps] == ["sin", "dot_general"]
    program = jaxpr.trace(f, X)
    for a, b in zip(jaxpr.run(program, [X]), f(X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    g = lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x)
    step = jaxpr.trace(g, X).steps[-1]
    assert step.name in jaxpr.LOOPS and jaxpr.times(step) == 1
    assert len(jaxpr.bodies(step)) == 2


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_says_what_its_operands_are(reverse):
    def f(w, v, x, n, xs, ys, zs):
        def one(carry, each):
            x, n = carry
            return (jnp.tanh(x @ w + v), n + 1), (x + each[0], n * each[1], each[2])

        return lax.scan(one, (x, n), (xs, ys, zs), reverse=reverse)

    args = (W, W[0], W[1], 0, np.ones((4, 3), "f4"), np.arange(4), np.arange(4.0))
    program = jaxpr.trace(f, *args)
    step = next(step for step in program.steps if step.name == "scan")
    loop = jaxpr.scan(step.params)
    assert (loop.constants, loop.carry) == (2, 2)
    assert (loop.length, loop.reverse) == (4, reverse)
    assert len(jaxpr.flatten(loop.body).inputs) == len(step.inputs) == 7
    shapes = [program.shape(i) for i in step.inputs[loop.constants :][: loop.carry]]
    assert shapes == [program.shape(i) for i in step.outputs[: loop.carry]]


def test_chosen_calls_stay_closed_and_keep_their_derivatives():
    closed = jax.make_jaxpr(lambda x: with_jvp(jax.jit(with_vjp)(x)))(X)
    program = jaxpr.flatten(closed, lambda name, body: name not in jaxpr.CUSTOM)
    assert len(program.steps) == 2
    assert all(step.name in jaxpr.CUSTOM for step in program.steps)
    run = lambda x: jaxpr.run(program, [x])[0].sum()
    by_body = jaxpr.flatten(
        closed, lambda name, body: any(step.name == "sin" for step in body.steps)
    )
    assert [s.name for s in by_body.steps] == ["sin", "dot_general"] * 2
    ours = lambda x: with_jvp(with_vjp(x)).sum()
    np.testing.assert_allclose(jax.grad(run)(X), jax.grad(ours)(X), rtol=1e-6)


def test_steps_can_be_computed_otherwise():
    def doubled(step, *values):
        results = jaxpr.evaluate(step, *values)
        return [2 * r for r in results] if step.name == "sin" else results

    program = jaxpr.trace(plain, X)
    np.testing.assert_allclose(
        *jaxpr.run(program, [X], doubled), 2 * plain(X), rtol=1e-6
    )


def test_no_other_module_lists_the_primitives_of_calls():
    package = pathlib.Path(jaxpr.__file__).parent
    listing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search("custom_vjp_call_jaxpr|closed_call", path.read_text())
    }
    assert listing == {"jaxpr.py"}


def test_steps_know_the_function_of_jax_nn_that_they_are_part_of():
    def f(x):
        with jax.named_scope("block"):
            return jnp.tanh(jax.jit(nn.leaky_relu)(x)) + jnp.where(x > 0, x, 2)

    steps = jaxpr.trace(f, 1.0).steps
    places = [jaxpr.place(step.scope, step) for step in steps]
    # Neither the wrapper nor what is jitted inside; and tanh is tanh without its name.
    inside = [place for place in places if place.endswith("()")]
    assert set(inside) == {"block/leaky_relu()"} and len(inside) >= 3
    assert "block" in places and {s.name for s in steps} >= {"tanh", "select_n"}
