"""Recipes in two stages: something is learnt before the labels are."""

from collections.abc import Sequence

import optax

from jaxkd import distill, losses, terms
from jaxkd.distill import Spec, TrainState
from jaxkd.models.net import Net
from jaxkd.recipes import _taps as taps
from jaxkd.recipes._record import CE, CIFAR, Budget, Recipe, Trained, staged
from jaxkd.schemes.staged import Stage
from jaxkd.types import Batch

FIRST = 30  # epochs of RepDistiller's first stages, before its 240


def _task(spec: Spec, budget: Budget) -> Stage:
    """Build the main stage."""
    return Stage("task", spec, budget.epochs, budget.optimizer())


def _first(name: str, spec: Spec, budget: Budget, trains: Sequence[str]) -> Stage:
    """Build a first stage of 30 epochs at a constant learning rate."""
    tx = budget.optimizer(constant=True)
    return Stage(name, spec, budget.scale_epochs(FIRST), tx, trains)


def soft_then_hard(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    temperature: float = 4.0,
) -> Recipe:
    """Soft labels alone for half of the epochs, then hard labels alone.

    Not a published method: it asks whether soft labels are needed to the end.

    Source: none.
    """
    term = distill.on_logits(losses.kd, temperature=temperature)
    soft = max(1, budget.epochs // 2)
    first = budget._replace(epochs=soft)
    then = budget._replace(epochs=max(1, budget.epochs - soft))
    return staged(
        student,
        teacher,
        Stage("soft", {"kd": (1.0, term)}, first.epochs, first.optimizer()),
        Stage("hard", {"ce": (1.0, CE)}, then.epochs, then.optimizer()),
    )


def fitnets(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    trains: Sequence[str] | None = None,
) -> Recipe:
    """The hint first, moving nothing above it; then soft labels that fade.

    The second stage has a cross-entropy of weight 1 and soft labels at temperature 3,
    whose weight falls linearly from 4 to 1 over four fifths of the epochs (without the
    factor of the squared temperature). The authors pass the length of the first stage
    to their program; here it is RepDistiller's 30 of 240 epochs. `trains` are patterns
    of what the first stage moves; by default the stem and the stages up to the hint.

    Source: adri-romsor/FitNets yaml/cifar100_fitnet19_all.yaml:286-304 (temperature,
    weights, 400 epochs), costs/KDCost.py:110-123, 150 (no squared temperature).
    """
    pairs = taps.match_stages(student, teacher, batch)
    guided = taps.second(pairs)
    if trains is None:
        below = list(pairs)[: list(pairs).index(next(iter(guided))) + 1]
        trains = taps.up_to(student, batch, below)
    hint: Spec = {"hint": (1.0, terms.hint(guided))}
    fading = optax.linear_schedule(4 / 9, 1 / 9, budget.scale_steps(4, of=5))
    soft = distill.on_logits(losses.kd, temperature=3.0)
    task: Spec = {"ce": (1.0, CE), "kd": (fading, soft)}
    return staged(
        student, teacher, _first("hint", hint, budget, trains), _task(task, budget)
    )


def fsp(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 1.0,
) -> Recipe:
    """Flows between stages first, for 30 epochs before the 240; then the labels.

    The first stage has weight 1 and a constant learning rate, and moves all but the
    classifier. RepDistiller's option "-b 50" multiplies a loss that is 0 in the second
    stage, and is not applied to the first.

    Source: HobbitLong/RepDistiller helper/pretrain.py:28-36, 72-74, helper/loops.py:
    174-176, train_student.py:255-263, 47.
    """
    pairs = {"stem": "stem", **taps.match_stages(student, teacher, batch)}
    steps = list(zip(pairs.items(), list(pairs.items())[1:], strict=False))
    term = terms.fsp({(a, b): (x, y) for (a, x), (b, y) in steps})
    s, t = taps.outputs(student, teacher, batch)
    adapts = any(s.tap(a).shape[-1] != t.tap(b).shape[-1] for a, b in pairs.items())
    moves = taps.without_head(student, batch)
    if not adapts:  # then the term has no parameters
        moves = tuple(pattern for pattern in moves if pattern != "terms/*")
    flows: Spec = {"fsp": (weight, term)}
    return staged(
        student,
        teacher,
        _first("flows", flows, budget, moves),
        _task({"ce": (1.0, CE)}, budget),
    )


def ab(
    student: Net, teacher: Trained, batch: Batch, *, budget: Budget = CIFAR
) -> Recipe:
    """Activation boundaries first, for 30 epochs before the 240; then the labels.

    Of n stages, the i-th has weight 3/1000 times 2**(i - n) for the sum over its units
    (the library's loss is the mean). The learning rate of the first stage is constant;
    it moves all but the classifier.

    Source: HobbitLong/RepDistiller distiller_zoo/AB.py:13, 22-23 (weights),
    helper/pretrain.py:28-36, 63-67; bhheo/AB_distillation
    cifar10_AB_distillation.py:110-115 (the same weights).
    """
    pairs = taps.match_stages(student, teacher, batch, suffix="_pre")
    _, t = taps.outputs(student, teacher, batch)
    shares = [2.0 ** (i + 1 - len(pairs)) for i in range(len(pairs))]
    boundaries: Spec = {
        f"ab_{here}": (
            3e-3 * share * taps.units(t.tap(there)),
            terms.ab({here: there}, margin=1.0),
        )
        for share, (here, there) in zip(shares, pairs.items(), strict=True)
    }
    moves = taps.without_head(student, batch)
    return staged(
        student,
        teacher,
        _first("boundaries", boundaries, budget, moves),
        _task({"ce": (1.0, CE)}, budget),
    )


def factor_transfer(
    student: Net,
    teacher: Trained,
    batch: Batch,
    *,
    budget: Budget = CIFAR,
    weight: float = 500.0,
    rate: float = 0.5,
    learning_rate: float = 0.01,
) -> Recipe:
    """A paraphraser of the teacher's last map first; then its factors and the labels.

    The paraphraser, of half the channels, is trained for 30 epochs before the 240 by
    SGD at a constant .01; then the factors have weight 500, the authors' for CIFAR-10,
    beside a cross-entropy of weight 1. RepDistiller's weight of 200 belongs to its own
    loss, which averages over the channels of the factors.

    Source: Jangho-Kim/Factor-Transfer-pytorch train_student.py:34-35, 177-178 (weight,
    rate), utils.py:107-108; HobbitLong/RepDistiller helper/pretrain.py:22-36, 68-71
    (first stage), distiller_zoo/FT.py:30-31 (the other loss).
    """
    pair = taps.last(taps.match_stages(student, teacher, batch))
    (there,) = pair.values()

    def factors(before: TrainState) -> Spec:
        trained = before.params["terms"]["paraphraser"]
        term = terms.factor_transfer(pair, paraphraser=trained)
        return {"ce": (1.0, CE), "factors": (weight, term)}

    alone: Spec = {"paraphraser": (1.0, terms.paraphraser(there, rate=rate))}
    tx = budget.optimizer(constant=True, learning_rate=learning_rate)
    first = Stage("paraphraser", alone, budget.scale_epochs(FIRST), tx, "terms/*")
    main = Stage("task", factors, budget.epochs, budget.optimizer())
    return staged(student, teacher, first, main)
