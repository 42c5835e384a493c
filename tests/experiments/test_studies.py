"""The nine studies run in their short form; their arithmetic is checked by hand."""

import json
import os
import pathlib
import subprocess
import sys
import typing

import jax
import numpy as np
import optax
import pytest

from experiments import _pair as pair
from experiments.studies import (
    __main__ as studies,
    _config,
    _course,
    _finding as f,
    _lab,
    _nets,
    _probe,
    _study,
    augmentation,
    capacity,
    cost as cost_study,
    crossdata,
    epochs as epochs_study,
)
from jaxkd import data, distill, evaluate, losses
from jaxkd.data import augment, classes

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = typing.get_args(_config.Study)


def metrics(*accuracy, **others):
    """Measurements of several seeds of which only the accuracy matters."""
    n = len(accuracy)
    rest = {name: np.zeros(n) for name in ("agreement", "nll", "ece", "cka")}
    return {"accuracy": np.array(accuracy), **rest, **others}


def arm(label, *accuracy, plain=(0.5, 0.5, 0.5)):
    return f.Arm(label, metrics(*accuracy), metrics(*plain))


# Arithmetic and words.


def test_gains_are_paired_by_seed():
    # Differences of 1, 2 and 3 points: mean 2, sd 1, standard error 1 / sqrt(3).
    mean, error = f.paired([0.51, 0.72, 0.33], [0.50, 0.70, 0.30])
    assert mean == pytest.approx(2)
    assert error == pytest.approx(3**-0.5)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ((0.5, 0.1), "a gain of 0.50 ± 0.10 points"),
        ((-0.5, 0.1), "a loss of 0.50 ± 0.10 points"),
        ((0.1, 0.1), "no difference (+0.10 ± 0.10 points)"),
        ((-0.05, 0.1), "no difference (-0.05 ± 0.10 points)"),
        ((float("nan"), 0.1), "no difference (+nan ± 0.10 points)"),
    ],
)
def test_within_one_standard_error_is_no_difference(difference, words):
    assert f.changes(difference) == words


def test_the_best_is_named_with_its_lead():
    low, high = arm("low", 0.5, 0.5, 0.5), arm("high", 0.51, 0.52, 0.53)
    assert f.best_of([low, high], low) == (
        "high is best of 2, by 2.00 ± 0.58 points over low"
    )


def test_arms_as_good_as_the_best_are_named():
    low, high = arm("low", 0.5, 0.5, 0.5), arm("high", 0.60, 0.62, 0.64)
    close, far = arm("close", 0.61, 0.61, 0.63), arm("far", 0.55, 0.57, 0.59)
    # High is ahead of close by -1, 1 and 1 points: 0.33 ± 0.67; of far by 5 each time.
    assert f.best_of([low, close, high, far], low) == (
        "high is best of 4, by 12.00 ± 1.15 points over low (no different: close)"
    )


def test_if_the_reference_is_best_the_next_one_is_named():
    ref, worse = arm("ref", 0.6, 0.6, 0.6), arm("worse", 0.4, 0.4, 0.4)
    bad, middle = ref, arm("middle", 0.55, 0.56, 0.54)
    assert "over the next, middle" in f.best_of([worse, bad, middle], ref)


def test_no_winner_is_named_within_one_standard_error():
    a, b = arm("a", 0.50, 0.52, 0.54), arm("b", 0.56, 0.50, 0.52)
    sentence = f.best_of([a, b], a)
    assert sentence.startswith("none of 2 stands out") and "b" in sentence


def test_a_shared_plain_row_stands_once_and_own_ones_beside_each():
    teacher, plain = metrics(0.9), metrics(0.5, 0.6)
    a, b = (f.Arm(name, metrics(0.6, 0.7), plain) for name in "ab")
    labels = lambda lines: [line.arm.label for line in lines]
    assert labels(_study.table([a, b], [teacher, teacher])) == [
        "teacher",
        "plain",
        "a",
        "b",
    ]
    b = b._replace(plain=metrics(0.5, 0.6))
    assert labels(_study.table([a, b], [teacher, metrics(0.8)])) == [
        "a, teacher",
        "a, plain",
        "a",
        "b, teacher",
        "b, plain",
        "b",
    ]


def test_the_columns_of_a_row():
    row = f.columns("kind", arm("x", 0.52, 0.54, 0.56))
    assert row["kind"] == "x"
    assert row["test accuracy %"] == "54.00 ± 2.00"
    assert row["gain, points"] == "+4.00 ± 1.15"  # sd 2 over sqrt(3)
    assert f.columns("kind", f.Arm("plain", metrics(0.5, 0.5)))["gain, points"] == ""
    taught = f.teacher_row("kind", f.Arm("teacher", metrics(0.9)))
    assert taught["test accuracy %"] == "90.00"
    assert taught["agreement %"] == taught["CKA"] == ""


