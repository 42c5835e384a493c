"""Networks as people write them: what a plan offers can be pruned, exactly."""

import jax
import numpy as np
import pytest

from jaxkd.compress import prune
from tests.compress import foreign
from tests.compress.prune.nets import some

# Whose channels all stay, with a part of the reason.
FROZEN = {
    "lstm": "a part of it is cut out (split",
    "gru": "does not run: in GRUCell_0",
    "written_out_lstm": "does not run: in cell/",
    "gated": "a part of it is cut out (split",
    "fused_qkv": "a part of it is cut out (split",
    "tied": "an input of the network",
}
# Three of many groups take a third of the time of all.
SOME_SLOW = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("vit", "densenet", "unet")))
    for name in foreign.NETS
]


@pytest.mark.parametrize("name", SOME_SLOW)
@jax.numpy_rank_promotion("allow")
def test_every_group_that_is_offered_can_be_pruned_alone_and_with_the_others(name):
    net, params, state, shape = foreign.made(name)
    plan = prune.analyse_net(net, params, state, shape)
    reasons = {reason for frozen in plan.frozen for reason in frozen.reasons}
    assert bool(plan.groups) == (name not in FROZEN)
    assert any(FROZEN.get(name, "a result of the network") in r for r in reasons)
    check = lambda dropped, x: prune.check_net(
        net, plan, params, state, dropped, x, tolerance=1e-5
    )
    one = jax.ShapeDtypeStruct((1, *shape), np.float32)
    for group in plan.groups:
        for dropped in (group.units[:1], group.units[1:]):
            assert check(dropped, one).macs == plan.macs(dropped)
    x = foreign.inputs(name, 2)
    assert check(some(plan), x).difference < 1e-5
    assert check(some(plan, 1.0), x).difference < 1e-5  # one unit of each is left
