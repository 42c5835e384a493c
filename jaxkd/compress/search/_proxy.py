"""Zero-cost proxies: what an untrained network says about the trained one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.compress.search._controller import Tokens
from jaxkd.compress.search._evaluators import key_of, once
from jaxkd.compress.search._space import Space
from jaxkd.models.net import Net
from jaxkd.types import Params, State


def synflow(
    net: Net, params: Params, state: State, image_shape: Sequence[int]
) -> Array:
    """Synaptic flow of a network: its sensitivity to all its weights, without data.

    With |W| the absolute weights and an image of ones::

        R = sum of the logits of the network with weights |W|
        synflow = sum over weights of |W| * dR/d|W|

    Args:
      net: any network; its BatchNorm uses the stored statistics, which at the start
        leave features as they are.
      params: at the start, before training.
      state: likewise.
      image_shape: of one image, without the batch axis.

    Returns:
      The logarithm of it, a scalar: synflow itself leaves float32's range in deep
      networks; -inf if nothing flows.

    References:
      H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli. Pruning neural networks without
      any data by iteratively conserving synaptic flow. 2020.
      https://arxiv.org/abs/2006.05467

      M. S. Abdelfattah, A. Mehrotra, L. Dudziak, N. D. Lane. Zero-Cost Proxies for
      Lightweight NAS. 2021. https://arxiv.org/abs/2101.08134
    """
    positive = jax.tree.map(jnp.abs, params)
    ones = jnp.ones((1, *image_shape), jnp.float32)
    # d log R = dR / R, so that no intermediate gradient is larger than R itself.
    flow = lambda p: jnp.sum(net.apply(p, state, ones, train=False)[0].logits)
    total, back = jax.vjp(flow, positive)
    (gradient,) = back(jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0.0))
    shares = jax.tree.map(lambda p, g: jnp.sum(p * g), positive, gradient)
    share = jax.tree.reduce(jnp.add, shares)
    return jnp.log(total) + jnp.log(share)


def naswot(codes: Sequence[Float[Array, "batch *features"]]) -> Array:
    """Return how differently a network's ReLUs treat the images of a batch.

    With c_i the binary code of image i (which of N units are positive) and h the
    Hamming distance::

        K_ij = N - h(c_i, c_j)
        score = log |det K|

    Args:
      codes: features after ReLUs, of one batch: e.g. the taps of stem and stages.

    Returns:
      A scalar; -inf if two images have the same code.

    References:
      J. Mellor, J. Turner, A. Storkey, E. J. Crowley. Neural Architecture Search
      without Training. 2021. https://arxiv.org/abs/2006.04647 equation 2.
    """
    on = [(c > 0).reshape(len(c), -1).astype(jnp.float32) for c in codes]
    # N - h counts the units in which two codes agree: both on, or both off.
    kernel = sum(c @ c.T + (1 - c) @ (1 - c).T for c in on)
    return jnp.linalg.slogdet(kernel)[1]


def proxy(
    space: Space,
    images: Float[Array, "batch height width channels"],
    *,
    kind: str = "naswot",
    taps: Sequence[str] | None = None,
    seed: int = 0,
) -> Callable[[Tokens], dict[str, Any]]:
    """Build the evaluator that scores candidates without training them.

    Both scores grow with the network, so that a limit decides much of the answer: they
    are for sorting out, not for choosing.

    Args:
      space: makes the networks.
      images: a batch as networks see it, some dozens.
      kind: "naswot" or "synflow" (which uses the images' shape only).
      taps: for "naswot", those that follow a ReLU; None takes `stem` and `stage1` ...
        Of a block, only its last ReLU counts, where the paper counts all.
      seed: of the initial weights.

    Returns:
      From tokens to `{"reward"}`; -1e30 where the score is not finite.
    """
    if kind not in ("naswot", "synflow"):
        raise ValueError(f"kind must be 'naswot' or 'synflow', got {kind!r}")

    def evaluation(tokens: Tokens) -> dict[str, Any]:
        net = space.net(tokens)

        def score(key: Array, images: Array) -> Array:
            params, state = net.init(key, images[:1])
            if kind == "synflow":
                return synflow(net, params, state, images.shape[1:])
            outputs, _ = net.apply(params, state, images, train=True)
            wanted = taps or [name for name in outputs.taps if name.startswith("st")]
            return naswot([outputs.tap(name) for name in wanted])

        found = float(once(score)(key_of(seed), images))
        return {"reward": found if abs(found) < 1e30 else -1e30}

    return evaluation
