"""The quantization experiment: what it refuses and writes, and a run on digits."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import (
    _quantize_files as files,
    _quantize_nets as nets,
    _quantize_report as reports,
    quantize as experiment,
)
from experiments._quantize_files import Cell, Subject
from jaxkd import data, export
from jaxkd.compress import quantize
from jaxkd.data import augment

SHAPE, VIEW = (8, 8, 1), augment.to_float()
EIGHT = Cell("PTQ", "static", True, 8, 8)


@functools.cache
def images(n=64):
    test = data.load("digits", "test")
    return np.asarray(files.seen(test, VIEW, most=n)[0])


@functools.cache
def folded():
    net = nets.network("digits_student", 10)
    return quantize.fold(net, *jax.jit(net.init)(jax.random.key(0), images()), SHAPE)


def subject(cell):
    plain, *variables = folded()
    config = nets.quantization(experiment.Config(), cell)
    net, params, state = quantize.quantized(plain, *variables, config, SHAPE)
    state = quantize.calibrate(net, params, state, [images()])
    return Subject(plain, net, (params, state), config, cell)


def row(name, accuracy, **how):
    base = {
        "name": name, "accuracy": accuracy, "bytes": [4000], "share": 1.0, "why": "",
        "milliseconds": 2.0, "faster": 1.0, "runtime": "LiteRT", "integer_ops": 0,
        "float_ops": 3,
    }  # fmt: skip
    return {**base, **how}


ROWS = [
    row("float, alone", [88.0, 90.0]),
    row("float, distilled", [90.0, 92.0]),
    row("PTQ static per channel W8A8", [89.0, 92.0], bytes=[1100], share=0.275),
    row("QAT static per channel W8A8", [90.0, 93.0], bytes=[1100], share=0.275),
    row("PTQ dynamic per tensor W4A8", [50.0, 60.0], why="so it is", runtime="XLA"),
    row("QAT dynamic per tensor W4A8", [80.0, 90.1], why="so it is", runtime="XLA"),
]


def test_the_grid_has_every_cell_once():
    grid = experiment.cells(experiment.Config())
    assert len(grid) == 16 == len({cell.name for cell in grid})
    assert {cell.bits for cell in grid} == {8, 4}
    assert grid[0].name == "PTQ dynamic per tensor W8A8"
    few = experiment.Config(methods=("QAT",), scales=("per_channel",), bits=(4,))
    assert [cell.activation for cell in experiment.cells(few)] == ["dynamic", "static"]


def test_a_cell_is_the_quantization_it_says():
    cell = Cell("QAT", "dynamic", False, 4, 8)
    config = nets.quantization(experiment.Config(estimator="mse"), cell)
    assert (config.weights, config.activations, config.per_channel) == (4, 8, False)
    assert (config.activation, config.estimator) == ("dynamic", "mse")


def test_which_files_litert_does_not_take(monkeypatch):
    monkeypatch.setattr(files, "litert", lambda: True)
    taken = {
        cell.name
        for bits in (8, 4)
        for cell in experiment.cells(experiment.Config(activation_bits=bits))
        if cell.method == "PTQ" and not files.why_not_litert(cell)
    }
    assert taken == {
        "PTQ dynamic per channel W8A8",
        *(f"PTQ static per {s} W{b}A8" for s in ("channel", "tensor") for b in (8, 4)),
    }
    monkeypatch.setattr(files, "litert", lambda: False)
    assert "litert" in files.why_not_litert(EIGHT)


def test_accuracy_and_agreement():
    ours, theirs = np.eye(4), np.eye(4)[[0, 1, 2, 2]]
    assert files.accuracy(ours, np.array([0, 1, 0, 0])) == 50
    assert files.agreement(ours, theirs) == 75 == files.agreement(theirs, ours[:4])


def test_images_come_whole_and_in_order():
    test = data.load("digits", "test")
    parts = files.seen(test, VIEW, size=150)
    assert [len(part) for part in parts[:-1]] == [150] * (len(parts) - 1)
    expected = test.images / np.float32(255)
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)
    assert sum(map(len, files.seen(test, VIEW, size=20, most=50))) == 50


@pytest.mark.slow
def test_a_dynamic_range_is_that_of_one_image_in_jax_and_in_the_file(tmp_path):
    made = subject(Cell("PTQ", "dynamic", False, 4, 8))
    x = images(6)
    in_jax = files.in_jax(made.net)
    quiet = in_jax(made.variables, np.concatenate([x[:2], 0 * x[2:]]))[:2]
    # Other images of the same call have values ten times as large.
    louder = np.concatenate([x[:2], 10 * x[2:]])
    np.testing.assert_allclose(in_jax(made.variables, louder)[:2], quiet, atol=1e-5)
    written = files.write(made, SHAPE, tmp_path / "a")
    assert (written.runtime, written.floats) == ("XLA", 0) and written.integer == 4
    np.testing.assert_allclose(export.load(written.path)(louder)[:2], quiet, atol=1e-4)
    assert files.step(made, SHAPE) is None


@pytest.mark.slow
def test_a_static_file_is_within_a_step_of_jax(tmp_path):
    made = subject(EIGHT)
    written = files.write(made, SHAPE, tmp_path / "a")
    assert written.integer > 0 and written.floats == 0
    assert written.runtime == ("LiteRT" if files.litert() else "XLA")
    x = images()
    apart = np.abs(
        export.load(written.path)(x) - files.in_jax(made.net)(made.variables, x)
    ).max()
    assert apart <= 1.01 * files.step(made, SHAPE)
    if files.litert():
        whole = files.write_float(
            made.plain, made.variables, SHAPE, tmp_path / "b", "XLA"
        )
        times = files.latencies({"a": written.path, "b": whole.path}, 2)
        assert set(times) == {"a", "b"} and min(times.values()) > 0


@pytest.mark.skipif(not files.litert(), reason="needs the extra litert")
def test_the_dynamic_recipe_stores_the_kernels_that_qat_has_trained(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from jaxkd.export import _tflite

    made = subject(Cell("PTQ", "dynamic", True, 8, 8))
    written = files.write(made, SHAPE, tmp_path / "a")
    model = _tflite._model(written.path.read_bytes())
    int8 = _tflite._schema().TensorType.INT8
    stored = [
        np.sort(model.buffers[tensor.buffer].data.view(np.int8).ravel())
        for tensor in model.subgraphs[0].tensors
        if tensor.type == int8
    ]
    _, held = quantize.integer(made.net, *made.variables, made.config)
    wanted = [np.sort(np.ravel(k["integers"])) for k in held["kernels"].values()]
    for kernel in wanted:
        (same,) = [q for q in stored if len(q) == len(kernel)]
        # Another order of the same operations may send a tie the other way.
        assert np.abs(same.astype(int) - kernel).max() <= 1


def test_differences_are_paired():
    assert reports.gap(ROWS[2], ROWS[1]) == (-0.5, 0.5)
    assert reports.in_points(ROWS[3], ROWS[1]) == "+0.50 ± 0.50"
    assert reports.in_points(row("a", [3.0]), row("b", [1.0])) == "+2.00"


def test_a_row_of_the_table():
    shown = reports.table_row(
        {**ROWS[2], "agreement": [99.0, 98.0], "difference": [0.1, 0.3],
         "steps": [0.5, 1.5]}
    )  # fmt: skip
    assert shown["to JAX"] == "1.50 steps" and shown["share"] == "27.5%"
    assert shown["agreement %"] == "98.50 ± 0.71" and shown["bytes"] == "1,100"
    none = {**ROWS[4], "agreement": [1.0], "difference": [0.1, 0.3]}
    assert reports.table_row({**none, "steps": [None, None]})["to JAX"] == "0.3"


def test_sentences_say_what_the_numbers_do():
    said = "\n".join(reports.sentences(ROWS))
    assert "changes the float student by +2.00 ± 0.00 points" in said
    # +1 and +1: no error, so clear. +30 and +30.1: clear.
    assert "Of 2 ways to quantize, QAT is better than PTQ in 2 and worse in 0" in said
    assert "most in dynamic per tensor W4A8: +30.05 ± 0.05 points" in said
    assert (
        "Not by LiteRT, as so it is: PTQ dynamic per tensor W4A8; QAT dynamic" in said
    )
    first = "QAT static per channel W8A8 (LiteRT): 91.50 ± 2.12 %, +0.50 ± 0.50 points"
    assert first in said and "+2.50 ± 0.50 to the student alone" in said
    worse = "\n".join(reports.sentences([*ROWS[1:3], {**ROWS[3], "accuracy": [1, 2]}]))
    assert "in 0 and worse in 1" in worse and "alone" not in worse


def test_a_picture_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert reports.picture(tmp_path / "a.png", ROWS)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_presets_and_what_overrides_them():
    config = experiment.Config(preset="short", tune_epochs=7, teacher_images=500)
    student, teacher, tuning = config.protocols()
    assert (student.epochs, student.train_images, student.learning_rate) == (
        8, 20_000, None,
    )  # fmt: skip
    assert (teacher.epochs, teacher.train_images) == (8, 500)
    assert (tuning.epochs, tuning.train_images) == (7, 10_000)
    assert experiment._within(experiment.Config(dataset="digits"), 10**6) is None
    assert experiment._within(experiment.Config(dataset="digits"), 500) == 500


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"net": "resnet9"}, "no network 'resnet9'"),
        ({"teacher": "resnet9"}, "no network 'resnet9'"),
        ({"teacher": "resnet8:nowhere"}, "no directory nowhere"),
        ({"teacher": "digits_teacher"}, "must come with its checkpoint"),
        ({"bits": (9,)}, "weights must be 2 to 8 bits, got 9"),
        ({"bits": (1,)}, "weights must be >= 2"),
        ({"activation_bits": 12}, "activations must be 2 to 8 bits"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"methods": ("PTG",)}, "methods must be one of"),
        ({"scales": ("channel",)}, "scales must be one of"),
        ({"estimator": "max"}, "estimator must be one of"),
        ({"prune_to": 1e-6}, "cannot be met"),
        ({"tune_rate": -1.0}, "tune_rate must be"),
        ({"reuse": "nowhere"}, "no directory nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, wrong, message):
    config = {"net": "digits_student", "dataset": "digits", "epochs": 10**9, **wrong}
    with pytest.raises(SystemExit, match=message):
        experiment.main(experiment.Config(**config, out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def bench(seeds=2, **how):
    config = experiment.Config(dataset="digits", seeds=seeds, **how)
    world = experiment.protocol.world(config, None)
    return nets.Bench(config, pathlib.Path(), world, [images()], None, [], print)


def test_variables_of_every_seed():
    net, config = nets.network("digits_student", 10), bench()
    one = jax.jit(net.init)(jax.random.key(0), images())
    stacked = jax.tree.map(lambda a: np.stack([a, a + 1, a + 2]), one)
    first, second = nets._of_seeds(stacked, net, config)
    jax.tree.map(np.testing.assert_array_equal, first, one)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), first, second)
    again = nets._of_seeds(one, net, config)
    assert len(again) == 2 and again[1] is one
    with pytest.raises(ValueError, match="of 3 seeds, not of 4"):
        nets._of_seeds(stacked, net, bench(4))
    with pytest.raises(ValueError, match="not the variables of"):
        nets._of_seeds(one, nets.network("digits_teacher", 10), config)


def digits(out: pathlib.Path, **how) -> experiment.Config:
    short = {"epochs": 3, "teacher_epochs": 2, "tune_epochs": 1, "repeats": 2}
    grid = {"scales": ("per_channel",), "bits": (8,), "round_to": 1}
    config = {"net": "digits_student", "teacher": "resnet8", "dataset": "digits"}
    return experiment.Config(**{**config, **short, **grid, "out": str(out), **how})


@pytest.mark.slow
def test_training_goes_on_from_each_seed_s_own_variables():
    where = bench(tune_epochs=1, tune_rate=1e-12)
    net = nets.network("digits_student", 10)
    starts = [jax.jit(net.init)(jax.random.key(i), images()) for i in range(2)]
    found = nets.tuned(where, "a", net, starts, net, starts)
    for before, after in zip(starts, found, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after
        )


@pytest.mark.slow
def test_digits_from_training_to_the_report_and_again_after_a_crash(
    tmp_path, monkeypatch
):
    config = digits(tmp_path, seeds=2)
    tuned, calls = nets.tuned, []

    def crash_in_the_last(bench, name, *args):
        calls.append(name)
        if name == "pruned" and calls.count(name) == 1:
            raise RuntimeError("the machine went away")
        return tuned(bench, name, *args)

    monkeypatch.setattr(nets, "tuned", crash_in_the_last)
    with pytest.raises(RuntimeError, match="went away"):
        experiment.main(config)
    (directory,) = (tmp_path / "quantize").iterdir()
    kept = (directory / "results.jsonl").read_text()
    assert len(kept.splitlines()) == 6
    found = experiment.main(digits(tmp_path, seeds=2, resume=str(directory)))
    assert calls.count("QAT static per channel W8A8") == 1
    assert (directory / "results.jsonl").read_text().startswith(kept)
    rows = {row["name"]: row for row in found}
    lines = (directory / "results.jsonl").read_text().splitlines()
    assert len(rows) == 7 == len(lines)
    whole, small = rows["float, distilled"], rows["QAT static per channel W8A8"]
    assert small["bytes"][0] < whole["bytes"][0] and small["float_ops"] == 0
    assert max(small["steps"]) < 3 and min(small["agreement"]) > 70
    halved = found[-1]
    assert halved["name"].startswith("pruned to 50%")
    assert halved["bytes"][0] < small["bytes"][0]
    # The accuracy is the file's: the same from the file that was left, of seed 0.
    world = experiment.protocol.world(config, None)
    logits = files.logits(directory / small["file"], world.test, world.test_view)
    assert files.accuracy(logits, world.test.labels) == small["accuracy"][0]
    report = (directory / "report.md").read_text()
    assert "QAT static per channel W8A8" in report and "ways to quantize" in report
    assert (directory / "accuracy.png").exists()
    # The float networks of this run serve another, which trains none.
    monkeypatch.setattr(experiment.protocol, "learn", None)
    more = digits(
        tmp_path, seeds=1, reuse=str(directory), bits=(4,),
        methods=("PTQ", "PTQ equalised", "PTQ corrected"),
        activations=("static",),
    )  # fmt: skip
    monkeypatch.setattr(nets, "pruned", lambda bench, net, variables: variables)
    monkeypatch.setattr(nets, "tuned", lambda bench, name, net, starts, *_: starts)
    again = {row["name"]: row for row in experiment.main(more)}
    for name in ("float, alone", "float, distilled"):
        assert again[name]["accuracy"] == rows[name]["accuracy"][:1]
    ways = {name.split(" static")[0] for name in again if name.startswith("PTQ")}
    assert ways == {"PTQ", "PTQ equalised", "PTQ corrected"}
    assert json.loads((directory / "config.json").read_text())["seeds"] == 2