def test_the_augmentations_sentence_compares_the_plain_students_too():
    none = f.Arm("none", metrics(0.6, 0.62), metrics(0.5, 0.52))
    flip = f.Arm("flip", metrics(0.7, 0.72), metrics(0.53, 0.56))
    first, second = augmentation.sentences([none, flip])
    assert "flip is best of 2, by 10.00 ± 0.00 points over none" in first
    assert "a gain of 3.50 ± 0.50 points" in first
    assert "none +10.00 ± 0.00, flip +16.50 ± 0.50" in second


def test_the_epochs_sentences_let_the_plain_students_stop_early():
    early = f.Arm("5 epochs", metrics(0.5, 0.52), metrics(0.55, 0.57))
    late = f.Arm("9 epochs", metrics(0.6, 0.62), metrics(0.4, 0.44))
    first, second = epochs_study.sentences([early, late])
    assert "gains -5.00 ± 0.00 after 5 epochs, +19.00 ± 1.00 after 9 epochs" in first
    assert "makes a gain of 9.00 ± 1.00 points against the plain one" in first
    assert "9 epochs distilled and 5 epochs plain" in second
    assert "a gain of 5.00 ± 0.00 points" in second


def test_the_capacity_sentence_counts_whom_it_helps_and_harms():
    arms = [
        arm("big", 0.60, 0.62, 0.64),
        arm("second", 0.55, 0.56, 0.57),
        arm("middle", 0.49, 0.51, 0.50),
        arm("small", 0.30, 0.32, 0.34),
    ]
    said = capacity.sentence(arms)
    assert said.startswith("Distillation helps 2 and harms 1 of 4 students;")
    assert ": big has a gain of 12.00 ± 1.15 points; small has a loss of 18.00" in said
    assert said.count("small has") == 1 and "middle" not in said


def test_the_cost_sentence_has_the_ratios():
    large = {"parameters": 90, "macs": 80, "ms": 4.0}
    small = {"parameters": 30, "macs": 20, "ms": 2.0}
    numbers = {"teacher": large, "distilled student": small}
    said = cost_study.sentence(numbers, arm("d", 0.6, 0.6, 0.6), 0.7)
    assert "3.0 times fewer parameters and 4.0 times fewer MACs" in said
    assert "in 2.000 ms (the teacher: 4.000)" in said
    assert "a loss of 10.00 ± 0.00 points against the teacher" in said


# The presets and what they refuse.


@pytest.mark.parametrize("study", STUDIES)
def test_short_needs_no_archives_and_full_has_five_seeds(study):
    assert _config.resolve(_config.Config(study, "short")).dataset == "digits"
    full = _config.resolve(_config.Config(study))
    assert full.seeds >= 5
    assert full.dataset == ("cifar10" if study == "crossdata" else "fashion_mnist")


def test_options_go_before_the_preset_and_before_its_data_set():
    scale = _config.resolve(_config.Config("cost", dataset="digits", epochs=3))
    assert (scale.dataset, scale.epochs) == ("digits", 3)
    assert scale.student_images == 200  # not the 6,000 of Fashion-MNIST


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 1}, "seeds must be >= 2, got 1"),
        ({"epochs": 0}, "epochs must be finite and > 0, got 0"),
        ({"temperatures": (1.0, -2.0)}, "temperatures must be finite and > 0, got -2"),
        ({"temperature": float("nan")}, "temperature must be finite and > 0, got nan"),
        ({"soft_weight": -0.5, "hard_weight": 1.0}, "weight must be >= 0"),
        ({"label_weights": (0.5, 1.5)}, r"label_weights must be in \[0, 1\]"),
        ({"teachers_tried": ()}, "teachers_tried must be finite and > 0"),
        ({"student_images": 10**6}, "n must be at most the 1297 examples"),
        ({"batch_size": 500}, "batch_size must be at most n = 200 examples, got 500"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, monkeypatch, wrong, message
):
    monkeypatch.setattr(_lab, "_trained", lambda *_: pytest.fail("it was trained"))
    config = _config.Config("temperature", "short", out=str(tmp_path), **wrong)
    with pytest.raises(SystemExit, match=message):
        studies.main(config)


