"""How small may the student be? Students down to one hidden layer, and to none.

Each width has its own plain student. What the head of the linear student sees is the
image itself: its CKA compares pixels with the teacher's features.
"""

from experiments.studies import _finding as f, _nets, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher
from jaxkd import cost


def run(lab: Lab) -> f.Finding:
    """Says at which size the gain is largest and at which smallest."""
    taught = teacher(lab)
    resident, arms = with_logits(lab, taught), []
    shape = lab.task.test.images.shape[1:]
    for spec in _nets.LADDERS[lab.scale.dataset]:
        it = novice(lab, spec)
        size = cost.of(it.net, shape).parameters
        name, train = f"{_nets.title(spec)} ({size:,})", course(lab, it)
        plain = train(f"plain {name}", knobs(), taught, resident=resident)
        students = train(name, configured(lab), taught, resident=resident)
        arms.append(f.Arm(name, students.metrics, plain.metrics))
    return study.finding(lab, "student (parameters)", arms, taught, [sentence(arms)])


def sentence(arms: list[f.Arm]) -> str:
    """Whom distillation helps and whom it harms.

    Args:
      arms: by falling size.
    """
    gains = {arm.label: f.gain(arm) for arm in arms}
    better = sum(f.apart(g) and g[0] > 0 for g in gains.values())
    worse = sum(f.apart(g) and g[0] < 0 for g in gains.values())
    most, least = (pick(gains, key=lambda k: gains[k][0]) for pick in (max, min))
    named = dict.fromkeys([most, least, arms[-1].label])
    each = "; ".join(f"{label} has {f.changes(gains[label])}" for label in named)
    return (
        f"Distillation helps {better} and harms {worse} of {len(arms)} students; the "
        f"most and the least helped, and the smallest: {each}."
    )
