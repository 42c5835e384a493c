"""`learn`: everything between two networks, data, and a trained student."""

import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxkd import (
    _check,
    data,
    distill,
    evaluate as evaluation,
    log as logs,
    mesh as meshes,
    store,
)
from jaxkd.data import Stream, augment
from jaxkd.data.augment import View
from jaxkd.distill import Distiller, Inputs, Spec, Teacher, TrainState
from jaxkd.models.net import Net
from jaxkd.train import fingerprint, given, saving
from jaxkd.train.loop import Run, Variables
from jaxkd.train.programs import (
    example,
    make_epoch,
    make_step,
    over_seeds,
    stored,
)
from jaxkd.train.saving import Saving
from jaxkd.types import Batch, Metrics

Score = Callable[[TrainState], Metrics]


def learn(
    student: Net | Distiller,
    examples: data.Dataset | Batch | Stream,
    *,
    view: View | None = None,
    batch_size: int | None = None,
    epochs: int,
    tx: optax.GradientTransformation | None = None,
    spec: Spec | None = None,
    teacher: tuple[Net | Teacher, Any] | str | None = None,
    seeds: int | None = None,
    key: Array | None = None,
    start: Variables | None = None,
    test: data.Dataset | Batch | Stream | Score | None = None,
    test_view: View | None = None,
    metrics: Mapping[str, evaluation.Metric] | None = None,
    inputs: Inputs = "image",
    mesh: Mesh | None = None,
    together: bool = True,
    checkpoints: str | os.PathLike | None = None,
    save_every: int | None = None,
    save_epochs: int = 1,
    identity: Mapping[str, Any] | None = None,
    log: logs.Log | None = None,
    name: str = "train",
    progress: bool = True,
) -> Run:
    """Train a student on an objective, with or without a teacher.

    The whole run is one compilation of `init`, one of the epoch and one of the
    evaluation. A student's first weights and the order of the data depend on the key
    alone, so that a baseline and a distilled student of one seed can be compared.

    Args:
      student: the network; or a Distiller of your own (`schemes`, `prune.fine_tuner`),
        which brings `spec`, `tx` and `inputs` with it. `teacher` is then
        `(anything, variables)`, of which only the variables are used.
      examples: the training data: a `data.Dataset`, columns with one entry for each
        example, or a `data.Stream` that reads them. "where" among the columns masks
        what counts.
      view: from the stored examples to what the networks see, e.g.
        `augment.chain(augment.flip(), augment.to_float())`; None leaves them as they
        are.
      batch_size: examples in a step; the last, incomplete batch of an epoch is left
        out. A stream has its own.
      epochs: how many.
      tx: the optimiser.
      spec: the terms of the objective by name; without a teacher, cross-entropy with
        "label" by default.
      teacher: `(net, variables)`, run live; `(function, variables)` of the type
        `distill.Teacher`; "cached" if its logits are the column "teacher"; None.
      seeds: trains so many students, from seeds 0, 1, ..., each with data in an order
        of its own; results have a leading axis. None is one student, from seed 0.
      key: in place of `seeds`: one key, or several stacked.
      start: variables to start from in place of fresh ones; the same for all seeds, or
        with a leading axis of seeds.
      test: data to measure on after each epoch; or a function from the state to
        metrics.
      test_view: how it is seen; by default `view`, which must not be random.
      metrics: what is measured, as in `evaluate.scorer`.
      inputs: what the networks see of a batch: a field's name, or a function.
      mesh: trains on all of its devices, e.g. `mesh.make()`; a stream has its own. The
        teacher is replicated unless it lies on the mesh already, split for instance.
      together: trains seeds by `vmap`; else one after another, which is faster for
        networks with convolutions. Streamed, it is always one after another.
      checkpoints: a folder in which the state is saved. A call with the same arguments
        resumes from there, and returns at once what is finished.
      save_every: saves after this number of steps within an epoch, too.
      save_epochs: saves after this number of epochs, and after the last; raise it if an
        epoch is shorter than writing a checkpoint.
      identity: what else the training depends on, JSON values such as
        `vars(config)`, compared with what the folder holds. Compared always: data,
        teacher, keys, epochs, batch size, names and constant weights of the terms,
        what the view computes, and what a step does: network, optimiser and losses,
        with their numbers.
      log: where each epoch's row goes, e.g. `log.start(directory)`.
      name: of the run, in its rows and beside the progress bar.
      progress: whether to show a bar, if the output is a terminal.

    Returns:
      The run: `variables`, `history`, `seed(i)`.

    Raises:
      ValueError: before training: if columns differ in length or hold NaN (or, in the
        inputs, infinities) that no mask leaves out, a label has no output, stored bytes
        reach the network, a teacher is given without spec or does not fit its
        variables, or networks, spec and data do not fit.
      FloatingPointError: if a metric is not finite, naming the step and the term.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, when the epoch under way is done and
        saved.
    """
    _check.whole(0)("epochs", epochs)
    _check.whole(1)("save_epochs", save_epochs)
    if batch_size is not None:
        _check.whole(1)("batch_size", batch_size)
    if not isinstance(student, Net | Distiller):
        raise ValueError(
            f"student must be a Net or a Distiller, got {type(student).__name__}; "
            "models.from_linen makes a Net of a linen module"
        )
    if checkpoints is not None and pathlib.Path(checkpoints).is_file():
        raise ValueError(f"checkpoints={str(checkpoints)!r} is a file, not a folder")
    view = augment.chain() if view is None else view
    spec_is_labels = False
    keys = _keys(seeds, key)
    teach, teacher_variables = given.teacher_of(teacher, inputs)
    if isinstance(student, Distiller):
        if not (spec is None and tx is None):
            raise ValueError("a Distiller has its own spec and tx: leave them out")
        d, net = student, None
    elif tx is None:
        raise ValueError("tx must be an optimiser, e.g. optax.adam(1e-3)")
    elif spec is None and teacher is not None:
        raise ValueError(
            "the teacher would be ignored: pass spec, the terms that compare with it, "
            'e.g. spec={"kd": (1.0, distill.on_logits(losses.kd))}'
        )
    else:
        spec_is_labels = spec is None
        spec = distill.labels_only() if spec is None else spec
        d, net = distill.distiller(student, teach, spec, tx, inputs=inputs), student
    columns = given.columns_of(examples, inputs)
    score = _scorer(net, test, test_view or view, inputs, metrics)
    measured = (
        None if test is None or callable(test) else given.columns_of(test, inputs)
    )
    if isinstance(measured, dict):
        given.check_labelled("the test data", measured)
    if net is not None and spec_is_labels and isinstance(columns, dict):
        given.check_labelled("the examples", columns)
    if isinstance(columns, Stream):
        mesh, steps, size = columns.mesh, columns.steps, columns.batch_size
    elif batch_size is None:
        raise ValueError("batch_size must be given for data on the device")
    else:
        steps, size = data.count(columns) // batch_size, batch_size
    if mesh is not None:
        everywhere = meshes.replicated(mesh)
        if not meshes.is_placed(teacher_variables, mesh):
            teacher_variables = meshes.put(teacher_variables, everywhere)
        if not isinstance(columns, Stream):
            columns = meshes.put(columns, everywhere)
    batch = example(columns, view)
    if isinstance(teacher, tuple) and not isinstance(student, Distiller):
        given.check_teacher(teach, teacher_variables, batch)
    if mesh is not None:
        keys, batch = meshes.put((keys, batch), everywhere)

    def init(keys: Array) -> TrainState:
        return _initialize(d, keys, teacher_variables, batch, start)

    def run(keys: Array, folder: pathlib.Path | None) -> Run:
        keep = None
        if folder is not None:
            facts = store.identity(
                keys=jax.random.key_data(keys),
                epochs=epochs,
                batch_size=size,
                examples=_facts(columns),
                teacher=store.digest(teacher_variables),
                start=None if start is None else store.digest(start),
                objective=None if spec is None else _weights(spec),
                step=_step_facts(d, keys, teacher_variables, batch),
                view=_view_fact(view, stored(columns, view)),
                **_test_facts(test, measured, test_view or view, metrics),
                **(identity or {}),
            )
            warn = lambda message: warnings.warn(message, stacklevel=5)
            keep = Saving(folder, facts, warn, epochs=save_epochs, steps=save_every)
        begun = saving.begin(keep, lambda: init(keys), epochs=epochs, steps=steps)
        state = begun.state
        if net is not None and isinstance(measured, dict):
            distill.check_labels(net, state, measured, batch, inputs=inputs)
        if mesh is not None:
            state = meshes.put(state, everywhere)
        program: Any
        if isinstance(columns, Stream):
            program = make_step(d, columns, view=view)
        else:
            program = make_epoch(d, view=view, batch_size=size, mesh=mesh)
            if keys.ndim:
                program = over_seeds(program, together=together)
        ended = saving.run(
            program,
            begun._replace(state=state),
            teacher_variables,
            columns,
            keep,
            key=keys,
            epochs=epochs,
            evaluate=score,
            log=log,
            name=name,
            progress=progress,
        )
        if ended.interrupted:
            kept = "" if folder is None else f"; the same call resumes from {folder}"
            raise KeyboardInterrupt(
                f"{name}: after epoch {len(ended.history)} of {epochs}{kept}"
            )
        return ended

    folder = None if checkpoints is None else pathlib.Path(checkpoints)
    if isinstance(columns, Stream) and keys.ndim:
        inside = lambda i: None if folder is None else folder / f"seed-{i}"
        return _stack([run(each, inside(i)) for i, each in enumerate(keys)])
    return run(keys, folder)


