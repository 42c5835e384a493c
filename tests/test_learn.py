"""`train.learn` on images, tokens, maps, tables, several labels, and with masks."""

import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, evaluate, losses, models, train
from jaxkd.data import augment
from jaxkd.types import Outputs
from tests import toys

RNG = np.random.default_rng(0)
ADAM = optax.adam(0.02)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# --- it is what one writes out ---


def test_it_is_distiller_init_make_epoch_and_fit():
    variables, dataset = toys.teacher_variables(), toys.dataset()
    tx = optax.sgd(0.05)  # Adam would enlarge the rounding of vanishing gradients
    run = train.learn(
        toys.student,
        dataset,
        spec=toys.spec,
        teacher=(toys.teacher, variables),
        tx=tx,
        view=toys.view,
        batch_size=8,
        epochs=2,
        seeds=2,
        test=dataset,
    )
    resident = data.on_device(dataset)
    d = distill.distiller(toys.student, distill.frozen(toys.teacher), toys.spec, tx)
    key = jax.random.key(1)
    by_hand = train.fit(
        train.make_epoch(d, view=toys.view, batch_size=8),
        jax.jit(d.init)(key, variables, train.example(resident, toys.view)),
        variables,
        resident,
        key=key,
        epochs=2,
        evaluate=evaluate.scorer(toys.student, resident, view=toys.view),
    )
    jax.tree.map(close, run.seed(1), by_hand.variables)
    assert len(run.history) == 2
    for name, value in by_hand.history[-1].items():
        if name not in ("run", "epoch", "seconds", "examples/s", "waited"):
            close(run.history[-1][name][1], value)
    close(run.final()[1], by_hand.final())


def test_a_cached_teacher_is_a_column():
    variables, dataset = toys.teacher_variables(), toys.dataset()
    spec = {"kd": (1.0, distill.on_logits(losses.kd))}
    how = {"spec": spec, "tx": ADAM, "view": toys.view, "batch_size": 8, "epochs": 2}
    live = train.learn(toys.student, dataset, teacher=(toys.teacher, variables), **how)
    logits = train.cache_teacher(
        distill.frozen(toys.teacher), variables, dataset, view=toys.view
    )
    columns = {**data.on_device(dataset), "teacher": logits}
    cached = train.learn(toys.student, columns, teacher="cached", **how)
    jax.tree.map(close, live.variables, cached.variables)


def test_it_starts_from_what_it_is_given():
    how = {"tx": ADAM, "view": toys.view, "batch_size": 8}
    first = train.learn(toys.student, toys.dataset(), epochs=2, **how)
    run = train.learn(
        toys.student, toys.dataset(), epochs=0, start=first.variables, seeds=2, **how
    )
    jax.tree.map(np.testing.assert_array_equal, run.seed(1), first.variables)


STREAM = data.Stream(data.mapped(toys.dataset()), batch_size=8)
HOW = {"tx": optax.sgd(0.05), "view": toys.view}


