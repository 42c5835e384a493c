"""What the tests of single Terms share: outputs without a network, and two checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.types import Outputs


def outputs(seed, width, *, batch=6, classes=5):
    """Normal numbers in the shapes of a network: two maps, a vector, logits."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)
    taps = {
        "stage1": draw(4, 4, width),
        "stage2": draw(2, 2, width + 1),
        "pooled": draw(width + 1),
    }
    return Outputs(draw(classes), taps)


def batch(index, labels=None):
    index = np.asarray(index, np.int32)
    labels = np.zeros_like(index) if labels is None else np.asarray(labels, np.int32)
    return {"index": jnp.asarray(index), "label": jnp.asarray(labels)}


def normalised(x, variables, epsilon=1e-5):
    """BatchNorm with the statistics of the batch, in float64."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon)
    return x * np.asarray(variables["scale"]) + np.asarray(variables["bias"])


def descend(term, s, t, batch, *, steps=30, rate=1e-2, key=0):
    """Trains the term's own parameters: first and last variables, the losses."""
    tx = optax.adam(rate)

    def step(carry, _):
        params, state, opt_state = carry

        def objective(params):
            loss, new = term.apply(params, state, s, t, batch)
            return loss.mean(), new

        (loss, state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    def run(key):
        params, state = term.init(key, s, t, batch)
        carry = params, state, tx.init(params)
        carry, loss = jax.lax.scan(step, carry, length=steps)
        return (params, state), carry[:2], loss

    first, last, loss = jax.jit(run)(jax.random.key(key))
    return first, last, np.asarray(loss)


def unequal(before, after):
    """Whether each leaf moved."""
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    return jax.tree.leaves(moved)


def two_seeds_are_two_runs(term, s, t, batch):
    """`vmap` over keys does what each key does alone."""

    def run(key):
        params, state = term.init(key, s, t, batch)
        return term.apply(params, state, s, t, batch)

    keys = jax.random.split(jax.random.key(3), 2)
    together = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(run)(keys[1])
    close = lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, together, alone)
    assert together[0].shape == (2, len(s.logits))
