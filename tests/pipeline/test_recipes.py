"""Published recipes by name: one small run each of those that losses cannot say."""

import jax
import numpy as np
import pytest

from jaxkd import checkpoint, evaluate
from jaxkd.pipeline import directory, loading, reading, run as runs, run_data
from tests.pipeline.small import read, rows, variables

DATA = """
[data]
name = "digits"
train_images = 100
[models.student]
kind = "cnn"
stages = [[4]]
hidden = []
"""
TEACHER = """
[models.teacher]
kind = "cnn"
stages = [[8]]
hidden = []
[[stages]]
kind = "train"
model = "teacher"
epochs = 1
batch_size = 50
"""
SECOND = """
[models.other]
kind = "mlp"
widths = [8]
[[stages]]
kind = "train"
name = "other"
model = "other"
epochs = 1
batch_size = 50
"""
PEER = '[models.peer]\nkind = "mlp"\nwidths = [8]\n'


def load(tmp_path, before, recipe, more="", epochs=2):
    path = tmp_path / f"{recipe}.toml"
    path.write_text(
        f'{DATA}{before}[[stages]]\nkind = "distill"\nrecipe = "{recipe}"\n'
        f"epochs = {epochs}\nbatch_size = 50\n{more}"
    )
    return reading.load(path)


def distilled(run):
    return [row for row in rows(run) if row["kind"] == "distill"]


@pytest.mark.slow
def test_simkd_ends_in_the_teachers_classifier_and_is_loaded_again(tmp_path):
    pooled = TEACHER.replace(
        'kind = "cnn"\nstages = [[8]]\nhidden = []', 'kind = "zoo"\nname = "resnet8"'
    )  # its head takes the mean over positions, which that of a cnn does not
    load(tmp_path, pooled, "simkd", "options = { weight = 2.0 }")
    smaller = "models.student.stages=[[4], [4]]"  # maps as small as the teacher's last
    config = reading.load(tmp_path / "simkd.toml", [smaller])
    run = runs.start(config, tmp_path / "run")
    found, teacher = variables(run, "student"), variables(run, "teacher")
    for name, array in teacher["params"]["head"].items():
        np.testing.assert_array_equal(found["state"]["head"][name], array)
    assert [row["epoch"] for row in distilled(run)] == [1, 2]
    # From its folder: the network is built again from table, recipe and teacher.
    splits = run_data.make(config.data)
    held = loading.loaded(config, "student", str(run / "models" / "student"), splits)
    forward = jax.jit(lambda x: held.net.apply(held.params, held.state, x, train=False))
    x = splits.plain(jax.random.key(0), {"image": splits.test.images})["image"]
    accuracy = evaluate.accuracy(forward(x)[0].logits, splits.test.labels)
    assert float(accuracy) == pytest.approx(read(run)["rows"][-1]["accuracy"])


