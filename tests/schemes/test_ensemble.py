"""Several teachers as one: which mean, of whom, and what the student learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, losses, train
from jaxkd.schemes import ensemble
from tests import toys
from tests.schemes import digits


def saying(logits, **taps):
    """A teacher that always says the same."""
    return lambda variables, batch: distill.Outputs(logits, taps)


def logits(seed=0, shape=(3, 6, 5)):
    return 3 * jax.random.normal(jax.random.key(seed), shape)


def committee(z):
    return ensemble.of([saying(each) for each in z]), (None,) * len(z)


T, weights = 2.0, [1.0, 0.0, 3.0]


def close(a, b, **tolerance):
    np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **tolerance})


@pytest.mark.parametrize("mode", ["probabilities", "logits"])
def test_the_mean_is_arithmetic_or_geometric(mode):
    z = logits()
    members, variables = committee(z)
    mean = ensemble.mean(members, weights=weights, mode=mode, temperature=T)
    found = jax.nn.softmax(mean(variables, {}).logits / T)
    p = np.asarray(jax.nn.softmax(z / T), np.float64)
    if mode == "probabilities":
        wanted = (p[0] + 3 * p[2]) / 4
    else:
        wanted = p[0] ** 0.25 * p[2] ** 0.75
        wanted /= wanted.sum(-1, keepdims=True)
    close(found, wanted)


def test_the_mean_of_kls_has_the_gradient_of_the_mean_probability_only():
    z, s = logits(), logits(1, (6, 5))
    members, variables = committee(z)
    kd = lambda s, t: losses.kd(s, t, temperature=T)
    gradient = lambda loss, t: jax.grad(lambda s: loss(s, t).sum())(s)
    mean = lambda mode: (
        ensemble.mean(members, weights=weights, mode=mode, temperature=T)(
            variables, {}
        ).logits
    )
    to_each = ensemble.each(kd, weights=weights)
    of_kls = gradient(to_each, members(variables, {}).logits)
    close(of_kls, gradient(kd, mean("probabilities")), atol=1e-5)
    # d/ds T**2 KL(p, q) = T (q - p), with the mean p: independent of the library.
    p = jnp.tensordot(jnp.array(weights) / 4, jax.nn.softmax(z / T), 1)
    close(of_kls, T * (jax.nn.softmax(s / T) - p), atol=1e-5)
    assert jnp.abs(of_kls - gradient(kd, mean("logits"))).max() > 0.05
    # The values differ, by the divergence of the teachers from their mean.
    apart = to_each(s, z) - kd(s, mean("probabilities"))
    close(apart, to_each(mean("probabilities"), z), atol=1e-5)
    assert (apart > 0.01).all()


def test_each_without_weights_is_the_loss_to_several_peers():
    z, s = logits(), logits(1, (6, 5))
    close(
        ensemble.each(losses.kd)(s, z, temperature=T),
        losses.mutual(s, z, temperature=T),
    )


def test_each_passes_labels_on():
    z, s, y = logits(), logits(1, (6, 5)), jnp.arange(6) % 5
    found = ensemble.each(losses.dkd)(s, z, y, temperature=T)
    close(found, sum(losses.dkd(s, t, y, temperature=T) for t in z) / 3)


def test_taps_are_found_under_their_teachers_name():
    a, b = jnp.ones((6, 2)), jnp.zeros((6, 3, 3, 1))
    teachers = [saying(logits()[0], pooled=a), saying(logits()[1], pooled=a + 1, map=b)]
    taps = ensemble.of(teachers)((None, None), {}).taps
    assert set(taps) == {"0/pooled", "1/pooled", "1/map"}
    close(taps["1/pooled"], a + 1)
    named = ensemble.of(teachers, names=["cnn", "mlp"])((None, None), {})
    assert set(named.taps) == {"cnn/pooled", "mlp/pooled", "mlp/map"}
    with pytest.raises(KeyError, match="no tap 'pooled'; there are .*cnn/pooled"):
        named.tap("pooled")


@pytest.mark.parametrize("together", [True, False])
def test_copies_are_the_teachers_one_by_one(together):
    single = distill.frozen(toys.teacher)
    own = [toys.teacher_variables(seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    batch = {"image": jax.random.normal(jax.random.key(0), (4, 4, 4, 3))}
    found = ensemble.copies(single, together=together)(stacked, batch)
    wanted = ensemble.of([single] * 3)(own, batch)
    assert set(found.taps) == set(wanted.taps) == {f"{i}/hidden" for i in range(3)}
    jax.tree.map(lambda a, b: close(a, b, atol=1e-5), found, wanted)


@pytest.mark.slow
def test_nets_from_several_seeds_are_distilled_into_one():
    d = distill.distiller(digits.large, distill.no_teacher, digits.labels, digits.tx)
    run = digits.learn(d, epochs=20, seeds=5)
    single, variables = distill.frozen(digits.large), digits.students(run.state)
    teacher = ensemble.mean(ensemble.copies(single), temperature=4.0)
    committee = ensemble.copies(single)
    plain = ensemble.mean(committee)
    member = lambda i: jax.tree.map(lambda a: a[i], variables)
    alone = np.array([digits.score(single, member(i)) for i in range(5)])
    accuracy, nll = digits.score(plain, variables)
    # By Jensen's inequality, and with 5 networks on 100 images not by little.
    assert nll < alone[:, 1].mean() - 0.02
    assert accuracy > alone[:, 0].mean()

    found = []
    each = distill.on_logits(ensemble.each(losses.kd), temperature=4.0)
    for teach, kd in ((teacher, digits.taught["kd"][1]), (committee, each)):
        spec = {"ce": digits.taught["ce"], "kd": (0.9, kd)}
        d = distill.distiller(digits.small, teach, spec, digits.tx)
        run = digits.learn(d, epochs=30, variables=variables)
        found.append(digits.students(run.state))
        assert digits.score(distill.frozen(digits.small), found[-1])[0] > 0.6
    # The two objectives are a constant apart: the students are the same.
    jax.tree.map(lambda a, b: close(a, b, rtol=0.02, atol=0.02), *found)


def test_the_mean_can_be_cached():
    dataset = toys.dataset()
    variables = (toys.teacher_variables(1), toys.teacher_variables(2))
    teacher = ensemble.mean(ensemble.of([distill.frozen(toys.teacher)] * 2))
    kept = train.cache_teacher(teacher, variables, dataset, view=toys.view)
    batch = toys.view(jax.random.key(0), data.on_device(dataset))
    close(kept, teacher(variables, batch).logits, atol=1e-5)


@pytest.mark.bad_input
def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="teachers must hold at least one"):
        ensemble.of([])
    with pytest.raises(ValueError, match="names must be 2 different ones"):
        ensemble.of([distill.cached] * 2, names=["a", "a"])
    members, variables = committee(logits())
    for bad in ([1, -1, 1], [0, 0, 0], [np.nan, 1, 1], [[1, 1, 1]], []):
        with pytest.raises(ValueError, match="weights must be finite and >= 0"):
            ensemble.mean(members, weights=bad)
        with pytest.raises(ValueError, match="weights must be finite and >= 0"):
            ensemble.each(losses.kd, weights=bad)
    with pytest.raises(ValueError, match="mode must be one of"):
        ensemble.mean(members, mode="median")
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        ensemble.mean(members, temperature=0.0)
    with pytest.raises(ValueError, match=r"weights must have shape \(3,\), got \(2,\)"):
        ensemble.mean(members, weights=[1, 1])(variables, {})
    with pytest.raises(ValueError, match="weights must be 3, one a teacher, got 2"):
        ensemble.each(losses.kd, weights=[1, 1])(logits(1, (6, 5)), logits())
    with pytest.raises(ValueError, match="a tuple, one for each of the 3 teachers"):
        members(variables[:2], {})
    with pytest.raises(ValueError, match="must have at least 3 axes"):
        ensemble.mean(saying(logits()[0]))(None, {})
    with pytest.raises(ValueError, match="teacher_logits must have 3 axes"):
        ensemble.each(losses.kd)(logits(1, (6, 5)), logits(1, (6, 5)))
    with pytest.raises(ValueError, match=r"same classes, got {'0': 5, '1': 4}"):
        odd = [saying(logits()[0]), saying(logits()[1, :, :4])]
        ensemble.of(odd)((None, None), {})
    with pytest.raises(ValueError, match="member .* has no logits"):
        ensemble.of([distill.no_teacher])((None,), {})
    with pytest.raises(ValueError, match="variables must be stacked"):
        ensemble.copies(distill.frozen(toys.teacher))(toys.teacher_variables(), {})


@pytest.mark.bad_input
def test_other_classes_than_the_students_are_refused():
    members, variables = committee(logits(shape=(2, 2, 4)))
    kd = {"kd": (1.0, distill.on_logits(losses.kd))}
    batch = {"image": jnp.zeros((2, 4, 4, 3)), "label": jnp.zeros(2, int)}
    d = distill.distiller(toys.student, ensemble.mean(members), kd, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"4 \(teacher\) and 5 \(student\)"):
        d.init(jax.random.key(0), variables, batch)
