"""The nine questions run tiny, and train the same students where they ask the same."""

import importlib
import json

import jax
import numpy as np
import pytest

from experiments.questions import augmentation, capacity, common, crossdata, temperature
from jaxkd import data, evaluate
from jaxkd.data import augment, classes
from jaxkd.types import Outputs

TINY = {"preset": "short", "seeds": 2, "epochs": 3, "teacher_epochs": 3}
# Each with few arms, and the row of the student that all of them train.
SAME = {
    "weights": ({"label_weights": (0.1,)}, "0.1 / 0.9"),
    "epochs": ({"epochs_tried": (3,)}, "3 epochs"),
    "cost": ({"calls": 3}, "distilled"),
    "crossdata": ({}, "digits, as trained"),
    "teacher": ({"teachers_tried": (1, 3)}, "3 epochs"),
    "objective": ({}, "KL, T=5"),
    "capacity": ({}, "16-16 (1,482)"),
    "augmentation": ({}, "unaugmented"),
}


@pytest.fixture(autouse=True)
def without_archives(monkeypatch):
    monkeypatch.delenv("JAXKD_ARCHIVES", raising=False)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Return the directory of `temperature` at T=5, and what it returned."""
    out = tmp_path_factory.mktemp("runs")
    config = temperature.Config(**TINY, temperatures=(5.0,), out=str(out))
    return directory(out, "temperature", temperature.main(config))


def directory(out, question, means):
    (found,) = (out / "questions" / question).iterdir()
    return found, means


def metrics(folder):
    return json.loads((folder / "results.json").read_text())


def test_table_picture_and_sentence_are_of_the_measured_students(usual):
    folder, means = usual
    found, report = metrics(folder), (folder / "report.md").read_text()
    assert set(means) == set(found) == {"teacher", "plain", "T=5"}
    difference = 100 * np.subtract(found["T=5"]["accuracy"], found["plain"]["accuracy"])
    gain = f"{difference.mean():+.2f} ± {np.ptp(difference) / 2:.2f}"  # of two seeds
    assert f"it gains {gain} points over the plain student" in report
    assert f"| T=5 | {gain} | {100 * means['T=5']:.2f} ± " in report
    assert "has seen 1,000 images, the students 200: some of what" in report
    assert (folder / "gains.png").read_bytes().startswith(b"\x89PNG")
    # What every distillation must do, whether it helps or not.
    assert np.mean(found["T=5"]["cka"]) > np.mean(found["plain"]["cka"])
    assert means["teacher"] > 0.8  # chance is 0.1


@pytest.mark.parametrize(
    "question",
    [*[*SAME][:-2], *(pytest.param(q, marks=pytest.mark.slow) for q in [*SAME][-2:])],
)
def test_every_question_trains_the_same_usual_student(usual, question):
    out = usual[0].parents[2]  # the same, so that the teacher is trained once
    script = importlib.import_module(f"experiments.questions.{question}")
    options, label = SAME[question]
    means = script.main(script.Config(**TINY, **options, out=str(out)))
    folder, _ = directory(out, question, means)
    found, wanted = metrics(folder)[label], metrics(usual[0])
    for name, values in found.items():
        assert values == pytest.approx(wanted["T=5"][name], abs=1e-4), name
    assert wanted["T=5"]["nll"] != pytest.approx(wanted["plain"]["nll"], abs=1e-3)
    report = (folder / "report.md").read_text()
    assert f"| {label} |" in report and "nan" not in report
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    trained = {json.loads(row)["run"] for row in rows}
    assert trained and "teacher, 3 epochs" not in trained


def test_a_stopped_question_is_resumed(tmp_path, usual):
    folder, means = usual
    (folder / "T=5").rename(tmp_path / "away")
    before = (folder / "metrics.jsonl").read_text().splitlines()
    again = {"out": str(folder.parents[2]), "resume": str(folder)}
    config = temperature.Config(**TINY, temperatures=(5.0,), **again)
    assert temperature.main(config) == pytest.approx(means, abs=1e-6)
    added = (folder / "metrics.jsonl").read_text().splitlines()[len(before) :]
    assert {json.loads(row)["run"] for row in added} == {"T=5"}


def test_options_go_before_the_preset_and_before_its_data_set():
    full = common.sized(common.Config())
    assert (full.dataset, full.seeds, full.student_images) == ("fashion_mnist", 5, 6000)
    config = common.sized(common.Config(dataset="digits", epochs=3, student_images=0))
    assert (config.epochs, config.student_images, config.batch_size) == (3, 0, 20)
    short = common.sized(crossdata.Config(preset="short"), full="cifar10")
    assert (short.dataset, short.seeds) == ("digits", 3)
    assert common.sized(crossdata.Config(), full="cifar10").teacher_images == 15000


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 1}, "seeds must be >= 2, got 1"),
        ({"temperatures": (1.0, -2.0)}, "temperature must be finite and > 0, got -2"),
        ({"student_images": 10**6}, "n must be at most the 1297 examples"),
        ({"batch_size": 500}, "batch_size must be at most n = 200 examples, got 500"),
    ],
)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(
    tmp_path, wrong, message
):
    options = {**TINY, "teacher_epochs": 10**9, **wrong}
    with pytest.raises(SystemExit, match=message):
        temperature.main(temperature.Config(**options, out=str(tmp_path)))


@pytest.mark.parametrize("dataset", common.NETS)
def test_networks_and_augmentations_fit_the_images(dataset):
    shape = {"digits": (8, 8, 1), "cifar10": (32, 32, 3)}.get(dataset, (28, 28, 1))
    image, label = np.zeros((4, *shape), np.uint8), np.arange(4, dtype=np.int32)
    views = augmentation.views(dataset, augment.to_float(), 0.4)
    for view in views.values():
        batch = {"image": image, "label": label}
        seen = jax.eval_shape(view.apply, jax.random.key(0), batch)["image"]
        assert view.random and seen.shape == image.shape and seen.dtype == np.float32
    assert not (dataset in ("digits", "mnist") and "flip" in views)
    ladder = capacity.NETS[dataset]
    for net in [*common.NETS[dataset], *ladder.values()]:
        variables = jax.eval_shape(net.init, jax.random.key(0), seen)
        run = lambda v, x, net=net: net.apply(*v, x, train=False)[0].logits
        assert jax.eval_shape(run, variables, seen).shape == (4, 10)
    assert [*ladder][-1] == "linear"


def dataset(images, labels, names):
    labels = np.asarray(labels, np.int32)
    place = np.arange(len(labels), dtype=np.int32)
    return data.Dataset.of_images("fake", "test", images, labels, place, tuple(names))


def test_reduced_mnist_keeps_the_ink_of_the_box_and_its_place():
    images = np.zeros((2, 28, 28, 1), np.uint8)
    images[0, 4:24, 4:24] = 200
    images[1, 4:9, 4:14] = 100  # two of eight rows, four of eight columns
    found = crossdata.reduced(dataset(images, [0, 1], "01")).images[..., 0]
    assert found.dtype == np.uint8 and found.shape == (2, 8, 8)
    assert (found[0] == 200).all()
    wanted = np.zeros((8, 8))
    wanted[:2, :4] = 100
    np.testing.assert_array_equal(found[1], wanted)


def test_shifted_images_move_by_one_pixel_in_four_directions():
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, 1, 2] = 9
    moved = crossdata.shifted(dataset(image, [3], "0123"))
    places = {tuple(np.argwhere(one)[0]) for one in moved.images[..., 0]}
    assert places == {(0, 2), (2, 2), (1, 1), (1, 3)}
    assert moved.labels.tolist() == [3] * 4


def test_matching_classes_of_cifar100():
    names = [*classes.CIFAR100]
    labels = [names.index(name) for name in ("wolf", "apple", "bus", "lion", "wolf")]
    images = np.zeros((5, 2, 2, 3), np.uint8)
    kept, right = crossdata.matching(dataset(images, labels, names), classes.CIFAR10)
    assert [names[i] for i in kept.labels] == ["wolf", "bus", "lion", "wolf"]
    answers = [{classes.CIFAR10[k] for k in np.flatnonzero(row)} for row in right]
    assert [answers[i] for i in kept.labels] == [
        {"dog"},
        {"automobile", "truck"},
        {"cat"},
        {"dog"},
    ]
    assert right.sum() == sum(map(len, crossdata.CIFAR100_AS_CIFAR10.values()))


def test_the_score_adds_the_probabilities_of_right_answers():
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 40, 5)).astype(np.float32)
    images = dataset(np.zeros((40, 1, 1, 1), np.uint8), np.arange(40) % 5, "01234")
    own, teacher = [Outputs(logits, {})], Outputs(others, {})
    found = crossdata.score(own, teacher, (images, np.eye(5, dtype=bool)))
    found = {name: values.item() for name, values in found.items()}  # of one network
    assert found["accuracy"] == pytest.approx(
        float(evaluate.accuracy(logits, images.labels))
    )
    assert found["nll"] == pytest.approx(
        float(evaluate.nll(logits, images.labels)), rel=1e-5
    )
    assert found["agreement"] == pytest.approx(
        float(evaluate.agreement(logits, others))
    )

    one = Outputs(np.log([[0.2, 0.3, 0.5]] * 2), {})
    images = dataset(np.zeros((2, 1, 1, 1), np.uint8), [0, 1], "012")
    right = np.array([[True, True, False], [False, True, True], [False] * 3])
    found = crossdata.score([one], one, (images, right))
    assert found["accuracy"].item() == 0.5
    assert found["nll"].item() == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
