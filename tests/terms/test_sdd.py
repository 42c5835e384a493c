"""Logits at each position, and scale decoupled distillation of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, terms
from jaxkd.types import Outputs
from tests.terms import cases


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_mean_of_the_map_is_the_logits(dtype):
    net = terms.logit_maps(cases.student, "stage3")
    x = cases.images(4)["image"].astype(dtype)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    out, _ = jax.jit(lambda v, x: net.apply(*v, x, train=False))(variables, x)
    maps = out.tap("logit_map")
    np.testing.assert_allclose(
        maps.astype(jnp.float32).mean((1, 2)), out.logits, rtol=0.03, atol=0.03
    )
    if dtype == jnp.float32:
        np.testing.assert_allclose(maps.mean((1, 2)), out.logits, rtol=1e-4, atol=1e-5)
    kernel, bias = (variables[0]["head"][name] for name in ("kernel", "bias"))
    want = np.einsum("bhwc,ck->bhwk", out.tap("stage3"), kernel) + np.asarray(bias)
    np.testing.assert_allclose(maps.astype(jnp.float32), want, rtol=0.03, atol=0.03)


def drawn(seed):
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(size=(6, 4, 4, 5)), jnp.float32)
    return Outputs(maps.mean((1, 2)), {"logit_map": maps})


def test_the_term_is_the_loss_of_the_maps_under_both_labels_of_a_mixed_batch():
    s, t, labels = drawn(0), drawn(1), jnp.arange(6, dtype=jnp.int32) % 5
    term = terms.sdd(scales=(1, 2), complementary=3.0)
    assert term.init(jax.random.key(0), s, t, {"label": labels}) == ({}, {})
    maps = s.tap("logit_map"), t.tap("logit_map")
    each = lambda y: losses.sdd(*maps, y, scales=(1, 2), complementary=3.0)
    got, _ = term.apply({}, {}, s, t, {"label": labels})
    np.testing.assert_allclose(got, each(labels), rtol=1e-6)
    other, weight = (labels + 1) % 5, jnp.linspace(0, 1, 6)
    mixed = {"label": labels, "label_other": other, "label_weight": weight}
    got, _ = term.apply({}, {}, s, t, mixed)
    want = weight * each(labels) + (1 - weight) * each(other)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.bad_input
def test_networks_that_do_not_end_so_are_refused():
    x = cases.images(4)["image"]

    def traced(tap, head="head"):
        net = terms.logit_maps(cases.student, tap, head=head)
        run = lambda: net.apply(*net.init(jax.random.key(0), x), x, train=False)
        jax.eval_shape(run)

    with pytest.raises(KeyError, match="stage9"):
        traced("stage9")
    with pytest.raises(KeyError, match="fc"):
        traced("stage3", "fc")
    with pytest.raises(ValueError, match="head must be the variables of a Dense"):
        traced("stage1")
    with pytest.raises(KeyError, match="logit_map"):
        plain = Outputs(drawn(0).logits, {})
        terms.sdd().init(jax.random.key(0), plain, plain, {})