@pytest.mark.bad_input
def test_crossdata_refuses_a_set_without_a_partner(tmp_path):
    lab = small_lab(tmp_path)
    lab = lab._replace(scale=_replaced(lab.scale, dataset="mnist"))
    with pytest.raises(SystemExit, match="must be digits or cifar10, got 'mnist'"):
        crossdata.run(lab)


def _replaced(scale, **changes):
    return _config.dataclasses.replace(scale, **changes)


def test_help_shows_options_and_presets():
    shown = subprocess.run(
        [sys.executable, "-m", "experiments.studies", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for wanted in (
        "crossdata",
        "--label-weights",
        "0.1 0.3 0.5 0.7 0.9",
        "student_images 6000",
    ):
        assert wanted in " ".join(shown.stdout.replace("│", " ").split()), wanted


# The networks and the views.


def test_every_ladder_starts_at_the_student_and_ends_linear():
    for name, ladder in _nets.LADDERS.items():
        assert ladder[0] == _nets.STUDENTS[name]
        titles = [_nets.title(spec) for spec in ladder]
        assert titles[-1] == "linear" and len(set(titles)) == len(titles)
        assert any(len(spec.get("widths", "..")) == 1 for spec in ladder)


def test_digits_are_never_mirrored():
    for name in ("digits", "mnist"):
        assert not any("flip" in view for view in augmentation._ON_BYTES[name])


def views(tmp_path, dataset):
    lab = small_lab(tmp_path)
    lab = lab._replace(scale=_replaced(lab.scale, dataset=dataset))
    return lab, augmentation.views(lab)


@pytest.mark.parametrize("dataset", _nets.STUDENTS)
def test_every_augmentation_is_random_and_keeps_what_networks_take(tmp_path, dataset):
    lab, found = views(tmp_path, dataset)
    batch = jax.eval_shape(
        lambda r: jax.tree.map(lambda a: a[:50], r), lab.task.resident
    )
    for view in found.values():
        seen = jax.eval_shape(view.apply, jax.random.key(0), batch)
        assert view.random
        assert seen["image"].shape == batch["image"].shape
        assert seen["image"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_every_augmentation_changes_images_and_stays_in_their_range(tmp_path, dataset):
    lab, found = views(tmp_path, dataset)
    batch = jax.tree.map(lambda a: a[:50], lab.task.resident)
    plain = lab.task.view(jax.random.key(0), batch)["image"]
    for view in found.values():
        seen = view(jax.random.key(0), batch)["image"]
        assert np.abs(seen - plain).max() > 0.1
        assert float(seen.min()) >= float(plain.min()) - 1e-5


# Other data.


def test_shares_are_the_overlaps_of_pixels_and_areas():
    np.testing.assert_allclose(
        crossdata.shares(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    )
    twenty = crossdata.shares(20, 8)
    np.testing.assert_allclose(twenty.sum(1), 1)
    np.testing.assert_allclose(twenty.sum(0), 8 / 20)
    np.testing.assert_allclose(twenty[0, :4], [0.4, 0.4, 0.2, 0])


def dataset(images, labels, names):
    labels = np.asarray(labels, np.int32)
    place = np.arange(len(labels), dtype=np.int32)
    return data.Dataset("fake", "test", images, labels, place, tuple(names))


def test_reduced_mnist_keeps_the_ink_of_the_box_and_its_place():
    images = np.zeros((2, 28, 28, 1), np.uint8)
    images[0, 4:24, 4:24] = 200
    images[1, 4:9, 4:14] = 100  # two of eight rows, four of eight columns
    small = crossdata.reduced(dataset(images, [0, 1], "01")).images[..., 0]
    assert small.dtype == np.uint8 and small.shape == (2, 8, 8)
    assert (small[0] == 200).all()
    wanted = np.zeros((8, 8))
    wanted[:2, :4] = 100
    np.testing.assert_array_equal(small[1], wanted)


def test_shifted_images_move_by_one_pixel_in_four_directions():
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 1, 2] = 9
    moved = crossdata.shifted(dataset(image, [3], "0123")).images[..., 0]
    places = {tuple(np.argwhere(one)[0]) for one in moved}
    assert places == {(0, 2), (2, 2), (1, 1), (1, 3)}
    assert crossdata.shifted(dataset(image, [3], "0123")).labels.tolist() == [3] * 4


def test_matching_classes_of_cifar100():
    names = [*classes.CIFAR100]
    labels = [names.index(name) for name in ("wolf", "apple", "bus", "lion", "wolf")]
    images = np.zeros((5, 2, 2, 3), np.uint8)
    place = crossdata.matching(dataset(images, labels, names), classes.CIFAR10)
    assert [names[i] for i in place.data.labels] == ["wolf", "bus", "lion", "wolf"]
    right = [
        {classes.CIFAR10[k] for k in np.flatnonzero(row)}
        for row in place.right[place.data.labels]
    ]
    assert right == [{"dog"}, {"automobile", "truck"}, {"cat"}, {"dog"}]
    assert place.right.sum() == sum(map(len, crossdata.CIFAR100_AS_CIFAR10.values()))


def test_with_one_right_answer_the_score_is_the_usual_one():
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 40, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 40).astype(np.int32)
    found = crossdata.score(logits, labels, np.eye(5, dtype=bool), others)
    assert found["accuracy"] == pytest.approx(evaluate.accuracy(logits, labels))
    assert found["nll"] == pytest.approx(float(evaluate.nll(logits, labels)), rel=1e-5)
    assert found["agreement"] == pytest.approx(evaluate.agreement(logits, others))


def test_with_two_right_answers_their_probabilities_add():
    logits = np.log([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    right = np.array([[True, True, False], [False, True, True]])
    found = crossdata.score(logits, np.array([0, 1]), right, logits)
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


# Training.


def small_lab(tmp_path, **options):
    config = _config.Config(
        "temperature", "short", seeds=2, epochs=2, out=str(tmp_path), **options
    )
    return _lab.lab(config, _config.resolve(config))


def untrained(lab, seed=5, probe=None):
    """A teacher with random weights: it has opinions, and nothing is trained."""
    net = _nets.build(_nets.TEACHERS["digits"])
    resident, rng = lab.task.resident_test, np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 1)))
    draw = lambda a: rng.normal(0, 0.1, a.shape).astype(a.dtype)
    variables = jax.tree.map(draw, shapes)
    probe = probe or _probe.prober(net, lab.task.view)
    seen = probe(variables, resident)
    metrics = _probe.against(seen, seen, resident["label"])
    return _lab.Taught(net, variables, probe, seen, metrics)


def test_measurements_are_those_of_evaluate(tmp_path):
    lab = small_lab(tmp_path)
    taught = untrained(lab)
    own, resident = untrained(lab, 6, taught.probe), lab.task.resident_test
    found = _probe.against(own.seen, taught.seen, resident["label"])
    a, b = (by_hand(lab, net.variables[0]) for net in (own, taught))
    answer, others = a[1].argmax(-1), b[1].argmax(-1)
    assert found["accuracy"] == pytest.approx(np.mean(answer == resident["label"]))
    assert found["agreement"] == pytest.approx(np.mean(answer == others))
    x, y = (f - f.mean(0) for f in (a[0], b[0]))
    norm = lambda m: np.sqrt((m**2).sum())
    cka = norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert found["cka"] == pytest.approx(cka, abs=1e-4)
    assert taught.metrics["agreement"] == 1
    assert taught.metrics["cka"] == pytest.approx(1, abs=1e-5)


def by_hand(lab, params):
    """What the head sees, and the logits, of the test images, in numpy."""
    mean, sd = data.channel_statistics(data.load("digits", "train"))
    x = lab.task.test.images.reshape(-1, 64) / 255
    x = (x - mean) / sd
    for name in ("hidden1", "hidden2"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    return x, x @ params["head"]["kernel"] + params["head"]["bias"]


def test_students_of_cifar10_fit_their_teacher_and_the_other_test_set(tmp_path):
    """Traced and not run: a convolutional pair takes minutes."""
    rng, config = np.random.default_rng(0), _config.Config("crossdata")
    images = rng.integers(0, 255, (80, 32, 32, 3)).astype(np.uint8)
    some = dataset(images, np.arange(80) % 10, classes.CIFAR10)
    task = pair.task(some, some, augment.to_float())
    scale = _config.resolve(config)
    lab = _lab.Lab(config, scale, task, task, lambda row: None, tmp_path)
    net = _nets.build(_nets.TEACHERS["cifar10"])
    student = _course.novice(lab)
    keys = jax.vmap(jax.random.key)(np.arange(scale.seeds))
    variables = jax.eval_shape(net.init, keys[0], np.zeros((1, 32, 32, 3), np.float32))
    states = jax.eval_shape(student.start, keys)
    cached = {**task.resident, "teacher": np.zeros((80, 10), np.float32)}
    live = _course.course(lab, student, teacher=distill.frozen(net))
    for course, resident, of in (
        (_course.course(lab, student), cached, None),
        (live, task.resident, variables),
    ):
        trained, _ = jax.eval_shape(
            course.epoch, states, (_course.knobs(), of), resident, keys
        )
        assert jax.tree.structure(trained) == jax.tree.structure(states)
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
        (trained.params["student"], trained.state["student"]),
    )
    seen = jax.eval_shape(student.probe, one, task.resident_test)
    assert seen.logits.shape == (80, 10)
    assert seen.pooled.shape == (80, 128)
    assert scale.dataset == "cifar10" and lab.together == (
        jax.default_backend() != "cpu"
    )


@pytest.mark.slow
def test_one_compilation_serves_all_knobs_and_each_is_the_trainers(tmp_path):
    lab = small_lab(tmp_path)
    taught, net = untrained(lab), _nets.build(_nets.STUDENTS["digits"])
    traced = []

    def soft(knobs):
        traced.append(knobs)
        return _course.kl(knobs)

    resident = _course.with_logits(lab, taught)
    train = _course.course(lab, _course.novice(lab), soft=soft)
    plain = train("plain", _course.knobs(), taught, resident=resident)
    times = len(traced)
    distilled = train(
        "t", _course.configured(lab, temperature=3.0), taught, resident=resident
    )
    assert len(traced) == times > 0

    trainer = pair.Trainer(optax.adam(1e-3), 20, lab.log, lab.directory)
    kd = distill.on_logits(losses.kd, temperature=3.0)
    ce = distill.on_labels(distill.cross_entropy)
    task = lab.task._replace(resident=resident)
    for students, spec in (
        (plain, {"ce": (1.0, ce)}),
        (distilled, {"ce": (0.1, ce), "kd": (0.9, kd)}),
    ):
        run = trainer(
            "same", net, task, seeds=2, epochs=2, spec=spec, teacher=distill.cached
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            students.variables[0],
            run.state.params["student"],
        )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all studies, so that they share their teachers."""
    return tmp_path_factory.mktemp("runs")


def results(out, study):
    (directory,) = (out / "studies" / study).iterdir()
    return json.loads((directory / "results.json").read_text())["measured"]


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_in_short(out, study, capsys):
    found = studies.main(_config.Config(study, "short", out=str(out)))
    (directory,) = (out / "studies" / study).iterdir()
    wanted = {"config.json", "versions.json", "metrics.jsonl", "report.md"}
    assert wanted | {"results.json", f"{study}.png"} <= {
        path.name for path in directory.iterdir()
    }
    assert (directory / f"{study}.png").read_bytes().startswith(b"\x89PNG")
    written = (directory / "report.md").read_text()
    assert (
        found.sentences[0] in written and found.sentences[0] in capsys.readouterr().out
    )
    assert "nan" not in written
    if study not in ("cost", "crossdata"):
        for line in found.rows:
            assert any(
                word in next(iter(line.values())) for word in ("teacher", "plain")
            ) == (not line["gain, points"])


@pytest.mark.slow
def test_the_same_students_measure_the_same_in_every_study(out):
    scale = _config.preset("short", "temperature")
    same = [
        results(out, "temperature")["T=5"],
        results(out, "weights")["0.1 / 0.9"],
        results(out, "teacher")[f"{scale.teacher_epochs} epochs"],
        results(out, "objective")["KL, T=5"],
        results(out, "augmentation")["none"],
        results(out, "epochs")[f"{scale.epochs} epochs"],
    ]
    for other in same[1:]:
        for name, values in other.items():
            assert values == pytest.approx(same[0][name], abs=1e-4), name
    worst = results(out, "temperature")["plain"]
    assert worst["accuracy"] != same[0]["accuracy"]
    teachers = list((out / "studies" / "teachers").iterdir())
    assert len(teachers) == len(scale.teachers_tried)


@pytest.mark.slow
def test_distilled_digits_agree_more_with_their_teacher(out):
    """What every distillation must do, whether it helps or not."""
    found = results(out, "temperature")
    assert np.mean(found["T=5"]["cka"]) > np.mean(found["plain"]["cka"])
    assert np.mean(found["T=5"]["nll"]) < np.mean(found["plain"]["nll"])
    assert found["teacher"]["accuracy"] > 0.9


@pytest.mark.skipif(
    not os.environ.get("JAXKD_ARCHIVES"),
    reason="JAXKD_ARCHIVES names no folder of the official archives",
)
def test_cifar100_has_a_hundred_images_of_each_matching_class():
    place = crossdata.matching(data.load("cifar100", "test"), classes.CIFAR10)
    assert len(place.data.images) == 100 * len(crossdata.CIFAR100_AS_CIFAR10)
    names = {place.data.classes[label] for label in place.data.labels}
    assert names == set(crossdata.CIFAR100_AS_CIFAR10)
