"""What every Term promises, on two small networks and real images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import checkpoint, cost, distill, losses
from tests.terms import cases
from tests.terms.cases import BATCH, CASES, NAMES

STEPS = 30
every_case = pytest.mark.parametrize("case", CASES, ids=NAMES)

# One compiled program does the same for all Terms, because compiling is what takes
# time here; each is looked at alone. What is compiled runs for milliseconds.
QUICK = {
    "compiler_options": {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
}


def learner(weights):
    spec = {name: (weights[name], term) for name, term in cases.all_terms().items()}
    return distill.distiller(
        cases.student, distill.frozen(cases.teacher), spec, optax.adam(1e-2)
    )


@functools.cache
def first_state():
    batch = jax.tree.map(lambda a: a[0], cases.batches(1))
    init = jax.jit(learner(dict.fromkeys(NAMES, 1.0)).init, **QUICK)
    # Keys of this kind compile in a fraction of the time.
    key = jax.random.key(0, impl="unsafe_rbg")
    return init(key, cases.teacher_variables(), batch)


@functools.cache
def scanned():
    """Trains with the weights of the Terms as an argument, in one scan."""

    def run(weights, state, variables, batches):
        step = lambda state, batch: learner(weights).step(state, variables, batch)
        return jax.lax.scan(step, state, batches)

    return jax.jit(run, **QUICK)


@functools.cache
def trained(name):
    """The last state and the metrics when this Term alone has a weight."""
    weights = {other: float(other == name) for other in NAMES}
    return scanned()(
        weights, first_state(), cases.teacher_variables(), cases.batches(STEPS)
    )


def same(a, b):
    """Per leaf, whether the arrays are equal."""
    equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), a, b)
    return jax.tree.leaves(equal)


@every_case
@pytest.mark.slow
def test_everything_of_it_moves_and_its_loss_falls(case):
    first, (last, metrics) = first_state(), trained(case.name)
    before, after = first.params["terms"], last.params["terms"]
    assert not any(same(before[case.name], after[case.name]))
    assert not all(same(first.params["student"], last.params["student"]))
    assert all(all(same(before[n], after[n])) for n in NAMES if n != case.name)
    loss = np.asarray(metrics[f"loss/{case.name}"])
    assert np.isfinite(loss).all()
    start, end = loss[:2].mean(), loss[-4:].mean()
    if case.may_be_negative:
        assert end < start - case.falls_to
    else:
        assert end < case.falls_to * start


@every_case
@pytest.mark.slow
def test_nothing_of_it_stays_with_the_student(case):
    last, metrics = trained(case.name)
    params, state = jax.eval_shape(
        cases.student.init, jax.random.key(0), cases.images(BATCH)["image"]
    )
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(last.params["student"]) == shapes(params)
    assert shapes(last.state["student"]) == shapes(state)
    assert set(last.params["terms"]) == set(last.state["terms"]) == set(NAMES)
    assert f"loss/{case.name}" in metrics


@every_case
def test_its_variables_are_arrays(case):
    state = first_state()
    for tree in (state.params["terms"][case.name], state.state["terms"][case.name]):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def test_no_gradient_reaches_the_teacher():
    d, state = learner(dict.fromkeys(NAMES, 1.0)), first_state()
    batch = jax.tree.map(lambda a: a[0], cases.batches(1))
    # All cotangents of the teacher are zeros before anything is computed.
    gradient = jax.jit(jax.grad(lambda v: d.step(state, v, batch)[1]["loss"]))
    variables = cases.teacher_variables()
    assert all((g == 0).all() for g in jax.tree.leaves(gradient(variables)))


# Ugly points: the Terms alone, without networks.


def zero(outputs):
    return outputs._replace(taps=jax.tree.map(jnp.zeros_like, outputs.taps))


def half(outputs):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), outputs)


def padded(s, t):
    """The first features again, with channels of zeros up to the second's width."""
    fill = lambda a, b: jnp.pad(
        a, [(0, n - m) for m, n in zip(a.shape, b.shape, strict=True)]
    )
    return t._replace(taps=jax.tree.map(fill, s.taps, t.taps))


def drawn(batch=BATCH):
    return tuple(cases.outputs(k, w, batch=batch) for k, w in enumerate(cases.WIDTHS))


def points():
    s, t = drawn()
    return {
        "drawn": (s, t),
        "a student of zeros": (zero(s), t),
        "a teacher of zeros": (s, zero(t)),
        "zeros": (zero(s), zero(t)),
        # Attention maps and relations do not see channels of zeros: they are equal.
        "equal": (s, padded(s, t)),
        "two examples in half precision": tuple(map(half, drawn(batch=2))),
    }


def variables():
    """Those of all Terms, as they were made."""
    state = first_state()
    return {n: (state.params["terms"][n], state.state["terms"][n]) for n in NAMES}


@functools.partial(jax.jit, **QUICK)
def everything(of_all, s, t, batch):
    """Loss, gradients and new state of every Term."""
    found = {}
    for name, term in cases.all_terms().items():

        def mean(params, s, term=term, state=of_all[name][1]):
            loss, new = term.apply(params, state, s, t, batch)
            return loss.mean(), (loss, new)

        grads, (loss, new) = jax.grad(mean, (0, 1), has_aux=True)(of_all[name][0], s)
        found[name] = loss, grads, new
    return found


