"""The numbers of the literature, or of a sum on paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxkd import cost, models

# 3x3 convolutions: 9 * in * out * positions; dense: in * out.
TEACHER_MACS = (
    9 * (3 * 128 + 128 * 64) * 32**2
    + 9 * (64 * 64 + 64 * 32) * 16**2
    + 2048 * 512
    + 512 * 10
)
STUDENT_MACS = 9 * 3 * 16 * 32**2 + 9 * 16 * 16 * 16**2 + 1024 * 256 + 256 * 10


@pytest.mark.parametrize(
    ("net", "shape", "parameters", "macs"),
    [
        (models.cnn(**models.CNNS["teacher"]), (32, 32, 3), 1_186_986, TEACHER_MACS),
        (models.cnn(**models.CNNS["student"]), (32, 32, 3), 267_738, STUDENT_MACS),
        # 784 * 1200 + 1200**2 + 12000 products, and 2410 biases.
        (models.mlp(**models.MLPS["teacher"]), (28, 28, 1), 2_395_210, 2_392_800),
        (models.mlp(**models.MLPS["student"]), (28, 28, 1), 199_210, 198_800),
    ],
)
def test_presets_cost_what_a_sum_on_paper_says(net, shape, parameters, macs):
    assert cost.of(net, shape) == (parameters, macs, 4 * parameters)


class MobileNetV1(nn.Module):
    """Howard et al. (2017), table 1, without normalisation."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3), 2, use_bias=False)(x)
        strides = {1: 2, 3: 2, 5: 2, 11: 2}
        for i, c in enumerate([64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]):
            width = x.shape[-1]
            x = nn.Conv(
                width,
                (3, 3),
                strides.get(i, 1),
                feature_group_count=width,
                use_bias=False,
            )(x)
            x = nn.Conv(c, (1, 1), use_bias=False)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def test_depthwise_network_of_the_literature():
    net = MobileNetV1()
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert cost.macs(net.apply, variables, x) == 568_740_352


def test_a_scan_counts_its_length_and_a_cond_its_dearest_branch():
    w = jnp.ones((4, 4))
    scanned = lambda x: lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]
    assert cost.macs(scanned, jnp.ones((2, 4))) == 7 * 2 * 4 * 4
    branches = lambda x: lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
    assert cost.macs(branches, jnp.ones((2, 4))) == 2 * 2 * 4 * 4


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_transformed_functions_are_entered(wrap):
    w = jnp.ones((3, 5))
    assert cost.macs(wrap(lambda x: x @ w), jnp.ones((2, 3))) == 2 * 3 * 5


def test_the_layout_of_a_convolution_does_not_matter():
    x, w = jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 4))  # NCHW, OIHW
    convolve = lambda x, w: lax.conv(x, w, (1, 1), "SAME")
    assert cost.macs(convolve, x, w) == 5 * 8 * 8 * 3 * 2 * 4


def test_bytes_follow_the_type():
    tree = {"a": jnp.ones(3, jnp.bfloat16), "b": [jnp.ones((2, 2), jnp.int8)]}
    assert (cost.parameters(tree), cost.bytes(tree)) == (7, 3 * 2 + 4)
