"""All Terms at once, on real images and residual networks."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, terms, train
from jaxkd.data import augment
from jaxkd.models.resnet import resnet
from tests.terms import cases
from tests.terms.cases import CASES

STEPS, BATCH, IMAGES = 20, 32, 256
# Nearly all of its time goes by compiling what then runs for seconds.
QUICK = {
    "compiler_options": {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
}


def made(params, images):
    """Every Term; those that are made of the teacher's variables, of this one's."""
    blocks = {f"stage{i}_pre": f"stage{i}_block1/norm2" for i in (1, 2, 3)}
    shapes = [(3, 3, 128, 128), (3, 3, 128, 64), (3, 3, 64, 64)]
    rng = np.random.default_rng(0)
    layer = lambda s: {
        "kernel": rng.normal(0, s[2] ** -0.5 / 3, s).astype(np.float32),
        "bias": np.zeros(s[-1], np.float32),
    }
    encoder = {f"conv{i}": layer(s) for i, s in enumerate(shapes, start=1)}
    index, labels = images.index, images.labels
    own = {
        "ofd": partial(terms.ofd, margins=terms.margins(params, blocks)),
        "factor_transfer": partial(
            terms.factor_transfer, paraphraser={"encoder": encoder}
        ),
        "crd": partial(terms.crd, index=index, labels=labels, negatives=64),
        "srrl": partial(terms.srrl, head=params["head"]),
    }
    return {c.name: own.get(c.name, c.make)(c.taps) for c in CASES}


@pytest.fixture(scope="module")
def run():
    """First and last state, and the loss of every Term at every step."""
    if "JAXKD_ARCHIVES" not in os.environ:
        pytest.skip("needs the official archives: set JAXKD_ARCHIVES")
    images = data.subset(data.load("cifar100", "train"), IMAGES, seed=0)
    view = augment.chain(
        augment.to_float(), augment.normalise(*data.channel_statistics(images))
    )
    resident = data.on_device(images)
    student = resnet(8, classes=100)
    teacher = resnet(8, classes=100, widths=(16, 32, 64, 128))
    variables = jax.jit(teacher.init, **QUICK)(
        jax.random.key(1), train.example(resident, view)["image"]
    )
    every = made(variables[0], images)

    def learner(weights):
        spec = {name: (weights[name], term) for name, term in every.items()}
        return distill.distiller(
            student, distill.frozen(teacher), spec, optax.adam(3e-3)
        )

    state = jax.jit(learner(dict.fromkeys(every, 0.0)).init, **QUICK)(
        jax.random.key(0), variables, train.example(resident, view)
    )

    @partial(jax.jit, **QUICK)
    def go(state, variables, resident, order):
        def step(carry, indices):
            state, weights = carry
            batch = view(jax.random.key(0), data.gather(resident, indices))
            new, metrics = learner(weights).step(state, variables, batch)
            # The first step only measures: every Term then has the same share.
            share = {n: 1 / (jnp.abs(metrics[f"loss/{n}"]) + 1e-3) for n in every}
            first = state.step == 0
            weights = {n: jnp.where(first, share[n], weights[n]) for n in every}
            return (new, weights), metrics

        nothing = {name: jnp.zeros(()) for name in every}
        (last, _), metrics = jax.lax.scan(step, (state, nothing), order)
        return last, metrics

    order = np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH) % IMAGES
    last, metrics = go(state, variables, resident, order)
    return state, last, jax.tree.map(np.asarray, metrics)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=cases.NAMES)
def test_learns_beside_all_the_others(run, case):
    first, last, metrics = run
    loss = metrics[f"loss/{case.name}"]
    assert np.isfinite(loss).all()
    if case.name == "crd":
        # Once the banks hold what the networks say, and nothing random, the task is
        # harder: only the first pass over the images, eight steps, compares like.
        assert loss[4:8].mean() < loss[:4].mean()
    else:
        assert loss[-8:].mean() < loss[:8].mean()
    pair = (s.params["terms"][case.name] for s in (first, last))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), *pair)
    assert all(jax.tree.leaves(moved))
