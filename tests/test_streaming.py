"""Streamed training against resident training, across pauses, errors and a limit."""

import ast
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import checkpoint, data, distill, evaluate, losses, mesh as meshes, train
from jaxkd.data import augment
from jaxkd.train import loop
from tests import toys

ROOT = pathlib.Path(__file__).parents[1]
KEY = jax.random.key(5)
VIEW = augment.chain(augment.flip(), augment.crop(1), augment.to_float())
DATASET = toys.dataset(44)
SOURCE = data.mapped(DATASET)
STREAM = data.Stream(SOURCE, batch_size=8)  # 5 steps, and 4 examples left over
DISTILLER = distill.distiller(
    toys.student, distill.frozen(toys.teacher), toys.spec, optax.sgd(0.05, momentum=0.9)
)
TEACHER = toys.teacher_variables()
INIT = jax.jit(DISTILLER.init)
STEP = train.make_step(DISTILLER, STREAM, view=VIEW)  # so it is compiled once


def begun():
    return INIT(jax.random.key(1), TEACHER, train.example(STREAM, VIEW))


def streamed(stream=STREAM, state=None, epochs=3, step=STEP, **knobs):
    state = begun() if state is None else state
    return train.fit(step, state, TEACHER, stream, key=KEY, epochs=epochs, **knobs)


@pytest.fixture(scope="module")
def whole():
    """An uninterrupted run: the state as arrays on the host, and its history."""
    run = streamed()
    return checkpoint.as_dicts(run.state), run.history


def equal(state, expected):
    found = checkpoint.as_dicts(state)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def numbers(history):
    """The rows without what time tells."""
    measured = ("seconds", "examples/s", "waited")
    return [{k: v for k, v in row.items() if k not in measured} for row in history]


def test_it_is_the_training_of_resident_data(whole):
    epoch = train.make_epoch(DISTILLER, view=VIEW, batch_size=8)
    resident = data.on_device(DATASET)
    run = train.fit(epoch, begun(), TEACHER, resident, key=KEY, epochs=3)
    # One program scans, the other does not: rounding may differ, nothing else.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, checkpoint.as_dicts(run.state), whole[0])
    assert int(run.state.step) == 15
    for row, mine in zip(run.history, whole[1], strict=True):
        assert set(mine) == set(row)
        for name in ("loss", "loss/kd", "norm/grad"):
            np.testing.assert_allclose(mine[name], row[name], rtol=1e-4)
    assert all(0 <= row["waited"] <= 1 and row["examples/s"] > 0 for row in whole[1])


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        # Two steps stay in flight while batches are there in time.
        ((), "take step take step take step land0 take step land1 land2 land3"),
        # No time counts as waited for a batch in which the device still had to work.
        ((2,), "take step take step land0 land1 take step take step land2 land3"),
    ],
)
def test_a_batch_that_is_late_is_waited_for_by_an_idle_device(late, expected):
    events, taken = [], []

    class Loss:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"land{self.number}")
            return np.array(1.0, np.float32)

    def call(state, batch, epoch, number):
        events.append("step")
        return state + 1, {"loss": Loss(number)}

    class Feed:
        def take(self):
            events.append("take")
            taken.append(None)

        def ready(self):
            return len(taken) not in late

    state, place, spent, error = loop._take_steps(
        call,
        Feed(),
        0,
        train.Place(3),
        steps=4,
        due=lambda done: False,
        name="run",
        tick=lambda row: None,
    )
    assert events == expected.split()
    assert state == 4 and place == (3, 4, {"loss": 4.0}) and error is None
    assert 0 <= spent.waited <= spent.seconds and spent.steps == 4


def test_threads_and_depth_change_nothing(whole):
    run = streamed(dataclasses.replace(STREAM, workers=3, depth=1))
    equal(run.state, whole[0])
    assert numbers(run.history) == numbers(whole[1])


@pytest.mark.parametrize("left_at", [(0, 2), (1, 4), (1, 0)])
def test_a_run_left_in_the_middle_goes_on_as_if_it_had_not_been(whole, left_at):
    saved = {}

    def save(state, place):
        saved[place.epoch, place.step] = checkpoint.as_dicts(state), place

    streamed(epochs=2, save=save, save_every=2)
    assert sorted(saved) == [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]
    tree, place = saved[left_at]
    state = checkpoint.like(tree, jax.eval_shape(begun))
    run = streamed(state=state, start=place)
    equal(run.state, whole[0])
    assert numbers(run.history) == numbers(whole[1])[left_at[0] :]


