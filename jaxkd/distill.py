"""Terms of a distillation objective, and the step that minimises their sum.

A `Term` has the shape of a `Net`: `init` makes its variables, `apply` uses them. A
plain loss becomes a `Term` through one of the lifts `on_labels`, `on_logits`,
`on_logits_and_labels`, `on_taps`; only a loss with parameters or memory of its own is
written as a `Term`.

    >>> import optax
    >>> from jaxkd import distill, losses
    >>> spec = {
    ...     "ce": (0.1, distill.on_labels(losses.cross_entropy)),
    ...     "kd": (0.9, distill.on_logits(losses.kd, temperature=5.0)),
    ... }

The name of a term also names its metric ("loss/kd") and its parameters, in the state
and in checkpoints. A weight is a number or an optax schedule of the step.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxkd import losses
from jaxkd.data.augment import View
from jaxkd.models.convolution import fast_inference
from jaxkd.models.net import Net
from jaxkd.types import Batch, Metrics, Outputs, Params, State


def accept(*args: Any) -> None:
    """Check nothing."""


class Term(NamedTuple):
    """One summand of an objective: a pair of pure functions.

    Attributes:
      init: `(key, student, teacher, batch) -> (params, state)`, from the two networks'
        Outputs on an example batch.
      apply: `(params, state, student, teacher, batch) -> (loss [batch], state)`.
      check: `columns -> None`, raises a ValueError if the training data do not fit.
    """

    init: Callable[[Array, Outputs, Outputs, Batch], tuple[Params, State]]
    apply: Callable[[Params, State, Outputs, Outputs, Batch], tuple[Array, State]]
    check: Callable[[Batch], None] = accept


Teacher = Callable[[Any, Batch], Outputs]  # (variables, batch) -> outputs
Inputs = str | Callable[[Batch], Any]  # which part of a batch a network sees
Spec = Mapping[str, tuple[float | optax.Schedule, Term]]  # name -> (weight, term)


class TrainState(NamedTuple):
    """Everything that changes during training, and nothing else: a tree of arrays.

    Attributes:
      step: how many updates have been made.
      params: `{"student": ..., "terms": {name: ...}}`, what the optimiser moves.
      state: the same two keys, for what moves without a gradient.
      opt_state: optax's.
      key: split once a step.
    """

    step: Array
    params: Params
    state: State
    opt_state: optax.OptState
    key: Array

    @property
    def student(self) -> tuple[Params, State]:
        """The student's variables, `(params, state)`, as `Net.apply` takes them."""
        return self.params["student"], self.state["student"]


class Distiller(NamedTuple):
    """A training procedure: a pair of pure functions, not yet compiled.

    Attributes:
      init: `(key, teacher_variables, batch) -> TrainState`.
      step: `(TrainState, teacher_variables, batch) -> (TrainState, Metrics)`.
      check: `(TrainState, columns, batch) -> None`, raises a ValueError if the training
        data do not fit. `columns` are all of them, or what is known of a stream's;
        `batch` has the shapes of what the networks see. `train.fit` calls it.
    """

    init: Callable[[Array, Any, Batch], TrainState]
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]
    check: Callable[[TrainState, Batch, Batch], None] = accept


def select(inputs: Inputs, batch: Batch) -> Any:
    """Return what a network sees of a batch.

    Args:
      inputs: the name of a field, or a function of the batch, such as
        `lambda batch: {"ids": batch["ids"], "mask": batch["mask"]}`.
      batch: the batch.

    Raises:
      ValueError: if the batch has no such field, listing its fields.
    """
    if callable(inputs):
        return inputs(batch)
    if inputs not in batch:
        raise ValueError(
            f"the batch has no field {inputs!r}, only {sorted(batch)}; pass inputs=, "
            "the name of the field that the networks see or a function of the batch"
        )
    return batch[inputs]