def _keys(seeds: int | None, key: Array | None) -> Array:
    if seeds is not None and key is not None:
        raise ValueError("seeds and key exclude each other, got both")
    if key is not None:
        dtype = getattr(key, "dtype", None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            kind = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
            raise ValueError(
                "key must be of `jax.random.key`, or several of them, got "
                f"{kind}; jax.random.wrap_key_data makes one of an array of PRNGKey"
            )
        if not key.size:
            raise ValueError("key must be one key or several, got an empty array")
        return key
    if seeds is None:
        return jax.random.key(0)
    _check.whole(1)("seeds", seeds)
    return jax.vmap(jax.random.key)(jnp.arange(seeds))


def _scorer(
    net: Net | None, test: Any, view: View, inputs: Inputs, metrics: Any
) -> Score | None:
    if test is None or callable(test):
        return test
    if net is None:
        raise ValueError("a Distiller's student is not known here: pass a function")
    if view.random:
        raise ValueError("test_view must be given and not random where view is random")
    return evaluation.scorer(
        net, given.columns_of(test, inputs), view=view, inputs=inputs, metrics=metrics
    )


def _initialize(
    d: Distiller, keys: Array, teacher_variables: Any, batch: Batch, start: Any
) -> TrainState:
    """Return the state of one seed, or of several."""
    init = jax.vmap(d.init, in_axes=(0, None, None)) if keys.ndim else d.init
    state = jax.jit(init)(keys, teacher_variables, batch)
    if start is None:
        return state
    given.check_start(start, state.student, several=bool(keys.ndim))
    # Copies: a donated state must not hold the caller's buffers.
    params, variables = jax.tree.map(
        lambda new, old: jnp.array(jnp.broadcast_to(jnp.asarray(old), new.shape)),
        state.student,
        tuple(start),
    )
    return state._replace(
        params={**state.params, "student": params},
        state={**state.state, "student": variables},
    )


def _weights(spec: Spec) -> dict[str, Any]:
    """The names of the terms and their constant weights; schedules count by name."""
    return {
        name: "schedule" if callable(weight) else float(weight)
        for name, (weight, _) in spec.items()
    }


def _step_facts(
    d: Distiller, keys: Array, teacher_variables: Any, batch: Batch
) -> dict[str, str]:
    """What a step computes: networks, optimiser and terms, with their numbers."""
    first = lambda keys: keys.ravel()[0]
    key = jax.eval_shape(first, keys)  # of several processes, none has all of them
    state = jax.eval_shape(d.init, key, teacher_variables, batch)
    traced = jax.make_jaxpr(d.step)(state, teacher_variables, batch)
    return {"jax": jax.__version__, "digest": fingerprint.of(traced)}


def _view_fact(view: View, batch: Batch) -> str:
    """Return what the view computes."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    return fingerprint.of(jax.make_jaxpr(view)(jax.random.key(0), shapes))


def _test_facts(test: Any, measured: Any, view: View, metrics: Any) -> dict[str, Any]:
    """Return what the history's metrics are measured on, and their names."""
    if not isinstance(measured, dict):
        return {"test": None if test is None else "a function"}
    return {
        "test": store.digest(measured),
        "test_view": _view_fact(view, stored(measured, view)),
        "metrics": sorted(metrics or ()),
    }


def _facts(columns: Batch | Stream) -> Any:
    if isinstance(columns, Stream):
        return [columns.source.name, columns.source.examples]
    return store.digest(columns)


def _stack(runs: list[Run]) -> Run:
    """Runs of several seeds as one, as if they had been trained together."""
    several = lambda name, values: values[0] if name in ("run", "epoch") else [*values]
    history = [
        {name: several(name, [row[name] for row in rows]) for name in rows[0]}
        for rows in zip(*(run.history for run in runs), strict=True)
    ]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(r.state for r in runs))
    return Run(state, history, interrupted=False)
