"""Fine-tune a pruned network, with the unpruned one as its teacher."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import distill, losses
from jaxkd.compress.prune.resized import resized
from jaxkd.distill import Distiller, Spec
from jaxkd.models.net import Net

Variables = tuple[Any, Any]  # (params, state)


def kd_spec() -> Spec:
    """What fine-tuning minimises by default: KL to the teacher, T = 4, and labels."""
    return {
        "ce": (0.1, distill.on_labels(losses.cross_entropy)),
        "kd": (0.9, distill.on_logits(losses.kd, temperature=4.0)),
    }


def from_variables(net: Net, variables: Variables) -> Net:
    """Return the network with pruned variables as its initial ones.

    Its `init` ignores the key; its `apply` takes widths from the variables.

    Args:
      net: the network that was pruned.
      variables: what is left of its `(params, state)`.
    """
    # Copies: training consumes its state, and part of it is also the teacher's.
    return Net(lambda key, x: jax.tree.map(jnp.array, variables), resized(net).apply)


def fine_tuner(
    net: Net,
    pruned: Variables,
    tx: optax.GradientTransformation,
    spec: Spec | None = None,
) -> Distiller:
    """Build the Distiller that trains a pruned network, taught by the unpruned one.

    The unpruned variables are the teacher's and are passed as such::

        params, state = plan.apply((params0, state0), dropped)
        tuner = prune.fine_tuner(net, (params, state), optax.sgd(0.01))
        run = train.learn(tuner, images, teacher=(net, (params0, state0)), view=view,
                          batch_size=64, epochs=3)

    Args:
      net: the network that was pruned.
      pruned: what is left of its `(params, state)`.
      tx: the optimiser; `plan.apply` prunes the state of one that has run before.
      spec: the objective; by default `kd_spec()`. Terms that compare taps whose
        channels are pruned need an adapter.

    Returns:
      The Distiller. Its `init` raises the terms' own errors if they do not fit the
      pruned widths.
    """
    spec = kd_spec() if spec is None else spec
    return distill.distiller(from_variables(net, pruned), distill.frozen(net), spec, tx)
