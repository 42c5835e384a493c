"""Networks of other people: integers compute what the fake-quantized network does."""

import functools

import jax
import numpy as np
import pytest

from jaxkd.compress import quantize as Q
from tests.compress import foreign

LOOPS = {"lstm": "rnn", "gru": "rnn", "scanned": "scan"}
# How far from the network in floats, relative to its largest output; elsewhere .03.
COARSE = {"vit": 0.06, "mixer": 0.05, "cosine": 0.04}
# A kernel for each way in which they use parameters: these run by default.
QUICK = ["same_names", "tied_embedding", "weight_norm", "stacked", "prototypes", "tied"]
SLOW = [name for name in foreign.NETS if name not in {*QUICK, *LOOPS}]


@functools.cache
def ready(name, float_layers=(), lsq=False):
    """The calibrated network."""
    x = foreign.inputs(name)
    net, params, state, shape = foreign.made(name)
    if "batch_stats" in state:
        net, params, state = Q.fold(net, params, state, shape)
    layers = dict.fromkeys(float_layers, Q.FLOAT)
    config = Q.Quantization(lsq=lsq, layers=layers)
    net, params, state = Q.quantized(net, params, state, config, shape)
    return net, params, Q.calibrate(net, params, state, [x]), config


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_integers_are_the_fake_quantized_network(name):
    x = foreign.inputs(name)
    old = foreign.made(name)
    net, params, state, config = ready(name)
    f = Q.deployed(net, params, state, config)
    apply, variables = Q.integer(net, params, state, config)

    @jax.jit
    def outputs(variables, x):
        return (
            old.net.apply(old.params, old.state, x, train=False)[0].logits,
            net.apply(params, state, x, train=False)[0].logits,
            apply(variables, x),
            f(x),
            f.fake(x),
        )

    full, fake, whole, marked, unmarked = outputs(variables, x)
    step = (full.max() - full.min()) / 255
    np.testing.assert_allclose(whole, fake, atol=1.01 * step)
    np.testing.assert_allclose(marked, fake, atol=0.01 * step)
    np.testing.assert_allclose(unmarked, fake, atol=0.01 * step)
    error = np.abs(fake - full).max() / np.abs(full).max()
    assert 0 < error < COARSE.get(name, 0.03)


@pytest.mark.bad_input
@pytest.mark.parametrize("name, path", LOOPS.items())
def test_layers_in_loops_are_refused_or_left_in_floats(name, path):
    x = foreign.inputs(name)
    with pytest.raises(
        ValueError, match=f"a scan at '{path}' holds .*layers={{'{path}'"
    ):
        ready(name)
    net, params, state, config = ready(name, (path,))
    f = Q.deployed(net, params, state, config)
    assert f"scan at '{path}'" in [
        where.replace("the top", "scan") for where in f.floats
    ]
    apply, variables = Q.integer(net, params, state, config)
    assert "head/kernel" in variables["kernels"]
    fake, whole = jax.jit(
        lambda variables, x: (
            net.apply(params, state, x, train=False)[0].logits,
            apply(variables, x),
        )
    )(variables, x)
    np.testing.assert_allclose(whole, fake, atol=float(np.ptp(fake)) / 255)


def sizes(name):
    """Bytes before and after, and the kernels and parameters that integers need."""
    net, params, state, config = ready(name)
    _, variables = Q.integer(net, params, state, config)
    return Q.size(net, params, state), variables


def test_every_use_of_a_parameter_is_stored_and_counted():
    size, variables = sizes("stacked")
    kernels = {name: k["integers"].shape for name, k in variables["kernels"].items()}
    assert kernels == {
        "stem/kernel": (3, 8),
        "kernels:kernel": (8, 8),
        "kernels:1:kernel": (8, 8),
        "kernels:2:kernel": (8, 8),
        "head/kernel": (8, 5),
    }
    assert "kernels" not in variables["params"]
    integers = 24 + 3 * 64 + 40
    floats = 8 + 24 + 5 + 8 + 24 + 5  # biases, and as many scales
    assert size == (4 * (integers + 8 + 24 + 5), integers + 4 * floats)


def test_a_parameter_that_others_read_is_kept():
    _, variables = sizes("prototypes")
    assert "prototypes" in variables["params"]
    assert "kernel" not in variables["params"]["fc"]
    _, variables = sizes("shared")  # called three times, stored once
    assert sum("again" in name for name in variables["kernels"]) == 1


def test_steps_of_slices_are_learned_apart():
    net, params, state, config = ready("stacked", lsq=True)
    steps = params["steps"]["weights"]
    each = [steps[name] for name in ("kernels:kernel", "kernels:1:kernel")]
    # The first slice is four times as large as the second.
    np.testing.assert_allclose(each[0].mean() / each[1].mean(), 4, rtol=0.3)


@pytest.mark.parametrize("name", ["stacked", "tied", "prototypes"])
def test_equalising_leaves_the_function_as_it_is(name):
    """A parameter that serves two ends cannot be scaled for one of them."""
    net, params, state, shape = foreign.made(name)
    other = Q.equalise(net, params, state, shape)
    run = jax.jit(lambda p, x: net.apply(p, state, x, train=False)[0].logits)
    x = foreign.inputs(name)
    np.testing.assert_allclose(run(other, x), run(params, x), rtol=1e-4, atol=1e-5)


def test_biases_in_a_stack_are_not_corrected():
    net, params, state, _ = ready("stacked")
    x = foreign.inputs("stacked")
    after = Q.bias_correction(net, params, state, [x])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, after)
    assert moved == {
        "stem": {"kernel": False, "bias": True},
        "kernels": False,
        "biases": False,
        "head": {"kernel": False, "bias": True},
    }
