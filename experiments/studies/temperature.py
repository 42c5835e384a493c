"""How soft should the targets be? Students at several temperatures.

One teacher, one plain student, and a student for each temperature, all from the same
weights and batches. KL is multiplied by T squared, so that the soft term weighs about
the same at each.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher


def run(lab: Lab) -> f.Finding:
    """Compares the temperatures with the lowest of them, and the best with plain."""
    taught = teacher(lab)
    train, resident = course(lab, novice(lab)), with_logits(lab, taught)
    plain = train("plain", knobs(), taught, resident=resident).metrics
    arms = []
    for t in lab.config.temperatures:
        name, these = f"T={t:g}", configured(lab, temperature=t)
        students = train(name, these, taught, resident=resident)
        arms.append(f.Arm(name, students.metrics, plain))
    reference = arms[lab.config.temperatures.index(min(lab.config.temperatures))]
    best = max(arms, key=f.accuracy)
    sentence = (
        f"Of the temperatures, {f.best_of(arms, reference)}; against the plain student "
        f"{best.label} makes {f.changes(f.gain(best))}."
    )
    return study.finding(lab, "temperature", arms, taught, [sentence])
