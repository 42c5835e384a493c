"""The feature and relational losses as the papers write them.

Loops over examples, channels and pairs in float64 numpy, close to the formulas and far
from the vectorised losses.
"""

import itertools
import math

import numpy as np


def by_example(definition):
    """A definition for one example, applied to each."""

    def reference(*args, **kwargs):
        names = [n for n, a in kwargs.items() if np.ndim(a) > 1]
        rest = {n: a for n, a in kwargs.items() if n not in names}
        rows = zip(*(kwargs[n] for n in names), strict=True)
        return np.array(
            [definition(**dict(zip(names, row, strict=True)), **rest) for row in rows]
        )

    return reference


def shrink(features: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average pooling of one map, cell by cell."""
    rows, columns, channels = features.shape
    out = np.zeros((height, width, channels))
    for i, j in itertools.product(range(height), range(width)):
        top, bottom = math.floor(i * rows / height), math.ceil((i + 1) * rows / height)
        left = math.floor(j * columns / width)
        right = math.ceil((j + 1) * columns / width)
        out[i, j] = features[top:bottom, left:right].mean((0, 1))
    return out


def same_size(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both maps at the smaller size along each axis."""
    height, width = np.minimum(a.shape[:2], b.shape[:2])
    return shrink(a, height, width), shrink(b, height, width)


@by_example
def hint(student_features, teacher_features):
    """Unit by unit."""
    pairs = zip(student_features.flat, teacher_features.flat, strict=True)
    return np.mean([(s - t) ** 2 for s, t in pairs])


@by_example
def at(student_features, teacher_features, p=2, variant="code"):
    """Sums over channels have the direction of means."""
    maps = []
    for features in same_size(student_features, teacher_features):
        attention = sum(
            np.abs(channel) ** p for channel in np.moveaxis(features, -1, 0)
        )
        maps.append(attention.ravel() / np.linalg.norm(attention))
    distance = np.linalg.norm(maps[0] - maps[1])
    return distance**2 / len(maps[0]) if variant == "code" else distance


@by_example
def fsp(student_first, student_second, teacher_first, teacher_second):
    """Channel pair by channel pair."""
    student = same_size(student_first, student_second)
    teacher = same_size(teacher_first, teacher_second)
    channels = range(student[0].shape[-1]), range(student[1].shape[-1])
    flow = lambda maps, c, d: np.mean(maps[0][..., c] * maps[1][..., d])
    return np.mean(
        [
            (flow(student, c, d) - flow(teacher, c, d)) ** 2
            for c, d in itertools.product(*channels)
        ]
    )


@by_example
def nst(student_features, teacher_features):
    """The squared distance of the mean outer products of patterns."""
    moments = []
    for features in same_size(student_features, teacher_features):
        patterns = features.reshape(-1, features.shape[-1]).T
        patterns = [pattern / np.linalg.norm(pattern) for pattern in patterns]
        moments.append(np.mean([np.outer(x, x) for x in patterns], axis=0))
    return np.linalg.norm(moments[0] - moments[1]) ** 2


def vid(predicted_features, teacher_features, raw_scale, epsilon=1e-5):
    """Minus the log-density of a normal distribution, without its constant."""
    out = []
    for mean, t in zip(predicted_features, teacher_features, strict=True):
        terms = []
        for index in np.ndindex(t.shape):
            variance = math.log(1 + math.exp(raw_scale[index[-1]])) + epsilon
            sigma = math.sqrt(variance)
            terms.append(((mean[index] - t[index]) / sigma) ** 2 / 2 + math.log(sigma))
        out.append(np.mean(terms))
    return np.array(out)


@by_example
def ab(student_features, teacher_features, margin=1.0):
    """Unit by unit."""
    terms = []
    for s, t in zip(student_features.flat, teacher_features.flat, strict=True):
        sign = 1 if t > 0 else -1
        terms.append(max(0.0, margin - sign * s) ** 2)
    return np.mean(terms)


def ofd(student_features, teacher_features, margin):
    """Unit by unit."""
    out = np.zeros(len(student_features))
    for index in np.ndindex(student_features.shape):
        s, t = student_features[index], teacher_features[index]
        target = max(t, margin[index[-1]])
        if not s <= target <= 0:
            out[index[0]] += (s - target) ** 2
    return out


@by_example
def factor_transfer(student_factors, teacher_factors):
    """The L1 distance of unit vectors over their length."""
    s, t = student_factors.ravel(), teacher_factors.ravel()
    s, t = s / math.sqrt(s @ s), t / math.sqrt(t @ t)
    return np.linalg.norm(s - t, 1) / len(s)


@by_example
def hcl(student_features, teacher_features, levels=(4, 2, 1)):
    """Both maps pooled, then compared."""
    s, t = same_size(student_features, teacher_features)
    parts = [np.mean((s - t) ** 2)]
    for level in levels:
        if level < min(s.shape[:2]):
            difference = shrink(s, level, level) - shrink(t, level, level)
            parts.append(np.mean(difference**2))
    return np.average(parts, weights=[0.5**n for n in range(len(parts))])


@by_example
def cwd(student_features, teacher_features, temperature=1.0):
    """Channel by channel, in probability space."""
    kls = []
    for c in range(student_features.shape[-1]):
        p = np.exp(teacher_features[..., c] / temperature).ravel()
        q = np.exp(student_features[..., c] / temperature).ravel()
        p, q = p / p.sum(), q / q.sum()
        kls.append(p @ np.log(p / q))
    return temperature**2 * np.mean(kls)


@by_example
def ickd(student_features, teacher_features):
    """Row by row of the correlation matrices."""
    total, channels = 0.0, student_features.shape[-1]
    for c in range(channels):
        rows = []
        for features in (student_features, teacher_features):
            row = np.array(
                [np.sum(features[..., c] * features[..., d]) for d in range(channels)]
            )
            rows.append(row / math.sqrt(row @ row))
        total += np.sum((rows[0] - rows[1]) ** 2)
    return total / channels


def pearson(student_features, teacher_features):
    """Standardised channel by channel over the whole batch."""
    squares = np.zeros(student_features.shape)
    for c in range(student_features.shape[-1]):
        s, t = student_features[..., c], teacher_features[..., c]
        squares[..., c] = ((s - s.mean()) / s.std() - (t - t.mean()) / t.std()) ** 2
    return np.array([example.mean() / 2 for example in squares])


@by_example
def wasserstein(
    student_features,
    teacher_features,
    mean_weight=1.0,
    deviation_weight=1.0,
    epsilon=1e-5,
):
    """Channel by channel."""
    total = 0.0
    for c in range(student_features.shape[-1]):
        s, t = student_features[..., c].ravel(), teacher_features[..., c].ravel()
        deviations = [math.sqrt(np.var(x, ddof=1) + epsilon) for x in (s, t)]
        total += mean_weight * (s.mean() - t.mean()) ** 2
        total += deviation_weight * (deviations[0] - deviations[1]) ** 2
    return total


@by_example
def cosine(student_features, teacher_features):
    """Half the squared distance of unit vectors, position by position."""
    channels = student_features.shape[-1]
    terms = []
    for s, t in zip(
        student_features.reshape(-1, channels),
        teacher_features.reshape(-1, channels),
        strict=True,
    ):
        s, t = s / np.linalg.norm(s), t / np.linalg.norm(t)
        terms.append(np.sum((s - t) ** 2) / 2)
    return np.mean(terms)


def sp(student_features, teacher_features):
    """Row by row."""
    batch = range(len(student_features))
    out = []
    for i in batch:
        rows = []
        for features in (student_features, teacher_features):
            row = np.array([np.vdot(features[i], features[j]) for j in batch])
            rows.append(row / math.sqrt(row @ row))
        out.append(np.sum((rows[0] - rows[1]) ** 2) / len(batch))
    return np.array(out)


def huber(x: float) -> float:
    """Quadratic up to 1."""
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


def rkd_distance(student_embeddings, teacher_embeddings):
    """Pair by pair."""
    batch = range(len(student_embeddings))
    relative = []
    for f in (student_embeddings, teacher_embeddings):
        d = {(i, j): math.dist(f[i], f[j]) for i in batch for j in batch}
        mean = np.mean([x for x in d.values() if x > 0])
        relative.append({pair: x / mean for pair, x in d.items()})
    difference = {pair: relative[0][pair] - relative[1][pair] for pair in relative[0]}
    return np.array([np.mean([huber(difference[i, j]) for j in batch]) for i in batch])


def rkd_angle(student_embeddings, teacher_embeddings, chunk=1):
    """Triplet by triplet, by the law of cosines."""
    batch = range(len(student_embeddings))

    def cosine(f, i, j, k):
        a, b, c = math.dist(f[i], f[j]), math.dist(f[i], f[k]), math.dist(f[j], f[k])
        return (a**2 + b**2 - c**2) / (2 * a * b) if a * b > 0 else 0.0

    return np.array(
        [
            np.mean(
                [
                    huber(
                        cosine(student_embeddings, i, j, k)
                        - cosine(teacher_embeddings, i, j, k)
                    )
                    for j, k in itertools.product(batch, batch)
                ]
            )
            for i in batch
        ]
    )


def pkt(student_embeddings, teacher_embeddings, epsilon=1e-7):
    """Row by row."""
    batch = range(len(student_embeddings))
    length = lambda x: math.sqrt(x @ x) + epsilon
    out = []
    for i in batch:
        rows = []
        for f in (teacher_embeddings, student_embeddings):
            row = np.array(
                [(f[i] @ f[j] / (length(f[i]) * length(f[j])) + 1) / 2 for j in batch]
            )
            rows.append(row / row.sum())
        p, q = rows
        out.append(np.mean(p * np.log((p + epsilon) / (q + epsilon))))
    return np.array(out)


def cc(student_embeddings, teacher_embeddings, gamma=0.4, order=2):
    """Pair by pair, the exponential's series term by term."""
    batch = range(len(student_embeddings))

    def kernel(f, i, j):
        cosine = f[i] @ f[j] / math.sqrt((f[i] @ f[i]) * (f[j] @ f[j]))
        terms = [
            (2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1)
        ]
        return math.exp(-2 * gamma) * sum(terms)

    s, t = student_embeddings, teacher_embeddings
    return np.array(
        [
            np.mean([(kernel(s, i, j) - kernel(t, i, j)) ** 2 for j in batch])
            for i in batch
        ]
    )


def crd(
    student_embeddings,
    teacher_embeddings,
    student_bank,
    teacher_bank,
    positives,
    negatives,
    temperature=0.07,
    student_normalizer=1.0,
    teacher_normalizer=1.0,
):
    """Equations 17 to 19 with probabilities, candidate by candidate."""
    noise = negatives.shape[1] / len(student_bank)
    out = np.zeros(len(positives))
    for i in range(len(positives)):
        for anchor, bank, normalizer in (
            (student_embeddings[i], teacher_bank, student_normalizer),
            (teacher_embeddings[i], student_bank, teacher_normalizer),
        ):
            h = lambda row, a=anchor, b=bank, z=normalizer: (
                1 / (1 + noise * z / math.exp(a @ b[row] / temperature))
            )
            out[i] -= math.log(h(positives[i]))
            out[i] -= sum(math.log(1 - h(row)) for row in negatives[i])
    return out
