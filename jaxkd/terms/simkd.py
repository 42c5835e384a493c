"""Knowledge distillation with the reused teacher classifier (Chen et al., 2022)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxkd import _check, _tree, losses
from jaxkd.distill import Term, fitting
from jaxkd.losses import _feature_math as fm
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.net import Net
from jaxkd.terms import _pairs
from jaxkd.terms._given import check_linear, given, linear
from jaxkd.types import Batch, Outputs, Params, State

Map = Float[Array, "batch height width channels"]
PROJECTED = "projected"


class Projector(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions, each with BatchNorm and ReLU.

    Attributes:
      channels: of the teacher's map.
      factor: the inner convolutions have `channels // factor`.
    """

    channels: int
    factor: int = 2

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Maps of the same size with the teacher's channels."""
        inner = self.channels // self.factor
        widths = ((inner, 1), (inner, 3), (self.channels, 1))
        for i, (width, kernel) in enumerate(widths, start=1):
            x = nn.Conv(
                width,
                (kernel, kernel),
                use_bias=False,
                conv_general_dilated=conv_general_dilated,
                name=f"conv{i}",
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, name=f"norm{i}"
            )(x)
            x = nn.relu(x)
        return x


def simkd(
    student: Net,
    teacher: Net,
    teacher_variables: tuple[Params, State],
    images: Array,
    *,
    pair: _pairs.Pairs,
    head: str = "head",
    classify: Callable[[Any, Map], Array] = linear,
    factor: int = 2,
) -> tuple[Net, Term]:
    """A student that ends in the teacher's classifier, and the term that trains it.

    With g the student's last map, P the projector, t the teacher's map before its
    pooling and h the teacher's classifier::

        logits = h(mean over positions of P(g))
        loss   = mean_u (P(g)_u - t_u)**2

    Of two maps of different size the larger is average-pooled to the smaller. The
    authors train with this term alone, weight 1, and no labels.

    **The network returned carries the teacher's classifier**: its state holds the
    student's state, the projector's batch statistics and the frozen head, so that
    evaluation, checkpoints and exports have them too; what is deployed is the student,
    the projector and the teacher's head. Its params are `{"student", "projector"}`. The
    student's own head stays among them, is not used and gets no gradient.

        net, term = terms.simkd(student, teacher, variables, images, pair="stage3")
        d = distiller(net, frozen(teacher), {"simkd": (1.0, term)}, tx)

    Args:
      student: the network whose map is projected.
      teacher: the network whose classifier is reused.
      teacher_variables: its `(params, state)`, arrays or only their shapes.
      images: an example batch as the networks see it, or only its shape.
      pair: the last maps of student and teacher.
      head: path of the classifier in the teacher's params.
      classify: `(variables of the head, map) -> logits`; by default the mean over
        positions and a Dense layer.
      factor: how many times narrower the projector is inside, >= 1.

    Returns:
      The combined network, whose taps are the student's and "projected", and the term
      that compares "projected" with the teacher's map; the term has no variables.

    Raises:
      KeyError: if a network has no such tap, or the teacher nothing at `head`.
      ValueError: if a tap is not a map, the head does not take the teacher's map to its
        logits, or `factor` leaves no channel.

    References:
      Chen, Mei, Zhang, Wang, Feng, Chen. `Knowledge Distillation with the Reused
      Teacher Classifier <https://arxiv.org/abs/2203.14001>`_, CVPR 2022.
    """
    _check.whole(1)("factor", factor)
    here, there = _pairs.one(pair)
    kept = _tree.get(teacher_variables[0], head)
    outputs = jax.eval_shape(
        lambda v, x: teacher.apply(*v, x, train=False)[0], teacher_variables, images
    )
    shape = _map_shape(outputs, there, "teacher")
    if shape[-1] < factor:
        raise ValueError(f"factor must be at most {shape[-1]} channels, got {factor}")
    if classify is linear:
        check_linear(kept, outputs.tap(there), outputs.logits)
    projector = Projector(shape[-1], factor)

    def fitted(s: Outputs) -> Map:
        space = _map_shape(s, here, "student")[1:-1]
        return fm.pool(
            s.tap(here), tuple(map(min, zip(space, shape[1:-1], strict=True)))
        )

    def init(key: Array, x: Array) -> tuple[Params, State]:
        student_key, projector_key = jax.random.split(key)
        params, state = student.init(student_key, x)
        s, _ = student.apply(params, state, x, train=False)
        if PROJECTED in s.taps:
            raise ValueError(f"the student has a tap {PROJECTED!r} of its own")
        statistics = dict(projector.init(projector_key, fitted(s), train=False))
        params = {"student": params, "projector": statistics.pop("params")}
        return params, {"student": state, "projector": statistics, "head": given(kept)}

    def apply(
        params: Params, state: State, x: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, State]:
        s, of_student = student.apply(
            params["student"], state["student"], x, train=train, key=key
        )
        features, moved = projector.apply(
            {"params": params["projector"], **state["projector"]},
            fitted(s),
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        logits = classify(state["head"], features)
        changed = {"student": of_student, "projector": {**state["projector"], **moved}}
        return Outputs(logits, {**s.taps, PROJECTED: features}), {**state, **changed}

    return Net(init, apply), _term(there)


def _term(teacher: str) -> Term:
    """Return the mean square between "projected" and the teacher's map."""

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        return {}, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        maps = fm.to_smaller(s.tap(PROJECTED), t.tap(teacher))
        return losses.hint(*maps), state

    return fitting(Term(init, apply))


def _map_shape(outputs: Outputs, tap: str, whose: str) -> tuple[int, ...]:
    shape = outputs.tap(tap).shape
    if len(shape) != 4:
        raise ValueError(
            f"the {whose}'s tap {tap!r} must be a map [batch, height, width, "
            f"channels], got {shape}"
        )
    return shape
