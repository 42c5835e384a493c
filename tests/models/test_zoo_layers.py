"""The zoo's shared layers, and the constructors' examples."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models import _layers

KEY = jax.random.key(0)
CONSTRUCTORS = (
    models.resnet,
    models.imagenet_resnet,
    models.wrn,
    models.vgg,
    models.mobilenet_v1,
    models.mobilenet_v2,
    models.shufflenet_v1,
    models.shufflenet_v2,
    models.vit,
)


@pytest.mark.parametrize("groups", [1, 8])
def test_kernels_start_as_hes_by_fan_out(groups):
    layer = _layers.conv(64, 3, name="c", groups=groups)
    kernel = layer.init(KEY, jnp.ones((1, 4, 4, 32)))["params"]["kernel"]
    assert kernel.shape == (3, 3, 32 // groups, 64)
    # sqrt(2 / (9 * 64)); of 2304 or more draws the deviation is known to 1.5%, thrice.
    assert np.std(kernel) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert abs(np.mean(kernel)) < 0.05 * np.std(kernel) * 2


def test_the_head_starts_as_pytorchs_linear():
    kernel = _layers.head(50, None).init(KEY, jnp.ones((1, 100)))["params"]["kernel"]
    assert 0.099 < jnp.abs(kernel).max() <= 0.1  # uniform in +-1 / sqrt(100)


def test_padding_is_the_same_on_both_sides():
    layer = _layers.conv(1, 3, 2, name="c")
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    # Rows and columns -1, 0, 1, then 1, 2, 3: sums of 0 1 4 5; 1 2 3 5 6 7; and so on.
    wanted = [[10.0, 24.0], [51.0, 90.0]]
    np.testing.assert_array_equal(layer.apply(ones, x)[0, ..., 0], wanted)


def test_shuffle_deals_channels_out():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 12)).astype(np.float32)
    y = np.asarray(_layers.shuffle(jnp.asarray(x), 3))
    for i in range(12):  # channel i of group i // 4 goes to its place in all groups
        np.testing.assert_array_equal(y[..., i % 4 * 3 + i // 4], x[..., i])
    np.testing.assert_array_equal(_layers.shuffle(jnp.asarray(x), 1), x)


@pytest.mark.parametrize("make", CONSTRUCTORS, ids=lambda make: make.__name__)
def test_constructors_explain_every_argument(make):
    text = inspect.getdoc(make) or ""
    sections = ("Args:", "Returns:", "Raises:", "Example:", "References:")
    places = [text.find(f"\n{section}") for section in sections]
    assert -1 not in places and places == sorted(places)
    assert "Taps: " in text
    arguments = text.split("\nArgs:")[1].split("\nReturns:")[0]
    for parameter in inspect.signature(make).parameters:
        assert f"\n  {parameter}: " in arguments, parameter


@pytest.mark.parametrize(
    "example", [*CONSTRUCTORS, _layers.shuffle], ids=lambda make: make.__name__
)
def test_examples_run(example):
    (test,) = doctest.DocTestFinder(recurse=False).find(example, globs={})
    names = vars(inspect.getmodule(example))
    test.globs = dict(names)
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert test.examples and not report, "".join(report)