def test_streamed_data_are_trained_on_as_data_on_the_device():
    resident = train.learn(
        toys.student, toys.dataset(), batch_size=8, epochs=2, seeds=2,
        test=toys.dataset(), **HOW,
    )  # fmt: skip
    run = train.learn(toys.student, STREAM, epochs=2, seeds=2, test=STREAM, **HOW)
    jax.tree.map(close, run.variables, resident.variables)
    assert run.history[-1].keys() == resident.history[-1].keys()
    for name in ("loss", "accuracy", "nll"):
        close(run.final(name), resident.final(name))


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("examples", "seeds"),
    [(toys.dataset(), None), (toys.dataset(), 2), (STREAM, None)],
    ids=["resident", "seeds", "stream"],
)
def test_a_training_resumes_from_its_folder_bit_for_bit(tmp_path, examples, seeds):
    rows = []

    def log(row):
        rows.append(row)
        if len(rows) == 2:
            raise Stop  # the process dies before the second epoch is saved

    how = {"epochs": 3, "save_every": 2, "seeds": seeds, **HOW}
    if examples is not STREAM:
        how["batch_size"] = 8
    learn = lambda **more: train.learn(toys.student, examples, **how, **more)
    whole = learn()
    with pytest.raises(Stop):
        learn(checkpoints=tmp_path, log=log)
    assert {"000002", "000004", "000005", "000007", "000009"} >= {
        path.name for path in tmp_path.iterdir()
    }
    again = learn(checkpoints=tmp_path)
    equal = lambda run: jax.tree.map(
        np.testing.assert_array_equal, run.variables, whole.variables
    )
    equal(again)
    assert [row["loss"] for row in again.history] == [
        row["loss"] for row in whole.history
    ]
    done = learn(checkpoints=tmp_path)  # nothing is left to do
    equal(done)
    with pytest.raises(ValueError, match="another run: .*epochs was 3, is 4"):
        how["epochs"] = 4
        learn(checkpoints=tmp_path)


def test_another_optimiser_network_loss_or_view_does_not_resume(tmp_path):
    dropping = lambda rate: models.mlp([4], classes=5, dropout=rate)
    smooth = lambda epsilon: {
        "ce": (1.0, distill.on_labels(losses.label_smoothing, epsilon=epsilon))
    }
    how = {"batch_size": 8, "epochs": 1, "checkpoints": tmp_path}
    net, tx, spec = dropping(0.1), optax.adam(1e-3), smooth(0.1)
    learn = lambda net=net, tx=tx, spec=spec, view=toys.view: train.learn(
        net, toys.dataset(), tx=tx, spec=spec, view=view, **how
    )
    learn()
    learn(dropping(0.1), optax.adam(1e-3), smooth(0.1))  # the same, made anew
    for other in (
        {"net": dropping(0.5)},
        {"tx": optax.adam(1.0)},
        {"tx": optax.adam(optax.cosine_decay_schedule(1e-3, 100))},
        {"spec": smooth(0.2)},
    ):
        with pytest.raises(ValueError, match="another run: step was"):
            learn(**other)
    darker = augment.chain(toys.view, augment.normalise([0.5] * 3, [0.2] * 3))
    with pytest.raises(ValueError, match="another run: view was"):
        learn(view=darker)


def test_other_test_data_or_metrics_are_no_metrics_of_a_finished_run(tmp_path):
    how = {"batch_size": 8, "epochs": 1, "checkpoints": tmp_path, **HOW}
    dataset = toys.dataset()
    learn = lambda test=dataset, **more: train.learn(
        toys.student, dataset, test=test, **how, **more
    )
    learn()
    learn()  # resumed
    other = data.subset(dataset, 20, seed=0)
    for message, again in (
        ("test was", lambda: learn(other)),
        ("test was", lambda: learn(None)),
        ("metrics was", lambda: learn(metrics={"mine": lambda logits, y: y.mean()})),
    ):
        with pytest.raises(ValueError, match=f"another run: {message}"):
            again()


