"""What should the student match? KL, or squared error on logits or probabilities.

The weights of the two terms are the same for all. The losses differ in scale: KL is
taken at the configured temperature and at 1, the squared errors as they are.
"""

from experiments.studies import _finding as f, _study as study
from experiments.studies._course import (
    Knobs,
    configured,
    course,
    knobs,
    novice,
    with_logits,
)
from experiments.studies._lab import Lab, teacher
from jaxkd import distill, losses


def logits(_: Knobs) -> distill.Term:
    """Squared error on logits."""
    return distill.on_logits(losses.logit_mse)


def probabilities(_: Knobs) -> distill.Term:
    """Squared error on probabilities, not softened."""
    return distill.on_logits(losses.probability_mse)


def run(lab: Lab) -> f.Finding:
    """Compares the objectives with KL at the configured temperature."""
    taught, it = teacher(lab), novice(lab)
    resident, by_kl = with_logits(lab, taught), course(lab, it)
    plain = by_kl("plain", knobs(), taught, resident=resident).metrics
    t = lab.config.temperature
    tried = {
        f"KL, T={t:g}": (by_kl, configured(lab)),
        "KL, T=1": (by_kl, configured(lab, temperature=1)),
        "MSE, logits": (course(lab, it, soft=logits), configured(lab)),
        "MSE, probabilities": (course(lab, it, soft=probabilities), configured(lab)),
    }
    arms = []
    for name, (train, these) in tried.items():
        students = train(name, these, taught, resident=resident)
        arms.append(f.Arm(name, students.metrics, plain))
    by_name = {arm.label: arm for arm in arms}
    mse = (by_name["MSE, logits"], arms[0])
    sentence = (
        f"Of the objectives, {f.best_of(arms, arms[0])}; against {arms[0].label} the "
        f"squared error on logits makes {f.changes(f.versus(*mse))}, on probabilities "
        f"{f.changes(f.versus(by_name['MSE, probabilities'], arms[0]))}."
    )
    return study.finding(lab, "objective", arms, taught, [sentence])