def test_an_interrupted_run_is_saved_after_the_step_under_way(whole):
    saved, taken = [], []
    keep = lambda state, place: saved.append((checkpoint.as_dicts(state), place))

    def read(positions, draws):
        taken.append(len(positions))
        if len(taken) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return SOURCE.read(positions, draws)

    source = SOURCE._replace(read=read)
    run = streamed(dataclasses.replace(STREAM, source=source), save=keep)
    assert run.interrupted and len(run.history) < 3
    tree, place = saved[-1]
    equal(run.state, tree)
    # Read ahead by two that wait, one in hand and those on their way.
    assert 2 <= 5 * place.epoch + place.step <= 8
    again = streamed(state=checkpoint.like(tree, jax.eval_shape(begun)), start=place)
    equal(again.state, whole[0])


def test_a_broken_record_is_named_and_what_was_trained_is_saved():
    saved = []
    first, second = (data.stream.order(KEY, epoch, 44, 8) for epoch in (0, 1))
    # The first epoch leaves four examples out; one of them is broken.
    step, row = np.argwhere(~np.isin(second, first))[0]
    broken = int(second[step, row])

    def read(positions, draws):
        if broken in positions:
            raise ValueError(f"{SOURCE.record(broken)} cannot be read")
        return SOURCE.read(positions, draws)

    stream = dataclasses.replace(STREAM, source=SOURCE._replace(read=read), workers=2)
    with pytest.raises(ValueError, match=f"toy/train, image {broken} cannot be read"):
        streamed(stream, save=lambda state, place: saved.append(place))
    assert [place[:2] for place in saved] == [(1, 0), (1, step)]


def test_rows_are_logged_and_what_is_measured_after_an_epoch_is_in_them(whole):
    rows = []
    run = streamed(
        epochs=1,
        log=rows.append,
        name="mine",
        evaluate=lambda state: {"accuracy": jnp.float32(0.5)},
        after=lambda state, row: {"saved": int(state.step)},
    )
    assert rows == run.history and len(rows) == 1
    assert rows[0]["run"] == "mine" and rows[0]["epoch"] == 1
    assert rows[0]["accuracy"] == 0.5 and rows[0]["saved"] == 5


def test_a_loss_that_is_no_number_ends_the_run_naming_step_and_term():
    weight = lambda step: jnp.where(step < 7, 1.0, jnp.nan)
    wrong = {"ce": (weight, distill.on_labels(losses.cross_entropy))}
    d = distill.distiller(toys.student, distill.no_teacher, wrong, optax.sgd(0.1))
    batch = train.example(STREAM, VIEW)
    state = jax.jit(d.init, static_argnums=1)(jax.random.key(1), None, batch)
    step = train.make_step(d, STREAM, view=VIEW)
    with pytest.raises(FloatingPointError, match="bad: norm/grad is nan at step 7"):
        train.fit(step, state, None, STREAM, key=KEY, epochs=2, name="bad")


def test_a_mesh_of_one_device_changes_nothing(whole):
    mesh = meshes.make(devices=jax.devices()[:1])
    state = meshes.put(begun(), meshes.replicated(mesh))
    stream = dataclasses.replace(STREAM, mesh=mesh)
    step = train.make_step(DISTILLER, stream, view=VIEW)
    run = streamed(stream, state, step=step)
    equal(run.state, whole[0])
    assert run.state.step.sharding.mesh == mesh


def test_streamed_evaluation_counts_every_example_once():
    state = begun()
    view = augment.to_float()
    resident = evaluate.scorer(toys.student, data.on_device(DATASET), view=view)
    expected = resident(state)
    for size in (8, 44, 50):  # the last batch is filled up
        stream = dataclasses.replace(STREAM, batch_size=size)
        found = evaluate.scorer(toys.student, stream, view=view)(state)
        assert set(found) == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_outputs_stored_for_other_images_are_refused():
    read = lambda p, d: {**SOURCE.read(p, d), "teacher": np.zeros((len(p), 5))}
    stream = dataclasses.replace(STREAM, source=SOURCE._replace(read=read))
    d = distill.distiller(toys.student, distill.cached, toys.spec, optax.sgd(1.0))
    step = train.make_step(d, stream, view=VIEW)
    with pytest.raises(ValueError, match="the view is random"):
        train.fit(step, begun(), None, stream, key=KEY, epochs=1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: train.make_step(
                DISTILLER, dataclasses.replace(STREAM, batch_size=45), view=VIEW
            ),
            "1 to the 44 examples",
        ),
        (lambda: streamed(start=train.Place(0, 5)), "within 3 epochs of 5 steps"),
        (lambda: streamed(start=train.Place(4, 0)), r"got \(4, 0\)"),
        (lambda: streamed(save_every=0), "save_every must be >= 1"),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