def fit_mask(where: Bool[Array, "..."], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Bring the mask of a batch to the shape of a loss.

    A mask of tokens, `[batch, sequence]`, counts an example of a loss `[batch]` if any
    of its tokens counts. A mask of examples counts all tokens of an example.

    Raises:
      ValueError: if neither shape begins with the other, or the mask is not boolean.
    """
    _boolean(where)
    common = min(where.ndim, len(shape))
    if where.shape[:common] != tuple(shape[:common]):
        raise ValueError(
            f'batch["where"] has shape {where.shape}, which does not fit a loss of '
            f"shape {tuple(shape)}"
        )
    if where.ndim > len(shape):
        return where.any(tuple(range(len(shape), where.ndim)))
    expanded = jnp.expand_dims(where, tuple(range(where.ndim, len(shape))))
    return jnp.broadcast_to(expanded, shape)


def counted(where: Bool[Array, "..."], column: Array) -> Bool[Array, "..."]:
    """Return which entries of a column the mask of its batch counts, to be broadcast.

    A mask of tokens counts an example of a column that has no tokens, such as an image,
    if any of its tokens counts.
    """
    _boolean(where)
    shape = column.shape
    while where.ndim > 1 and where.shape != shape[: where.ndim]:
        where = where.any(-1)
    return jnp.expand_dims(where, tuple(range(where.ndim, len(shape))))


def _boolean(where: Array) -> None:
    if where.dtype != jnp.bool_:
        raise ValueError(f'batch["where"] must be boolean, got {where.dtype}')


def without_masked(batch: Batch) -> Batch:
    """Return the batch, 0 where a value is not finite and `batch["where"]` is false.

    A loss of 0 has a gradient of 0, but times a NaN of the image it is NaN in every
    kernel; and BatchNorm means over the whole batch.
    """
    if "where" not in batch:
        return batch

    def column(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(counted(batch["where"], x) | jnp.isfinite(x), x, 0)

    return jax.tree.map(column, batch)


def batch_mean(loss: Float[Array, "..."], batch: Batch) -> Float[Array, ""]:
    """Return the mean of a loss over the entries that `batch["where"]` counts.

    Without the field, over all. If nothing counts, the mean is 0, as its gradient is.
    """
    if "where" not in batch:
        return loss.mean()
    where = fit_mask(batch["where"], loss.shape)
    # Selected before the sum: an excluded entry may be infinite.
    return jnp.sum(jnp.where(where, loss, 0)) / jnp.maximum(jnp.sum(where), 1)


def _stateless(
    check: Callable[[Outputs, Outputs], None],
    loss: Callable[[Outputs, Outputs, Batch], Array],
) -> Term:
    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        check(s, t)
        return {}, {}

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        return loss(s, t, batch), state

    return Term(init, apply)


def _mask(loss: Callable[..., Array], batch: Batch, shape: tuple[int, ...]) -> dict:
    """Return the keyword `where` of a loss that takes one, if the batch has a mask."""
    if "where" not in batch or "where" not in inspect.signature(loss).parameters:
        return {}
    return {"where": fit_mask(batch["where"], shape)}


def _mixed(loss: Callable[[Array], Array], batch: Batch) -> Array:
    """The loss under the labels of a batch, or under both labels of a mixed one."""
    if "label_other" not in batch:
        return loss(batch["label"])
    weight = batch["label_weight"]
    return weight * loss(batch["label"]) + (1 - weight) * loss(batch["label_other"])


def _comparable(s: Outputs, t: Outputs) -> None:
    if t.logits is None:
        raise ValueError("the spec compares with a teacher's logits, but none teaches")
    if s.logits.shape[-1] != t.logits.shape[-1]:
        raise ValueError(
            "teacher and student must have the same classes, got "
            f"{t.logits.shape[-1]} (teacher) and {s.logits.shape[-1]} (student)"
        )


def on_labels(loss: Callable[..., Array], **knobs: Any) -> Term:
    """Lift `loss(student_logits, labels, **knobs)` to a term.

    On a batch mixed by `data.augment.mixup` it is the mean of the loss under the two
    labels, weighted as the images are. A loss that takes `where=` is given the mask of
    the batch, `batch["where"]`, by this and the other lifts.
    """

    def apply(s: Outputs, t: Outputs, batch: Batch) -> Array:
        mask = _mask(loss, batch, s.logits.shape[:-1])
        return _mixed(lambda label: loss(s.logits, label, **mask, **knobs), batch)

    return _stateless(lambda s, t: None, apply)


def on_logits(loss: Callable[..., Array], **knobs: Any) -> Term:
    """Lift `loss(student_logits, teacher_logits, **knobs)` to a term."""

    def apply(s: Outputs, t: Outputs, batch: Batch) -> Array:
        mask = _mask(loss, batch, s.logits.shape[:-1])
        return loss(s.logits, t.logits, **mask, **knobs)

    return _stateless(_comparable, apply)


def on_logits_and_labels(loss: Callable[..., Array], **knobs: Any) -> Term:
    """Lift `loss(student_logits, teacher_logits, labels, **knobs)` to a term."""

    def apply(s: Outputs, t: Outputs, batch: Batch) -> Array:
        mask = _mask(loss, batch, s.logits.shape[:-1])
        return _mixed(
            lambda label: loss(s.logits, t.logits, label, **mask, **knobs), batch
        )

    return _stateless(_comparable, apply)


def on_taps(
    loss: Callable[..., Array],
    student: str,
    teacher: str,
    adapter: Callable[[tuple[int, ...]], Any] | None = None,
    **knobs: Any,
) -> Term:
    """Lifts `loss(student_features, teacher_features, **knobs)`.

    Args:
      loss: the function to lift.
      student: the student's tap.
      teacher: the teacher's tap.
      adapter: from the shape of the teacher's tap, the linen module that carries the
        student's features there, e.g. `terms.adapters.Adapter`; trained with the
        student, left behind afterwards. Its batch statistics are the term's state.
      **knobs: passed to `loss`.

    Raises:
      KeyError: at `init`, if a network has no such tap; lists those it has.
      ValueError: at `init`, if the two taps do not fit; lists the shapes of all taps.
    """

    def compare(features: Array, t: Outputs, batch: Batch) -> Array:
        mask = _mask(loss, batch, features.shape[:1])
        return loss(features, t.tap(teacher), **mask, **knobs)

    if adapter is None:
        return fitting(
            _stateless(
                lambda s, t: None, lambda s, t, batch: compare(s.tap(student), t, batch)
            )
        )

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        module = adapter(t.tap(teacher).shape)
        variables = dict(module.init(key, s.tap(student)))
        return variables.pop("params", {}), variables

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Array, State]:
        module = adapter(t.tap(teacher).shape)
        features, changed = module.apply(
            {"params": params, **state}, s.tap(student), mutable=list(state)
        )
        return compare(features, t, batch), {**state, **changed}

    return fitting(Term(init, apply))


def fitting(term: Term) -> Term:
    """Return the same term, whose `init` refuses networks that do not fit it.

    Raises:
      ValueError: at `init`, where the term's own `init` or `apply` raises one: what it
        says, and the shapes of all taps.
    """

    def init(key: Array, s: Outputs, t: Outputs, batch: Batch) -> tuple[Params, State]:
        try:
            params, state = term.init(key, s, t, batch)
            jax.eval_shape(term.apply, params, state, s, t, batch)
        except ValueError as error:
            raise ValueError(
                f"{error}; the student's taps are {_shapes(s)}, the teacher's "
                f"{_shapes(t)}"
            ) from error
        return params, state

    return Term(init, term.apply, term.check)


def _shapes(outputs: Outputs) -> str:
    return ", ".join(f"{name} {tap.shape}" for name, tap in outputs.taps.items())


def labels_only() -> Spec:
    """Return the objective of a network without a teacher: cross-entropy."""
    return {"ce": (1.0, on_labels(losses.cross_entropy))}


def frozen(net: Net, *, inputs: Inputs = "image", view: View | None = None) -> Teacher:
    """Make a trained `net` a teacher; its variables are `(params, state)`.

    It runs in inference mode: no dropout, and batch statistics as they were stored.

    Args:
      net: the network.
      inputs: what it sees of a batch, a field's name or a function.
      view: applied to the batch before, for a teacher that expects another size, mean
        or deviation than the student; not random.

    Raises:
      ValueError: if the view is random.
    """
    if view is not None and view.random:
        raise ValueError("a teacher's own view must not be random")

    def teacher(variables: tuple[Params, State], batch: Batch) -> Outputs:
        if view is not None:
            batch = view(jax.random.key(0), batch)
        with fast_inference():
            outputs, _ = net.apply(*variables, select(inputs, batch), train=False)
        return outputs

    return teacher


def cached(variables: None, batch: Batch) -> Outputs:
    """Return the teacher whose logits were computed beforehand; its variables are None.

    They are the batch's own field "teacher": see `train.cache_teacher`.
    """
    if "teacher" not in batch:
        raise ValueError(
            'a cached teacher needs the column "teacher", e.g. from '
            f"train.cache_teacher; there are {sorted(batch)}"
        )
    logits = batch["teacher"]
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            'the column "teacher" must hold logits, floats [n, classes], got '
            f"{logits.dtype} of shape [n{''.join(f', {s}' for s in logits.shape[1:])}]"
        )
    return Outputs(logits, {})


def no_teacher(variables: None, batch: Batch) -> Outputs:
    """No teacher: for a network trained on its labels alone; its variables are None."""
    # A term that asks for these logits is refused at `init`, by `_comparable`.
    return Outputs(None, {})  # type: ignore[arg-type]


def initialize(
    student: Net, key: Array, batch: Batch, *, inputs: Inputs = "image"
) -> tuple[Params, State]:
    """Draw a student's first variables: those of `Distiller.init` under the same key.

    They do not depend on the objective: a baseline and a distilled student made from
    one key start from the same weights.
    """
    _, student_key, _ = jax.random.split(key, 3)
    return student.init(student_key, select(inputs, batch))


def distiller(
    student: Net,
    teacher: Teacher,
    spec: Spec,
    tx: optax.GradientTransformation,
    *,
    inputs: Inputs = "image",
) -> Distiller:
    """Build the procedure that trains `student` on `spec` against `teacher`.

    The teacher's variables are an argument of `step`, never closed over, so that they
    stay one buffer on the device instead of a constant in every executable. No gradient
    reaches them. `step` is pure: `jit` it with the state donated, `lax.scan` it over
    batches for an epoch, `vmap` it over states for several seeds.

    Gradients are accumulated by the optimiser, `optax.MultiSteps(tx, k)`: parameters
    move once in k steps, by the mean of their gradients, as in one step on a batch k
    times as large. What compares examples is not the same: relational losses and
    BatchNorm see each of the k batches by itself. To let them see more examples, use
    more devices (`jaxkd.mesh`), or recompute (`remat` of the networks). Batch
    statistics and memories move, and weight schedules count, in each of the k steps.

    Args:
      student: the network to train.
      teacher: `frozen(net)`, `cached`, `no_teacher`, or any function of its type.
      spec: the summands of the objective by name.
      tx: the optimiser, of the student's and the terms' parameters together.
      inputs: what the student sees of a batch: the name of a field, or a function of
        the batch that returns any tree of arrays.

    Returns:
      The pair of `init` and `step`. The metrics of a step are "loss", "loss/NAME" for
      every name in the spec (batch means, not yet weighted) and "norm/grad". Where the
      batch has a mask, `batch["where"]`, the means are over what it counts.

    Raises:
      ValueError: if the spec is empty; at `init`, if the teacher does not fit it.
    """
    if not spec:
        raise ValueError("the spec has no term: there is nothing to minimise")
    for name, pair in spec.items():
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and hasattr(pair[1], "init")
        ):
            raise ValueError(
                f"spec[{name!r}] must be (weight, Term), got {pair!r}; "
                "distill.on_labels, on_logits, on_taps make a Term of a loss"
            )
        weight = pair[0]
        concrete = not callable(weight) and not isinstance(weight, jax.core.Tracer)
        if concrete and np.asarray(weight).dtype.kind not in "iuf":
            raise ValueError(
                f"the weight of spec[{name!r}] must be a number or a schedule, got "
                f"{weight!r}"
            )
        if concrete and not np.isfinite(weight).all():
            raise ValueError(
                f"the weight of spec[{name!r}] must be finite, got {weight}"
            )

    def taught(teacher_variables: Any, batch: Batch) -> Outputs:
        # The only stop_gradient between the two networks.
        return jax.lax.stop_gradient(teacher(teacher_variables, batch))

    def init(key: Array, teacher_variables: Any, batch: Batch) -> TrainState:
        params, state = initialize(student, key, batch, inputs=inputs)
        key, _, terms_key = jax.random.split(key, 3)
        term_keys = jax.random.split(terms_key, len(spec))
        s, _ = student.apply(params, state, select(inputs, batch), train=False)
        t = taught(teacher_variables, batch)
        made = {
            name: term.init(k, s, t, batch)
            for k, (name, (_, term)) in zip(term_keys, spec.items(), strict=True)
        }
        params = {"student": params, "terms": {n: p for n, (p, _) in made.items()}}
        state = {"student": state, "terms": {n: z for n, (_, z) in made.items()}}
        return TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params), key)

    def step(
        state: TrainState, teacher_variables: Any, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key, dropout_key = jax.random.split(state.key)
        t = taught(teacher_variables, batch)

        def objective(params: Params) -> tuple[Array, tuple[State, Metrics]]:
            s, student_state = student.apply(
                params["student"],
                state.state["student"],
                select(inputs, batch),
                train=True,
                key=dropout_key,
            )
            total, term_state, metrics = jnp.zeros(()), {}, {}
            for name, (weight, term) in spec.items():
                loss, term_state[name] = term.apply(
                    params["terms"][name], state.state["terms"][name], s, t, batch
                )
                metrics[f"loss/{name}"] = batch_mean(loss, batch)  # the only reduction
                w = weight(state.step) if callable(weight) else weight
                total += w * metrics[f"loss/{name}"]
            metrics["loss"] = total
            return total, ({"student": student_state, "terms": term_state}, metrics)

        grads, (new_state, metrics) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["norm/grad"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, new_state, opt_state, key), metrics

    def check(state: TrainState, columns: Batch, batch: Batch) -> None:
        check_inputs(inputs, batch)
        check_labels(student, state, columns, batch, inputs=inputs)
        for _, term in spec.values():
            term.check(columns)

    return Distiller(init, step, check)


def check_inputs(inputs: Inputs, batch: Batch) -> None:
    """Refuse images as stored, which a view has not made floats of."""
    for leaf in jax.tree.leaves(select(inputs, batch)):
        if inputs == "image" and jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"the network would see images as stored, {leaf.dtype}: pass a view "
                "that scales them, e.g. view=augment.to_float()"
            )


def check_labels(
    net: Net,
    state: TrainState,
    columns: Batch,
    batch: Batch,
    *,
    inputs: Inputs = "image",
) -> None:
    """Refuse class labels that the network has no output for, and data without any.

    Args:
      net: the network.
      state: of one training, or of several, stacked.
      columns: all of the data; without integers as "label", no label is looked at.
      batch: what the network sees, or shapes.
      inputs: as in `distiller`.
    """
    label = columns.get("label")
    if "where" in columns and not np.any(columns["where"]):
        raise ValueError('the column "where" excludes everything')
    if label is None or not jnp.issubdtype(label.dtype, jnp.integer):
        return
    variables = state.student
    # Of several seeds, of several copies of a network, or of both.
    first = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[state.key.ndim :], leaf.dtype)
    variables = jax.tree.map(first, variables)
    run = lambda v, x: net.apply(*v, x, train=False)[0].logits
    seen = select(inputs, batch)
    classes = jax.eval_shape(run, variables, seen).shape[-1]
    if "where" in columns:
        label = jnp.where(fit_mask(columns["where"], label.shape), label, 0)
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels must be in [0, {classes}), the student's outputs, or -1 for an "
            f"example without one, got {low} to {high}; mask what has no label with a "
            'boolean column "where"'
        )
