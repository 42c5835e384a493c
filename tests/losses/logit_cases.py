"""The logit losses as the battery sees them: inputs, knobs, own definitions."""

import functools
from typing import Any

import numpy as np

from jaxkd import losses
from tests.losses.cases import Case, Inputs


def two_logits(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """A student's and a teacher's logits."""
    shape = (*batch, width)
    return {
        "student_logits": rng.normal(size=shape),
        "teacher_logits": 2 * rng.normal(size=shape),
    }


def with_labels(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Both networks' logits and labels."""
    labels = rng.integers(width, size=batch)
    return {**two_logits(rng, batch, width), "labels": labels}


MAPS = "student_logit_maps", "teacher_logit_maps"


def shift(inputs: Inputs) -> Inputs:
    """Adds a constant to all of a row's logits: the softmax does not see it."""
    shifted = dict(inputs)
    names = "student_logits", "teacher_logits", "logits", *MAPS
    for size, name in enumerate(names, start=1):
        if name in inputs:
            rows = np.arange(inputs[name][..., :1].size) - 3.0
            rows = size * rows.reshape(inputs[name][..., :1].shape)
            shifted[name] = inputs[name] + rows
    return shifted


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, row by row, from the definition."""
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) over the last axis, in probability space."""
    return (p * np.log(p / q)).sum(-1)


def kd_by_hand(student_logits, teacher_logits, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return temperature**2 * kl(p, q)


def soft_cross_entropy_by_hand(student_logits, teacher_logits, temperature):
    """Minus the teacher's expectation of the student's log-probability."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return -(temperature**2) * np.einsum("...k,...k->...", p, np.log(q))


def logit_mse_by_hand(student_logits, teacher_logits):
    """The mean over classes of the squared difference."""
    return (
        np.linalg.norm(student_logits - teacher_logits, axis=-1) ** 2
        / (student_logits.shape[-1])
    )


def probability_mse_by_hand(student_logits, teacher_logits, temperature):
    """The squared distance of the two probability vectors."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return np.linalg.norm(p - q, axis=-1) ** 2


def hard_label_by_hand(student_logits, teacher_logits):
    """The student's surprise at the teacher's decision."""
    decision = teacher_logits.argmax(-1)
    return -np.log(softmax(student_logits)[np.arange(len(decision)), decision])


def reverse_kd_by_hand(student_logits, teacher_logits, temperature):
    """The definition in probability space."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return temperature**2 * kl(q, p)


def jsd_by_hand(student_logits, teacher_logits, beta, temperature):
    """The mixture's entropy minus the mixed entropies: no KL in sight."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    mixed = beta * entropy(p) + (1 - beta) * entropy(q)
    return entropy(beta * p + (1 - beta) * q) - mixed


def without_label(logits, labels):
    """The logits of the other classes, one class fewer."""
    rows = [np.delete(z, y) for z, y in zip(logits, labels, strict=True)]
    return np.array(rows).reshape(len(labels), -1)


def bernoulli_kl(p, q):
    """KL between two coins."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def at_label(logits, labels, temperature=1.0):
    """The probability of the label."""
    return softmax(logits, temperature)[np.arange(len(labels)), labels]


def dkd_by_hand(student_logits, teacher_logits, labels, alpha, beta, temperature):
    """The label's class deleted, not masked."""
    s, t = student_logits, teacher_logits
    tckd = bernoulli_kl(
        at_label(t, labels, temperature), at_label(s, labels, temperature)
    )
    p = softmax(without_label(t, labels), temperature)
    q = softmax(without_label(s, labels), temperature)
    return temperature**2 * (alpha * tckd + beta * kl(p, q))


def nkd_by_hand(student_logits, teacher_logits, labels, gamma, temperature):
    """The label's class deleted, not masked."""
    s, t = student_logits, teacher_logits
    p = softmax(without_label(t, labels), temperature)
    q = softmax(without_label(s, labels), temperature)
    of_label = -at_label(t, labels) * np.log(at_label(s, labels))
    return of_label - gamma * temperature**2 * (p * np.log(q)).sum(-1)


def wsld_by_hand(student_logits, teacher_logits, labels, temperature):
    """1 - p_student ** (1 / CE_teacher) is another way to write the weight."""
    teacher = -np.log(at_label(teacher_logits, labels)) + 1e-7
    weight = 1 - at_label(student_logits, labels) ** (1 / teacher)
    return weight * soft_cross_entropy_by_hand(
        student_logits, teacher_logits, temperature
    )


def dist_by_hand(student_logits, teacher_logits, beta, gamma, temperature):
    """numpy's own correlation, in loops; without the 1e-8 that the loss adds."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    inter = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    intra = np.mean(
        [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    )
    return temperature**2 * (beta * np.array(inter) + gamma * intra)


def lskd_by_hand(student_logits, teacher_logits, temperature):
    """kd of z-scores."""
    score = lambda z: (
        (z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7)
    )
    return kd_by_hand(score(student_logits), score(teacher_logits), temperature)


def mlkd_instance_by_hand(student_logits, teacher_logits, temperatures):
    """A sum of kd."""
    return sum(kd_by_hand(student_logits, teacher_logits, t) for t in temperatures)


def mlkd_batch_by_hand(student_logits, teacher_logits, temperature):
    """Entry by entry."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    loss = np.zeros(len(p))
    for i in range(len(p)):
        for j in range(len(p)):
            loss[i] += (np.dot(p[i], p[j]) - np.dot(q[i], q[j])) ** 2
    return loss


def mlkd_class_by_hand(student_logits, teacher_logits, temperature):
    """Entry by entry."""
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    classes, total = p.shape[-1], 0.0
    for k in range(classes):
        for m in range(classes):
            total += (np.dot(p[:, k], p[:, m]) - np.dot(q[:, k], q[:, m])) ** 2
    return np.full(len(p), total / classes)


def ttm_by_hand(student_logits, teacher_logits, gamma):
    """The teacher's probabilities raised to a power and normalised again."""
    p = softmax(teacher_logits) ** gamma
    return kl(p / p.sum(-1, keepdims=True), softmax(student_logits))


def wttm_by_hand(student_logits, teacher_logits, gamma):
    """ttm, weighted by the normaliser of that power."""
    power = (softmax(teacher_logits) ** gamma).sum(-1)
    return power * ttm_by_hand(student_logits, teacher_logits, gamma)


def ofa_by_hand(student_logits, teacher_logits, labels, gamma, temperature):
    """The raised target as in the paper, (p + one)**gamma - one."""
    one = np.eye(student_logits.shape[-1])[labels]
    target = (softmax(teacher_logits, temperature) + one) ** gamma - one
    return -(target * np.log(softmax(student_logits, temperature))).sum(-1)


def with_cost(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Both networks' logits, labels, and costs between the classes."""
    cost = rng.uniform(size=(width, width))
    return {**with_labels(rng, batch, width), "cost": cost}


def wkd_logits_by_hand(
    student_logits,
    teacher_logits,
    labels,
    cost,
    gamma,
    temperature,
    epsilon,
    iterations,
):
    """Example by example, in probability space, with the label's class deleted."""
    each = []
    for s, t, y in zip(student_logits, teacher_logits, labels, strict=True):
        c = np.delete(np.delete(cost, y, 0), y, 1)
        rows = softmax(np.delete(s, y), temperature)
        columns = softmax(np.delete(t, y), temperature)
        kernel, u = np.exp(-c / epsilon), np.ones(len(c))
        for _ in range(iterations):
            v = columns / (kernel.T @ u)
            u = rows / (kernel @ v)
        moved = (u[:, None] * kernel * v * c).sum()
        each.append(gamma * moved - softmax(t)[y] * np.log(softmax(s)[y]))
    return np.array(each)


def logit_maps(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Logits at 2 by 4 positions, and labels."""
    shape = (*batch, 2, 4, width)
    return {
        "student_logit_maps": rng.normal(size=shape),
        "teacher_logit_maps": 2 * rng.normal(size=shape),
        "labels": rng.integers(width, size=batch),
    }


def sdd_by_hand(
    student_logit_maps, teacher_logit_maps, labels, loss, scales, complementary
):
    """Image by image and cell by cell, kd at temperature 2."""
    assert loss is KD_AT_2 and scales == (1, 2)
    each = []
    for s, t, y in zip(student_logit_maps, teacher_logit_maps, labels, strict=True):
        whole = t.mean((0, 1)).argmax() == y
        cells = [
            np.s_[:, :],
            np.s_[:1, :2],
            np.s_[1:, :2],
            np.s_[:1, 2:],
            np.s_[1:, 2:],
        ]
        total = 0.0
        for cell in cells:
            a, b = s[cell].mean((0, 1)), t[cell].mean((0, 1))
            differ = (b.argmax() == y) != whole
            total += (complementary if differ else 1) * kd_by_hand(a, b, 2.0)
        each.append(total / 5)
    return np.array(each)


KD_AT_2 = functools.partial(losses.kd, temperature=2.0)


def cross_entropy_by_hand(logits, labels):
    """The label's surprise, in probability space."""
    return -np.log(at_label(logits, labels))


def labelled_logits(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """One network's logits and labels."""
    student, labels = student_only(rng, batch, width).values()
    return {"logits": student, "labels": labels}


def rld_by_hand(student_logits, teacher_logits, labels, alpha, beta, temperature):
    """Example by example, with the classes above the label deleted."""
    losses = []
    for s, t, y in zip(student_logits, teacher_logits, labels, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        below = [k for k in range(len(t)) if t[k] < t[y]]
        mcd = kl(softmax(t[below], temperature), softmax(s[below], temperature))
        losses.append(alpha * bernoulli_kl(p.max(), q[y]) + beta * mcd)
    return temperature**2 * np.array(losses)


def target_of(labels, classes, label, other):
    """A row with `label` at the label and `other` elsewhere, for each example."""
    return np.where(np.arange(classes) == labels[:, None], label, other)


def teacher_free_by_hand(student_logits, labels, confidence, temperature):
    """Probabilities softened as powers, in probability space."""
    classes = student_logits.shape[-1]
    rest = (1 - confidence) / (classes - 1)
    p = target_of(labels, classes, confidence, rest) ** (1 / temperature)
    return kl(p / p.sum(-1, keepdims=True), softmax(student_logits, temperature))


def label_smoothing_by_hand(student_logits, labels, epsilon):
    """Cross-entropy with the smoothed target."""
    classes = student_logits.shape[-1]
    even = epsilon / classes
    p = target_of(labels, classes, 1 - epsilon + even, even)
    return -(p * np.log(softmax(student_logits))).sum(-1)


def binary_kd_by_hand(student_logits, teacher_logits, temperature):
    """Each class a softmax over (its logit, 0)."""
    zero = np.zeros_like(student_logits)
    pair = lambda z: softmax(np.stack([z, zero], -1), temperature)
    each = kl(pair(teacher_logits), pair(student_logits))
    return temperature**2 * each.mean(-1)


TOP_T = 2.0


def kept_logits(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """A student's logits, and the larger ones of a teacher's."""
    inputs = two_logits(rng, batch, width)
    t = inputs["teacher_logits"]
    index = np.argsort(-t, axis=-1)[..., : max(width - 2, 1)]
    return {
        "student_logits": inputs["student_logits"],
        "teacher_top_logits": np.take_along_axis(t, index, -1),
        "teacher_top_indices": index,
        "teacher_logsumexp": np.log(np.exp(t / TOP_T).sum(-1)),
    }


def topk_kd_by_hand(
    student_logits,
    teacher_top_logits,
    teacher_top_indices,
    teacher_logsumexp,
    temperature,
):
    """kd over k + 1 classes, example by example."""
    losses = []
    for s, t, index, total in zip(
        student_logits,
        teacher_top_logits,
        teacher_top_indices,
        teacher_logsumexp,
        strict=True,
    ):
        p = np.exp(t / temperature) / np.exp(total)
        q = softmax(s, temperature)
        rest = 1 - p.sum()  # not positive where the battery's scaling spoilt the sum
        loss = kl(p, q[index])
        if rest > 0:
            loss += rest * np.log(rest / np.delete(q, index).sum())
        losses.append(loss)
    return temperature**2 * np.array(losses)


def student_and_peers(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """A student's logits and those of three peers."""
    return {
        "student_logits": rng.normal(size=(*batch, width)),
        "peer_logits": rng.normal(size=(3, *batch, width)),
    }


def mutual_by_hand(student_logits, peer_logits, temperature):
    """A mean of kd."""
    return np.mean([kd_by_hand(student_logits, p, temperature) for p in peer_logits], 0)


def student_only(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """A student's logits and labels."""
    inputs = with_labels(rng, batch, width)
    return {"student_logits": inputs["student_logits"], "labels": inputs["labels"]}


def ranked_label(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """Labels that the teacher prefers to at least one class."""
    inputs = with_labels(rng, batch, width)
    worst = inputs["teacher_logits"].argmin(-1)
    labels = (worst + 1 + rng.integers(width - 1, size=batch)) % width
    return {**inputs, "labels": labels}


BOTH = ("student_logits", "teacher_logits")
STUDENT = ("student_logits",)
LOGITS: dict[str, Any] = {"leading": True, "class_axis": BOTH, "symmetries": (shift,)}
WARM: dict[str, Any] = {"knobs": {"temperature": 3.0}, "vary": {"temperature": 2}}
ACROSS: dict[str, Any] = {**LOGITS, "across": True}
WEIGHTED = {"alpha": 0.7, "beta": 3.0, "temperature": 3.0}


def case(loss, draw, reference, **more) -> Case:
    """A case named as its loss."""
    return Case(loss.__name__, loss, draw, reference, **more)


CASES = [
    case(losses.kd, two_logits, kd_by_hand, **WARM, **LOGITS),
    case(
        losses.soft_cross_entropy,
        two_logits,
        soft_cross_entropy_by_hand,
        at_equal="least",
        **WARM,
        **LOGITS,
    ),
    case(
        losses.logit_mse, two_logits, logit_mse_by_hand, leading=True, class_axis=BOTH
    ),
    case(losses.probability_mse, two_logits, probability_mse_by_hand, **WARM, **LOGITS),
    case(losses.hard_label, two_logits, hard_label_by_hand, at_equal=None, **LOGITS),
    case(losses.reverse_kd, two_logits, reverse_kd_by_hand, **WARM, **LOGITS),
    case(
        losses.jsd,
        two_logits,
        jsd_by_hand,
        knobs={"beta": 0.3, "temperature": 2.0},
        vary={"beta": 0.6, "temperature": 1},
        **LOGITS,
    ),
    case(
        losses.dkd,
        with_labels,
        dkd_by_hand,
        knobs=WEIGHTED,
        vary={"alpha": 1, "beta": 8, "temperature": 2},
        **LOGITS,
    ),
    case(
        losses.nkd,
        with_labels,
        nkd_by_hand,
        knobs={"gamma": 1.5, "temperature": 2.0},
        vary={"gamma": 2, "temperature": 1},
        at_equal=None,
        **LOGITS,
    ),
    case(
        losses.wsld,
        with_labels,
        wsld_by_hand,
        at_equal="flat",
        differentiable=(),
        **WARM,
        **LOGITS,
    ),
    case(
        losses.dist,
        two_logits,
        dist_by_hand,
        knobs={"beta": 0.7, "gamma": 2.0, "temperature": 1.5},
        vary={"beta": 1, "gamma": 1, "temperature": 2},
        rtol=1e-4,  # the 1e-8 beside the norms
        at_equal="least",
        **ACROSS,
    ),
    case(
        losses.ofa,
        with_labels,
        ofa_by_hand,
        knobs={"gamma": 1.5, "temperature": 2.0},
        vary={"gamma": 2, "temperature": 1},
        at_equal=None,
        **LOGITS,
    ),
    case(
        losses.wkd_logits,
        with_cost,
        wkd_logits_by_hand,
        knobs={"gamma": 3.0, "temperature": 2.0, "epsilon": 0.1, "iterations": 3},
        vary={"gamma": 2, "temperature": 1, "epsilon": 0.2},
        at_equal=None,
        batch_axis={"cost": None},
        class_square=("cost",),
        **LOGITS,
    ),
    case(
        losses.sdd,
        logit_maps,
        sdd_by_hand,
        knobs={"loss": KD_AT_2, "scales": (1, 2), "complementary": 1.5},
        vary={"complementary": 3},
        pairs=(MAPS,),
        **{**LOGITS, "class_axis": MAPS, "leading": False},
    ),
    case(
        losses.cross_entropy,
        labelled_logits,
        cross_entropy_by_hand,
        pairs=(),
        at_equal=None,
        **{**LOGITS, "class_axis": ("logits",)},
    ),
    case(losses.lskd, two_logits, lskd_by_hand, **WARM, **LOGITS),
    case(
        losses.mlkd_instance,
        two_logits,
        mlkd_instance_by_hand,
        knobs={"temperatures": (2.0, 5.0)},
        vary={"temperatures": (1, 3)},
        **LOGITS,
    ),
    case(losses.mlkd_batch, two_logits, mlkd_batch_by_hand, **WARM, **ACROSS),
    case(losses.mlkd_class, two_logits, mlkd_class_by_hand, **WARM, **ACROSS),
    case(
        losses.ttm,
        two_logits,
        ttm_by_hand,
        knobs={"gamma": 0.2},
        vary={"gamma": 1},
        at_equal=None,
        **LOGITS,
    ),
    case(
        losses.wttm,
        two_logits,
        wttm_by_hand,
        knobs={"gamma": 0.2},
        vary={"gamma": 1},
        at_equal=None,
        **LOGITS,
    ),
    case(
        losses.rld,
        ranked_label,
        rld_by_hand,
        knobs=WEIGHTED,
        vary={"alpha": 1, "beta": 8, "temperature": 2},
        at_equal=None,
        **LOGITS,
    ),
    case(
        losses.teacher_free,
        student_only,
        teacher_free_by_hand,
        knobs={"confidence": 0.9, "temperature": 20.0},
        vary={"confidence": 0.8, "temperature": 2},
        pairs=(),
        at_equal=None,
        **{**LOGITS, "class_axis": STUDENT},
    ),
    case(
        losses.label_smoothing,
        student_only,
        label_smoothing_by_hand,
        knobs={"epsilon": 0.2},
        vary={"epsilon": 0},
        pairs=(),
        at_equal=None,
        **{**LOGITS, "class_axis": STUDENT},
    ),
    case(
        losses.binary_kd,
        two_logits,
        binary_kd_by_hand,
        leading=True,
        class_axis=BOTH,
        narrow=1,
        **WARM,
    ),
    case(
        losses.topk_kd,
        kept_logits,
        topk_kd_by_hand,
        knobs={"temperature": TOP_T},
        vary={"temperature": 3},
        pairs=(),
        at_equal=None,
        **{**LOGITS, "class_axis": STUDENT},
    ),
    case(
        losses.mutual,
        student_and_peers,
        mutual_by_hand,
        pairs=(),
        at_equal=None,
        batch_axis={"peer_logits": 1},
        **WARM,
        **{**LOGITS, "class_axis": ("student_logits", "peer_logits")},
    ),
]
