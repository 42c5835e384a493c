"""A small pair of networks with every troublesome part, and data for them."""

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxkd import data, distill, losses
from jaxkd.data import augment
from jaxkd.models.net import from_linen


class Toy(nn.Module):
    """Has batch statistics, dropout and a tap."""

    width: int
    classes: int = 5

    @nn.compact
    def __call__(self, x, train):
        taps = {}
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = taps["hidden"] = nn.relu(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.classes)(x), taps


def mean_square(a, b):
    return ((a - b) ** 2).mean(-1)


student, teacher = from_linen(Toy(6)), from_linen(Toy(9))
labels_only = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
spec = {
    "ce": (0.5, distill.on_labels(losses.cross_entropy)),
    "kd": (
        optax.linear_schedule(0, 1, 10),
        distill.on_logits(losses.kd, temperature=2.0),
    ),
    "hint": (
        1.0,
        distill.on_taps(
            mean_square, "hidden", "hidden", lambda shape: nn.Dense(shape[-1])
        ),
    ),
}
view = augment.to_float()


def dataset(n=40, seed=0):
    """Images whose brightness tells their class: there is something to learn."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n).astype(np.int32)
    images = rng.integers(0, 60, (n, 4, 4, 3)) + 45 * labels[:, None, None, None]
    return data.Dataset.of_images(
        name="toy",
        split="train",
        images=images.astype(np.uint8),
        labels=labels,
        index=np.arange(n, dtype=np.int32),
        classes=tuple("abcde"),
    )


def teacher_variables(seed=9):
    init = jax.jit(teacher.init)
    return init(jax.random.key(seed), np.zeros((2, 4, 4, 3), np.float32))
