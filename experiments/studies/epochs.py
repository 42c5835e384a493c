"""Does distillation save time? Students trained for fewer and for more epochs.

Each number of epochs has its own plain students, trained for as many.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher


def run(lab: Lab) -> f.Finding:
    """Compares the gains, and the shortest distilled run with the longest plain one."""
    taught = teacher(lab)
    train, resident = course(lab, novice(lab)), with_logits(lab, taught)
    arms = []
    for epochs in sorted(lab.scale.epochs_tried):
        name = f"{epochs} epochs"
        plain, students = (
            train(label, these, taught, resident=resident, epochs=epochs)
            for label, these in ((f"plain {name}", knobs()), (name, configured(lab)))
        )
        arms.append(f.Arm(name, students.metrics, plain.metrics))
    return study.finding(lab, "students trained", arms, taught, sentences(arms))


def sentences(arms: list[f.Arm]) -> list[str]:
    """The gains, and what is left of them if each may choose its number of epochs.

    Args:
      arms: by rising number of epochs.
    """
    plain = [f.Arm(arm.label, arm.plain) for arm in arms if arm.plain is not None]
    gains = ", ".join(f"{f.signed(f.gain(a))} after {a.label}" for a in arms)
    early = f.changes(f.versus(arms[0], plain[-1]))
    best, best_plain = (max(of, key=f.accuracy) for of in (arms, plain))
    return [
        f"Distillation gains {gains}; distilled for {arms[0].label} the student makes "
        f"{early} against the plain one trained for {plain[-1].label}.",
        f"With the best number of epochs for each, {best.label} distilled and "
        f"{best_plain.label} plain, distillation makes "
        f"{f.changes(f.versus(best, best_plain))}.",
    ]
