"""The field's methods with their published weights, as stages of a run.

Weights are those of the protocol's authors (RepDistiller; Decoupled KD for the later
methods). Losses of features that were published for the first 30 of 240 epochs are a
first stage here, of an eighth of the budget.
"""

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxkd import data, distill, losses, terms
from jaxkd.models import Net
from jaxkd.schemes.staged import Stage
from jaxkd.types import Outputs


class Pair(NamedTuple):
    """What a method may look at: the networks, the data, the budget."""

    student: Net
    teacher: Net
    teacher_variables: Any
    images: jax.Array  # an example batch as the networks see it
    train: data.Dataset
    epochs: int
    steps_per_epoch: int
    tx: Callable[[int], optax.GradientTransformation]  # the optimiser of so many epochs


class Plan(NamedTuple):
    """The network to train, which a method may have extended, and how."""

    net: Net
    stages: list[Stage]


Method = Callable[[Pair], Plan]

CE = distill.on_labels(distill.cross_entropy)
KD = distill.on_logits(losses.kd, temperature=4.0)


def _outputs(pair: Pair) -> tuple[Outputs, Outputs]:
    """What the two networks say about the example, as shapes."""

    def student(key: jax.Array, x: jax.Array) -> Outputs:
        return pair.student.apply(*pair.student.init(key, x), x, train=False)[0]

    def teacher(variables: Any, x: jax.Array) -> Outputs:
        return pair.teacher.apply(*variables, x, train=False)[0]

    of_teacher = jax.eval_shape(teacher, pair.teacher_variables, pair.images)
    return jax.eval_shape(student, jax.random.key(0), pair.images), of_teacher


def stages_alike(pair: Pair, suffix: str = "") -> dict[str, str]:
    """For each stage of the student, the teacher's last one with maps of that size."""
    student, teacher = (_sizes(outputs, suffix) for outputs in _outputs(pair))
    found = {
        name: alike[-1]
        for name, size in student.items()
        if (alike := [other for other in teacher if teacher[other] == size])
    }
    if not found:
        raise ValueError(
            f"no stages have maps of equal size: student {student}, teacher {teacher}"
        )
    return found


def _sizes(outputs: Outputs, suffix: str) -> dict[str, tuple[int, ...]]:
    """Height and width of the stages' maps, in order."""
    return {
        name: tap.shape[1:3]
        for name, tap in outputs.taps.items()
        if re.fullmatch(rf"stage\d+{suffix}", name)
    }


def _last(pairs: dict[str, str]) -> dict[str, str]:
    name = list(pairs)[-1]
    return {name: pairs[name]}


