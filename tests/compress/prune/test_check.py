"""What the plan cannot see in a network's code, the check finds and names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import prune
from tests.compress.prune.nets import FlaxResNet, applied, images, made, some


class Block(nn.Module):
    """Adds its input if it is as wide as it was built to be."""

    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), name="conv")(x)
        return x + y if x.shape[-1] == self.width else y


class Branching(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        return nn.Dense(3, name="head")(nn.relu(Block(8, name="block")(x)).mean((1, 2)))


class Reshaping(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        return nn.Dense(3, name="head")(nn.relu(x).reshape(len(x), 8 * 8 * 4))


class Scaling(nn.Module):
    """Divides by the number of its channels."""

    @nn.compact
    def __call__(self, x):
        return x / jnp.sqrt(x.shape[-1])


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        return nn.Dense(3, name="head")(Scaling(name="scaling")(x).mean((1, 2)))


class Doubling(nn.Module):
    """A narrow input is convolved at full size, a wide one at half."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        strides = 2 if x.shape[-1] == 8 else 1
        x = nn.Conv(6, (3, 3), strides=strides, name="second")(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


def checked(module, dropped=None, **how):
    variables, x = made(module), images()
    plan = prune.analyse(applied(module), variables, x, **how)
    dropped = some(plan) if dropped is None else dropped
    return prune.check(applied(module), plan, variables, dropped, x)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            Branching(),
            r"decides by a width: first max in Branching.*"
            r"has add in Branching/block",
        ),
        (Reshaping(), "does not run: in Reshaping: cannot reshape"),
        (
            Scaled(),
            r"differ from the masked.*first at a result .sqrt in Scaled/scaling",
        ),
        (Doubling(), r"multiply-accumulates.*conv_general_dilated in Doubling/second"),
    ],
    ids=["branch", "reshape", "scale", "stride"],
)
def test_code_that_depends_on_a_width_is_named(module, says):
    with pytest.raises(ValueError, match=says):
        checked(module)


def test_channels_can_be_left_out_that_the_code_depends_on():
    report = checked(Reshaping(), dropped=[], exclude="stem/*")
    assert report.difference == 0


def test_a_shortcut_that_is_decided_by_the_shape_is_caught_where_widths_meet():
    """flax's example projects if shapes differ: prune both sides to one width."""
    module = FlaxResNet()
    variables, x = made(module), images()
    plan = prune.analyse(applied(module), variables, x)
    wide = plan.group("BottleneckBlock_0/Conv_2")
    dropped = wide.units[6:]  # as many as the stem's
    with pytest.raises(ValueError, match="BottleneckBlock_0"):
        prune.check(applied(module), plan, variables, dropped, x)


def test_numbers_that_are_not_are_found():
    apply = lambda w, x: jnp.log(x @ w["a"] - 1e9) @ w["b"]
    weights, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((2, 3))
    plan = prune.analyse(apply, weights, x)
    report = prune.check(apply, plan, weights, [0], x)  # NaN in both, in all places
    assert report.difference == 0
    apply = lambda w, x: (1 / (x @ w["a"])) @ w["b"]
    plan = prune.analyse(apply, weights, x)
    with pytest.raises(ValueError, match="first at a result"):
        prune.check(apply, plan, weights, [0], x)  # 0 * 1/0 in the masked one


def test_shapes_alone_check_the_program():
    module, x = Scaled(), images()
    variables = jax.eval_shape(lambda: made(module))
    plan = prune.analyse(applied(module), variables, x)
    report = prune.check(applied(module), plan, variables, [1, 2], x)
    assert np.isnan(report.difference)
    assert (report.macs, report.parameters) == (plan.macs([1, 2]), plan.params([1, 2]))
