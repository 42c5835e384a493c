"""The combined network: what it computes, what it carries, what it learns."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import checkpoint, data, distill, evaluate, losses, train
from jaxkd.data import augment
from jaxkd.models.net import from_linen
from jaxkd.terms.simkd import Projector, simkd
from tests.terms import small


class Patches(nn.Module):
    """Stages that look at 2x2 patches side by side: maps cheap to compile."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train):
        taps = {}
        for i, width in enumerate(self.widths, start=1):
            n, size, _, channels = x.shape
            half = size // 2
            x = x.reshape(n, half, 2, half, 2, channels).swapaxes(2, 3)
            x = nn.Dense(width, name=f"dense{i}")(
                x.reshape(n, half, half, 4 * channels)
            )
            x = taps[f"stage{i}"] = nn.relu(x)
        return nn.Dense(10, name="head")(x.mean((1, 2))), taps


student, teacher = from_linen(Patches((12, 10))), from_linen(Patches((32, 48)))
view = augment.to_float()
TX = optax.adam(5e-3)


@functools.cache
def digits():
    return data.on_device(data.load("digits", "train"))


def fit(net, of, variables, spec, epochs):
    d = distill.distiller(net, of, spec, TX)
    batch = train.example(digits(), view)
    epoch = train.make_epoch(d, view=view, batch_size=50)
    first = jax.jit(d.init)(jax.random.key(0), variables, batch)
    start = jax.tree.map(np.asarray, (first.params, first.state))
    key = jax.random.key(1)
    run = train.fit(epoch, first, variables, digits(), key=key, epochs=epochs)
    return start, run


@functools.cache
def taught():
    spec = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
    _, run = fit(teacher, distill.no_teacher, None, spec, 30)
    return run.state.params["student"], run.state.state["student"]


def images():
    return view(jax.random.key(0), jax.tree.map(lambda a: a[:8], digits()))["image"]


def combined(pair="stage2", **knobs):
    return simkd(student, teacher, taught(), images(), pair=pair, **knobs)


@functools.cache
def trained():
    net, term = combined()
    spec = {"simkd": (1.0, term)}
    return net, *fit(net, distill.frozen(teacher), taught(), spec, 15)


def accuracy(net, variables):
    score = lambda v: evaluate.predict(
        distill.frozen(net), v, digits(), view=view, batch_size=500
    )
    return float(evaluate.accuracy(jax.jit(score)(variables), digits()["label"]))


@pytest.mark.slow
def test_learns_the_classes_without_labels():
    net, (params, state), run = trained()
    before = accuracy(net, (params["student"], state["student"]))
    after = accuracy(net, (run.state.params["student"], run.state.state["student"]))
    # The teacher is what it can reach.
    assert accuracy(teacher, taught()) > 0.9
    assert before < 0.4 < 0.8 < after
    losses = [row["loss/simkd"] for row in run.history]
    assert losses[-1] < 0.5 * losses[0]


def test_everything_moves_but_the_heads():
    _, (before, fixed), run = trained()
    after, state = run.state.params["student"], run.state.state["student"]
    before, fixed = before["student"], fixed["student"]
    assert all(small.unequal(before["projector"], after["projector"]))
    own = {k: v for k, v in before["student"].items() if k != "head"}
    assert all(small.unequal(own, {k: after["student"][k] for k in own}))
    assert not any(small.unequal(before["student"]["head"], after["student"]["head"]))
    assert all(small.unequal(fixed["projector"], state["projector"]))
    assert not any(small.unequal(taught()[0]["head"], state["head"]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(taught()))


def test_logits_are_the_teachers_head_on_the_averaged_projection(tmp_path):
    net, _, run = trained()
    variables = run.state.params["student"], run.state.state["student"]
    checkpoint.save(tmp_path / "net", variables)
    variables = checkpoint.load(tmp_path / "net", like=variables)
    found, same = net.apply(*variables, images(), train=False)
    head = taught()[0]["head"]
    pooled = np.asarray(found.taps["projected"]).mean((1, 2))
    wanted = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)
    assert not any(small.unequal(variables[1], same))  # inference changes nothing
    assert set(found.taps) == {"stage1", "stage2", "projected"}


def test_loss_is_the_mean_square_between_the_maps():
    net, term = combined({"stage1": "stage2"})  # the student's map is the larger
    run = lambda key, x: net.apply(*net.init(key, x), x, train=True)[0]
    s = jax.jit(run)(jax.random.key(0), images())
    assert s.taps["projected"].shape == (8, 2, 2, 48)
    t = distill.frozen(teacher)(taught(), {"image": images()})
    loss, _ = term.apply({}, {}, s, t, {})
    wanted = (np.asarray(s.taps["projected"]) - np.asarray(t.taps["stage2"])) ** 2
    np.testing.assert_allclose(loss, wanted.reshape(8, -1).mean(1), rtol=1e-4)


def test_a_smaller_map_of_the_student_is_met_at_its_size():
    three = from_linen(Patches((6, 6, 6)))
    net, term = simkd(three, teacher, taught(), images(), pair={"stage3": "stage2"})
    run = lambda key, x: net.apply(*net.init(key, x), x, train=True)[0]
    s = jax.eval_shape(run, jax.random.key(0), images())
    assert s.taps["projected"].shape == (8, 1, 1, 48)
    t = distill.frozen(teacher)(taught(), {"image": images()})
    s = s._replace(taps={"projected": jnp.zeros((8, 1, 1, 48))})
    wanted = (np.asarray(t.taps["stage2"]).mean((1, 2)) ** 2).mean(1)
    np.testing.assert_allclose(term.apply({}, {}, s, t, {})[0], wanted, rtol=1e-4)


def test_own_classifier_and_rehearsal():
    shapes = jax.eval_shape(lambda: (taught(), images()))
    net, term = simkd(
        student,
        teacher,
        shapes[0],
        shapes[1],
        pair="stage2",
        classify=lambda head, x: x.max((1, 2)) @ head["kernel"],
    )
    spec = {"simkd": (1.0, term)}
    d = distill.distiller(net, distill.frozen(teacher), spec, TX)
    batch = {"image": shapes[1]}
    state = jax.eval_shape(d.init, jax.random.key(0), shapes[0], batch)
    assert state.state["student"]["head"]["kernel"].shape == (48, 10)
    jax.eval_shape(d.step, state, shapes[0], batch)


def test_projector_is_a_bottleneck():
    x = jax.ShapeDtypeStruct((2, 4, 4, 5), jnp.float32)
    made = jax.eval_shape(
        lambda x: Projector(12, factor=4).init(jax.random.key(0), x, False), x
    )
    shapes = [made["params"][f"conv{i}"]["kernel"].shape for i in (1, 2, 3)]
    assert shapes == [(1, 1, 5, 3), (3, 3, 3, 3), (1, 1, 3, 12)]


@pytest.mark.bad_input
def test_errors_name_what_does_not_fit():
    with pytest.raises(KeyError, match="no tap 'stage9'"):
        combined("stage9")
    with pytest.raises(KeyError, match="nothing at .haed.; .*did you mean head"):
        combined(head="haed")
    with pytest.raises(ValueError, match=r"with a kernel \(32, 10\)"):
        combined("stage1")
    with pytest.raises(ValueError, match="factor must be at most 48"):
        combined(factor=49)
    _, term = combined()
    t = distill.frozen(teacher)(taught(), {"image": images()})
    with pytest.raises(KeyError, match="no tap 'projected'"):
        term.init(jax.random.key(0), t, t, {})
