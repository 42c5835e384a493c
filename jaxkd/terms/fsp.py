"""Flow of solution procedure between layers (Yim et al., 2017)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from jaxkd import losses
from jaxkd.distill import Term, fitting
from jaxkd.terms import _pairs
from jaxkd.terms.adapters import Match
from jaxkd.types import Batch, Outputs, Params, State

Flow = tuple[str, str]  # the taps where a block of a network starts and ends
ENDS = ("first", "second")


def fsp(layers: Sequence[Flow] | Mapping[Flow, Flow], *, adapt: bool = True) -> Term:
    """Squared difference of the Gram matrices between two layers, summed: `losses.fsp`.

    With G the Gram matrix of a network's layers at the start and the end of a block,
    and r the adapters of the student's::

        loss = sum over blocks of mean (G(r1(s1), r2(s2)) - G(t1, t2))**2

    For a first stage. RepDistiller trains the student's stages for 30 epochs on this
    term alone, at weight 1 and a constant learning rate, before the 240 epochs on
    labels alone (its option `-b 50` is never applied to FSP). Its layers are the stem
    and every stage, each with the next: three blocks of a CIFAR ResNet. It refuses
    networks of different widths.

    Args:
      layers: the blocks, each as the two taps between which it lies, of the same names
        in both networks, e.g. `[("stem", "stage1"), ("stage1", "stage2")]`; or a
        mapping from the student's blocks to the teacher's, e.g. `{("stem", "stage1"):
        ("stem", "stage2")}`.
      adapt: whether to insert a 1x1 convolution where the channels of student and
        teacher differ (the paper has equal ones). Maps may differ in size.

    Returns:
      The term. Its parameters are the adapters', if any: "first" and "second" of every
      block.

    Raises:
      ValueError: if `layers` is empty, names a block twice, or has something other than
        two taps; at `init`, if a tap is not a map, or channels differ and `adapt` is
        false.

    Example:
      >>> from jaxkd import terms
      >>> blocks = [("stem", "stage1"), ("stage1", "stage2"), ("stage2", "stage3")]
      >>> spec = {"fsp": (1.0, terms.fsp(blocks))}

    References:
      Yim, Joo, Bae, Kim. `A Gift from Knowledge Distillation: Fast Optimization,
      Network Minimization and Transfer Learning
      <https://doi.org/10.1109/CVPR.2017.754>`_, CVPR 2017.
    """
    return _pairs.added(
        {
            f"{student[0]}_to_{student[1]}": _block(student, teacher, adapt)
            for student, teacher in _blocks(layers).items()
        }
    )


def _blocks(layers: Sequence[Flow] | Mapping[Flow, Flow]) -> dict[Flow, Flow]:
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be one pair of taps or more, got {layers!r}")
    flows = layers.items() if isinstance(layers, Mapping) else [(f, f) for f in layers]
    for flow in (flow for both in flows for flow in both):
        if isinstance(flow, str) or len(flow) != 2:
            raise ValueError(f"layers must be pairs of taps, got {flow!r}")
    found = dict(flows)
    if len(found) < len(layers):
        raise ValueError(f"layers names a block twice: {list(layers)}")
    return found


def _block(student: Flow, teacher: Flow, adapt: bool) -> Term:
    """Return the term of one block; a student's map keeps its size."""

    def ends(s: Outputs, t: Outputs) -> dict[str, tuple[Match, Array]]:
        shapes = [t.tap(tap).shape for tap in teacher]
        return {
            end: (Match(shape, space=False), s.tap(tap))
            for end, shape, tap in zip(ENDS, shapes, student, strict=True)
        }

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        made = ends(s, t)  # a missing tap is an error with adapters or without
        if not adapt:
            return {}, {}
        keys = jax.random.split(key, len(ENDS))
        return {
            end: adapter.init(k, features).get("params", {})
            for k, (end, (adapter, features)) in zip(keys, made.items(), strict=True)
        }, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        maps: list[Any] = [
            adapter.apply({"params": params[end]}, features) if adapt else features
            for end, (adapter, features) in ends(s, t).items()
        ]
        return losses.fsp(*maps, *(t.tap(tap) for tap in teacher)), state

    return fitting(Term(init, apply))
