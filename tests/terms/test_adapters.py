"""Resizing, and the modules that carry a student's features to a teacher's shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.terms.adapters import Adapter, Match, resize

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def shapes(module, x):
    """Of its parameters and its output; nothing is computed."""
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    sizes = jax.tree.map(lambda leaf: leaf.shape, variables.get("params", {}))
    return sizes, out.shape


def test_an_axis_that_shrinks_is_averaged_one_that_grows_interpolated():
    x = jnp.array([[1.0, 3.0, 5.0, 7.0]]).reshape(1, 4, 1, 1)
    close(resize(x, (2, 1)).ravel(), [2, 6])  # means of two
    # Between the middles of the two cells linear, beyond them constant.
    close(resize(x[:, :2], (4, 1)).ravel(), [1, 1.5, 2.5, 3])
    both = resize(normal(2, 4, 2, 3), (2, 4))
    assert both.shape == (2, 2, 4, 3)
    close(both, resize(resize(normal(2, 4, 2, 3), (2, 2)), (2, 4)))


def test_resizing_to_the_same_size_is_nothing():
    x = normal(2, 3, 5, 4)
    np.testing.assert_array_equal(resize(x, (3, 5)), x)
    np.testing.assert_allclose(resize(jnp.ones((1, 3, 5, 1)), (7, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "target", "kernel"),
    [
        ((2, 6), (9, 4), {"dense": {"bias": (4,), "kernel": (6, 4)}}),
        ((2, 5, 6), (9, 5, 4), {"conv": {"bias": (4,), "kernel": (1, 6, 4)}}),
        ((2, 4, 8, 6), (9, 8, 2, 4), {"conv": {"bias": (4,), "kernel": (1, 1, 6, 4)}}),
    ],
)
def test_adapter_arrives_at_the_shape_for_any_batch(shape, target, kernel):
    sizes, out = shapes(Adapter(target), normal(*shape))
    assert sizes == kernel
    assert out == (shape[0], *target[1:])


def test_adapter_is_its_product():
    x = normal(3, 2, 2, 5)
    out, variables = Adapter((1, 2, 2, 4)).init_with_output(jax.random.key(0), x)
    layer = variables["params"]["conv"]
    close(out, jnp.einsum("bhwc,cd->bhwd", x, layer["kernel"][0, 0]))


def test_adapter_is_made_where_the_map_is_small():
    # Resized before the product if it shrinks, after it if it grows: the same, since
    # both are linear and a 1x1 convolution keeps the weights of the positions.
    x = normal(1, 4, 2, 3)
    module = Adapter((1, 2, 4, 2))
    out, variables = module.init_with_output(jax.random.key(0), x)
    kernel = variables["params"]["conv"]["kernel"][0, 0]
    close(out, resize(jnp.einsum("bhwc,cd->bhwd", x, kernel), (2, 4)), rtol=1e-4)


def test_adapters_batch_norm_is_of_the_batch_and_replaces_the_bias():
    x = 3 + 2 * normal(16, 2, 2, 5)
    module = Adapter((1, 2, 2, 4), kernel=3, norm=True)
    out, variables = module.init_with_output(jax.random.key(0), x)
    assert set(variables["params"]["conv"]) == {"kernel"}
    assert variables["params"]["conv"]["kernel"].shape == (3, 3, 5, 4)
    close(out.mean((0, 1, 2)), 0, atol=1e-5)
    close(out.var((0, 1, 2)), 1, rtol=1e-3)
    seen, changed = module.apply(variables, x, mutable=["batch_stats"])
    close(seen, out)
    mean = changed["batch_stats"]["norm"]["mean"]
    assert (mean != variables["batch_stats"]["norm"]["mean"]).all()


def test_adapters_relu_comes_last_but_for_enlarging():
    x = normal(3, 2, 2, 5)
    module = Adapter((1, 4, 2, 4), norm=True, relu=True)
    plain = Adapter((1, 2, 2, 4), norm=True)
    out, variables = module.init_with_output(jax.random.key(0), x)
    linear, _ = plain.apply(variables, x, mutable=["batch_stats"])
    assert (linear < 0).any()
    close(out, resize(jnp.maximum(linear, 0), (4, 2)))


@pytest.mark.bad_input
def test_token_sequences_are_not_resized():
    tokens = jnp.zeros((1, 18, 1)).at[:, :2].set(1.0)
    np.testing.assert_array_equal(resize(tokens, (18,)), tokens)
    for length in (17, 65):
        with pytest.raises(
            ValueError, match=r"\(1, 18, 1\) and \(1, .*reshape the pat"
        ):
            resize(tokens, (length,))
        for module in (Adapter((1, length, 4)), Match((1, length, 1))):
            with pytest.raises(ValueError, match="equal lengths"):
                shapes(module, tokens)


@pytest.mark.bad_input
def test_adapter_refuses_a_vector_for_a_map():
    with pytest.raises(ValueError, match=r"\(2, 6\) \(student\) and \(2, 3, 3, 4\)"):
        shapes(Adapter((2, 3, 3, 4)), normal(2, 6))


def test_match_adds_no_more_than_it_takes():
    x = normal(2, 4, 4, 3)
    assert shapes(Match((9, 4, 4, 3)), x) == ({}, (2, 4, 4, 3))
    np.testing.assert_array_equal(Match((9, 4, 4, 3)).apply({}, x), x)
    assert shapes(Match((9, 2, 2, 3)), x) == ({}, (2, 2, 2, 3))
    assert shapes(Match((9, 2, 2, 3), space=False), x) == ({}, (2, 4, 4, 3))
    sizes, out = shapes(Match((9, 2, 2, 5)), x)
    assert sizes["adapter"]["conv"]["kernel"] == (1, 1, 3, 5)
    assert out == (2, 2, 2, 5)
    assert shapes(Match((9, 2, 2, 5), space=False), x)[1] == (2, 4, 4, 5)
    assert shapes(Match((9, 5)), normal(2, 3))[1] == (2, 5)
