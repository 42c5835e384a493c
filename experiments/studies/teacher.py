"""Does a better teacher make a better student? Teachers trained for more epochs.

The students are the same and see the same; only the cached logits differ. The plain
students are trained once, and compared with each teacher.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher


def run(lab: Lab) -> f.Finding:
    """Compares the students of each teacher with those of the least trained one."""
    train, tried = course(lab, novice(lab)), lab.scale.teachers_tried
    taught = [teacher(lab, epochs) for epochs in tried]
    plain = train("plain", knobs(), taught[0], resident=with_logits(lab, taught[0]))
    arms = []
    for epochs, one in zip(tried, taught, strict=True):
        resident, name = with_logits(lab, one), f"{epochs} epochs"
        students = train(name, configured(lab), one, resident=resident)
        beside = plain.on(lab.task.resident_test, one.seen)
        arms.append(f.Arm(name, students.metrics, beside))
    of = [100 * float(one.metrics["accuracy"]) for one in taught]
    least, best_teacher = arms[tried.index(min(tried))], of.index(max(of))
    sentence = (
        f"Judged by their students: {f.best_of(arms, least)}; the best teacher "
        f"({arms[best_teacher].label}, {of[best_teacher]:.2f}%) makes "
        f"{f.changes(f.gain(arms[best_teacher]))}, the worst ({min(of):.2f}%) "
        f"{f.changes(f.gain(arms[of.index(min(of))]))} over the plain student."
    )
    return study.finding(lab, "teacher trained", arms, taught, [sentence])
