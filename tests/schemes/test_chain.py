"""Chains of trainings: generations, assistants, and nothing computed twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, evaluate, log, losses, models, store
from jaxkd.schemes import assistants, born_again, chain, ensemble, teacher_free
from tests import toys
from tests.schemes import digits

batch = {"image": jnp.zeros((2, 4, 4, 3)), "label": jnp.zeros(2, int)}


def remembering(lessons):
    """Does not train: notes the lesson, and returns the first weights of its key."""

    def learn(lesson):
        lessons.append(lesson)
        return lesson.net.init(lesson.key, batch["image"])

    return learn


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_each_network_is_taught_by_the_one_before():
    lessons = []
    nets = {"a": toys.teacher, "b": toys.student, "c": toys.student}
    found = chain.chain(
        nets,
        toys.spec,
        remembering(lessons),
        key=jax.random.key(0),
        example=batch,
    )
    assert list(found) == [each.name for each in lessons] == ["a", "b", "c"]
    first, second, third = lessons
    assert first.teacher is distill.no_teacher and list(first.spec) == ["ce"]
    assert second.spec is third.spec is toys.spec
    equal(second.teacher_variables, found["a"])
    equal(third.teacher_variables, found["b"])
    wanted, _ = toys.student.apply(*found["b"], batch["image"], train=False)
    equal(third.teacher(found["b"], batch), wanted)
    keys = {tuple(jax.random.key_data(each.key).tolist()) for each in lessons}
    assert len(keys) == 3


def test_a_trained_teacher_can_begin():
    lessons, variables = [], toys.teacher_variables()
    teacher = distill.frozen(toys.teacher)
    born_again.generations(
        toys.student,
        2,
        toys.spec,
        remembering(lessons),
        key=jax.random.key(0),
        example=batch,
        teacher=teacher,
        teacher_variables=variables,
    )
    assert lessons[0].teacher is teacher and lessons[0].spec is toys.spec
    equal(lessons[0].teacher_variables, variables)


def test_an_interrupted_chain_goes_on_where_it_was(tmp_path):
    lessons, learnt = [], remembering([])

    def breaking(lesson):
        lessons.append(lesson.name)
        if lesson.name == "generation2" and len(lessons) == 3:
            raise KeyboardInterrupt
        return learnt(lesson)

    def run(directory=tmp_path, learn=breaking):
        return born_again.generations(
            toys.student,
            4,
            toys.spec,
            learn,
            key=jax.random.key(7),
            example=batch,
            directory=directory,
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    resumed = run()
    names = [f"generation{i}" for i in (0, 1, 2, 2, 3)]
    assert lessons == names  # none but the broken one twice
    whole = run(None, learnt)
    equal(resumed, whole)
    equal(run(), whole)
    assert lessons == names
    store.remove_dir(tmp_path / "generation1")  # as if it had died while writing
    equal(run(), whole)
    assert lessons == [*names, "generation1"]


@pytest.mark.bad_input
def test_another_chains_directory_is_refused(tmp_path):
    def run(nets, spec, seed=0, teacher=()):
        lessons = []
        options = dict(zip(("teacher", "teacher_variables"), teacher, strict=False))
        chain.chain(
            nets,
            spec,
            remembering(lessons),
            key=jax.random.key(seed),
            example=batch,
            directory=tmp_path,
            **options,
        )
        return lessons

    def objective(weight=0.5, temperature=4.0):
        kd = functools.partial(losses.kd, temperature=temperature)
        return {
            "ce": (1.0, distill.on_labels(losses.cross_entropy)),
            "kd": (weight, distill.on_logits(kd)),
        }

    taught = lambda seed: (
        distill.frozen(toys.teacher),
        toys.teacher_variables(seed),
    )
    nets, spec, how = {"a": toys.student}, objective(), {"teacher": taught(1)}
    assert run(nets, spec, **how) and not run(nets, objective(), **how)
    for what, again in [
        ("key", lambda: run(nets, spec, seed=1, **how)),
        ("teacher", lambda: run(nets, spec, teacher=taught(2))),
        ("spec", lambda: run(nets, spec)),
        ("shapes", lambda: run({"a": toys.teacher}, spec, **how)),
        ("step", lambda: run(nets, objective(weight=0.6), **how)),
        ("step", lambda: run(nets, objective(temperature=5.0), **how)),
        ("step", lambda: run(nets, objective(weight=lambda step: 0.5 + step), **how)),
    ]:
        with pytest.raises(ValueError, match=f"belongs to another run: .*{what} was"):
            again()


@pytest.mark.bad_input
def test_a_directory_of_others_is_refused_before_anything_is_learnt(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    lessons = []
    how = {"key": jax.random.key(0), "example": batch, "directory": tmp_path}
    with pytest.raises(ValueError, match="a was not written by jaxkd"):
        chain.chain({"a": toys.student}, toys.spec, remembering(lessons), **how)
    assert not lessons


def test_generations_on_digits_are_logged_and_teach_together(tmp_path):
    rows = []
    learn = chain.by_fit(
        digits.tx,
        digits.images("train", 300),
        view=digits.view(),
        batch_size=50,
        epochs=10,
        evaluate=lambda net: evaluate.scorer(
            net, digits.images("test"), view=digits.view()
        ),
        log=rows.append,
        progress=False,
    )
    found = born_again.generations(
        digits.large,
        3,
        teacher_free.self_training(0.7, temperature=2.0),
        learn,
        key=jax.random.key(0),
        example=digits.example(),
    )
    last = [row for row in rows if row["epoch"] == 10]
    assert [row["run"] for row in last] == list(found)
    assert ["loss/kd" in row for row in last] == [False, True, True]
    assert all(row["accuracy"] > 0.85 for row in last)
    single = distill.frozen(digits.large)
    alone = [digits.score(single, variables) for variables in found.values()]
    np.testing.assert_allclose([a for a, _ in alone], [r["accuracy"] for r in last])
    teacher = ensemble.mean(born_again.committee(digits.large, 3))
    accuracy, nll = digits.score(teacher, tuple(found.values()))
    assert accuracy > 0.9 and nll < np.mean([n for _, n in alone])  # Jensen
    taps = born_again.committee(digits.large, 3)(
        tuple(found.values()), {"image": jnp.zeros((1, 8, 8, 1))}
    ).taps
    assert "generation2/stage1" in taps


def test_assistants_on_digits_lead_from_large_to_small():
    middle = models.mlp([32], classes=10)
    learn = chain.by_fit(
        digits.tx,
        digits.images("train", 300),
        view=digits.view(),
        batch_size=50,
        epochs=12,
        progress=False,
    )
    nets = {"teacher": digits.large, "assistant": middle, "student": digits.small}
    found = assistants.descend(
        nets,
        digits.taught,
        learn,
        key=jax.random.key(0),
        example=digits.example(),
    )
    for name, net in nets.items():
        assert digits.score(distill.frozen(net), found[name])[0] > 0.75, name


def test_ctrl_c_in_a_training_does_not_count_as_trained(tmp_path, monkeypatch):
    run = chain.train.Run(None, [{}], interrupted=True)
    monkeypatch.setattr("jaxkd.train.saving.fit", lambda *args, **knobs: run)
    learn = chain.by_fit(
        digits.tx, digits.images("train"), view=digits.view(), batch_size=50, epochs=3
    )
    with pytest.raises(KeyboardInterrupt, match="alone: after epoch 0 of 3"):
        chain.chain(
            {"alone": digits.small},
            digits.labels,
            learn,
            key=jax.random.key(0),
            example=digits.example(),
            directory=tmp_path,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused_before_the_first_training(tmp_path):
    def never(lesson):
        raise AssertionError("trained")

    options = {"key": jax.random.key(0), "example": batch}
    with pytest.raises(ValueError, match="nets must hold at least one"):
        chain.chain({}, toys.spec, never, **options)
    seven = toys.from_linen(toys.Toy(6, classes=7))
    with pytest.raises(ValueError, match=r"5 \(teacher\) and 7 \(student\)") as error:
        nets = {"a": toys.teacher, "b": toys.student, "c": seven}
        chain.chain(nets, toys.spec, never, **options)
    assert "while tracing 'c'" in error.value.__notes__[-1]
    lost = {"hint": (1.0, distill.on_taps(toys.mean_square, "hidden", "stage9"))}
    with pytest.raises(KeyError, match="no tap 'stage9'"):
        born_again.generations(toys.student, 2, lost, never, **options)
    with pytest.raises(ValueError, match="name must do as a file name, got 'a/b'"):
        chain.chain({"a/b": toys.student}, toys.spec, never, **options)
    for count, wanted in ((0, "count must be >= 1"), (1.5, "count must be an integer")):
        with pytest.raises(ValueError, match=wanted):
            born_again.generations(toys.student, count, toys.spec, never, **options)
    with pytest.raises(ValueError, match="from large to small, got parameters"):
        nets = {"small": toys.student, "large": toys.teacher}
        assistants.descend(nets, toys.spec, never, **options)


def test_by_fit_writes_to_a_run_directory(tmp_path):
    write = log.start(tmp_path)
    learn = chain.by_fit(
        digits.tx,
        digits.images("train", 100),
        view=digits.view(),
        batch_size=50,
        epochs=2,
        log=write,
        progress=False,
    )
    chain.chain(
        {"only": digits.small},
        digits.taught,
        learn,
        key=jax.random.key(0),
        example=digits.example(),
        directory=tmp_path,
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"run": "only"' in lines[0]
