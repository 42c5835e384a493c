"""The nine studies run in their short form; what they measure is checked by hand."""

import json
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
    _lab,
    _nets,
    _probe,
)
from jaxkd import data, distill, losses
from jaxkd.data import augment, classes
from tests.experiments.studies import small

STUDIES = typing.get_args(_config.Study)


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
    lab = small.lab(tmp_path)
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
    some = small.dataset(images, np.arange(80) % 10, classes.CIFAR10)
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
    lab = small.lab(tmp_path)
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
    ce = distill.on_labels(losses.cross_entropy)
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