@pytest.mark.parametrize("row", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_a_recipe_of_two_parts_resumes_in_either(tmp_path, monkeypatch, row):
    config = load(tmp_path, TEACHER, "factor_transfer")
    whole = runs.start(config, tmp_path / "whole")
    parts = [(row["part"], row["epoch"]) for row in distilled(whole)]
    assert parts == [("paraphraser", 1), ("task", 2), ("task", 3)]
    assert read(whole)["rows"][-1]["epochs"] == 3
    run, real, count = tmp_path / "run", directory.metrics, [0]

    def breaking(path):
        metrics = real(path)

        def add(line):
            count[0] += 1
            if count[0] == row:
                raise KeyboardInterrupt
            metrics.add(line)

        return metrics._replace(add=add)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(directory, "metrics", breaking)
        runs.start(config, run)
    runs.resume(run)
    assert rows(run) == rows(whole)
    one, other = (read(r)["rows"][-1]["digest"] for r in (run, whole))
    assert one == other


def test_a_student_learns_from_two_teachers(tmp_path):
    more = 'teacher = ["teacher", "other"]\noptions = { mode = "logits" }'
    run = runs.start(load(tmp_path, TEACHER + SECOND, "ensemble", more), tmp_path / "r")
    assert {"loss/ce", "loss/kd"} <= distilled(run)[-1].keys()
    assert read(run)["teacher"] == "teacher"
    text = (run / "config.toml").read_text()
    assert 'teacher = ["teacher", "other"]' in text
    runs.resume(run)  # the configuration as written is read again


def test_two_fresh_networks_teach_each_other(tmp_path):
    run = runs.start(load(tmp_path, PEER, "mutual", 'teacher = "peer"'), tmp_path / "r")
    last = distilled(run)[-1]
    assert last["peer0/loss/mutual"] > 0 and last["peer1/loss/mutual"] > 0
    assert [path.name for path in (run / "models").iterdir()] == ["student"]


def test_the_moving_average_of_the_student_is_kept(tmp_path):
    more = 'teacher = ""\noptions = { decay = 0.5 }'
    run = runs.start(load(tmp_path, "", "mean_teacher", more), tmp_path / "run")
    last = checkpoint.steps(run / "stages" / "00-distill" / "checkpoints")[-1]
    tree = checkpoint.read(last).tree
    average, student = tree["state"]["teacher"]["params"], tree["params"]["student"]
    kept = variables(run, "student")["params"]
    same = jax.tree.map(np.array_equal, kept, checkpoint.as_dicts(average))
    assert all(jax.tree.leaves(same))
    differs = jax.tree.map(np.array_equal, kept, checkpoint.as_dicts(student))
    assert not all(jax.tree.leaves(differs))


def test_the_scores_of_the_teacher_are_those_of_a_live_one(tmp_path):
    """The same rows as the recipe `kd`, whose teacher is asked in each step."""
    found = []
    for recipe in ("stored", "kd"):
        config = load(tmp_path, TEACHER, recipe)
        found.append(distilled(runs.start(config, tmp_path / f"run-{recipe}")))
    for stored, live in zip(*found, strict=True):
        assert stored["loss/kd"] == pytest.approx(live["loss/kd"], rel=1e-4)
        assert stored["loss/ce"] == pytest.approx(live["loss/ce"], rel=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "before, recipe, more, message",
    [
        (TEACHER, "simkdd", "", "no recipe 'simkdd'.*did you mean simkd"),
        (TEACHER, "dkd", "options = { betta = 1.0 }", "options.betta: dkd has no such"),
        (TEACHER, "dkd", 'options = { beta = "a" }', "options.beta: must be a number"),
        (TEACHER, "kd", 'trains = ["head/*"]', "trains: the recipe kd decides"),
        (TEACHER, "kd", "losses = { ce = {} }", "losses: the recipe kd has its own"),
        (TEACHER, "assistants", "", "assistants is for Python; write a distill stage"),
        (TEACHER + SECOND, "kd", 'teacher = ["teacher", "other"]', "names 2 models"),
        (TEACHER, "kd", 'teacher = ""', "teacher: no model ''"),
        (TEACHER, "kd", 'teacher = ["techer"]', "no model 'techer'.*did you mean teac"),
        (TEACHER, "", "options = { beta = 1.0 }", "options: belongs to a recipe"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(tmp_path, before, recipe, more, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, before, recipe, more)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "recipe, more, message",
    [
        ("pearson", "", "recipe: pearson: pearson has no published weight"),
        ("srrl", 'options = { head = "fc" }', "srrl: the teacher has no layer 'fc'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_work(
    tmp_path, recipe, more, message
):
    config = load(tmp_path, TEACHER, recipe, more)
    with pytest.raises(ValueError, match=message):
        runs.rehearse(config, run_data.make(config.data))


@pytest.mark.bad_input
def test_stored_scores_need_a_view_without_augmentation(tmp_path):
    config = load(tmp_path, TEACHER, "stored")
    path = tmp_path / "stored.toml"
    config = reading.load(path, ["data.augment.flip=true"])
    with pytest.raises(ValueError, match="leave data.augment out"):
        runs.rehearse(config, run_data.make(config.data))
