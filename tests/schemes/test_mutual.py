"""Peers that learn from each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import distill, evaluate, losses, models
from jaxkd.models import net as nets
from jaxkd.schemes import ensemble, mutual
from tests import toys
from tests.schemes import digits

spec = {
    "ce": (1.0, distill.on_labels(losses.cross_entropy)),
    "mutual": (0.5, distill.on_logits(losses.mutual)),
}
lr = 0.1


@pytest.fixture
def batch():
    key = jax.random.key(0)
    return {
        "image": jax.random.normal(key, (8, 4, 4, 3)),
        "label": jax.random.randint(key, (8,), 0, 5),
    }


def close(a, b, rtol=1e-4, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def linear(scale):
    """A network of one matrix, without flax: its gradients can be written down."""

    def init(key, x):
        return {"w": scale * jax.random.normal(key, (48, 5))}, {}

    def apply(params, state, x, *, train, key=None):
        return distill.Outputs(x.reshape(len(x), -1) @ params["w"], {}), state

    return nets.Net(init, apply)


def test_one_step_is_the_papers_update_of_every_peer(batch):
    peers = (linear(0.1), linear(0.2), linear(0.3))
    d = mutual.distiller(peers, spec, optax.sgd(lr))
    states = d.init(jax.random.key(1), None, batch)
    after, metrics = jax.jit(d.step)(states, None, batch)
    x = np.asarray(batch["image"], np.float64).reshape(8, 48)
    y = np.eye(5)[batch["label"]]
    w = [np.asarray(s.params["student"]["w"], np.float64) for s in states]
    e = [np.exp(x @ each) for each in w]
    p = [each / each.sum(-1, keepdims=True) for each in e]
    for i in range(3):
        # d CE/dz = p - y; d KL(p_j, p_i)/dz_i = p_i - p_j, p_j fixed; mean of two.
        others = [p[j] for j in range(3) if j != i]
        g = (p[i] - y) + 0.5 * sum(p[i] - q for q in others) / 2
        close(after[i].params["student"]["w"], w[i] - lr * x.T @ g / 8)
        kl = sum((q * np.log(q / p[i])).sum(-1) for q in others) / 2
        close(metrics[f"peer{i}/loss/mutual"], kl.mean())
        ce = -(y * np.log(p[i])).sum(-1).mean()
        close(metrics[f"peer{i}/loss"], ce + 0.5 * kl.mean())
    close(metrics["loss"], np.mean([metrics[f"peer{i}/loss"] for i in range(3)]))


def test_a_peer_says_to_others_what_it_says_in_training(batch):
    """With its dropout, and with the statistics of the batch."""
    peers = (toys.student, toys.teacher)
    d = mutual.distiller(peers, spec, optax.sgd(lr))
    states = jax.jit(d.init)(jax.random.key(3), None, batch)
    _, metrics = jax.jit(d.step)(states, None, batch)
    for train in (True, False):
        a, b = (
            net.apply(
                state.params["student"],
                state.state["student"],
                batch["image"],
                train=train,
                key=jax.random.split(state.key)[1],
            )[0].logits
            for net, state in zip(peers, states, strict=True)
        )
        kl = losses.kd(a, b, temperature=1.0).mean()
        same = np.isclose(metrics["peer0/loss/mutual"], kl, rtol=1e-3)
        assert same == train


def test_metrics_are_the_means_and_each_peers(batch):
    d = mutual.distiller((toys.student, toys.teacher), spec, optax.sgd(lr))
    state = jax.eval_shape(d.init, jax.random.key(0), None, batch)
    _, metrics = jax.eval_shape(d.step, state, None, batch)
    plain = {"loss", "loss/ce", "loss/mutual", "norm/grad"}
    own = {f"peer{i}/{name}" for i in range(2) for name in plain}
    assert set(metrics) == plain | own


def test_copies_are_the_tuple_of_one_network(batch):
    """With dropout, batch statistics and a hint to the next peer's taps."""
    hint = distill.on_taps(toys.mean_square, "hidden", "1/hidden")
    full = {**spec, "hint": (0.3, hint)}
    found = []
    for d in (
        mutual.copies(toys.student, 3, full, optax.sgd(lr, momentum=0.9)),
        mutual.distiller((toys.student,) * 3, full, optax.sgd(lr, momentum=0.9)),
    ):
        state = jax.jit(d.init)(jax.random.key(2), None, batch)
        step = jax.jit(d.step)
        for _ in range(3):
            state, metrics = step(state, None, batch)
        found.append((state, metrics))
    (stacked, m), (apart, n) = found
    for i, peer in enumerate(apart):
        jax.tree.map(
            lambda a, b, i=i: close(a[i], b, 2e-3, 2e-5),
            (stacked.params, stacked.state),
            (peer.params, peer.state),
        )
    assert set(m) == set(n)
    jax.tree.map(lambda a, b: close(a, b, 1e-3), m, n)


