"""`train.fit` in pieces: the epochs after a pause are those of a run without one."""

import jax
import numpy as np
import optax
import pytest

from jaxkd import data, distill, evaluate, train
from jaxkd.train import saving
from tests import toys


@pytest.fixture(scope="module")
def setting():
    d = distill.distiller(
        toys.student, distill.frozen(toys.teacher), toys.spec, optax.adam(1e-2)
    )
    resident = data.on_device(toys.dataset())
    epoch = train.make_epoch(d, view=toys.view, batch_size=10)
    variables = toys.teacher_variables()

    def fit(state=None, **how):
        if state is None:
            batch = train.example(resident, toys.view)
            state = d.init(jax.random.key(0), variables, batch)
        score = evaluate.scorer(toys.student, resident, view=toys.view)
        return train.fit(
            epoch,
            state,
            variables,
            resident,
            key=jax.random.key(5),
            evaluate=score,
            progress=False,
            **how,
        )

    return fit


def numbers(tree):
    tree = jax.tree.map(
        lambda a: (
            jax.random.key_data(a)
            if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)
            else a
        ),
        tree,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_epochs_after_a_pause_are_those_without_one(setting):
    whole = setting(epochs=4)
    first = setting(epochs=2)
    rest = setting(first.state, epochs=4, start=train.Place(2))
    for a, b in zip(numbers(whole.state), numbers(rest.state), strict=True):
        np.testing.assert_array_equal(a, b)
    untimed = lambda rows: [
        {k: v for k, v in r.items() if k not in ("seconds", "examples/s")} for r in rows
    ]
    assert untimed(first.history + rest.history) == untimed(whole.history)
    assert [row["epoch"] for row in rest.history] == [3, 4]
    assert not rest.interrupted
    done = setting(rest.state, epochs=4, start=train.Place(4))
    assert done.history == [] and not done.interrupted


def test_after_sees_each_state_and_adds_to_its_row(setting):
    seen, logged = [], []

    def after(state, row):
        seen.append((int(state.step), row["epoch"], row["accuracy"]))
        return {"step": int(state.step)}

    run = setting(epochs=2, after=after, log=logged.append)
    assert [(s, e) for s, e, _ in seen] == [(4, 1), (8, 2)]
    assert [row["step"] for row in run.history] == [4, 8]
    assert logged == run.history


@pytest.mark.bad_input
@pytest.mark.parametrize("first", [-1, 3])
def test_a_first_epoch_out_of_range_is_refused(setting, first):
    with pytest.raises(ValueError, match="start must be within 2 epochs"):
        setting(epochs=2, start=train.Place(first))


def test_the_best_epochs_state_is_returned_and_its_checkpoint_stays(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.9])  # the first of two best epochs counts
    d = distill.distiller(
        toys.student, distill.no_teacher, distill.labels_only(), optax.adam(1e-2)
    )
    resident = data.on_device(toys.dataset())
    epoch = train.make_epoch(d, view=toys.view, batch_size=10)
    first = lambda: d.init(jax.random.key(0), None, train.example(resident, toys.view))
    found = []

    def measure(state):
        found.append(jax.tree.map(np.asarray, state.student))
        return {"accuracy": np.float32(next(scores))}

    keep = saving.Saving(
        tmp_path, {}, pytest.fail, epochs=3, keep=1, best="accuracy", take_best=True
    )
    begun = saving.begin(keep, first, epochs=4, steps=4)
    run = saving.run(
        epoch, begun, None, resident, keep,
        key=jax.random.key(5), epochs=4, evaluate=measure, progress=False,
    )  # fmt: skip
    for a, b in zip(numbers(run.variables), numbers(found[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000008", "000016"]
    again = saving.begin(keep, first, epochs=4, steps=4)
    assert again.place.epoch == 4 and again.rows == run.history
    other = keep._replace(facts={"another": "training"})
    with pytest.raises(ValueError, match="another"):
        saving.begin(other, first, epochs=4, steps=4)
    (tmp_path / "000008" / "meta.json").write_bytes(b"{}")  # of the best
    anew = saving.begin(keep._replace(warn=str), first, epochs=4, steps=4)
    assert anew.place.epoch == 0 and not [*tmp_path.glob("0*")][1:]
