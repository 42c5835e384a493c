"""Scale decoupled distillation of networks that end in a mean and a Dense layer."""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jaxkd import _tree, distill, losses
from jaxkd.distill import Term
from jaxkd.models.net import Net
from jaxkd.terms._given import check_linear
from jaxkd.types import Batch, Outputs, Params, State

LOGIT_MAP = "logit_map"


def logit_maps(net: Net, tap: str, *, head: str = "head") -> Net:
    """Return a network with one more tap, "logit_map": its logits at each position.

    A network whose logits are a Dense layer of the mean of its last map computes::

        logit_map = map @ kernel + bias

    whose mean over the positions is its logits. The variables are those of `net`.

    Args:
      net: the network.
      tap: its last map, before the mean.
      head: path of the Dense layer in its params.

    Returns:
      The network. When traced, it raises a KeyError if there is no such tap or layer,
      and a ValueError if the layer does not take the map to the logits.

    Example:
      >>> from jaxkd import terms
      >>> from jaxkd.models import ZOO
      >>> net = terms.logit_maps(ZOO["resnet8x4"](classes=100), "stage3")
    """

    def apply(
        params: Params, state: State, x: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, State]:
        outputs, state = net.apply(params, state, x, train=train, key=key)
        features, layer = outputs.tap(tap), _tree.get(params, head)
        check_linear(layer, features, outputs.logits)
        logits = features @ layer["kernel"].astype(features.dtype)
        if "bias" in layer:
            bias = layer["bias"].astype(features.dtype)
            logits = logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        return outputs._replace(taps={**outputs.taps, LOGIT_MAP: logits}), state

    return Net(net.init, apply)


def sdd(
    *,
    loss: Callable[..., Any] = losses.kd,
    scales: tuple[int, ...] = (1, 2, 4),
    complementary: float = 2.0,
    tap: str = LOGIT_MAP,
) -> Term:
    """`losses.sdd` of two networks whose taps have logits at each position.

    Args:
      loss: of logits, with or without labels; see `losses.sdd`.
      scales: numbers of cells along each side, at most the map's size.
      complementary: weight of regions where exactly one of the teacher's predictions
        is right.
      tap: the map of logits, of `logit_maps` for both networks.

    Returns:
      The term, which has no variables. It raises a KeyError at `init` if a network has
      no such tap.

    Example:
      >>> from jaxkd import terms
      >>> spec = {"sdd": (0.9, terms.sdd(scales=(1, 2)))}

    References:
      Wei, Luo, Luo. `Scale Decoupled Distillation
      <https://arxiv.org/abs/2403.13512>`_, CVPR 2024.
    """
    inner = distill.on_logits_and_labels(
        functools.partial(
            losses.sdd, loss=loss, scales=scales, complementary=complementary
        )
    )

    def local(outputs: Outputs) -> Outputs:
        return outputs._replace(logits=outputs.tap(tap))

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        return inner.init(key, local(s), local(t), batch)

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        return inner.apply(params, state, local(s), local(t), batch)

    return Term(init, apply)
