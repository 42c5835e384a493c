"""What a recipe returns, and for how long and how fast it is trained."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxkd import distill, losses
from jaxkd.distill import Spec, Teacher, Term
from jaxkd.models.net import Net
from jaxkd.schemes.staged import Stage

Trained = tuple[Net, Any]  # a network and its variables, (params, state)

CE = distill.on_labels(losses.cross_entropy)


class Budget(NamedTuple):
    """How long and how fast a recipe is trained: SGD with a stepwise learning rate.

    The defaults are RepDistiller's for CIFAR-100, in whose 240 epochs the lengths of
    first stages and warm-ups were published: a budget of fewer epochs shortens them in
    proportion. Weight decay acts on every parameter, the terms' included.

    Source: HobbitLong/RepDistiller train_student.py:44-54.

    Attributes:
      epochs: of the main stage.
      steps_per_epoch: 781 is 50,000 images in batches of 64, without the last.
      learning_rate: at the start.
      drops: where the learning rate is multiplied by `decay`, as shares of the epochs.
      decay: of the learning rate at each drop.
      momentum: of SGD.
      weight_decay: of SGD, added to the gradient.
      nesterov: whether the momentum is Nesterov's.
    """

    epochs: int = 240
    steps_per_epoch: int = 781
    learning_rate: float = 0.05
    drops: tuple[float, ...] = (0.625, 0.75, 0.875)
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def scale_epochs(self, published: int, of: int = 240) -> int:
        """Return a published number of epochs in proportion to this budget, >= 1."""
        return max(1, round(self.epochs * published / of))

    def scale_steps(self, published: int, of: int = 240) -> int:
        """Return the steps of a published number of epochs, in proportion, >= 1."""
        return max(1, round(self.epochs * self.steps_per_epoch * published / of))

    def warm_up(self, weight: float, published: int = 20) -> optax.Schedule:
        """Return a weight that grows linearly from 0 over so many published epochs."""
        return optax.linear_schedule(0.0, weight, self.scale_steps(published))

    def optimizer(
        self, *, constant: bool = False, learning_rate: float | None = None
    ) -> optax.GradientTransformation:
        """Build the optimiser of the main stage, or of one at a constant rate."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        steps = self.epochs * self.steps_per_epoch
        drops = {} if constant else {int(at * steps): self.decay for at in self.drops}
        schedule = optax.piecewise_constant_schedule(rate, drops)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(schedule, momentum=self.momentum, nesterov=self.nesterov),
        )


CIFAR = Budget()


class Recipe(NamedTuple):
    """A published method, made for two networks: what to train, and on what.

    A recipe of the scheme "staged", which most are, is run by `schemes.staged.fit`::

        recipe = recipes.dkd(student, (teacher, variables), batch)
        staged.fit(recipe.stages, recipe.net, recipe.teacher, recipe.teacher_variables,
                   resident, view=view, key=key, batch_size=64)

    Another optimiser is `[stage._replace(tx=...) for stage in recipe.stages]`.

    Attributes:
      net: the network to train: the student, unless the method extends it.
      stages: one or more, with objective, weights, length and optimiser.
      teacher: as in `distill.distiller`, for all stages.
      teacher_variables: its variables.
      scheme: the module of `jaxkd.schemes` that runs the stages.
      options: further arguments of that module's function.
    """

    net: Net
    stages: tuple[Stage, ...]
    teacher: Teacher
    teacher_variables: Any
    scheme: str = "staged"
    options: dict[str, Any] = {}  # noqa: RUF012  # a tuple's default, never changed


def one_stage(
    student: Net, teacher: Trained | None, spec: Spec, budget: Budget
) -> Recipe:
    """Build the recipe that trains on one objective for the whole budget."""
    stage = Stage("task", spec, budget.epochs, budget.optimizer())
    return staged(student, teacher, stage)


def staged(student: Net, teacher: Trained | None, *stages: Stage) -> Recipe:
    """Build the recipe of these stages, taught by a network or by nobody."""
    if teacher is None:
        return Recipe(student, stages, distill.no_teacher, None)
    net, variables = teacher
    return Recipe(student, stages, distill.frozen(net), variables)


def beside_labels(
    student: Net, teacher: Trained, name: str, weight: Any, term: Term, budget: Budget
) -> Recipe:
    """Build the recipe of cross-entropy of weight 1 and one term."""
    spec = {"ce": (1.0, CE), name: (weight, term)}
    return one_stage(student, teacher, spec, budget)


def cosine_after(weight: float, start: int, stop: int) -> optax.Schedule:
    """Return a weight that is constant until step `start`, then a half cosine to 0."""

    def schedule(step: Any) -> Any:
        share = jnp.clip((step - start) / max(1, stop - start), 0, 1)
        return 0.5 * weight * (1 + jnp.cos(jnp.pi * share))

    return schedule


def needed(name: str, weight: float | None, reason: str) -> float:
    """Return a weight that has no published value.

    Raises:
      ValueError: if none is given.
    """
    if weight is None:
        raise ValueError(f"{name} has no published weight ({reason}): give weight=")
    return weight


def layer(teacher: Trained, name: str) -> Any:
    """Return the variables of a layer of the teacher's.

    Raises:
      ValueError: if there is none of that name; lists those there are.
    """
    params = teacher[1][0]
    if name not in params:
        raise ValueError(f"the teacher has no layer {name!r}; there are {[*params]}")
    return params[name]