@pytest.mark.bad_input
def test_a_seed_that_was_not_trained_is_refused():
    how = {"batch_size": 8, "epochs": 0, **HOW}
    several = train.learn(toys.student, toys.dataset(), seeds=2, **how)
    for i in (-1, 2):
        with pytest.raises(IndexError, match=f"seed {i} is not one of the run's 2"):
            several.seed(i)
    with pytest.raises(IndexError, match="use `variables`"):
        train.learn(toys.student, toys.dataset(), **how).seed(0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": []}, "seeds must be an integer"),
        ({"key": 3}, "key must be of `jax.random.key`.* got int"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"got uint32\[2\]; .*wrap_key_data"),
        ({"start": {}}, r"start must be \(params, state\), got dict"),
        ({"start": ({}, {})}, "start must have the student's variables"),
        ({"spec": {"ce": ("1", distill.on_labels(losses.kd))}}, "must be a number or"),
        ({"checkpoints": __file__}, "is a file, not a folder"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        train.learn(
            toys.student, toys.dataset(), batch_size=8, epochs=1, **{**HOW, **more}
        )


@pytest.mark.bad_input
def test_labels_that_are_all_missing_are_refused():
    dataset = toys.dataset()
    bare = {"image": dataset.images, "label": np.full(len(dataset), -1, np.int32)}
    how = {"batch_size": 8, "epochs": 1, **HOW}
    with pytest.raises(ValueError, match="the examples: every label is -1"):
        train.learn(toys.student, bare, **how)
    with pytest.raises(ValueError, match="the test data: every label is -1"):
        train.learn(toys.student, dataset, test=bare, **how)


def test_less_is_saved_on_request_but_nothing_is_lost(tmp_path):
    learn = lambda **more: train.learn(
        toys.student,
        toys.dataset(),
        epochs=3,
        save_epochs=2,
        batch_size=8,
        **HOW,
        **more,
    )
    names = lambda folder: sorted(path.name for path in folder.iterdir())
    steps = len(toys.dataset().labels) // 8

    def stop(row):
        if row["epoch"] == 3:
            raise Stop

    with pytest.raises(Stop):
        learn(checkpoints=tmp_path / "killed", log=stop)
    assert names(tmp_path / "killed") == [f"{2 * steps:06}"]

    def interrupt(row):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after epoch 1 of 3"):
        learn(checkpoints=tmp_path / "interrupted", log=interrupt)
    assert names(tmp_path / "interrupted") == [f"{steps:06}"]

    whole = learn()
    for folder in ("killed", "interrupted"):
        again = learn(checkpoints=tmp_path / folder)
        jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
        assert f"{3 * steps:06}" in names(tmp_path / folder)


# --- what can be trained ---


def test_a_causal_language_model_with_padding():
    ids = (RNG.integers(0, 2, (64, 1)) + np.arange(9)) % 5  # counts upwards, modulo 5
    columns = {
        "ids": ids[:, :-1],
        "label": ids[:, 1:],
        "where": np.arange(8) < RNG.integers(3, 9, (64, 1)),  # the rest is padding
    }

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(5)(nn.gelu(nn.Dense(self.width)(nn.Embed(5, 8)(x)))), {}

    spec = {"kd": (1.0, distill.on_logits(losses.kd, temperature=2.0))}
    how = {"tx": ADAM, "batch_size": 16, "inputs": "ids", "test": columns}
    teacher = models.from_linen(Model(32))
    taught = train.learn(teacher, columns, epochs=20, **how)
    student = models.from_linen(Model(4))
    run = train.learn(
        student, columns, spec=spec, teacher=(teacher, taught.variables), epochs=40,
        **how,
    )  # fmt: skip
    assert run.final() == 1.0 and taught.final("nll") < run.final("nll") < 0.3


def test_a_text_classifier_with_dict_inputs():
    ids, length = RNG.integers(1, 20, (80, 6)), RNG.integers(2, 7, (80, 1))
    mask = np.arange(6) < length
    label = ((ids == 7) & mask).any(1).astype(np.int32)
    columns = {"ids": ids, "mask": mask, "label": label}

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            words = nn.Dense(16)(nn.Embed(20, 16)(x["ids"]))
            return nn.Dense(2)(jnp.where(x["mask"][..., None], words, -9).max(1)), {}

    run = train.learn(
        models.from_linen(Model()), columns, tx=ADAM, batch_size=20, epochs=30,
        inputs=lambda batch: {"ids": batch["ids"], "mask": batch["mask"]}, test=columns,
    )  # fmt: skip
    assert run.final() > 0.95


def test_segmentation_with_ignored_pixels():
    image = RNG.normal(size=(32, 6, 6, 2)).astype(np.float32)
    label = (image[..., 0] > 0).astype(np.int32)
    ignored = RNG.random((32, 6, 6)) < 0.3
    columns = {
        "image": image,
        "label": np.where(ignored, 255, label),
        "where": ~ignored,
    }

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Conv(2, (1, 1))(nn.relu(nn.Conv(8, (1, 1))(x))), {}

    net = models.from_linen(Model())
    run = train.learn(net, columns, tx=ADAM, batch_size=8, epochs=20, test=columns)
    assert run.final() > 0.95


def test_several_labels_at_once():
    x = RNG.normal(size=(96, 4)).astype(np.float32)
    columns = {"x": x, "label": (x > 0).astype(np.float32)}  # four yes-or-no questions
    teacher = (lambda variables, batch: Outputs(6 * batch["x"], {}), None)
    spec = {
        "bce": (0.5, distill.on_labels(optax.sigmoid_binary_cross_entropy)),
        "kd": (0.5, distill.on_logits(losses.binary_kd)),
    }
    exact = lambda logits, labels: jnp.mean(((logits > 0) == labels).all(-1))
    run = train.learn(
        models.mlp([16], classes=4), columns, spec=spec, teacher=teacher, tx=ADAM,
        batch_size=32, epochs=30, inputs="x", test=columns, metrics={"exact": exact},
    )  # fmt: skip
    assert run.final("exact") > 0.9


def test_regression_on_a_table_of_floats():
    x = RNG.normal(size=(128, 3)).astype(np.float32)
    columns = {"x": x, "label": x @ np.float32([[1.0], [-2.0], [0.5]])}
    mse = lambda outputs, target: jnp.mean((outputs - target) ** 2, -1)
    run = train.learn(
        models.mlp([16], classes=1), columns, tx=ADAM, batch_size=32, epochs=40,
        inputs="x", spec={"mse": (1.0, distill.on_labels(mse))}, test=columns,
        metrics={"mse": lambda outputs, target: mse(outputs, target).mean()},
    )  # fmt: skip
    assert run.final("mse") < 0.05 * np.var(columns["label"])


# --- masks ---


@pytest.mark.parametrize("held", [255, np.nan])
def test_what_is_masked_changes_nothing(held):
    """A masked example is as good as absent, whatever it holds."""
    dataset = toys.dataset()
    whole = data.on_device(dataset)
    view = toys.view
    if np.isnan(held):  # bytes cannot hold it
        whole["image"] = whole["image"].astype(jnp.float32)
    where = np.arange(40) % 4 > 0
    kd = {"kd": (1.0, distill.on_logits(losses.kd)), **distill.labels_only()}
    if np.isnan(held):
        view = augment.normalise([0, 0, 0], [255, 255, 255])
    how = {"spec": kd, "tx": optax.sgd(0.05), "view": view, "batch_size": 40}
    net = models.mlp([6], classes=5)
    teacher = (net, jax.jit(net.init)(jax.random.key(3), jnp.zeros((2, 4, 4, 3))))
    masked = {**whole, "where": jnp.asarray(where)}
    masked["label"] = jnp.where(where, masked["label"], 0)
    masked["image"] = jnp.where(where[:, None, None, None], masked["image"], held)
    found = train.learn(net, masked, teacher=teacher, epochs=3, **how)
    fewer = jax.tree.map(lambda column: column[where], whole)
    how["batch_size"] = 30
    expected = train.learn(net, fewer, teacher=teacher, epochs=3, **how)
    jax.tree.map(close, found.variables, expected.variables)
    close(found.final("loss"), expected.final("loss"))
    score = lambda columns: evaluate.scorer(net, columns, view=view)(found.state)
    jax.tree.map(close, score(masked), score(fewer))


@pytest.mark.parametrize(
    ("where", "shape", "expected"),
    [
        ([True, False], (2,), [True, False]),
        ([[True, False], [False, False]], (2,), [True, False]),
        ([True, False], (2, 2), [[True, True], [False, False]]),
    ],
)
def test_a_mask_fits_losses_of_examples_and_of_tokens(where, shape, expected):
    found = distill.fit_mask(jnp.array(where), shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.bad_input
def test_nan_in_a_column_is_counted_and_named():
    image = np.zeros((40, 4, 4, 3), np.float32)
    image[[7, 9], 0, 0] = np.nan
    message = "has 6 NaN, in 2 of 40 examples, the first of which is 7; .*where"
    match = rf"column \['image'\] {message}"
    for columns in (
        {"columns": with_column("image", image)},
        {"test": with_column("image", image)},
    ):
        with pytest.raises(ValueError, match=match):
            learn(models.mlp([4], classes=5), view=augment.chain(), **columns)
    tree = with_column("image", {"left": image, "right": image * 0})
    where = np.arange(40) != 9
    match = r"\['image'\]\['left'\] has 3 NaN, in 1 of 40 examples"
    with pytest.raises(ValueError, match=match):
        learn(columns={**tree, "where": where})
    # -inf is the logit of a class that is not there.
    teacher = np.where(np.arange(5) == 4, -np.inf, np.zeros((40, 5), np.float32))
    run = learn(columns=with_column("teacher", teacher), spec=KD, teacher="cached")
    assert np.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 5, 5, 1), (2,)])
