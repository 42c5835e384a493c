"""What every scheme's Distiller keeps, on the toy networks."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import checkpoint, distill, losses
from jaxkd.schemes import ensemble, mutual, self_teacher
from tests import toys

hint = distill.on_taps(toys.mean_square, "hidden", "0/hidden")
cohort = {
    "ce": (1.0, distill.on_labels(losses.cross_entropy)),
    "mutual": (1.0, distill.on_logits(losses.mutual)),
}
sgd = optax.sgd(0.1, momentum=0.9)


def committee():
    """A distiller and the variables of two teachers of different widths."""
    members = [distill.frozen(toys.teacher), distill.frozen(toys.student)]
    teacher = ensemble.mean(ensemble.of(members, names=["big", "small"]))
    key, x = jax.random.key(3), jnp.zeros((2, 4, 4, 3))
    variables = (toys.teacher_variables(), toys.student.init(key, x))
    kd = distill.on_logits(losses.kd)
    hint = distill.on_taps(toys.mean_square, "hidden", "small/hidden")
    spec = {**toys.labels_only, "kd": (1.0, kd), "hint": (1.0, hint)}
    return distill.distiller(toys.student, teacher, spec, sgd), variables


SCHEMES = {
    "ensemble": committee,
    "different peers": lambda: (
        mutual.distiller((toys.student, toys.teacher, toys.student), cohort, sgd),
        None,
    ),
    "equal peers": lambda: (
        mutual.copies(toys.student, 3, {**cohort, "hint": (1.0, hint)}, sgd),
        None,
    ),
    "self-teacher": lambda: (
        self_teacher.distiller(toys.student, toys.spec, sgd, decay=0.9),
        None,
    ),
}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def data(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


@pytest.fixture(scope="module")
def batch():
    key = jax.random.key(0)
    return {
        "image": jax.random.normal(key, (16, 4, 4, 3)),
        "label": jax.random.randint(key, (16,), 0, 5),
    }


@pytest.fixture(scope="module", params=SCHEMES)
def world(request, batch):
    """The scheme, how often it was traced, its first state and ten steps from there."""
    d, variables = SCHEMES[request.param]()
    traces = []
    step = jax.jit(lambda *args: traces.append(1) or d.step(*args))
    # As if at step 4, where the toys' schedule has given "kd" its weight.
    start = jax.jit(d.init)(jax.random.key(0), variables, batch)
    states, found = [start], []
    for _ in range(10):
        state, metrics = step(states[-1], variables, batch)
        states.append(state)
        found.append(metrics)
    return d, variables, states, found, traces


def test_traces_once_and_the_loss_falls(world):
    *_, states, found, traces = world
    assert len(traces) == 1
    assert found[-1]["loss/ce"] < 0.9 * found[0]["loss/ce"]


def test_all_that_should_move_moves(world):
    _, _, states, _, _ = world
    first, last = states[0], states[-1]
    flat = lambda state: jax.tree_util.tree_leaves_with_path(state)
    for (at, a), (_, b) in zip(flat(first), flat(last), strict=True):
        assert (data(a) != data(b)).any(), jax.tree_util.keystr(at)


def test_the_state_is_arrays_and_survives_the_disk(world, tmp_path):
    _, _, states, _, _ = world
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(states[-1]))
    held = jax.tree.map(data, states[-1])
    checkpoint.save(tmp_path / "state", held)
    back = checkpoint.load(tmp_path / "state", like=held)
    assert jax.tree.structure(back) == jax.tree.structure(held)
    jax.tree.map(np.testing.assert_array_equal, back, held)


def test_scan_is_the_loop_and_vmap_is_the_seeds(world, batch):
    d, variables, states, found, _ = world
    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), batch)

    @jax.jit
    def run(key):
        state = d.init(key, variables, batch)
        return jax.lax.scan(lambda z, b: d.step(z, variables, b), state, batches)

    keys = jnp.stack([jax.random.key(5), jax.random.key(0)])
    together, metrics = jax.vmap(run)(keys)
    jax.tree.map(lambda a, b: close(data(a)[1], data(b)), together, states[3])
    close(metrics["loss"][1], jnp.stack([m["loss"] for m in found[:3]]))


def test_metrics_are_scalars_of_documented_names(world):
    d, _, states, found, _ = world
    own = {"loss", "loss/ce", "norm/grad"}
    assert own <= set(found[0])
    assert all(value.shape == () for value in found[0].values())


def test_the_ensembles_members_get_no_gradient(batch, monkeypatch):
    d, variables = committee()
    state = d.init(jax.random.key(0), variables, batch)
    gradient = lambda v: jax.grad(lambda v: d.step(state, v, batch)[1]["loss"])(v)
    assert all((g == 0).all() for g in jax.tree.leaves(jax.jit(gradient)(variables)))
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    found = jax.jit(lambda v: gradient(v))(variables)
    for member in found:  # each is reached, once nothing stops it
        assert any((g != 0).any() for g in jax.tree.leaves(member))


@pytest.mark.parametrize("module", [ensemble, self_teacher])
def test_examples_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
