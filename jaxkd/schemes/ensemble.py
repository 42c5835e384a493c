"""Several teachers as one.

A committee is a `Teacher` whose logits have a leading axis of teachers,
`[teachers, batch, classes]`. `of` makes one from teachers of any architecture,
`copies` from the stacked variables of one network trained from several seeds. What the
student learns from it is chosen next:

    committee = ensemble.of([distill.frozen(cnn), distill.frozen(mlp)])
    variables = (cnn_variables, mlp_variables)

    # One teacher: the mean of the probabilities, or of the logits.
    teacher = ensemble.mean(committee, temperature=4.0)
    kd = distill.on_logits(losses.kd, temperature=4.0)

    # All teachers: the mean of the losses to each.
    teacher = committee
    kd = distill.on_logits(ensemble.each(losses.kd), temperature=4.0)

Three means, two gradients. With p_i the softened teachers, q the student and w the
weights (of sum 1), the KL to the mean probability and the mean of the KLs differ by a
constant of the student::

    sum_i w_i KL(p_i, q) = KL(sum_i w_i p_i, q) + sum_i w_i KL(p_i, sum_j w_j p_j)

so they teach the same; the first knows one teacher only and can be cached. The mean of
the logits is the normalised geometric mean of the p_i, which is another distribution:
a class that one teacher rules out stays out.

`train.cache_teacher` and `evaluate.predict` take `mean(...)`, not a bare committee.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxkd import _check, losses
from jaxkd.distill import Teacher
from jaxkd.types import Batch, Outputs


def of(teachers: Sequence[Teacher], *, names: Sequence[str] | None = None) -> Teacher:
    """Return a committee of teachers, whose variables are the tuple of theirs.

    Args:
      teachers: one or more, e.g. `distill.frozen(net)`, of any architectures.
      names: one for each, under which its taps are found: "NAME/stage3"; "0", "1", ...
        by default.

    Returns:
      The teacher of logits `[teachers, batch, classes]`.

    Raises:
      ValueError: if there is no teacher, or if there are not as many different names;
        when traced, if there are not as many variables, or the classes differ.

    References:
      Hinton, Vinyals, Dean. `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015. Section 1.
      You, Xu, Xu, Tao. `Learning from Multiple Teacher Networks
      <https://doi.org/10.1145/3097983.3098135>`_, 2017.
    """
    teachers = tuple(teachers)
    if not teachers:
        raise ValueError("teachers must hold at least one, got none")
    names = tuple(map(str, range(len(teachers)))) if names is None else tuple(names)
    if len(names) != len(teachers) or len(set(names)) != len(names):
        raise ValueError(
            f"names must be {len(teachers)} different ones, one for each teacher, got "
            f"{names}"
        )

    def committee(variables: Sequence[Any], batch: Batch) -> Outputs:
        if not isinstance(variables, tuple | list) or len(variables) != len(teachers):
            got = len(variables) if isinstance(variables, tuple | list) else "no tuple"
            raise ValueError(
                f"variables must be a tuple, one for each of the {len(teachers)} "
                f"teachers, got {got}"
            )
        said = [
            teach(own, batch) for teach, own in zip(teachers, variables, strict=True)
        ]
        return side_by_side(said, names)

    return committee


def side_by_side(outputs: Sequence[Outputs], names: Sequence[str]) -> Outputs:
    """Outputs of several networks as one: logits stacked, taps as "NAME/TAP".

    Raises:
      ValueError: if one has no logits, or the classes differ.
    """
    for name, each in zip(names, outputs, strict=True):
        if each.logits is None:
            raise ValueError(
                f"member {name} of the ensemble has no logits; is it "
                "`distill.no_teacher`? Each member must be a network"
            )
    classes = {n: o.logits.shape[-1] for n, o in zip(names, outputs, strict=True)}
    if len(set(classes.values())) > 1:
        raise ValueError(f"all networks must have the same classes, got {classes}")
    taps = {
        f"{name}/{tap}": value
        for name, each in zip(names, outputs, strict=True)
        for tap, value in each.taps.items()
    }
    return Outputs(jnp.stack([each.logits for each in outputs]), taps)


def copies(teacher: Teacher, *, together: bool = True) -> Teacher:
    """Return a committee of one network with several sets of variables.

    What `train.over_seeds` trained teaches without being taken apart::

        variables = (run.state.params["student"], run.state.state["student"])
        committee = ensemble.copies(distill.frozen(net))

    Args:
      teacher: of the single network.
      together: by `vmap`, right for MLPs and on accelerators; else one after another,
        since XLA:CPU is slow at the grouped convolutions that `vmap` makes.

    Returns:
      The teacher whose variables have a leading axis of teachers; taps are found under
      "0/...", "1/..." in their order.

    Raises:
      ValueError: when traced, if the variables have no common leading axis.
    """

    def committee(variables: Any, batch: Batch) -> Outputs:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(variables)}
        if len(lengths) != 1 or not all(length and length[0] for length in lengths):
            raise ValueError(
                "variables must be stacked, with one leading axis of teachers, got "
                f"leading axes {sorted(lengths)}"
            )
        if together:
            said = jax.vmap(teacher, in_axes=(0, None))(variables, batch)
        else:
            said = jax.lax.map(lambda own: teacher(own, batch), variables)
        ((n,),) = lengths
        taps = {
            f"{i}/{tap}": value[i] for i in range(n) for tap, value in said.taps.items()
        }
        return Outputs(said.logits, taps)

    return committee


def mean(
    committee: Teacher,
    *,
    weights: Sequence[float] | None = None,
    mode: str = "probabilities",
    temperature: float = 1.0,
) -> Teacher:
    """One teacher of a committee: its mean, by `losses.ensemble_logits`.

    Args:
      committee: from `of` or `copies`; its variables and taps stay what they are.
      weights: one for each teacher, >= 0, not all 0, divided by their sum; None for
        equal ones.
      mode: "probabilities", the arithmetic mean of the softened probabilities; or
        "logits", which is their geometric mean.
      temperature: > 0, at which probabilities are averaged. Give the loss the same:
        softened at another temperature, the mean of the softened is not the softened
        mean. Unused by "logits".

    Returns:
      The teacher of logits `[batch, classes]`.

    Raises:
      ValueError: if an argument is out of its range; when traced, if there are not as
        many weights as teachers, or if `committee` is a single teacher.
    """
    _check.one_of("probabilities", "logits")("mode", mode)
    _check.positive("temperature", temperature)
    shares = _shares(weights)

    def teacher(variables: Any, batch: Batch) -> Outputs:
        said = committee(variables, batch)
        # Otherwise the mean would be taken over the examples of a single teacher.
        _check.rank(3, teacher_logits=said.logits)
        logits = losses.ensemble_logits(
            said.logits,
            weights=None if shares is None else jnp.asarray(shares),
            mode=mode,
            temperature=temperature,
        )
        return said._replace(logits=logits)

    return teacher


def each(
    loss: Callable[..., Array], *, weights: Sequence[float] | None = None
) -> Callable[..., Array]:
    """Return the mean over a committee of a loss to each of its teachers.

    Args:
      loss: `(student_logits, teacher_logits, ...) -> [batch]`, e.g. `losses.kd`.
      weights: one for each teacher, >= 0, not all 0, divided by their sum; None for
        equal ones.

    Returns:
      The same function of teacher logits with a leading axis of teachers, for
      `distill.on_logits` and `distill.on_logits_and_labels`.

    Raises:
      ValueError: if a weight is out of its range; when called, if there are not as many
        weights as teachers, or the teacher's logits have no axis more.

    Example:
      One teacher says (3/4, 1/4), the other agrees with the student: half of 0.1308.

      >>> import jax.numpy as jnp
      >>> from jaxkd import losses
      >>> teachers = jnp.log(jnp.array([[[3.0, 1.0]], [[1.0, 1.0]]]))
      >>> kd = each(losses.kd)
      >>> print(kd(jnp.zeros((1, 2)), teachers, temperature=1.0).round(4))
      [0.0654]
    """
    shares = _shares(weights)

    def to_each(
        student_logits: Array, teacher_logits: Array, *args: Any, **knobs: Any
    ) -> Array:
        axes = jnp.ndim(student_logits) + 1
        _check.rank(axes, axes, teacher_logits=teacher_logits)
        n = len(teacher_logits)
        if shares is not None and len(shares) != n:
            raise ValueError(f"weights must be {n}, one a teacher, got {len(shares)}")
        found = jax.vmap(lambda t: loss(student_logits, t, *args, **knobs))(
            teacher_logits
        )
        return jnp.mean(found, 0) if shares is None else jnp.tensordot(shares, found, 1)

    return to_each


def _shares(weights: Sequence[float] | None) -> np.ndarray | None:
    """Return the weights divided by their sum."""
    if weights is None:
        return None
    array = np.asarray(weights, np.float32)
    fine = array.ndim == 1 and np.isfinite(array).all() and (array >= 0).all()
    if not fine or not array.sum() > 0:
        raise ValueError(
            "weights must be finite and >= 0, one for each teacher, not all 0, got "
            f"{weights}"
        )
    return array / array.sum()
