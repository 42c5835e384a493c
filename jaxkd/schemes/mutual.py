"""Deep mutual learning: peers that learn together and from each other (2018).

Every peer is trained by an ordinary `distill.distiller`, whose teacher are the other
peers as they are now: a committee (see `schemes.ensemble`) of logits
`[peers - 1, batch, classes]`, without gradient. The paper's objective is

    spec = {
        "ce": (1.0, distill.on_labels(losses.cross_entropy)),
        "mutual": (1.0, distill.on_logits(losses.mutual)),
    }

and any other loss to each of the others is `distill.on_logits(ensemble.each(loss))`.

The state is the `TrainState` of each peer, so that a peer is scored, exported or
trained further like any student: a tuple of them from `distiller`, for networks of any
architecture; one stacked on a leading axis of peers from `copies`.

    d = mutual.distiller((cnn, mlp), spec, optax.adam(1e-3))
    state = d.init(key, None, batch)
    evaluate.scorer(mlp, resident, view=view)(state[1])

References:
  Zhang, Xiang, Hospedales, Lu. `Deep Mutual Learning
  <https://arxiv.org/abs/1706.00384>`_, 2018.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkd import _check, distill
from jaxkd.distill import Distiller, Spec, TrainState
from jaxkd.models.net import Net
from jaxkd.schemes import ensemble
from jaxkd.types import Batch, Metrics, Outputs


def distiller(
    peers: Sequence[Net], spec: Spec, tx: optax.GradientTransformation
) -> Distiller:
    """Train two or more networks that teach each other, in one step.

    All peers take their step at once, each against what the others said before it: the
    paper's Algorithm 1 updates one after another instead, and asks each again after its
    update. What a peer says to the others is what it says in training: with dropout,
    and with the batch's own statistics.

    Args:
      peers: the networks; their architectures may differ, their classes may not. Peer
        i starts from `jax.random.split(key, len(peers))[i]`.
      spec: the objective of every peer. The "teacher" of its terms are the other
        peers; the taps of the j-th one after a peer, in turn, are "j/stage1", from 0.
      tx: the optimiser; each peer has its own state of it.

    Returns:
      The pair of `init` and `step`; teacher variables are None. The state is a tuple
      with the TrainState of each peer. The metrics are those of `distill.distiller`:
      the means over the peers, and each peer's own as "peer0/loss", "peer0/loss/ce".

    Raises:
      ValueError: if there are fewer than two peers, or the spec is empty; at `init`, if
        the classes differ, or if a term does not fit.
    """
    peers = tuple(peers)
    _several("peers", len(peers))
    each = [distill.distiller(net, _said, spec, tx) for net in peers]

    def init(key: Array, variables: None, batch: Batch) -> Any:
        keys = jax.random.split(key, len(peers))
        pairs = zip(peers, keys, strict=True)
        starts = [distill.initialize(net, k, batch) for net, k in pairs]
        # In inference mode, as `distill.distiller` asks its student at `init`.
        said = [
            net.apply(*start, batch["image"], train=False)[0]
            for net, start in zip(peers, starts, strict=True)
        ]
        return tuple(
            d.init(k, _others(said, i), batch)
            for i, (d, k) in enumerate(zip(each, keys, strict=True))
        )

    def step(states: Any, variables: None, batch: Batch) -> tuple[Any, Metrics]:
        said = [
            _speak(net, state, batch) for net, state in zip(peers, states, strict=True)
        ]
        stepped = [
            d.step(state, _others(said, i), batch)
            for i, (d, state) in enumerate(zip(each, states, strict=True))
        ]
        states = tuple(state for state, _ in stepped)
        of_each = jax.tree.map(lambda *m: jnp.stack(m), *(m for _, m in stepped))
        return states, _named(of_each)

    def check(states: Any, columns: Batch, batch: Batch) -> None:
        for d, state in zip(each, states, strict=True):
            d.check(state, columns, batch)

    return Distiller(init, step, check)


def copies(
    net: Net, count: int, spec: Spec, tx: optax.GradientTransformation
) -> Distiller:
    """Train several peers of one architecture by `vmap`, as `distiller` would.

    For MLPs and on accelerators. XLA:CPU is slow at the grouped convolutions that
    `vmap` makes: there, `distiller((net,) * count, ...)`.

    Args:
      net: the network of every peer.
      count: how many, >= 2.
      spec: as in `distiller`.
      tx: as in `distiller`.

    Returns:
      The same as `distiller`, except that the state is one TrainState with a leading
      axis of peers, as `evaluate.scorer` and `ensemble.copies` take it. With
      `train.over_seeds` that axis is the second, and a seed is taken out first.

    Raises:
      ValueError: as `distiller`.
    """
    _check.whole(0)("count", count)
    _several("count", count)
    d = distill.distiller(net, _said, spec, tx)

    def others(said: Outputs) -> Outputs:
        """For each peer the others: rolled along the axis of peers."""
        ahead = lambda x, j: jnp.roll(x, -(j + 1), axis=0)
        taps = {
            f"{j}/{name}": ahead(value, j)
            for j in range(count - 1)
            for name, value in said.taps.items()
        }
        logits = [ahead(said.logits, j) for j in range(count - 1)]
        return Outputs(jnp.stack(logits, 1), taps)

    def init(key: Array, variables: None, batch: Batch) -> TrainState:
        keys = jax.random.split(key, count)

        def first(key: Array) -> Outputs:
            start = distill.initialize(net, key, batch)
            return net.apply(*start, batch["image"], train=False)[0]

        said = others(jax.vmap(first)(keys))
        return jax.vmap(d.init, in_axes=(0, 0, None))(keys, said, batch)

    def step(
        states: TrainState, variables: None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        said = jax.vmap(lambda state: _speak(net, state, batch))(states)
        states, of_each = jax.vmap(d.step, in_axes=(0, 0, None))(
            states, others(said), batch
        )
        return states, _named(of_each)

    return Distiller(init, step, d.check)


def _said(outputs: Outputs, batch: Batch) -> Outputs:
    """Return the teacher whose variables are what it says."""
    return outputs


def _several(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(f"{name} must be two or more, got {count}")


def _speak(net: Net, state: TrainState, batch: Batch) -> Outputs:
    """Return what a peer says in this step: the same forward pass as in its own update.

    The dropout key is split as `distill.distiller` does it, which lets the compiler see
    that the two passes are one.
    """
    _, dropout_key = jax.random.split(state.key)
    return net.apply(*state.student, batch["image"], train=True, key=dropout_key)[0]


def _others(said: Sequence[Outputs], i: int) -> Outputs:
    """Return what all but peer i said, beginning with the one after it."""
    n = len(said)
    names = [str(peer) for peer in range(n)]
    ensemble.side_by_side(said, names)  # names the peer whose classes differ
    others = [said[(i + j + 1) % n] for j in range(n - 1)]
    return ensemble.side_by_side(others, names[:-1])


def _named(of_each: Metrics) -> Metrics:
    """Metrics `[peers]` as scalars: the means, and each peer's."""
    own = {
        f"peer{i}/{name}": value[i]
        for name, value in of_each.items()
        for i in range(len(value))
    }
    return {name: value.mean() for name, value in of_each.items()} | own