def test_what_a_mask_counts_of_a_column(shape):
    where = jnp.array([[True, False, False], [False, False, False]])
    column = jnp.full(shape, jnp.nan)
    batch = distill.without_masked(
        {"image": column, "n": jnp.ones(2, int), "where": where}
    )
    tokens = np.reshape(where, (2, 3, *[1] * (len(shape) - 2)))
    examples = np.array([True, False]).reshape(2, *[1] * (len(shape) - 1))
    counted = tokens if shape[:2] == (2, 3) else examples
    expected = np.broadcast_to(np.where(counted, np.nan, 0), shape)
    np.testing.assert_array_equal(batch["image"], expected)


def test_a_mean_over_nothing_is_zero_and_has_no_gradient():
    mean = lambda loss: distill.batch_mean(loss, {"where": jnp.zeros(3, bool)})
    value, gradient = jax.value_and_grad(mean)(jnp.array([1.0, jnp.inf, jnp.nan]))
    assert value == 0 and (gradient == 0).all()


def test_the_first_step_that_is_wrong_is_reported_and_of_it_the_term():
    from jaxkd import _loop

    values = {
        "loss": np.array([np.nan, np.nan]),
        "loss/ce": np.array([1.0, np.nan]),
        "loss/kd": np.array([np.nan, 1.0]),
    }
    with pytest.raises(FloatingPointError, match="run: loss/kd is nan at step 4;"):
        _loop.check_finite(values, first_step=4, name="run")


