"""What is trained runs on a GPU and a TPU as it does there best: lowered, not run."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxkd import distill, evaluate, losses, terms, train
from jaxkd.compress import quantize
from jaxkd.data import augment
from jaxkd.models import from_linen, mobilenet_v1, resnet, vit
from jaxkd.models._layers import conv
from tests import lowering, on_eight_devices
from tests.losses import feature_cases, logit_cases, token_cases
from tests.losses.cases import is_float
from tests.lowering import KD, VIEW, lower, operations, problems, resident, shapes
from tests.terms import cases

LOSSES = [*logit_cases.CASES, *token_cases.CASES, *feature_cases.CASES]
TX = optax.sgd(0.1, momentum=0.9)
small_resnet = functools.partial(resnet, 8, classes=10, widths=(2, 2, 3, 4))


def training(net, teacher=distill.no_teacher, spec=KD, variables=None, columns=None):
    """The procedure, and the shapes of its state and of a batch."""
    d = distill.distiller(net, teacher, spec, TX)
    batch = lowering.seen(columns or resident(), augment.to_float())
    state = jax.eval_shape(d.init, jax.random.key(0), variables, batch)
    return d, state, batch


def taught(net, teacher):
    """The step of a network that a live one teaches, and its arguments."""
    variables = lowering.variables_of(teacher, lowering.seen(resident(), VIEW))
    d, state, batch = training(net, distill.frozen(teacher), variables=variables)
    return d.step, state, variables, batch


# Losses and terms


@pytest.mark.parametrize("case", LOSSES, ids=[case.name for case in LOSSES])
def test_a_step_on_a_loss(case):
    inputs = case.draw(np.random.default_rng(0), (4,), case.width)
    floats = {n: jnp.float32(a) for n, a in inputs.items() if is_float(a)}
    rest = {n: a for n, a in inputs.items() if n not in floats}

    def step(floats, rest):
        mean = lambda floats: case.call(
            {n: {**floats, **rest}[n] for n in inputs}
        ).mean()
        loss, grads = jax.value_and_grad(mean)(floats)
        return jax.tree.map(lambda a, g: a - 0.1 * g, floats, grads), loss

    assert problems(step, floats, rest) == []


@pytest.mark.slow
def test_a_step_on_every_term():
    variables = shapes(cases.teacher_variables())
    net, every = on_eight_devices.with_every_term(variables)
    d = distill.distiller(
        on_eight_devices.noisy(net),
        distill.frozen(cases.teacher),
        {name: (1.0, term) for name, term in every.items()},
        TX,
    )
    batch = shapes(cases.images(cases.BATCH))
    state = jax.eval_shape(d.init, jax.random.key(0), variables, batch)
    assert problems(d.step, state, variables, batch) == []


# Epochs


def live():
    net = small_resnet()
    _, state, variables, _ = taught(net, net)
    d = distill.distiller(net, distill.frozen(net), KD, TX)
    return train.make_epoch(d, view=VIEW, batch_size=8), state, variables, resident()


def cached():
    columns = resident(teacher=jax.ShapeDtypeStruct((16, 10), jnp.float32))
    d, state, _ = training(small_resnet(), distill.cached, columns=columns)
    epoch = train.make_epoch(d, view=augment.to_float(), batch_size=8)
    return epoch, state, None, columns


def seeds():
    d, state, _ = training(small_resnet(remat=True), spec=distill.labels_only())
    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), state
    )
    epoch = train.over_seeds(train.make_epoch(d, view=VIEW, batch_size=8))
    return lambda *args: epoch(*args, keys), stacked, None, resident()


@pytest.mark.parametrize("make", [live, cached], ids=["live", "cached"])
def test_an_epoch(make):
    epoch, *args = make()
    assert problems(epoch, *args, jax.random.key(0)) == []
    module = lower(epoch, *args, jax.random.key(0), platform="cuda")
    assert "stablehlo.while" in operations(module)


def test_an_epoch_of_several_seeds_at_once():
    assert problems(*seeds()) == []


@pytest.mark.slow
def test_an_epoch_over_eight_devices(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} {on_eight_devices.FLAGS}"
    file = tmp_path / "results.json"
    subprocess.run(
        [sys.executable, "-m", "tests.lowering", file],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    assert json.loads(file.read_text()) == {"problems": [], "devices": 8}


# Networks


class Small(nn.Module):
    """Two convolutions, the second depthwise."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(conv(6, 3, name="conv")(x))
        x = nn.relu(conv(6, 3, 2, groups=6, name="depthwise")(x))
        return nn.Dense(10)(x.mean((1, 2))), {}


