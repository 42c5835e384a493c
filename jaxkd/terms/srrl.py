"""Softmax regression representation learning (Yang et al., 2021)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array

from jaxkd import losses
from jaxkd.distill import Term, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.terms import _pairs
from jaxkd.terms._given import check_linear, given, linear
from jaxkd.terms.adapters import Adapter
from jaxkd.types import Batch, Outputs, Params, State


def srrl(pair: _pairs.Pairs = "pooled", *, head: Any) -> Term:
    """Return the student's features, and what the teacher's classifier says of them.

    With r(s) the student's features after a connector (1x1 convolution or Dense layer,
    BatchNorm, ReLU), averaged over positions if they are maps, g the same of the
    teacher's, and h the teacher's frozen head with K classes::

        loss = mean_u (r(s)_u - g_u)**2 + 1/K sum_k (h(r(s))_k - t_k)**2

    t are the teacher's logits. The weight of the authors' code is 1, beside a
    cross-entropy of weight 1. The ReLU fits features that the teacher's own ReLU ends.

    Args:
      pair: the taps that the two heads see, as vectors or as maps before the averaging.
      head: the teacher's last layer, `{"kernel", "bias"}`, e.g. `params["head"]`,
        arrays or only their shapes; kept in the state and never moved.

    Returns:
      The term. Its parameters are the connector's; its state is the head and the
      connector's batch statistics.

    Raises:
      ValueError: at `init`, if the head does not take the teacher's tap to its logits.

    References:
      Yang, Martinez, Bulat, Tzimiropoulos. `Knowledge Distillation via Softmax
      Regression Representation Learning <https://openreview.net/forum?id=ZzwDy_wiWv>`_,
      ICLR 2021.
    """
    student, teacher = _pairs.one(pair)

    def connector(s: Outputs, t: Outputs) -> Adapter:
        return Adapter(
            (*s.tap(student).shape[:-1], t.tap(teacher).shape[-1]), norm=True
        )

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        check_linear(head, t.tap(teacher), t.logits)
        fm.same_length(s.tap(student).shape, t.tap(teacher).shape)
        statistics = dict(connector(s, t).init(key, s.tap(student)))
        params = statistics.pop("params")
        return params, {"head": given(head), "connector": statistics}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        features, moved = connector(s, t).apply(
            {"params": params, **state["connector"]},
            s.tap(student),
            mutable=["batch_stats"],
        )
        features = fm.average(nn.relu(features))
        loss = losses.hint(features, fm.average(t.tap(teacher)))
        loss += losses.logit_mse(linear(state["head"], features), t.logits)
        return loss, {**state, "connector": dict(moved)}

    return fitting(Term(init, apply))