def test_a_measurement_that_is_no_number_is_told_and_the_training_goes_on():
    bad = {"mine": lambda logits, labels: jnp.nan * logits.sum()}
    match = "mine is not finite after epoch 1; look at the data"
    with pytest.warns(UserWarning, match=match):
        run = learn(models.mlp([4], classes=5), test=toys.dataset(), metrics=bad)
    assert np.isfinite(run.history[-1]["loss"])


# --- bad input ---

KD = {"kd": (1.0, distill.on_logits(losses.kd))}


# 2**32 - 1 as an integer of 32 bits is -1: no label.
FAR = [{"image": np.zeros((4, 4, 3), np.uint8), "label": np.int64(2**32 - 1)}] * 8


def learn(net=toys.student, columns=None, **how):
    columns = toys.dataset() if columns is None else columns
    how = {"tx": ADAM, "view": toys.view, "batch_size": 8, "epochs": 1, **how}
    return train.learn(net, columns, **how)


def narrower_variables():
    net = models.mlp([3], classes=5)
    return net.init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)))


def with_column(name, column):
    return {**data.on_device(toys.dataset()), name: column}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: learn(
                columns=with_column("teacher", np.zeros((60, 5))),
                teacher="cached",
                spec=KD,
            ),
            r"one entry for each example, got .*teacher 60",
        ),
        (
            lambda: learn(
                columns=with_column("teacher", np.zeros(40, np.float32)),
                teacher="cached",
                spec=KD,
            ),
            r"column .teacher. must hold logits, floats .*, got float32 of shape \[n\]",
        ),
        (
            lambda: learn(columns=with_column("label", np.full(40, 255))),
            r"labels must be in \[0, 5\), .* got 255 to 255",
        ),
        (
            lambda: learn(columns=with_column("label", np.full(40, -100))),
            "got -100 to -100",
        ),
        (lambda: learn(models.mlp([4], classes=3)), r"in \[0, 3\).* got 0 to 4"),
        (lambda: learn(view=None), "view=augment.to_float"),
        (lambda: learn(inputs="ids"), "no field 'ids', only .*pass inputs="),
        (lambda: learn(teacher=toys.teacher), "teacher must be .net, variables."),
        (
            lambda: learn(teacher=(toys.teacher, toys.teacher_variables())),
            "the teacher would be ignored: pass spec",
        ),
        (
            lambda: learn(
                spec=KD, teacher=(models.mlp([4], classes=5), narrower_variables())
            ),
            r"teacher must be .net, variables. of one network",
        ),
        (
            lambda: learn(
                spec={"ce": (np.nan, distill.on_labels(losses.cross_entropy))}
            ),
            r"the weight of spec\['ce'\] must be finite, got nan",
        ),
        (
            lambda: learn(columns=with_column("image", np.full((40, 4, 4, 3), np.inf))),
            r"column \['image'\] has 1920 NaN or infinities, in 40 of 40",
        ),
        (lambda: learn(seeds=2, key=jax.random.key(0)), "exclude each other"),
        (lambda: learn(tx=None), "tx must be an optimiser"),
        (lambda: learn(batch_size=0), "batch_size must be >= 1"),
        (lambda: learn(epochs=1.5), "epochs must be an integer"),
        (lambda: learn(net=toys.Toy(6)), "got Toy; models.from_linen"),
        (
            lambda: learn(teacher=(toys.Toy(6), None)),
            "no Net: models.from_linen makes one of Toy",
        ),
        (lambda: learn(spec={"ce": losses.kd}), r"spec\['ce'\] must be .weight, Term"),
        (lambda: learn(spec=KD, teacher="cached"), 'needs the column "teacher"'),
        (
            lambda: learn(columns=(1, 2)),
            "or a data.Stream, got tuple",
        ),
        (
            lambda: learn(columns=with_column("image", 3.0)),
            "one entry for each example",
        ),
        (lambda: learn(columns={"image": np.zeros((0, 2))}), "one example or more"),
        (
            lambda: learn(columns=with_column("label", np.array(["a"] * 40))),
            "must hold numbers",
        ),
        (
            lambda: learn(columns=with_column("label", np.full(40, 2**32 + 1))),
            r"column \['label'\] holds integers beyond 32 bits",
        ),
        (
            lambda: learn(columns=toys.dataset().replace(other=np.full(40, -(2**63)))),
            r"column \['other'\] holds integers beyond 32 bits",
        ),
        (
            lambda: learn(test=data.Stream(data.sequence(FAR), batch_size=8)),
            r"column \['label'\] holds integers beyond 32 bits",
        ),
        (
            lambda: learn(test=with_column("label", np.full(40, 7))),
            r"labels must be in \[0, 5\), .* got 7 to 7",
        ),
        (
            lambda: learn(test=with_column("where", np.zeros(40, bool))),
            "excludes everything",
        ),
        (
            lambda: learn(columns=with_column("where", np.ones(40))),
            "must be boolean",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(call, message):
    with pytest.raises(ValueError, match=message):
        call()