def test_peers_start_as_they_would_alone_and_differently(batch):
    d = mutual.distiller((toys.student, toys.student), spec, optax.sgd(lr))
    states = jax.jit(d.init)(jax.random.key(0), None, batch)
    alone = distill.distiller(
        toys.student, distill.no_teacher, toys.labels_only, optax.sgd(lr)
    )
    key = jax.random.split(jax.random.key(0), 2)[1]
    wanted = jax.jit(alone.init)(key, None, batch).params["student"]
    jax.tree.map(close, states[1].params["student"], wanted)
    kernels = [s.params["student"]["Dense_0"]["kernel"] for s in states]
    assert (kernels[0] != kernels[1]).all()


def test_a_peer_is_asked_no_forward_pass_of_its_own(batch):
    """What it says to the others is computed once, in its own update."""
    net = models.mlp([256], classes=5, input_dropout=0.1)
    alone = distill.distiller(net, distill.no_teacher, toys.labels_only, optax.sgd(lr))
    key = jax.random.key(0)

    def operations(d):
        state = jax.eval_shape(d.init, key, None, batch)
        return jax.jit(d.step).lower(state, None, batch).compile().cost_analysis()

    once = operations(alone)["flops"]
    for d in (
        mutual.distiller((net,) * 2, spec, optax.sgd(lr)),
        mutual.copies(net, 2, spec, optax.sgd(lr)),
    ):
        # A second forward pass of both would make it 2.7.
        assert 1.8 * once < operations(d)["flops"] < 2.2 * once


@pytest.mark.slow
def test_unequal_peers_learn_the_digits_together():
    cnn = models.cnn([[4], [8]], hidden=[16], classes=10)
    d = mutual.distiller((cnn, digits.small), spec, digits.tx)
    run = digits.learn(d, epochs=6, n=1000)
    for net, state in zip((cnn, digits.small), run.state, strict=True):
        score = evaluate.scorer(net, digits.images("test"), view=digits.view())
        assert score(state)["accuracy"] > 0.8
    assert run.history[-1]["peer1/loss/ce"] < 0.3 * run.history[0]["peer1/loss/ce"]


@pytest.mark.slow
def test_equal_peers_over_seeds_learn_become_alike_and_then_a_teacher():
    found = {}
    for name, weight in (("mutual", 1.0), ("apart", 0.0)):
        own = {**spec, "mutual": (weight, spec["mutual"][1])}
        d = mutual.copies(digits.small, 3, own, digits.tx)
        run = digits.learn(d, epochs=20, n=200, seeds=2)
        variables = digits.students(run.state)
        assert jax.tree.leaves(variables)[0].shape[:2] == (2, 3)
        first = jax.tree.map(lambda a: a[0], variables)
        teacher = ensemble.mean(ensemble.copies(distill.frozen(digits.small)))
        assert digits.score(teacher, first)[0] > 0.75
        found[name] = run.history[-1]["loss/mutual"]
    # They are pulled together: the term falls against peers that only watch it.
    assert all(np.array(found["mutual"]) < 0.7 * np.array(found["apart"]))


@pytest.mark.bad_input
def test_what_does_not_fit_is_named(batch):
    tx, key = optax.sgd(lr), jax.random.key(0)
    with pytest.raises(ValueError, match="peers must be two or more, got 1"):
        mutual.distiller((toys.student,), spec, tx)
    with pytest.raises(ValueError, match="peers must be two or more, got 0"):
        mutual.distiller((), spec, tx)
    with pytest.raises(ValueError, match="count must be two or more, got 1"):
        mutual.copies(toys.student, 1, spec, tx)
    with pytest.raises(ValueError, match="count must be an integer"):
        mutual.copies(toys.student, 2.0, spec, tx)
    with pytest.raises(ValueError, match="no term"):
        mutual.distiller((toys.student,) * 2, {}, tx)
    seven = nets.from_linen(toys.Toy(6, classes=7))
    for peers in ((toys.student, seven), (toys.student, toys.student, seven)):
        with pytest.raises(ValueError, match="same classes, got {.*7}"):
            mutual.distiller(peers, spec, tx).init(key, None, batch)
    lost = {"hint": (1.0, distill.on_taps(toys.mean_square, "hidden", "1/hidden"))}
    with pytest.raises(KeyError, match=r"no tap '1/hidden'; there are \['0/hidden'\]"):
        mutual.copies(toys.student, 2, lost, tx).init(key, None, batch)
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="no logits"):
        ensemble.side_by_side([distill.Outputs(None, {}), distill.Outputs(x, {})], "ab")
