"""What the plan cannot see in a network's code, the check finds and names."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compress import prune
from tests.compress.prune.nets import FlaxResNet, applied, images, made, some


# Each has a twin (`fixed`) that does the same at full width and nothing by a width. The
# twin's plan offers what the network itself cannot do without.
class Block(nn.Module):
    """Adds its input if it is as wide as it was built to be."""

    width: int
    fixed: bool

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), name="conv")(x)
        return x + y if self.fixed or x.shape[-1] == self.width else y


class Branching(nn.Module):
    fixed: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.relu(Block(8, self.fixed, name="block")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Reshaping(nn.Module):
    fixed: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        x = x.reshape(len(x), -1 if self.fixed else 8 * 8 * 4)
        return nn.Dense(3, name="head")(x)


class Scaling(nn.Module):
    """Divides by the number of its channels."""

    fixed: bool

    @nn.compact
    def __call__(self, x):
        return x / jnp.sqrt(8 if self.fixed else x.shape[-1])


class Scaled(nn.Module):
    fixed: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        x = Scaling(self.fixed, name="scaling")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Doubling(nn.Module):
    """A narrow input is convolved at full size, a wide one at half."""

    fixed: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        strides = 2 if self.fixed or x.shape[-1] == 8 else 1
        x = nn.Conv(6, (3, 3), strides=strides, name="second")(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


def checked(module, fixed):
    variables, x = made(module), images()
    plan = prune.analyse(applied(fixed), variables, x)
    return prune.check(applied(module), plan, variables, some(plan), x)


CASES = [
    (
        Branching,
        r"decides by a width: first max in Branching.*has add in Branching/block",
        r"decides by a width: first max in Branching",
    ),
    (
        Reshaping,
        "does not run: in Reshaping: cannot reshape",
        "does not run: in Reshaping: cannot reshape",
    ),
    (
        Scaled,
        r"differ from the masked.*first at a result .sqrt in Scaled/scaling",
        r"another constant than the whole one .sqrt in Scaled/scaling",
    ),
    (
        Doubling,
        r"multiply-accumulates.*conv_general_dilated in Doubling/second",
        r"a width from elsewhere: .*conv_general_dilated in Doubling/second",
    ),
]
NAMES = ["branch", "reshape", "scale", "stride"]


@pytest.mark.parametrize(("make", "says", "_"), CASES, ids=NAMES)
def test_code_that_depends_on_a_width_is_named(make, says, _):
    with pytest.raises(ValueError, match=says):
        checked(make(), make(fixed=True))


@pytest.mark.parametrize(("make", "_", "reason"), CASES, ids=NAMES)
def test_the_plan_does_not_offer_what_the_code_cannot_do_without(make, _, reason):
    plan = prune.analyse(applied(make()), made(make()), images())
    assert "stem" not in {group.name for group in plan.groups}
    reasons = {
        r for f in plan.frozen if f.path.startswith("params/stem/") for r in f.reasons
    }
    assert any(re.search(reason, r) for r in reasons), reasons
    fixed = prune.analyse(applied(make(fixed=True)), made(make()), images())
    assert "stem" in {group.name for group in fixed.groups}
    report = prune.check(applied(make()), plan, made(make()), some(plan), images())
    assert report.difference < 1e-5


def test_groups_that_cannot_be_pruned_do_not_hinder_the_others():
    class Many(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = x.mean((1, 2))
            for i in range(7):
                x = nn.relu(nn.Dense(6, name=f"fc{i}")(x))
                x = x.reshape(-1, 6) if i in (2, 3, 5) else x
            return nn.Dense(3, name="head")(x)

    variables, x = made(Many()), images()
    plan = prune.analyse(applied(Many()), variables, x)
    assert [group.name for group in plan.groups] == ["fc0", "fc1", "fc4", "fc6"]
    assert prune.check(applied(Many()), plan, variables, some(plan), x)


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
    shifted = lambda c: lambda w, x: (1 / (x @ w["a"] + c)) @ w["b"]
    plan = prune.analyse(shifted(1.0), weights, x)
    with pytest.raises(ValueError, match="first at a result"):
        prune.check(shifted(0.0), plan, weights, [0], x)  # 0 * 1/0 in the masked one


def test_shapes_alone_check_the_program():
    module, x = Scaled(fixed=True), images()
    variables = jax.eval_shape(lambda: made(module))
    plan = prune.analyse(applied(module), variables, x)
    report = prune.check(applied(module), plan, variables, [1, 2], x)
    assert np.isnan(report.difference)
    assert (report.macs, report.parameters) == (plan.macs([1, 2]), plan.params([1, 2]))
