"""A small pair of networks with all the taps that a recipe may look at."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.models.net import from_linen

CLASSES, SIZE = 5, 8


class Small(nn.Module):
    """A stem and three stages, of which the later two halve the map."""

    width: int

    @nn.compact
    def __call__(self, x, train):
        taps = {}
        x = taps["stem"] = nn.relu(nn.Conv(self.width, (3, 3), name="stem")(x))
        for i in (1, 2, 3):
            stride = 1 if i == 1 else 2
            width = self.width * i
            x = nn.Conv(width, (3, 3), strides=stride, name=f"stage{i}_conv")(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"stage{i}_norm")(x)
            taps[f"stage{i}_pre"] = x
            x = taps[f"stage{i}"] = nn.relu(x)
        x = taps["pooled"] = x.mean((1, 2))
        return nn.Dense(CLASSES, name="head")(x), taps


student, teacher = from_linen(Small(3)), from_linen(Small(4))


@functools.cache
def dataset(n=24):
    rng = np.random.default_rng(0)
    return data.Dataset.of_images(
        name="small",
        split="train",
        images=rng.integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8),
        labels=(np.arange(n) % CLASSES).astype(np.int32),
        index=np.arange(n, dtype=np.int32),
        classes=tuple("abcde"),
    )


@functools.cache
def example(n=6):
    few = dataset()
    return {
        "image": jnp.asarray(few.images[:n] / np.float32(255) - 0.5),
        "label": jnp.asarray(few.labels[:n]),
        "index": jnp.asarray(few.index[:n]),
    }


@functools.cache
def shapes():
    """The teacher's variables, as shapes only."""
    return jax.eval_shape(teacher.init, jax.random.key(1), example()["image"])
