"""From a folder of pictures to an int8 file that knows how to look at them."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxkd import data, export, models
from jaxkd.__main__ import main
from jaxkd.data import preprocessing
from jaxkd.pipeline import applying, data_kinds, measuring, new, reading, run_data, toml
from tests import pictures

TEXT = """
name = "own"
[data]
kind = "folder"
path = "PATH"
size = 8
test = 0.3
validation = 0.2
mean = "imagenet"
[models.student]
kind = "mlp"
widths = [8]
[[stages]]
kind = "train"
epochs = 4
batch_size = 8
optimizer = { rate = 1e-2 }
[[stages]]
kind = "export"
latency = false
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache of decoded images, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXKD_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures.write(tmp_path_factory.mktemp("p") / "photos", each=40)


def write(folder, photos, *changes):
    text = TEXT.replace("PATH", str(photos))
    for old, other in changes:
        assert old in text
        text = text.replace(old, other, 1)
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos, cache):
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", write(folder, photos), "--to", str(folder / "run")]) == 0
    return folder / "run"


def told(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: float(value) for name, _, value in (s.rpartition(" ") for s in lines)}


def test_the_file_alone_measures_what_the_run_did(run, photos, tmp_path, capsys):
    row = json.loads((run / "results.json").read_text())["rows"][-1]
    shutil.copy(run / row["files"][0]["path"], tmp_path / "alone.stablehlo")
    found = told(capsys, "eval", tmp_path / "alone.stablehlo", "--data", photos)
    assert found["accuracy"] == row["files"][0]["accuracy"] == row["accuracy"] > 0.9
    assert found["nll"] == pytest.approx(row["nll"], rel=1e-3)
    by_class = [found["accuracy/null"], found["accuracy/één"]]
    assert by_class == row["accuracy_by_class"]
    within = told(capsys, "eval", run / row["files"][0]["path"])
    assert within == found
    whole = told(
        capsys, "eval", tmp_path / "alone.stablehlo", "--data", photos, "--split", "all"
    )
    assert whole["images"] == 80 > found["images"]


def test_a_folder_of_parquet_files_is_evaluated_too(run, photos, tmp_path, capsys):
    paths = sorted(photos.glob("*/*.png"))
    cells = [{"bytes": path.read_bytes()} for path in paths]
    labels = [path.parent.name for path in paths]
    made = pyarrow.table({"image": cells, "label": labels})
    (tmp_path / "tables").mkdir()
    pyarrow.parquet.write_table(made, tmp_path / "tables" / "0.parquet")
    (file,) = run.glob("stages/*/files/*.stablehlo")
    where = ["--data", tmp_path / "tables", "--split", "all"]
    found = told(capsys, "eval", file, *where)
    assert found["images"] == len(paths) and found["accuracy"] > 0.9


def test_run_model_and_file_know_the_preprocessing(run):
    wanted = preprocessing.Preprocessing(
        (8, 8),
        3,
        "crop",
        (0.0, 1.0),
        tuple(np.float32(preprocessing.IMAGENET[0]).tolist()),
        tuple(np.float32(preprocessing.IMAGENET[1]).tolist()),
        ("null", "één"),
        0.3,
        0.2,
    )
    facts = json.loads((run / "run.json").read_text())["data"]["preprocessing"]
    meta = json.loads((run / "models" / "student" / "meta.json").read_text())
    (file,) = run.glob("stages/*/files/*.stablehlo")
    assert preprocessing.from_json(facts) == wanted
    assert preprocessing.from_json(meta["preprocessing"]) == wanted
    assert export.load(file).preprocessing == wanted


