"""`jaxkd run --check`: what cannot work is refused with its key before any training."""

import os

import jax
import jax.numpy as jnp
import pytest

from jaxkd import checkpoint, models
from jaxkd.__main__ import main
from jaxkd.pipeline import directory, memory, networks, parts, state

BASE = """
[data]
train_images = 100
[models.teacher]
kind = "mlp"
widths = [8]
[models.student]
kind = "cnn"
stages = [[4]]
hidden = [8]
[[stages]]
kind = "train"
model = "teacher"
epochs = 1
batch_size = 50
[[stages]]
kind = "distill"
epochs = 1
batch_size = 50
[[stages]]
kind = "prune"
round_to = 1
[[stages]]
kind = "quantize"
epochs = 0
[[stages]]
kind = "export"
int8 = true
"""


def check(capsys, tmp_path, text=BASE, *more):
    """The exit code and the error of a check, which leaves no file behind."""
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    code = main(["run", str(path), "--check", *more])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["c.toml"]
    return code, error


WRONG = {
    'stages.prune.include=["head/*"]': "include = ['head/*'] selects no layer of "
    "'student' that can be pruned; those that can be are stage1_conv1/*, hidden1/*",
    'stages.prune.exclude=["*"]': "exclude = ['*'] selects no layer of 'student' that",
    "stages.prune.step=1e-9": r"stages.2.step: must be a number >= 0.001 and < 1, got",
    "stages.distill.temperature=1e-300": "temperature: must be 0 or at least 1e-30",
    "stages.distill.temperature=1e-4": "temperature: must be a number >= 0.001 and",
    "stages.distill.losses.kd.temperature=1e-9": "kd.temperature: must be a number >=",
    "stages.distill.losses={ce={weight=0}, kd={weight=0.0}}": "every weight is 0",
    "stages.distill.losses={kd={weight={start=0, end=0}}}": "every weight is 0",
    "stages.distill.losses={crd={negatives=1_000_000_000_000}}": (
        "crd.negatives: must be a whole number >= 1 and <= 1000000, got 1000000000000"
    ),
    "stages.distill.losses={crd={negatives=1_000_000, dims=100_000}}": "needs at least",
    "stages.prune.criterion=bn_scale": "no weights for this criterion",
    'stages.quantize.float_layers=["*"]': "fits every layer, so that nothing is quant",
    "stages.prune.examples=-1": "examples: must be a whole number >= 1 and <= 1000000",
    "stages.0.optimizer.rate=nan": "stages.0.optimizer.rate: must be a finite number",
    "stages.distill.losses.kd.weight=inf": "losses.kd.weight: must be a finite number",
    "models.teacher.widths=[65536, 65536, 65536]": "needs at least",
    "stages.export.batch=100000": "needs at least",
    "stages.distill.losses.kd.weight=-1": (
        "losses.kd: weight: must be a number >= 0 and <= 1000000, got -1"
    ),
    "stages.distill.losses={ce={}, kd={weight={start=1, end=-1}}}": "weight.end: must",
    "stages.distill.losses={ce={}, kd={weight={first=1, last=2}}}": (
        "stages.1 (distill): losses.kd.weight.first: must be less than the 1 epochs"
    ),
    'stages.distill.losses={ce={}, kd={weight={last=1, form="step"}}}': (
        "stages.1 (distill): losses.kd.weight.last: must be less than the 1 epochs"
    ),
    'stages.distill.losses={ce={}, ab={pairs="stage1", margin=-1}}': (
        "ab.margin: must be a number that is 0 or 1e-06 to 1e+06, got -1"
    ),
    'stages.distill.losses={ce={}, cc={pairs="stage1", order=1_000_000}}': (
        "order must be <= 34, got 1000000"
    ),
    "data.augment.cutout=9": (
        "data.augment.cutout: must be at most 8 for images of 8 pixels, got 9"
    ),
    "data.augment={mixup=0.2, cutmix=1.0}": (
        "data.augment: mixup and cutmix would mix images twice: set one of them"
    ),
    "data.augment.crop=8": "data.augment.crop: must be at most 7 for images of 8",
    "stages.0.schedule.warmup=1.5": (
        "stages.0 (train): schedule.warmup: must be at most the 1 epochs of the stage"
    ),
    "stages.0.batch_size=101": (
        "stages.0 (train): batch_size: 101 is more than the 100 training images"
    ),
    "stages.prune.round_to=1000": "(prune): round_to: must be at most 8, the channels",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("change", WRONG)
def test_what_cannot_work_is_refused_with_its_key(
    capsys, tmp_path, monkeypatch, change
):
    monkeypatch.setattr(memory, "memory", lambda: 2**26)
    code, error = check(capsys, tmp_path, BASE, "--set", change)
    assert code == 2 and WRONG[change] in error, error


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_refused(capsys, tmp_path):
    file = tmp_path / "c.toml"  # a file cannot hold a folder
    code, error = check(capsys, tmp_path, BASE, "--to", str(file / "run"))
    assert code == 2 and f"--to: {file}/run cannot be made" in error
    if os.path.isdir("/proc"):
        code, error = check(capsys, tmp_path, BASE, "--set", "out=/proc/x")
        assert code == 2 and "out: /proc/x cannot be made: /proc" in error


@pytest.mark.bad_input
def test_names_that_would_be_one_file_are_refused(capsys, tmp_path):
    mlp = 'kind = "mlp"\n'
    for names, message in {
        ("A", "a"): "models: the names 'A' and 'a' differ in case only",
        ("a", "../a"): "models: '../a' must be a name of letters, digits",
        ("a", "b" * 61): "at most 60",
    }.items():
        text = "".join(f'[models."{name}"]\n{mlp}' for name in names)
        for name in names:
            text += f'[[stages]]\nkind = "train"\nmodel = "{name}"\nbatch_size = 50\n'
        code, error = check(capsys, tmp_path, text)
        assert code == 2 and message in error, error


def test_a_byte_order_mark_is_skipped(capsys, tmp_path):
    code, error = check(capsys, tmp_path, BASE.encode("utf-8-sig"))
    assert code == 0, error


@pytest.mark.bad_input
def test_the_weights_of_a_run_are_those_of_one_of_its_models(
    capsys, tmp_path, tmp_path_factory
):
    whole = tmp_path_factory.mktemp("run")
    for name in ("student", "teacher"):
        (whole / "models" / name).mkdir(parents=True)
    for name in (directory.CONFIG, directory.LOCK):
        (whole / name).touch()
    text = BASE.replace('"train"', '"finetune"')
    change = f"models.teacher.weights={whole}"
    code, error = check(capsys, tmp_path, text, "--set", change)
    message = f"models.teacher: weights: {whole} is a run; give the folder of one of"
    assert code == 2 and message in error
    assert f"{whole}/models/student; there are student, teacher" in error


OTHERS = {
    "widths = [16, 16]": "widths was [16, 16, 16], is [16, 16]",
    "widths = [16, 16, 8]": "widths was [16, 16, 16], is [16, 16, 8]",
    "widths = [16, 16, 16, 16]": "widths was [16, 16, 16], is [16, 16, 16, 16]",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("steps", [(), ("prune",), ("prune", "fold"), ("choose",)])
@pytest.mark.parametrize("told", [True, False])
def test_weights_of_another_table_are_refused_whatever_was_done_to_them(
    capsys, tmp_path, tmp_path_factory, steps, told
):
    folder = tmp_path_factory.mktemp("weights") / "student"
    net = models.mlp((16, 16, 16), classes=10)
    params, extra = net.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    details = {"fold": {"shapes": networks.shapes(params, extra)}}
    recipe = tuple({"step": step, **details.get(step, {})} for step in steps)
    notes = state.meta(networks.Model(net, params, extra, recipe))
    if told:
        table = parts.MlpTable(widths=(16, 16, 16), dropout=0.5)
        notes["model"] = networks.description(table)
    checkpoint.write(folder, {"params": params, "state": extra}, notes)

    def answer(table):
        text = (
            f"[data]\ntrain_images = 100\n[models.student]\nweights = '{folder}'\n"
            f"kind = 'mlp'\n{table}\n[[stages]]\nkind = 'evaluate'\n"
        )
        return check(capsys, tmp_path, text)

    for table, message in OTHERS.items():
        code, error = answer(table)
        assert code == 2 and "models.student: weights: " in error, error
        if told:
            assert f"{folder} is of another model: {message}" in error
        elif "choose" not in steps:
            assert f"{folder} does not fit: " in error
    code, error = answer("widths = [16, 16, 16]")
    assert code == (2 if "choose" in steps else 0), error


def test_the_largest_array_of_inner_programs_counts(monkeypatch):
    def f(x):
        def body(carry, _):
            return carry + jnp.outer(x, x).sum(), None

        return jax.lax.scan(body, 0.0, None, length=3)[0]

    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    needed = 4 * 1000 + 4 * 1000**2  # the argument and the outer product
    monkeypatch.setattr(memory, "memory", lambda: needed)
    assert memory.traced(f, x) == jax.eval_shape(f, x)
    monkeypatch.setattr(memory, "memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"f32\[1000,1000\]|float32\[1000,1000\]"):
        memory.traced(f, x)