@functools.cache
def at_point(point):
    s, t = points()[point]
    return everything(variables(), s, t, cases.images(len(s.logits)))


@every_case
@pytest.mark.parametrize("point", list(points()))
def test_value_gradient_and_state_are_finite(case, point):
    loss, grads, state = at_point(point)[case.name]
    assert loss.shape == (2 if point.startswith("two") else BATCH,)
    assert loss.dtype == jnp.float32
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads, state))
    )


@functools.cache
def in_half_precision():
    """Loss and new state of half-precision outputs, and of the same in float32."""
    s, t = map(half, drawn())
    single = lambda outputs: jax.tree.map(lambda a: a.astype(jnp.float32), outputs)

    @functools.partial(jax.jit, **QUICK)
    def values(of_all, s, t, batch):
        every = cases.all_terms().items()
        return {name: term.apply(*of_all[name], s, t, batch) for name, term in every}

    batch = cases.images(BATCH)
    wanted = everything(variables(), single(s), single(t), batch)
    return values(variables(), s, t, batch), wanted


@every_case
def test_half_precision_is_computed_in_float32(case):
    got, wanted = (found[case.name] for found in in_half_precision())
    state, wanted_state = (jax.tree.leaves(found[-1]) for found in (got, wanted))
    assert got[0].dtype == jnp.float32
    # An input rounded once more would be off by 2**-9 of its size.
    for a, b in zip([got[0], *state], [wanted[0], *wanted_state], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_case
def test_its_state_keeps_structure_and_types(case):
    typed = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    before = typed(variables()[case.name][1])
    assert all(typed(at_point(point)[case.name][2]) == before for point in points())


# Not at_paper: a norm has no derivative where it is 0, or 1e-8 by rounding.
@pytest.mark.parametrize("name", ["sp", "rkd", "pkt", "cc"])
def test_equal_relations_are_a_minimum(name):
    loss, grads, _ = at_point("equal")[name]
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert all(jnp.abs(g).max() < 1e-4 for g in jax.tree.leaves(grads))


@every_case
def test_compiled_is_eager(case):
    s, t = drawn()
    term, (params, state) = case.make(case.taps), variables()[case.name]
    loss, new = term.apply(params, state, s, t, cases.images(BATCH))
    compiled, _, compiled_state = at_point("drawn")[case.name]
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)
    close(loss, compiled)
    jax.tree.map(close, new, compiled_state)


def test_scan_is_the_loop():
    stateful = {n: v for n, v in variables().items() if jax.tree.leaves(v[1])}
    assert stateful
    terms = {name: term for name, term in cases.all_terms().items() if name in stateful}
    batch = cases.images(BATCH)
    s, t = drawn()
    seen = [(s, t), (zero(s), t), (s, t)]
    states = {name: state for name, (_, state) in stateful.items()}

    def step(states, outputs):
        found = {
            name: term.apply(stateful[name][0], states[name], *outputs, batch)
            for name, term in terms.items()
        }
        return {n: state for n, (_, state) in found.items()}, {
            n: loss for n, (loss, _) in found.items()
        }

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *seen)
    last, losses = jax.jit(lambda z, x: jax.lax.scan(step, z, x))(states, stacked)
    looped, each = states, []
    once = jax.jit(step)
    for outputs in seen:
        looped, loss = once(looped, outputs)
        each.append(loss)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, last, looped)
    jax.tree.map(close, losses, jax.tree.map(lambda *a: jnp.stack(a), *each))
    assert not any(all(same(states[name], looped[name])) for name in states)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What the disk gives back of the variables of all Terms."""
    path = tmp_path_factory.mktemp("terms") / "variables"
    checkpoint.save(path, variables())
    return checkpoint.load(path, like=variables())


@every_case
def test_survives_a_checkpoint(case, stored):
    before, after = variables()[case.name], stored[case.name]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(same(before, after))


# Cost and bad input: traced, not run.


def step_macs(**terms):
    ce = distill.on_labels(losses.cross_entropy)
    spec = {"ce": (1.0, ce)} | {name: (1.0, term) for name, term in terms.items()}
    d = distill.distiller(
        cases.student, distill.frozen(cases.teacher), spec, optax.sgd(0.1)
    )
    variables, batch = cases.teacher_variables(), cases.images(BATCH)
    state = jax.eval_shape(d.init, jax.random.key(0), variables, batch)
    return cost.macs(d.step, state, variables, batch)


alone = functools.cache(step_macs)


@every_case
def test_adds_no_second_forward_pass(case):
    term, its = case.make(case.taps), variables()[case.name]
    own = cost.macs(term.apply, *its, *drawn(), cases.images(BATCH))
    added = step_macs(term=term) - alone()
    assert own <= added <= 3 * own


def init(case, taps):
    term = case.make(taps)
    return jax.eval_shape(term.init, jax.random.key(0), *drawn(), cases.images(BATCH))


@every_case
@pytest.mark.bad_input
def test_a_misspelt_tap_is_named(case):
    with pytest.raises(KeyError, match=r"'stage9'; there are .*'stage3'"):
        init(case, case.lost)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.unfit is not None],
    ids=[case.name for case in CASES if case.unfit is not None],
)
def test_taps_that_do_not_fit_are_refused_with_all_shapes(case):
    match = r"student's taps are .*pooled \(8, 6\).*teacher's .*pooled \(8, 8\)"
    with pytest.raises(ValueError, match=match):
        init(case, case.unfit)
