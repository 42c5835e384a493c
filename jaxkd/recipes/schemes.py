"""Recipes for schemes of several networks, a moving teacher or stored scores.

Each gives the objective and what the scheme's own function takes besides; which module
of `jaxkd.schemes` runs it is the recipe's `scheme`.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxkd import distill, losses
from jaxkd.distill import Spec
from jaxkd.models.net import Net
from jaxkd.recipes._record import CE, CIFAR, Budget, Recipe, Trained, one_stage
from jaxkd.schemes import ensemble as committees
from jaxkd.schemes.staged import Stage
from jaxkd.types import Batch

MUTUAL = CIFAR._replace(
    epochs=200, learning_rate=0.1, drops=(0.3, 0.6, 0.9), nesterov=True
)


def _soft(temperature: float) -> Spec:
    """Return the objective of the recipe `kd`."""
    term = distill.on_logits(losses.kd, temperature=temperature)
    return {"ce": (0.1, CE), "kd": (0.9, term)}


def ensemble(
    student: Net,
    teacher: Sequence[Trained],
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
    mode: str = "probabilities",
) -> Recipe:
    """Several teachers as one, by the mean of their softened probabilities.

    `teacher` is a list of networks with their variables. Weights and temperature are
    those of `kd`; the paper leaves them to the task.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 4 (ensembles as teachers);
    HobbitLong/RepDistiller scripts/run_cifar_distill.sh:5 (weights).
    """
    if not teacher or isinstance(teacher[0], Net):
        raise ValueError(
            "ensemble takes a list of teachers, [(net, variables), ...], got "
            f"{'one' if teacher else 'none'}"
        )
    nets, variables = zip(*teacher, strict=True)
    committee = committees.of([distill.frozen(net) for net in nets])
    made = committees.mean(committee, mode=mode, temperature=temperature)
    recipe = one_stage(student, None, _soft(temperature), budget)
    return recipe._replace(teacher=made, teacher_variables=variables)


def stored(
    student: Net,
    teacher: Trained | None,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
) -> Recipe:
    """Soft labels from scores that the teacher gave once, before the training.

    The training data hold them beside the images: see `schemes.offline`. Weights and
    temperature are those of `kd`.

    Source: HobbitLong/RepDistiller scripts/run_cifar_distill.sh:5 (weights).
    """
    recipe = one_stage(student, None, _soft(temperature), budget)
    return recipe._replace(teacher=distill.cached, scheme="offline")


def mutual(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = MUTUAL,
) -> Recipe:
    """Two untrained networks that teach each other.

    The network of `teacher` is the student's peer; its variables are not looked at.
    Cross-entropy and divergence from the peer have weight 1. The authors train for 200
    epochs at .1, divided by 10 every 60.

    Source: Zhang et al. 2018, arXiv:1706.00384, equation 4 (weights), section 3.1
    (rates).
    """
    spec: Spec = {"ce": (1.0, CE), "mutual": (1.0, distill.on_logits(losses.mutual))}
    recipe = one_stage(student, None, spec, budget)
    return recipe._replace(scheme="mutual", options={"peers": (student, teacher[0])})


def mean_teacher(
    student: Net,
    teacher: Trained | None,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 100.0,
    decay: float = 0.97,
) -> Recipe:
    """The moving average of the student teaches it, also on unlabelled images.

    Cross-entropy of weight 1, and the squared difference of the probabilities, averaged
    over the classes, whose weight grows to 100 over 5 of 180 epochs; decay .97. These
    are the authors' figures for 1000 labels of CIFAR-10; with 4000 the decay is .99.

    Source: CuriousAI/mean-teacher pytorch/experiments/cifar10_test.py:43-44, 63-75,
    pytorch/mean_teacher/losses.py:27 (the mean over classes),
    pytorch/mean_teacher/ramps.py:24-26 (the shape of the growth).
    """
    fresh = jax.eval_shape(student.init, jax.random.key(0), batch["image"])
    said, _ = jax.eval_shape(
        lambda v, x: student.apply(*v, x, train=False), fresh, batch["image"]
    )
    share = weight / said.logits.shape[-1]
    ramp = budget.scale_steps(5, of=180)

    def growing(step: jax.Array) -> jax.Array:
        left = 1 - jnp.minimum(step / ramp, 1)
        return share * jnp.exp(-5 * left**2)

    term = distill.on_logits(losses.probability_mse)
    spec: Spec = {"ce": (1.0, CE), "consistency": (growing, term)}
    recipe = one_stage(student, None, spec, budget)
    return recipe._replace(scheme="self_teacher", options={"decay": decay})


def born_again(
    student: Net,
    teacher: Trained | None,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    generations: int = 3,
) -> Recipe:
    """The same network again and again, each generation taught by the one before.

    Cross-entropy and divergence at temperature 1 have weight 1. The first generation
    learns from the labels alone, or from `teacher`.

    Source: Furlanello et al. 2018, arXiv:1805.04770, section 3.
    """
    kd = distill.on_logits(losses.kd, temperature=1.0)
    spec: Spec = {"ce": (1.0, CE), "kd": (1.0, kd)}
    recipe = one_stage(student, teacher, spec, budget)
    return recipe._replace(scheme="born_again", options={"count": generations})


def assistants(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    between: Mapping[str, Net],
    budget: Budget = CIFAR,
    temperature: float = 4.0,
) -> Recipe:
    """From a large teacher to a small student over networks of sizes in between.

    `between` are the assistants by name, from the largest. Weights and temperature are
    those of `kd`: the paper searches for them in every case.

    Source: Mirzadeh et al. 2020, arXiv:1902.03393, section 3 (the chain);
    HobbitLong/RepDistiller scripts/run_cifar_distill.sh:5 (weights).
    """
    stage = Stage("task", _soft(temperature), budget.epochs, budget.optimizer())
    net, variables = teacher
    nets = {**between, "student": student}
    made = Recipe(student, (stage,), distill.frozen(net), variables)
    return made._replace(scheme="assistants", options={"nets": nets})
