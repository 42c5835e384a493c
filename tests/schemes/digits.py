"""Real images for the schemes to learn from: the digits that come with the package."""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxkd import data, distill, evaluate, losses, models, train
from jaxkd.data import augment

tx = optax.adam(3e-3)
small, large = models.mlp([16], classes=10), models.mlp([64, 64], classes=10)
labels = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
taught = {
    "ce": (0.1, distill.on_labels(losses.cross_entropy)),
    "kd": (0.9, distill.on_logits(losses.kd, temperature=4.0)),
}


@functools.cache
def images(split, n=None):
    """A split on the device, or n of its images."""
    dataset = data.load("digits", split)
    return data.on_device(dataset if n is None else data.subset(dataset, n, seed=0))


@functools.cache
def view():
    statistics = data.channel_statistics(data.load("digits", "train"))
    return augment.chain(augment.to_float(), augment.normalise(*statistics))


def example():
    return train.example(images("train"), view())


def learn(d, *, epochs, n=100, seeds=None, variables=None, batch_size=50, seed=0):
    """Trains on n images; several seeds at once by vmap."""
    key = jax.random.key(seed)
    init, epoch = d.init, train.make_epoch(d, view=view(), batch_size=batch_size)
    if seeds is not None:
        key = jax.random.split(key, seeds)
        init = jax.vmap(init, in_axes=(0, None, None))
        epoch = train.over_seeds(epoch)
    resident = images("train", n)
    state = jax.jit(init)(key, variables, example())
    return train.fit(
        epoch, state, variables, resident, key=key, epochs=epochs, progress=False
    )


def students(state):
    """What a trained student's teacher variables are."""
    return state.params["student"], state.state["student"]


@functools.partial(jax.jit, static_argnums=0)
def _score(teacher, variables, resident):
    logits = evaluate.predict(teacher, variables, resident, view=view())
    label = resident["label"]
    return evaluate.accuracy(logits, label), evaluate.nll(logits, label)


def score(teacher, variables):
    """Test accuracy and negative log-likelihood of any teacher."""
    return tuple(jnp.asarray(_score(teacher, variables, images("test"))).tolist())
