"""What a model is worth after a stage, on the test images."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxkd import cost, distill, evaluate
from jaxkd.pipeline import networks
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.run_data import RunData


def logits(held: Model, splits: RunData) -> Float[np.ndarray, "examples classes"]:
    """Of every test image, float32."""
    predict = functools.partial(evaluate.predict, distill.frozen(held.net))
    images = {"image": splits.test.images, "label": splits.test.labels}
    answer = jax.jit(
        lambda variables, resident: predict(variables, resident, view=splits.plain)
    )((held.params, held.state), images)
    return np.asarray(answer, np.float32)


def quality(logits: Any, labels: Any, teacher: Any) -> dict[str, float | None]:
    """Accuracy, nll, ece, and agreement with a teacher if there is one."""
    found: dict[str, float | None] = {
        "accuracy": float(evaluate.accuracy(logits, labels)),
        "nll": float(evaluate.nll(logits, labels)),
        "ece": float(evaluate.ece(logits, labels)),
        "agreement": None,
    }
    if teacher is not None:
        found["agreement"] = float(evaluate.agreement(logits, teacher))
    return found


def by_class(logits: Any, labels: Any, classes: int) -> list[float | None]:
    """Accuracy on the images of each class; None for a class without images."""
    right = np.argmax(np.asarray(logits), -1) == np.asarray(labels)
    groups = [right[np.asarray(labels) == label] for label in range(classes)]
    return [float(group.mean()) if len(group) else None for group in groups]


def size(held: Model, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Parameters, multiply-accumulates of one image, bytes, and whether quantized."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    forward = lambda params, state, x: held.net.apply(params, state, x, train=False)[0][
        0
    ]
    return {
        "parameters": cost.parameters(networks.without_steps(held.params)),
        "macs": cost.macs(forward, held.params, held.state, image),
        "bytes": networks.stored_bytes(held),
        "quantized": networks.is_quantized(held),
    }