def _middle(pairs: dict[str, str]) -> dict[str, str]:
    name = list(pairs)[len(pairs) // 2]
    return {name: pairs[name]}


def one_stage(pair: Pair, spec: distill.Spec, net: Net | None = None) -> Plan:
    """The whole budget on one objective."""
    stage = Stage("task", spec, pair.epochs, pair.tx(pair.epochs))
    return Plan(net or pair.student, [stage])


def beside_labels(weight: float, make: Callable[[Pair], distill.Term]) -> Method:
    """Cross-entropy of weight 1 and one term for the whole budget."""

    def method(pair: Pair) -> Plan:
        return one_stage(pair, {"ce": (1.0, CE), "term": (weight, make(pair))})

    return method


def first_then_labels(weight: float, make: Callable[[Pair], distill.Term]) -> Method:
    """One term alone for an eighth of the budget, then the labels for the rest."""

    def method(pair: Pair) -> Plan:
        first = max(1, round(pair.epochs / 8))
        then = max(1, pair.epochs - first)
        ce: distill.Spec = {"ce": (1.0, CE)}
        stages = [
            Stage("first", {"term": (weight, make(pair))}, first, pair.tx(first)),
            Stage("task", ce, then, pair.tx(then)),
        ]
        return Plan(pair.student, stages)

    return method


def _warm(pair: Pair, weight: float) -> optax.Schedule:
    """From 0 to the weight in a twelfth of the run: 20 of 240 epochs."""
    steps = max(1, pair.epochs * pair.steps_per_epoch // 12)
    return optax.linear_schedule(0.0, weight, steps)


def none(pair: Pair) -> Plan:
    """The student alone, on its labels."""
    return one_stage(pair, {"ce": (1.0, CE)})


def kd(pair: Pair) -> Plan:
    """Soft labels: .1 cross-entropy, .9 KL at T=4."""
    return one_stage(pair, {"ce": (0.1, CE), "kd": (0.9, KD)})


def dkd(pair: Pair) -> Plan:
    """Decoupled: alpha 1, beta 8 at T=4, with a warm-up."""
    term = distill.on_logits_and_labels(losses.dkd)
    return one_stage(pair, {"ce": (1.0, CE), "dkd": (_warm(pair, 1.0), term)})


def dkd2(pair: Pair) -> Plan:
    """Decoupled with beta 2, as published for resnet56 to resnet20."""
    term = distill.on_logits_and_labels(losses.dkd, beta=2.0)
    return one_stage(pair, {"ce": (1.0, CE), "dkd": (_warm(pair, 1.0), term)})


def ctkd(pair: Pair) -> Plan:
    """Soft labels at a learnt temperature; reversed fully after 10 of 240."""
    ramp = max(1, pair.epochs * pair.steps_per_epoch // 24)
    return one_stage(pair, {"ce": (0.1, CE), "kd": (0.9, terms.ctkd(ramp=ramp))})


def soft_then_hard(pair: Pair) -> Plan:
    """Soft labels alone for half of the budget, then hard labels."""
    soft = max(1, pair.epochs // 2)
    hard = max(1, pair.epochs - soft)
    stages = [
        Stage("soft", {"kd": (1.0, KD)}, soft, pair.tx(soft)),
        Stage("hard", {"ce": (1.0, CE)}, hard, pair.tx(hard)),
    ]
    return Plan(pair.student, stages)


def fitnets(pair: Pair) -> Plan:
    """The hint first, moving nothing above it; then soft labels, as published."""
    pairs = _middle(stages_alike(pair))
    below = list(stages_alike(pair))
    guided = below[: below.index(next(iter(pairs))) + 1]
    moves = ("terms/*", "student/stem*", *(f"student/{name}*" for name in guided))
    first = max(1, round(pair.epochs / 8))
    then = max(1, pair.epochs - first)
    hint: distill.Spec = {"hint": (1.0, terms.hint(pairs))}
    stages = [
        Stage("hint", hint, first, pair.tx(first), trains=moves),
        Stage("task", {"ce": (0.1, CE), "kd": (0.9, KD)}, then, pair.tx(then)),
    ]
    return Plan(pair.student, stages)


def factor_transfer(pair: Pair) -> Plan:
    """A paraphraser of the teacher's last map first, then its factors."""
    (student, teacher), *_ = _last(stages_alike(pair)).items()
    first = max(1, round(pair.epochs / 8))
    then = max(1, pair.epochs - first)

    def factors(before: distill.TrainState) -> distill.Spec:
        trained = before.params["terms"]["paraphraser"]
        term = terms.factor_transfer({student: teacher}, paraphraser=trained)
        return {"ce": (1.0, CE), "factors": (200.0, term)}

    alone: distill.Spec = {"paraphraser": (1.0, terms.paraphraser(teacher))}
    stages = [
        Stage("paraphraser", alone, first, optax.adam(1e-3), trains="terms/*"),
        Stage("task", factors, then, pair.tx(then)),
    ]
    return Plan(pair.student, stages)


def ofd(pair: Pair) -> Plan:
    """Features before the ReLU, behind margins measured on the teacher."""
    pairs = stages_alike(pair, "_pre")
    said, _ = pair.teacher.apply(*pair.teacher_variables, pair.images, train=False)
    term = terms.ofd(pairs, margins=terms.measured_margins(said, list(pairs.values())))
    return one_stage(pair, {"ce": (1.0, CE), "ofd": (1e-3, term)})


def simkd(pair: Pair) -> Plan:
    """The student's last map, projected, into the teacher's classifier."""
    net, term = terms.simkd(
        pair.student,
        pair.teacher,
        pair.teacher_variables,
        pair.images,
        pair=_last(stages_alike(pair)),
    )
    return one_stage(pair, {"simkd": (1.0, term)}, net)


def _crd(pair: Pair) -> distill.Term:
    """Contrastive, with as many negatives as published or a third of the data."""
    index, labels = np.asarray(pair.train.index), np.asarray(pair.train.labels)
    negatives = min(16384, len(index) // 3)
    return terms.crd("pooled", index=index, labels=labels, negatives=negatives)


def _hint(pair: Pair) -> distill.Term:
    """The middle stage; the weight belongs to a regressor that ends in BatchNorm."""
    regressor = functools.partial(terms.adapters.Adapter, norm=True)
    return terms.hint(_middle(stages_alike(pair)), adapter=regressor)


def _srrl(pair: Pair) -> distill.Term:
    return terms.srrl("pooled", head=pair.teacher_variables[0]["head"])


def _flows(pair: Pair) -> distill.Term:
    """Between the stem and each stage in turn, student's and teacher's."""
    pairs = {"stem": "stem", **stages_alike(pair)}
    steps = list(zip(pairs.items(), list(pairs.items())[1:], strict=False))
    return terms.fsp({(a, b): (x, y) for (a, x), (b, y) in steps})


def _reviewkd(pair: Pair) -> Plan:
    term = terms.reviewkd(stages_alike(pair))
    return one_stage(pair, {"ce": (1.0, CE), "reviewkd": (_warm(pair, 1.0), term)})


METHODS: dict[str, Method] = {
    "none": none,
    "kd": kd,
    "dkd": dkd,
    "dkd2": dkd2,
    "ctkd": ctkd,
    "soft_then_hard": soft_then_hard,
    "hint": beside_labels(100.0, _hint),
    "fitnets": fitnets,
    "at": beside_labels(1000.0, lambda p: terms.at(stages_alike(p))),
    "fsp": first_then_labels(50.0, _flows),
    "nst": beside_labels(50.0, lambda p: terms.nst(stages_alike(p))),
    "vid": beside_labels(1.0, lambda p: terms.vid(stages_alike(p))),
    "ab": first_then_labels(1.0, lambda p: terms.ab(stages_alike(p, "_pre"))),
    "ofd": ofd,
    "factor_transfer": factor_transfer,
    "reviewkd": _reviewkd,
    "sp": beside_labels(3000.0, lambda p: terms.sp(_last(stages_alike(p)))),
    "rkd": beside_labels(1.0, lambda p: terms.rkd("pooled")),
    "pkt": beside_labels(3e4, lambda p: terms.pkt("pooled")),
    "cc": beside_labels(0.02, lambda p: terms.cc("pooled")),
    "crd": beside_labels(0.8, _crd),
    "srrl": beside_labels(1.0, _srrl),
    "simkd": simkd,
}


def method(name: str) -> Method:
    """A method by its name, or a function of your own as "module:function".

    Raises:
      ValueError: if there is neither.
    """
    if name in METHODS:
        return METHODS[name]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no method {name!r}; there are {', '.join(METHODS)}, or module:function"
        ) from error
