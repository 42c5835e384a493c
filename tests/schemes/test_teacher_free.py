"""Soft labels without a better teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill
from jaxkd.schemes import teacher_free
from tests.schemes import digits


def objective(spec, s, t, labels):
    """The weighted sum of a spec on given logits."""
    outputs = [distill.Outputs(z, {}) for z in (s, t)]
    batch = {"label": labels}
    total = 0.0
    for weight, term in spec.values():
        variables = term.init(jax.random.key(0), *outputs, batch)
        total += weight * term.apply(*variables, *outputs, batch)[0]
    return total


def test_they_are_the_papers_objectives():
    s, t = (jax.random.normal(jax.random.key(i), (6, 4)) for i in (0, 1))
    y = jnp.arange(6) % 4
    onehot = np.eye(4)[y]
    log_q = lambda z, T=1.0: np.asarray(jax.nn.log_softmax(z / T), np.float64)
    cross = lambda p, z, T=1.0: -(p * log_q(z, T)).sum(-1)

    found = objective(teacher_free.smoothed(0.2), s, t, y)
    np.testing.assert_allclose(found, cross(0.8 * onehot + 0.05, s), rtol=1e-5)

    virtual = np.where(onehot, 0.9, 0.1 / 3) ** (1 / 5)
    virtual /= virtual.sum(-1, keepdims=True)
    kl = cross(virtual, s, 5) + (virtual * np.log(virtual)).sum(-1)
    spec = teacher_free.virtual(0.3, confidence=0.9, temperature=5.0)
    found = objective(spec, s, t, y)
    np.testing.assert_allclose(found, 0.7 * cross(onehot, s) + 0.3 * kl, rtol=1e-4)

    p = np.exp(log_q(t, 2))
    kl = 4 * (cross(p, s, 2) + (p * np.log(p)).sum(-1))
    found = objective(teacher_free.self_training(0.3, temperature=2.0), s, t, y)
    np.testing.assert_allclose(found, 0.7 * cross(onehot, s) + 0.3 * kl, rtol=1e-4)


def test_on_digits_without_a_teacher_and_with_a_copy_of_itself():
    pretrained = None
    for spec in (teacher_free.smoothed(), teacher_free.virtual(0.5)):
        d = distill.distiller(digits.small, distill.no_teacher, spec, digits.tx)
        run = digits.learn(d, epochs=10, n=300)
        pretrained = digits.students(run.state)
        assert digits.score(distill.frozen(digits.small), pretrained)[0] > 0.7
    itself = distill.frozen(digits.small)
    d = distill.distiller(
        digits.small, itself, teacher_free.self_training(0.5), digits.tx
    )
    run = digits.learn(d, epochs=10, n=300, variables=pretrained, seed=1)
    assert digits.score(itself, digits.students(run.state))[0] > 0.7


@pytest.mark.bad_input
def test_weights_out_of_range_are_refused():
    for make in (
        lambda: teacher_free.smoothed(1.5),
        lambda: teacher_free.virtual(-0.1),
        lambda: teacher_free.virtual(0.5, confidence=1.0),
        lambda: teacher_free.virtual(0.5, temperature=0.0),
        lambda: teacher_free.self_training(1.1),
        lambda: teacher_free.self_training(0.5, temperature=-1.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