def test_predict_names_the_class_of_a_file(run, photos, tmp_path, capsys):
    (file,) = run.glob("stages/*/files/*.stablehlo")
    paths = [str(p) for name in ("null", "één") for p in (photos / name).glob("*.png")]
    assert main(["predict", str(file), *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    right = [
        line.removeprefix(f"{path}: ").startswith(pathlib.Path(path).parent.name)
        for path, line in zip(paths, lines, strict=True)
    ]
    assert np.mean(right) > 0.9
    (tmp_path / "bad.png").write_text("text")
    assert main(["predict", str(file), str(tmp_path / "bad.png")]) == 2
    error = capsys.readouterr().err
    assert "bad.png: it is no image" in error


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_other_formats_keep_the_preprocessing(tmp_path, format):
    net = models.mlp([4], classes=2)
    made = preprocessing.Preprocessing(
        (4, 4), 1, "pad", (0.0, 1.0), (0.1,), (0.3,), ("a", "ü")
    )
    images = np.zeros((2, 4, 4, 1), np.float32)
    variables = net.init(jax.random.key(0), images)
    path = tmp_path / f"net.{format}"
    write_one = {"tflite": export.tflite, "onnx": export.onnx}[format]
    write_one(net, *variables, path, inputs=images, batch=1, preprocessing=made)
    assert export.load(path).preprocessing == made


def test_data_that_do_not_fit_the_file_are_refused(run, tmp_path, capsys):
    (file,) = run.glob("stages/*/files/*.stablehlo")
    other = pictures.write(tmp_path / "other", classes=("null", "zwei"), each=4)
    for where, message in [
        (other, "zwei is no known class"),
        ("digits", "those of digits are"),
    ]:
        assert main(["eval", str(file), "--data", str(where)]) == 2
        assert message in capsys.readouterr().err
    net = models.mlp([4], classes=2)
    images = np.zeros((2, 8, 8, 3), np.float32)
    variables = net.init(jax.random.key(0), images)
    export.stablehlo(net, *variables, tmp_path / "bare.stablehlo", inputs=images)
    with pytest.raises(ValueError, match="does not say how images become its input"):
        applying.measure(str(tmp_path / "bare.stablehlo"), str(other), "test")


CHANGES = [
    (('"PATH"', '"nowhere"'), "data.path: nowhere does not exist"),
    (("size = 8", "size = 0"), "data.size: must be a whole number >= 1"),
    (("size = 8", "size = [8]"), "data.size: must be a list of 2 to 2 values, got 1"),
    (("size = 8", 'size = "8"'), "data.size: must be a whole number"),
    (("size = 8\n", ""), "data.size: is missing"),
    (("size = 8", 'size = 8\nresize = "zoom"'), "data.resize: must be one of crop"),
    (("size = 8", "size = 8\nname = 'x'"), "data.name: no such key"),
    (('mean = "imagenet"', 'mean = "imagnet"'), "did you mean imagenet"),
    (('mean = "imagenet"', "mean = [1, 2]"), "data.deviation: must be given"),
    (("size = 8", "size = 8\nchannels = 1"), "data.mean: must have 1 finite"),
    (('"folder"', '"foldr"'), "data.kind: must be one of arrays, folder, hugg"),
    (("test = 0.3", "test = 1e-9"), "data.test: leaves no images for test"),
]


@pytest.mark.parametrize("change, message", CHANGES, ids=lambda v: str(v)[:40])
def test_a_check_names_the_key(photos, cache, tmp_path, capsys, change, message):
    old, other = change
    path = write(tmp_path, photos, (old.replace("PATH", str(photos)), other))
    assert main(["run", path, "--check"]) == 2
    error = capsys.readouterr().err
    assert message in error, error


def test_every_kind_loads_and_is_the_same_after_being_printed(photos, cache, tmp_path):
    arrays = {"image": np.zeros((60, 4, 4, 1), np.uint8), "label": np.arange(60) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    for kind, title in [
        (data_kinds.Tfds(mean=(0.5,), deviation=(0.25,)), "digits"),
        (data_kinds.Folder(path=str(photos), size=(6, 4)), str(photos)),
        (data_kinds.Arrays(path=str(tmp_path / "a.npz")), str(tmp_path / "a.npz")),
        (data_kinds.Python(source="tests.pictures:arrays"), "tests.pictures:arrays"),
    ]:
        assert kind.title == title
        made = run_data.make(kind)
        assert made.classes >= 2 and len(made.test) and len(made.validation)
        raw = {"data": {"kind": kind.kind}, "models": {}, "stages": []}
        for name in kind.__struct_fields__:
            raw["data"][name] = getattr(kind, name)
        del raw["data"]["augment"]
        base = reading.load(write(tmp_path, photos))
        changed = reading.decoded({"data": raw["data"], **_rest(base)}, "x")
        assert changed.data == kind


def _rest(config):
    raw = tomllib.loads(toml.dumps(config))
    return {"models": raw["models"], "stages": raw["stages"]}


def test_class_balanced_repeats_images_of_small_classes(photos, cache):
    kind = data_kinds.Folder(path=str(photos), size=4, class_balanced=True)
    plain = data_kinds.Folder(path=str(photos), size=4)
    balanced, train = run_data.make(kind).train, run_data.make(plain).train
    counts = np.bincount(balanced.labels)
    assert set(counts) == {np.bincount(train.labels).max()}
    assert set(balanced.index) == set(train.index)
    assert len(train) < len(balanced)
    assert isinstance(train, data.Dataset)


def test_accuracy_by_class():
    logits = np.eye(3)[[0, 1, 1, 0]]
    assert measuring.by_class(logits, [0, 1, 1, 1], 3) == [
        1.0,
        pytest.approx(2 / 3),
        None,
    ]


def test_new_prints_a_configuration_that_is_valid(photos, tmp_path, capsys):
    assert main(["new", str(photos)]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    config = reading.load(path)
    assert config.data.path == str(photos) and config.data.size == 32
    assert [stage.kind for stage in config.stages] == [
        *("train", "distill", "quantize", "export")
    ]
    assert main(["new", str(photos / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    path.write_text(new.for_folder(str(photos), size=64))
    assert reading.load(path).data.size == 64


@pytest.mark.slow
def test_the_readme_s_commands_give_an_int8_file_and_a_report(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    section = (root / "README.md").read_text().split("## Your own images\n")[1]
    commands = section.split("```sh\n")[1].split("```")[0]
    pictures.write(tmp_path / "photos", classes=("cat", "dog"), each=40)
    image = Image.open(tmp_path / "photos" / "cat" / "001.jpg")
    image.save(tmp_path / "photos" / "cat" / "1.jpg")
    jaxkd = f'jaxkd() {{ {sys.executable} -m jaxkd "$@"; }}'
    own = {"PYTHONPATH": str(root), "JAXKD_DATA": str(tmp_path / "cache")}
    found = subprocess.run(
        ["bash", "-ec", f"{jaxkd}\n{commands}"],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    run = tmp_path / "runs" / "photos"
    (file,) = json.loads((run / "results.json").read_text())["rows"][-1]["files"]
    assert export.load(run / file["path"]).preprocessing.classes == ("cat", "dog")
    assert f"accuracy {file['accuracy']}\n" in found.stdout
    assert file["accuracy"] > 0.7
    assert "photos/cat/1.jpg: cat" in found.stdout
    assert (run / "report.html").exists()
