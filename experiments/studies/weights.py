"""How much should the labels weigh? Students at several mixtures of the two terms.

The soft term's weight is one minus the labels', at the configured temperature.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import configured, course, knobs, novice, with_logits
from experiments.studies._lab import Lab, teacher


def run(lab: Lab) -> f.Finding:
    """Compares the mixtures with the one that trusts the labels most."""
    taught = teacher(lab)
    train, resident = course(lab, novice(lab)), with_logits(lab, taught)
    plain = train("plain", knobs(), taught, resident=resident).metrics
    arms = []
    for hard in lab.config.label_weights:
        name = f"{hard:g} / {1 - hard:.3g}"
        students = train(
            name, configured(lab, hard=hard, soft=1 - hard), taught, resident=resident
        )
        arms.append(f.Arm(name, students.metrics, plain))
    weights = lab.config.label_weights
    most, least = (arms[weights.index(pick(weights))] for pick in (max, min))
    sentence = (
        f"Of the weights (labels / teacher), {f.best_of(arms, most)}; the gains over "
        f"the plain student go from {f.signed(f.gain(least))} at {least.label} to "
        f"{f.signed(f.gain(most))} at {most.label}."
    )
    return study.finding(lab, "labels / teacher", arms, taught, [sentence])
