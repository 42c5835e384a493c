"""Configurations: what is right is read, what is wrong is refused in one sentence."""

import os
import tomllib

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from jaxkd import distill, losses
from jaxkd.pipeline import (
    objective,
    overrides,
    reading,
    run as runs,
    run_data,
    toml,
    validate,
)
from tests.pipeline import small


def write(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", reading.shipped())
def test_each_shipped_configuration_is_valid_and_says_what_it_is(name):
    config = reading.load(name)
    assert config.name == name
    assert config.data.name == name.split("-")[0]
    kinds = {stage.kind for stage in config.stages}
    wanted = {
        "distil": {"distill"},
        "fsp": {"distill"},
        "prune": {"prune", "finetune"},
        "prune-qat": {"prune", "finetune", "quantize"},
        "distil-qat": {"distill", "quantize"},
        "nas": {"search", "train"},
    }
    _, _, rest = name.partition("-")
    everything = {"distill", "prune", "finetune", "quantize", "export"}
    assert wanted.get(rest, everything) <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("name", reading.shipped())
def test_each_shipped_configuration_fits_its_networks_and_data(name):
    config = reading.load(name)
    if config.data.name != "digits" and "JAXKD_ARCHIVES" not in os.environ:
        pytest.skip("needs the archives: set JAXKD_ARCHIVES")
    runs.rehearse(config, run_data.make(config.data))


def test_every_combination_is_there_for_both_data_sets():
    names = set(reading.shipped())
    combinations = {n.partition("-")[2] for n in names if n.startswith("cifar10-")}
    assert combinations == {
        *("all", "distil", "fsp", "prune", "prune-qat", "distil-qat", "nas")
    }
    assert {f"digits-{c}" for c in combinations - {"all"}} | {"digits"} <= names


@pytest.mark.parametrize("name", ["digits", "cifar10-fsp", "defaults"])
@pytest.mark.parametrize("comments", [False, True])
def test_a_configuration_as_text_is_the_same_configuration(name, comments):
    config = toml.defaults() if name == "defaults" else reading.load(name)
    text = toml.dumps(config, comments=comments)
    assert reading.decoded(tomllib.loads(text), name) == config


def test_the_defaults_name_every_key_of_every_part():
    text = toml.dumps(toml.defaults(), comments=True)
    raw = tomllib.loads(text)
    reading.resolved(reading.decoded(raw, "defaults"), "defaults")
    kinds = {stage["kind"] for stage in raw["stages"]}
    assert kinds == {
        *("train", "distill", "transfer", "prune", "quantize"),
        *("search", "finetune", "evaluate", "export"),
    }
    for stage, made in zip(raw["stages"], toml.defaults().stages, strict=True):
        fields = {field.encode_name for field in msgspec.structs.fields(type(made))}
        assert set(stage) == {*fields, "kind"}


def test_a_change_counts_from_zero_and_takes_names_and_kinds(tmp_path):
    path = write(tmp_path, small.TEXT)
    changed = {
        "stages.3.temperature=7": lambda c: c.stages[3].temperature == 7.0,
        "stages.distill.temperature=7": lambda c: c.stages[3].temperature == 7.0,
        "stages.teach.epochs = 9": lambda c: c.stages[0].epochs == 9,
        "stages.distill.losses.kd.temperature=3": (
            lambda c: c.stages[3].losses["kd"]["temperature"] == 3
        ),
        "models.student.stages=[[4], [4, 4]]": (
            lambda c: c.models["student"].stages == ((4,), (4, 4))
        ),
        "stages.quantize.losses={ce = {weight = 2}}": (
            lambda c: c.stages[6].losses == {"ce": {"weight": 2}}
        ),
        "name=other": lambda c: c.name == "other",
        "checkpoints.keep=5": lambda c: c.checkpoints.keep == 5,
        "stages.5.optimizer.clip=0.5": lambda c: c.stages[5].optimizer.clip == 0.5,
    }
    for change, holds in changed.items():
        assert holds(reading.load(path, [change])), change
    plain = reading.load(path)
    assert plain == reading.load(path, ["stages.distill.temperature=2"])


def test_stages_are_named_after_their_kind_and_numbered_if_need_be():
    config = validate.named(toml.defaults())
    names = [stage.name for stage in config.stages]
    assert names == [
        *("train-1", "train-2", "search", "train-3", "transfer", "distill", "prune"),
        *("finetune", "quantize", "evaluate", "export"),
    ]


WRONG = {
    "stages.distill.temprature=2": r"stages\.3\.temprature: no such key; .*temperature",
    "stages.0.epochs=2.5": r"stages\.0\.epochs: must be a whole number .*got 2\.5",
    'stages.0.epochs="3"': r"stages\.0\.epochs: must be a whole number .*got '3'",
    "stages.0.epochs=0": r"epochs: must be a whole number >= 1 and <= 1000000, got 0",
    "stages.0.epochs=true": r"stages\.0\.epochs: must be a whole number .*got true",
    "stages.0.optimizer.rate=-1": r"optimizer\.rate: must be a number >= 1e-12 ",
    "stages.0.optimizer.rate=nan": r"optimizer\.rate: must be a finite number .*nan",
    "stages.0.optimizer.rate=inf": r"optimizer\.rate: must be a finite number .*inf",
    "stages.0.optimizer.kind=adan": r"kind: must be one of adam, adamw, sgd, got",
    "stages.0.kind=trian": r"stages\.0\.kind: must be one of .*did you mean train",
    "models.student.kind=cmn": r"models\.student\.kind: .*did you mean cnn",
    "seed=-1": r"seed: must be a whole number >= 0 and <= 2147483647, got -1",
    "seed=99999999999999999999999": r"seed",
    "name=a/b": r"name: must be a name of letters.*got 'a/b'",
    "stage.0.epochs=1": r"no stage; .*did you mean stages",
    "stages.12.epochs=1": r"no stages\.12: there are 8, counted from 0",
    "stages.distil.epochs=1": r"no stages\.distil: .*did you mean distill",
    "stages.train.epochs=1": r"stages\.train could be any of \[0, 1\]",
    "epochs": r"must be KEY=VALUE",
    "name.x=1": r"name is a value, and has no 'x'",
    "models={}": r"models: is empty",
    "stages=[]": r"stages: must be a list of 1 to 1000 values, got 0",
    "data.name=5": r"data\.name: must be text, got 5",
    "stages.distill.losses={}": r"losses: is empty",
    "stages.distill.losses.kd.temperature=-1": r"kd\.temp.*must be .*>= 0\.001.*-1",
    "stages.distill.losses.kd.temprature=1": r"losses\.kd\.temprature: no such key; ",
    'stages.distill.losses.kd.temperature="x"': r"must be a number .*got 'x'",
    "stages.distill.losses.kd.loss=kdd": r"losses\.kd: no loss 'kdd'; .*did you mean",
    "stages.distill.losses.kd.weight=x": r"losses\.kd: weight: must be a number or a",
    "stages.distill.losses.kd.weight={end=1, lst=2}": r"kd: weight\.lst: no such key",
    "stages.distill.losses.kd.weight={first=3, last=2}": r"last .2.*is before first",
    "stages.distill.losses.hint.pairs=[]": r"losses\.hint\.pairs: must be a tap",
    "stages.distill.losses.hint={}": r"losses\.hint: needs pairs",
    "stages.distill.losses.hint.loss=ofd": "ofd needs .*recipe = .ofd. has them",
    "stages.distill.losses.ce=3": r"stages\.3\.losses\.ce: must be a table, got 3",
    "stages.distill.teacher=techer": r"teacher: no model 'techer'.*did you mean teach",
    "stages.distill.teacher=student": r"teacher: 'student' is the model itself",
    "stages.distill.teacher=": r"teacher: no model ''",
    "stages.quantize.teacher=": r"losses\.soft: compares with a teacher, but none",
    "stages.quantize.weights=9": r"weights: must be a whole .*>= 2 and <= 8, got 9",
    "stages.prune.ratio=1.0": r"stages\.4\.ratio: must be a number .*< 1, got 1\.0",
    "stages.export.formats=[]": r"stages\.7\.formats: must be a list of 1 to 3 ",
    'stages.export.formats=["tflit"]': r"formats\.0: must be one of stablehlo, .*",
    'stages.export.formats=["stablehlo","stablehlo"]': r"formats: names one twice",
    "stages.0.name=distill": r"the name 'distill' is given to more than one",
    "stages.0.name=../x": r"stages\.0\.name: must be a name of letters",
    "models.student.stages=[[0]]": r"models\.student\.stages\.0\.0: .*>= 1",
    'models.student={kind="zoo", name="resnet9x4"}': r"no network 'resnet9x4' in the",
    'models.student={kind="zoo"}': r"models\.student\.name: is missing",
    'models.spare={kind="mlp"}': r"models\.spare: no stage uses it",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_is_refused_with_its_key(tmp_path, change):
    path = write(tmp_path, small.TEXT)
    with pytest.raises(ValueError, match=WRONG[change]) as found:
        reading.load(path, [change])
    said = str(found.value)
    assert change in said or str(path) in said


def resolved(models, stages):
    raw = {"models": models, "stages": stages}
    return reading.resolved(reading.decoded(raw, "x"), "x")


def stage(kind, **more):
    return {"kind": kind, **more}


TRAIN = stage("train", model="student")
TEACH = stage("train", model="teacher")
SEARCHED = {"teacher": {"kind": "space"}}
ORDERS = {
    "a teacher that knows nothing": (
        [stage("distill"), TEACH],
        r"stages\.0 \(distill\): teacher: 'teacher' has not been trained: put a train",
    ),
    "nothing to prune": ([stage("prune"), TEACH], r"'student' has not been trained"),
    "prune after quantize": (
        [TEACH, TRAIN, stage("quantize"), stage("prune")],
        r"stages\.3 \(prune\): .*prune it before it is quantized",
    ),
    "quantize twice": (
        [TEACH, TRAIN, stage("quantize"), stage("quantize")],
        r"is quantized already",
    ),
    "train over weights": ([TEACH, TRAIN, TRAIN], r"has weights already.*finetune"),
    "nothing to fine-tune": ([TEACH, stage("finetune")], r"has not been trained"),
    "int8 without quantize": (
        [TEACH, TRAIN, stage("export", int8=True)],
        r"int8: 'student' is not quantized; put a quantize stage",
    ),
    "nothing to export": ([TEACH, stage("export")], r"has not been trained"),
    "transfer into a pruned network": (
        [TEACH, TRAIN, stage("prune"), stage("transfer")],
        r"no longer has the shapes",
    ),
    "transfer of nothing": (
        [stage("transfer"), TEACH],
        r"source: 'teacher' has not been trained",
    ),
    "search without a space": (
        [stage("search", model="teacher"), TRAIN],
        r"'teacher' is not a space",
    ),
    "a tflite file of any number of images": (
        [TEACH, TRAIN, stage("export", formats=["tflite"], batch=0)],
        r"batch: a tflite file takes",
    ),
    "steps of ranges that are measured anew": (
        [TEACH, TRAIN, stage("quantize", lsq=True, activation="dynamic")],
        r"lsq: learns steps of static ranges",
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", ORDERS)
def test_an_order_that_cannot_work_is_refused(case):
    stages, message = ORDERS[case]
    models = {"teacher": {"kind": "mlp"}, "student": {"kind": "mlp"}}
    with pytest.raises(ValueError, match=message):
        resolved(models, stages)


@pytest.mark.bad_input
def test_a_space_is_searched_before_it_is_trained():
    models = {"student": {"kind": "space"}}
    both = [TRAIN, stage("search")]
    with pytest.raises(ValueError, match="a search stage must come first"):
        resolved(models, both)
    resolved(models, both[::-1])
    twice = [stage("search"), stage("search")]
    with pytest.raises(ValueError, match="not a space that has yet to be chosen"):
        resolved(models, twice)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "models: is missing"),
        (
            b"a = " + b"[" * 5000 + b"]" * 5000,
            "is not TOML|nested too deeply|no such key",
        ),
        (b"stages = 3\nmodels = 4", "models|stages"),
        (b"models = [1]\nstages = {}", "models"),
        (b"name = 1979-05-27T07:32:00Z", "name: must be text"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        reading.load(path)
    assert str(path) in str(found.value)


@pytest.mark.bad_input
def test_a_missing_file_offers_near_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean digits"):
        reading.load(tmp_path / "digit.toml")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.0.batch_size=100000", r"stages\.0 \(train\): batch_size: 100000 is"),
        ("data.train_images=100000", r"data\.train_images: n must be at most"),
        ('stages.distill.losses.hint.pairs="stage7"', r"stages\.3 .distill.*stage7"),
        (
            'stages.0.trains=["hed/*"]',
            r"stages\.0 .*'student/hed/\*' fits no parameter",
        ),
        ("stages.prune.ratio=0.999", r"stages\.4 \(prune\): macs .* cannot be met"),
        ('stages.prune.include=["convx*"]', r"stages\.4 \(prune\): .*convx"),
        ('stages.transfer.rename={a = "b"}', r"stages\.2 \(transfer\): rename"),
        ('stages.quantize.float_layers=["hed"]', r"stages\.6 .*'hed' fits no layer"),
        ('models.student.weights="/nowhere"', r"no checkpoint at /nowhere"),
        ("models.student.stages=[[8],[8],[8],[8],[8]]", r"models\.student|stages"),
    ],
)
def test_what_only_networks_and_data_can_tell_is_refused_before_work(
    tmp_path, change, message, monkeypatch
):
    def work(*args, **kwargs):
        pytest.fail("work began")

    monkeypatch.setattr(runs.directory, "create", work)
    path = write(tmp_path, small.TEXT)
    changes = [change]
    if change.startswith("models.student.weights"):
        changes += ["stages.transfer.exclude=[]"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.start(reading.load(path, changes), tmp_path / "run")


@pytest.mark.parametrize("name", objective.kinds())
def test_every_loss_that_can_be_named_becomes_a_term(name):
    needs = {
        "pairs": {"pairs": ["stage1"]},
        "pair": {"pair": "stage1"},
        "layers": {"layers": [["stage1", "stage2"]]},
        "ramp": {"ramp": 10},
    }
    kind = objective.kinds()[name]
    entry = {"loss": name, "weight": 0.5}
    for knob, value in needs.items():
        parameter = objective._accepted(kind).get(knob)
        if parameter is not None and parameter.default is parameter.empty:
            entry |= value
    objective.check({"mine": entry}, 2.0, teacher="teacher")


def test_a_stage_s_temperature_is_that_of_losses_without_their_own():
    table = {"kd": {}, "own": {"loss": "kd", "temperature": 3.0}}
    spec = objective.spec(table, 2.0, steps=1, examples={})
    student, teacher = jnp.array([[1.0, 2.0, -1.0]]), jnp.array([[0.0, 1.0, 5.0]])
    for name, temperature in {"kd": 2.0, "own": 3.0}.items():
        _, term = spec[name]
        outputs = [distill.Outputs(logits, {}) for logits in (student, teacher)]
        loss, _ = term.apply({}, {}, *outputs, {})
        wanted = losses.kd(student, teacher, temperature=temperature)
        np.testing.assert_array_equal(loss, wanted)


def test_a_ramp_goes_from_start_to_end_between_two_epochs():
    ramp = {"start": 1.0, "end": 3.0, "first": 1.0, "last": 3.0}
    at = objective.weight({"weight": ramp}, steps=10)
    values = [float(at(step)) for step in (0, 10, 15, 20, 30, 99)]
    assert values == pytest.approx([1, 1, 1.5, 2, 3, 3])
    cosine = objective.weight({"weight": {**ramp, "form": "cosine"}}, steps=10)
    assert float(cosine(15)) == pytest.approx(1 + 2 * (1 - 2**-0.5) / 2)
    step = objective.weight({"weight": {**ramp, "form": "step"}}, steps=10)
    assert [float(step(s)) for s in (0, 29, 30)] == [1, 1, 3]


def test_a_word_that_is_not_toml_is_text():
    config = {"a": {"b": 1}, "c": [{"name": "x", "v": 1}]}
    assert overrides.changed(config, "a.b=hello there")["a"]["b"] == "hello there"
    assert overrides.changed(config, "a.b=[1, 2]")["a"]["b"] == [1, 2]
    assert overrides.changed(config, "c.x.v=2")["c"] == [{"name": "x", "v": 2}]
    assert config == {"a": {"b": 1}, "c": [{"name": "x", "v": 1}]}