def quantized(config):
    """A small network in fake integers."""
    net = from_linen(Small())
    params, state = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    return quantize.quantized(net, params, state, config, (8, 8, 3))[0]


NETS = {
    "vit": lambda: vit(
        patch=4, width=12, depth=1, heads=3, classes=10, dropout=0.1, drop_path=0.1
    ),
    "depthwise": lambda: mobilenet_v1(classes=10, width=0.0625),
    "bfloat16": lambda: small_resnet(dtype=jnp.bfloat16),
    "quantized": lambda: quantized(quantize.Quantization()),
    "learned_steps": lambda: quantized(quantize.Quantization(lsq=True)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("depthwise", "quantized")))
        for n in NETS
    ],
)
def test_a_step_of(name):
    net = NETS[name]()
    assert problems(*taught(net, net)) == []


@pytest.mark.parametrize("name", ["vit", "depthwise"])
def test_evaluation(name):
    net = NETS[name]()
    _, state, _ = training(net, spec=distill.labels_only())
    metrics = {
        "accuracy": evaluate.accuracy,
        "nll": evaluate.nll,
        "ece": evaluate.ece,
    }

    def measure(state, examples):
        how = {"view": augment.to_float(), "batch_size": 8, "metrics": metrics}
        return evaluate.scorer(net, examples, **how)(state)

    assert problems(measure, state, resident()) == []


# What the check is for


def step_with(change):
    """A step whose images are changed within the network."""
    net = small_resnet()

    def apply(params, state, x, **how):
        return net.apply(params, state, change(x), **how)

    d, state, batch = training(net._replace(apply=apply), spec=distill.labels_only())
    return d.step, state, None, batch


def on_host(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.asarray, shape, lax.stop_gradient(x))


def printed(x):
    jax.debug.print("{}", x.mean())
    return x


@pytest.mark.parametrize("change", [on_host, printed])
def test_a_host_callback_is_found(change):
    (problem,) = problems(*step_with(change))
    assert problem.startswith("host callbacks")


def test_double_precision_is_found(x64):
    widened = lambda x: x.astype(jnp.float64).astype(jnp.float32)
    assert "cuda: float64" in problems(*step_with(widened))


def test_a_call_of_a_library_is_found():
    def whitened(x):
        return x + jnp.linalg.eigh(x[:, :, :, 0])[0][..., None, None].mean()

    (problem,) = problems(*step_with(whitened), platforms=("cuda",))
    assert "cusolver" in problem


def always_on_cpu(*args, cpu, default):
    return cpu(*args)


def by_backend(*args, cpu, default):
    return (cpu if jax.default_backend() == "cpu" else default)(*args)


@pytest.mark.parametrize("choose", [always_on_cpu, by_backend])
@pytest.mark.parametrize("make", [small_resnet, lambda: from_linen(Small())])
def test_a_form_for_the_cpu_is_found(monkeypatch, choose, make):
    monkeypatch.setattr(lax, "platform_dependent", choose)
    net = make()
    found = problems(*taught(net, net))
    for platform in lowering.ACCELERATORS:
        assert any(
            line.startswith(platform) and "stablehlo.convolution" in line
            for line in found
        )


def test_every_loss_and_term_is_here():
    no_losses = {"class_costs", "ensemble_logits"}  # they make targets
    assert {case.loss.__name__ for case in LOSSES} == set(losses.__all__) - no_losses
    _, every = on_eight_devices.with_every_term(shapes(cases.teacher_variables()))
    # terms.sdd is losses.sdd of the taps of `logit_maps`, which is lowered as a loss.
    helpers = {"margins", "measured_margins", "distilled", "logit_maps", "sdd"}
    made = {n for n in terms.__all__ if callable(getattr(terms, n))}
    assert made - helpers - set(every) == set()
