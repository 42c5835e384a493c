"""Eight devices do what one does, at the same global batch.

The devices are simulated, in a process of their own (`on_eight_devices.py`), so that
the other tests keep their one.
"""

import functools
import inspect
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, mesh, terms
from tests import on_eight_devices
from tests.losses.test_battery import CASES
from tests.terms import cases

TERMS = [*cases.NAMES, "ctkd", "simkd", "paraphraser", "ce"]
LAYOUTS = ["eight", "teacher split over 2", "both split over 4"]
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


@functools.cache
def process(which):
    """What the process with eight devices has found, or None if it has failed."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {on_eight_devices.FLAGS}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "found.pickle"
        command = [sys.executable, "-m", "tests.on_eight_devices", which, file]
        subprocess.run(command, env=environment)
        return pickle.loads(file.read_bytes()) if file.exists() else None


def found(which):
    """What it has found; a test that fails has its reason in the process's output."""
    results = process(which)
    assert results is not None, f"the process of {which!r} has failed"
    return results


def history(run):
    """The metrics of a run by name, one value an epoch."""
    rows = run["history"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    names = [name for name in rows[0] if name.startswith(("loss", "norm", "peer"))]
    return {name: np.array([row[name] for row in rows]) for name in names}


def same(one, many, close=close):
    """Metrics, parameters and all other state of two runs are equal."""
    assert history(one).keys() == history(many).keys()
    jax.tree.map(close, history(one), history(many))
    jax.tree.map(close, one["params"], many["params"])
    jax.tree.map(close, one["state"], many["state"])


def test_every_public_loss_and_term_is_compared():
    no_losses = {"class_costs", "ensemble_logits"}  # they make targets
    assert {case.loss.__name__ for case in CASES} == set(losses.__all__) - no_losses
    made = [name for name in terms.__all__ if inspect.isfunction(getattr(terms, name))]
    # terms.sdd is losses.sdd of the taps of `logit_maps`, which is compared as a loss.
    no_terms = {"margins", "measured_margins", "logit_maps", "sdd"}
    assert set(made) - no_terms <= set(TERMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_loss_is_that_of_the_global_batch(name):
    (maps, said), (maps_of_eight, said_by_eight) = found("all")["losses"].values()
    assert said[name].shape == (10,) and np.isfinite(said[name]).all()
    close(said_by_eight[name], said[name])
    jax.tree.map(close, maps_of_eight[name], maps[name])
    assert any((w != np.eye(len(w))).any() for w in maps[name].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_that_of_the_global_batch(name):
    one, eight = found("all")["train_terms"].values()
    assert set(one["params"]["terms"]) == set(TERMS)
    said = history(one)[f"loss/{name}"]
    assert len(set(said)) == 5 and np.isfinite(said).all()
    close(history(eight)[f"loss/{name}"], said)
    for part in ("params", "state"):
        of_one, of_eight = one[part]["terms"][name], eight[part]["terms"][name]
        jax.tree.map(close, of_eight, of_one)


@pytest.mark.slow
def test_the_student_of_all_terms_is_the_same():
    same(*found("all")["train_terms"].values())


@pytest.mark.slow
def test_half_precision_and_recomputed_blocks():
    one, eight = found("all")["train_half"].values()
    leaves = jax.tree.leaves((eight["params"], eight["state"]))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    # 8 bits of mantissa, and sums in another order.
    same(
        one, eight, functools.partial(np.testing.assert_allclose, rtol=0.02, atol=0.02)
    )


@pytest.mark.slow
def test_two_seeds_at_once():
    one, eight = found("all")["train_seeds"].values()
    assert {len(leaf) for leaf in jax.tree.leaves(eight)} == {2}
    jax.tree.map(close, eight, one)


@pytest.mark.slow
def test_learn_on_many_devices_is_learn_on_one():
    """In float32, hence up to its rounding."""
    one, eight, streamed = found("small")["train_by_learn"].values()
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, eight, one)
    jax.tree.map(near, streamed, one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_steps_are_those_of_one_device(layout):
    runs = found("small")["train_small"]
    same(runs["one"], runs[layout])
    assert (np.diff(history(runs["one"])["loss"]) != 0).all()


def test_batch_statistics_are_those_of_the_global_batch():
    runs = found("small")["train_small"]
    statistics = lambda run: jax.tree.leaves(run["state"]["student"])
    for a, b in zip(*(statistics(runs[n]) for n in ("one", "eight")), strict=True):
        assert (a != 0).any() and (a != 1).any()  # they moved, and
        close(a, b)


@pytest.mark.slow
def test_two_networks_that_teach_each_other():
    same(*found("all")["train_peers"].values())


@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_an_epoch_is_compiled_once_and_takes_over_its_state(layout):
    run = found("small")["train_small"][layout]
    assert len(set(run["compilations"])) == 1
    assert run["donated"] and run["kept"] and run["lies as before"]


@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_each_device_has_its_part_of_a_batch(layout):
    rows = 8 if layout == "one" else 1
    run = found("small")["train_small"][layout]
    assert run["images of a device"] == {(rows, 8, 8, 1)}


def bytes_in(parts):
    """Of the teacher on each device, if what can be split has so many parts."""
    shapes = jax.eval_shape(
        cases.teacher.init, jax.random.key(0), jnp.zeros((2, 8, 8, 1))
    )
    in_parts = lambda leaf: (
        leaf.size >= 64 and any(length % parts == 0 for length in leaf.shape)
    )
    return sum(
        8 * leaf.size // (parts if in_parts(leaf) else 1)
        for leaf in jax.tree.leaves(shapes)
    )


def test_split_parameters_take_less_memory():
    runs = found("small")["train_small"]
    held = lambda layout, net: runs[layout]["bytes"][net]
    (student,) = held("one", "student")
    assert held("one", "teacher") == [bytes_in(1)]
    assert held("eight", "teacher") == [bytes_in(1)] * 8
    assert held("teacher split over 2", "teacher") == [bytes_in(2)] * 8
    assert held("both split over 4", "teacher") == [bytes_in(4)] * 8
    assert bytes_in(1) > bytes_in(2) > bytes_in(4)
    assert held("eight", "student") == [student] * 8
    assert held("teacher split over 2", "student") == [student] * 8
    assert max(held("both split over 4", "student")) < student
    assert not runs["eight"]["split"] and runs["both split over 4"]["split"]


def test_accumulated_gradients_are_those_of_the_larger_batch():
    at_once, in_halves = found("small")["accumulated"].values()
    jax.tree.map(close, in_halves, at_once)


def test_the_global_batch_is_not_the_mean_over_devices():
    both = found("small")["per_device"]
    assert abs(both["global"] / both["parts"] - 1) > 0.05


def test_arrays_come_back_as_they_were_put():
    got = found("small")["round_trip"]
    assert got.pop("specs") == {
        "large": (None, "model"),  # the longest axis
        "odd": (),  # 4 does not divide it
        "square": (None, "model"),  # the last of equally long ones
        "key": (),
    }
    assert got.pop("rows") == [(2, 2)] * 8
    assert all(got.values()), got


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("what", "match"),
    {
        "three": "model must divide the number of devices, got 3 and 8",
        "rows": r"multiple of its 8 devices, got an array of shape \(9, 2\)",
        "batch": "batch_size must be a multiple .* got 12 on 8 devices",
        "state": "state must lie on the mesh {'data': 8, 'model': 1}, got one device",
        "data": "resident must lie on the mesh .* got one device",
        "other": "state must lie on the mesh {'data': 4, 'model': 2}, got {'data': 8,",
        "unsaid": r"state lies on a mesh .*mesh=",
    }.items(),
)
def test_what_cannot_work_is_refused_before_it_starts(what, match):
    said = found("small")["refusals"]
    assert re.search(match, said[what]), said[what]
    assert said["steps"] == []


# On the one device that is here.


@pytest.mark.bad_input
def test_a_mesh_needs_devices_and_a_whole_number():
    for wrong in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="model must be an integer >= 1"):
            mesh.make(wrong)
    with pytest.raises(ValueError, match="divide the number of devices, got 1 and 0"):
        mesh.make(devices=[])


def test_a_mesh_of_one_device_splits_nothing():
    on = mesh.make()
    tree = {"w": jnp.ones((4, 4)), "n": np.zeros(3)}
    assert mesh.sharded(tree, on, at_least=1) == dict.fromkeys(
        tree, mesh.replicated(on)
    )
    jax.tree.map(np.testing.assert_array_equal, mesh.fetch(tree), tree)
    mesh.check_batch(3, on)
    assert mesh.split(tree, None) is tree
