"""A cached teacher says what the live one says, or nothing at all."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, train
from jaxkd.data import augment
from tests import toys

teacher = distill.frozen(toys.teacher)
spec = {
    "ce": (0.5, distill.on_labels(distill.cross_entropy)),
    "kd": (0.5, toys.spec["kd"][1]),
}


@pytest.fixture
def variables():
    return toys.teacher_variables()


def cache(variables, dataset=None, view=toys.view, path=None):
    dataset = toys.dataset() if dataset is None else dataset
    return train.cache_teacher(
        teacher, variables, dataset, view=view, path=path, batch_size=16
    )


def test_training_on_the_cache_is_training_on_the_teacher(variables):
    resident = data.on_device(toys.dataset())
    logits = jnp.asarray(cache(variables))
    runs = []
    for source, its, where in (
        (teacher, variables, resident),
        (distill.cached, None, {**resident, "teacher": logits}),
    ):
        d = distill.distiller(toys.student, source, spec, optax.adam(1e-2))
        batch = train.example(where, toys.view)
        state = d.init(jax.random.key(0), its, batch)
        epoch = train.make_epoch(d, view=toys.view, batch_size=8)
        run = train.fit(epoch, state, its, where, key=jax.random.key(1), epochs=5)
        runs.append(run)
    live, stored = (run.history[-1] for run in runs)
    np.testing.assert_allclose(live["loss/kd"], stored["loss/kd"], rtol=1e-4)
    np.testing.assert_allclose(live["loss"], stored["loss"], rtol=1e-4)


def test_a_second_call_reads_the_file(variables, tmp_path):
    path = tmp_path / "logits"
    first = cache(variables, path=path)
    stamp = (tmp_path / "logits.npy").stat().st_mtime_ns
    again = cache(variables, path=path)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    assert (tmp_path / "logits.npy").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logits.json", "logits.npy"]


def test_what_does_not_belong_is_refused(variables, tmp_path):
    path = tmp_path / "logits"
    cache(variables, path=path)
    with pytest.raises(ValueError, match="its teacher is"):
        cache(toys.teacher_variables(seed=10), path=path)
    with pytest.raises(ValueError, match="its data is"):
        cache(variables, toys.dataset(seed=1), path=path)
    with pytest.raises(ValueError, match="another view or by another network"):
        darker = augment.chain(toys.view, augment.normalise([0.5] * 3, [0.2] * 3))
        cache(variables, view=darker, path=path)


def test_a_damaged_file_is_refused(variables, tmp_path):
    path = tmp_path / "logits"
    cache(variables, path=path)
    array, note = tmp_path / "logits.npy", tmp_path / "logits.json"
    whole = array.read_bytes()
    array.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="checksum differs"):
        cache(variables, path=path)
    array.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(ValueError, match="checksum differs"):
        cache(variables, path=path)
    array.unlink()
    with pytest.raises(ValueError, match="damaged"):
        cache(variables, path=path)
    note.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        cache(variables, path=path)


def test_an_array_without_its_note_is_not_believed(variables, tmp_path):
    """The note is written last: this is what a run that was killed leaves."""
    path = tmp_path / "logits"
    np.save(tmp_path / "logits.npy", np.zeros((40, 5), np.float32))
    assert np.any(cache(variables, path=path) != 0)
    assert json.loads((tmp_path / "logits.json").read_text())["examples"] == 40


@pytest.mark.bad_input
def test_a_random_view_is_refused_with_the_reason(variables):
    view = augment.chain(toys.view, augment.flip())
    with pytest.raises(ValueError, match="inexact: the view is random"):
        cache(variables, view=view)