LIMITED = """
import resource, sys
import flax.linen as nn, jax, numpy as np, optax
import dataclasses
from jaxkd import data, distill, losses, train
from jaxkd.data import augment
from jaxkd.models import mlp

ALLOWED = int(sys.argv[2]) << 20

def own():  # what is not backed by a file, in bytes: what RLIMIT_DATA counts
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmData"].split()[0]) << 10

n = int(sys.argv[3])
net, view = mlp((4,), classes=1), augment.to_float()
ce = {"ce": (1.0, distill.on_labels(losses.cross_entropy))}
d = distill.distiller(net, distill.no_teacher, ce, optax.sgd(0.1))

def read(positions, draws):
    label = np.zeros(len(positions), np.int32)
    image = np.zeros((len(positions), 64, 64, 2), np.uint8)
    return {"image": image, "label": label, "index": label}

small = data.Source("small", n, ("a",), read, str)
stream = data.Stream(small, batch_size=64, workers=2)
step = train.make_step(d, stream, view=view)

def run(stream, start=None):
    state = d.init(jax.random.key(0), None, train.example(stream, view))
    key = jax.random.key(1)
    return train.fit(step, state, None, stream, key=key, epochs=1, start=start)

# Programs are compiled, thread stacks and pools made, before the limit is set.
run(stream, train.Place(0, stream.steps - 4))
limit = own() + ALLOWED
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
images = np.load(sys.argv[1], mmap_mode="r")
assert len(images) == n and images.nbytes >= 4 * ALLOWED
try:
    np.array(images)
except MemoryError:
    print("too large to be copied")
zero, index = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
dataset = data.Dataset.of_images("large", "train", images, zero, index, ("a",))
stream = dataclasses.replace(stream, source=data.mapped(dataset))
print("steps", int(run(stream).state.step), "of", stream.steps)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts so on Linux")
@pytest.mark.slow
def test_four_times_the_allowed_memory_is_streamed_within_it(tmp_path):
    allowed = 24
    shape = (4 * allowed * 128, 64, 64, 2)  # 8 KiB an image
    images = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, shape)
    images[:] = 7
    del images
    command = [sys.executable, "-c", textwrap.dedent(LIMITED)]
    out = subprocess.run(
        [*command, str(tmp_path / "x.npy"), str(allowed), str(shape[0])],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    steps = shape[0] // 64
    assert out.stdout.splitlines() == [
        "too large to be copied",
        f"steps {steps} of {steps}",
    ]


TOGETHER = """
import sys
import jax, numpy as np
import dataclasses
from jaxkd import checkpoint, evaluate, mesh, processes, train

processes.start()
from tests import test_streaming as parts

devices, taken = mesh.make(), []

def read(positions, draws):
    taken.extend(positions.tolist())
    return parts.SOURCE.read(positions, draws)

source = parts.SOURCE._replace(read=read)
stream = dataclasses.replace(parts.STREAM, mesh=devices, source=source)
variables = mesh.put(parts.TEACHER, mesh.replicated(devices))
state = mesh.put(parts.begun(), mesh.replicated(devices))
step = train.make_step(parts.DISTILLER, stream, view=parts.VIEW)
taken.clear()  # the examples that the variables were made from
with checkpoint.writer(sys.argv[1]) as saving:
    save = lambda state, place: saving.save(int(state.step), state, {"place": [*place]})
    run = train.fit(
        step, state, variables, stream, key=parts.KEY, epochs=2, save=save, save_every=3
    )
score = evaluate.scorer(parts.toys.student, stream, view=parts.augment.to_float())
found = {name: float(value) for name, value in score(run.state).items()}
assert taken[:2] == [0, 1]  # looked at before, to see what fits
print(jax.process_index(), sorted(taken[2:][: 2 * 5 * 4]), found, sep="|")
"""


@pytest.mark.slow
def test_two_processes_train_as_one_which_then_goes_on(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TOGETHER), str(tmp_path)],
            env={
                **os.environ,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "PYTHONPATH": str(ROOT),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the networks are tiny
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in range(2)
    ]
    outs = [child.communicate(timeout=600) for child in children]
    assert not any(child.returncode for child in children), outs
    said = [out.splitlines()[-1].split("|") for out, _ in outs]
    # Each has read half of every batch, and nothing twice.
    read = [ast.literal_eval(positions) for _, positions, _ in said]
    orders = [data.stream.order(KEY, epoch, 44, 8) for epoch in (0, 1)]
    for index in range(2):
        mine = np.concatenate([o[:, 4 * index :][:, :4].ravel() for o in orders])
        assert read[index] == sorted(mine.tolist())
    found = checkpoint.newest(tmp_path, pytest.fail)
    place = train.Place(*found.meta["place"])
    assert place == (2, 0, {})
    state = checkpoint.like(found.tree, jax.eval_shape(begun))
    expected = evaluate.scorer(toys.student, STREAM, view=augment.to_float())(state)
    for _, _, scores in said:
        for name, value in ast.literal_eval(scores).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5)
    run = streamed(state=state, start=place)  # the third epoch, by one process
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, checkpoint.as_dicts(run.state), whole[0])
