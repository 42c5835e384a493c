"""Does augmentation help the student to learn from the teacher? Several kinds.

Under a random view the teacher runs live and sees what the students see. Each kind has
its own plain students, on the same augmented images with the labels alone. The teacher
was trained without augmentation.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import (
    configured,
    course,
    knobs,
    nothing,
    novice,
    with_logits,
)
from experiments.studies._lab import Lab, teacher
from jaxkd import distill
from jaxkd.data import augment

# What keeps the label of these images: no mirrored digits. Shifts and mirrors act on
# the bytes, so that the border is black; the others on what the networks see.
_ON_BYTES: dict[str, dict[str, augment.View]] = {
    "digits": {"shift 1": augment.jitter(1)},
    "mnist": {"shift 2": augment.jitter(2)},
    "fashion_mnist": {"shift 2": augment.jitter(2), "flip": augment.flip()},
    "cifar10": {"crop 4": augment.crop(4), "flip": augment.flip()},
}
_CUTOUT = {"digits": 3, "mnist": 8, "fashion_mnist": 8, "cifar10": 8}
MIXUP = 0.4


def views(lab: Lab) -> dict[str, augment.View]:
    """The augmentations of a data set, each whole, from bytes to what networks see."""
    name, plain = lab.scale.dataset, lab.task.view
    size = _CUTOUT[name]
    return {
        **{k: augment.chain(v, plain) for k, v in _ON_BYTES[name].items()},
        f"cutout {size}": augment.chain(plain, augment.cutout(size)),
        "mixup": augment.chain(plain, augment.mixup(MIXUP)),
    }


def run(lab: Lab) -> f.Finding:
    """Compares the augmentations with none, for distilled and for plain students."""
    taught, it = teacher(lab), novice(lab)
    train, resident = course(lab, it), with_logits(lab, taught)
    plain = train("plain", knobs(), taught, resident=resident)
    students = train("none", configured(lab), taught, resident=resident)
    arms = [f.Arm("none", students.metrics, plain.metrics)]
    live, of = distill.frozen(taught.net), taught.variables
    for name, view in views(lab).items():
        bare = lab.task.resident
        alone = course(lab, it, soft=nothing, teacher=distill.nobody, view=view)
        train = course(lab, it, teacher=live, view=view)
        plain = alone(f"plain, {name}", knobs(), taught, resident=bare)
        students = train(name, configured(lab), taught, resident=bare, variables=of)
        arms.append(f.Arm(name, students.metrics, plain.metrics))
    return study.finding(lab, "augmentation", arms, taught, sentences(arms))


def sentences(arms: list[f.Arm]) -> list[str]:
    """Which augmentation helps the distilled students, and what it does to plain ones.

    Args:
      arms: the first without augmentation.
    """
    none, best = arms[0], max(arms[1:], key=f.accuracy)
    assert none.plain is not None and best.plain is not None
    for_plain = f.paired(best.plain["accuracy"], none.plain["accuracy"])
    first = (
        f"Of the augmentations, {f.best_of(arms, none)}; for the plain student "
        f"{best.label} makes {f.changes(for_plain)}."
    )
    gains = ", ".join(f"{a.label} {f.signed(f.gain(a))}" for a in arms)
    return [first, f"What distillation gains under each, in points: {gains}."]
