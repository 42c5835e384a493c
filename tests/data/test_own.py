"""Arrays, functions and tables become splits, or an error that says why."""

import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxkd import data
from jaxkd.data import decode
from tests import pictures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 5, 4, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3


def indices(found):
    return sorted(np.concatenate([part.index for part in found[:3]]).tolist())


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_become_splits(tmp_path, kind, dtype):
    columns = {"image": IMAGES.astype(dtype), "label": LABELS}
    path = tmp_path / "mine.npz"
    if kind == "npz":
        np.savez(path, **columns, classes=np.array(["a", "b", "ü"]))
    else:
        path = tmp_path / "mine"
        path.mkdir()
        for name, array in columns.items():
            np.save(path / f"{name}.npy", array)
    found = data.arrays(path, test=0.3, validation=0.2)
    assert indices(found) == list(range(60))
    for part in found[:3]:
        np.testing.assert_array_equal(part.images, columns["image"][part.index])
        np.testing.assert_array_equal(part.labels, LABELS[part.index])
    assert found.train.classes == (("a", "b", "ü") if kind == "npz" else tuple("012"))
    floats = dtype == np.float32
    assert (found.preprocessing.range is None) == floats
    unit = 1 if floats else 255
    np.testing.assert_allclose(
        found.preprocessing.mean,
        found.train.images.mean((0, 1, 2)) / unit,
        rtol=1e-5,
    )
    again = data.arrays(path, path_test=path, test=0.3, validation=0.2)
    assert len(again.test) == 60 and not set(again.train.index) & set(
        again.validation.index
    )


WRONG = [
    ({"label": LABELS}, "must hold an array 'image', has label"),
    ({"image": IMAGES, "label": LABELS[:-1]}, "must have one length"),
    ({"image": IMAGES.astype(int), "label": LABELS}, "image must be uint8 or floats"),
    ({"image": IMAGES, "label": LABELS - 1}, "count from 0, got -1 to 1"),
    ({"image": IMAGES, "label": LABELS / 2}, "label must be whole numbers"),
    ({"image": IMAGES * np.float32("nan"), "label": LABELS}, "not finite"),
    ({"image": IMAGES, "label": LABELS, "classes": np.array(["a"])}, r"in \[0, 1\)"),
]


@pytest.mark.parametrize("columns, message", WRONG)
def test_arrays_that_do_not_fit_are_named(tmp_path, columns, message):
    np.savez(tmp_path / "bad.npz", **columns)
    with pytest.raises(ValueError, match=f"bad.npz(.|\n)*{message}"):
        data.arrays(tmp_path / "bad.npz")


def test_files_that_are_no_arrays_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz does not exist"):
        data.arrays(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="text.npz cannot be read"):
        data.arrays(tmp_path / "text.npz")


class Pairs:
    classes = ("x", "y", "z")

    def __len__(self):
        return 60

    def __getitem__(self, place):
        return IMAGES[place], LABELS[place]


SOURCE = """
import numpy as np
from jaxkd import data
def make():
    images = np.arange(60 * 16, dtype=np.uint8).reshape(60, 4, 4, 1)
    return data.Dataset.of_images("own", "all", images, np.arange(60) % 2)
def nothing():
    return 3
"""


def test_functions_and_sequences_become_splits(tmp_path, monkeypatch):
    (tmp_path / "mymade.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mymade", raising=False)
    found = data.python("mymade:make", test=0.2, validation=0.2)
    assert indices(found) == list(range(60)) and found.train.classes == ("0", "1")
    assert data.python(found) is found
    pairs = data.python(Pairs(), test=0.2, validation=0.2)
    dicts = [{"image": i, "label": n} for i, n in zip(IMAGES, LABELS, strict=True)]
    same = data.python(dicts, test=0.2, validation=0.2)
    assert pairs.train.classes == ("x", "y", "z")
    np.testing.assert_array_equal(pairs.train.images, same.train.images)
    for source, message in [
        ("mymade:mak", "has no function 'mak'.*did you mean make"),
        ("mymade:nothing", "gave int"),
        ("nomodule:make", "No module named"),
        ("mymade", "package.module:function"),
        ([], "no examples"),
        ([(IMAGES[0], 0), (IMAGES[1][:2], 1)], "image 1 is uint8"),
        ([3], "example 0 must be a dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.python(source)


def table(names=None):
    """Digits as `datasets` writes them."""
    digits = data.load("digits", "train")
    cells = []
    for place in range(60):
        file = pictures.encode(pictures.picture(digits.images[place], "RGB", 9))
        cells.append({"bytes": file, "path": None})
    labels = digits.labels[:60].tolist()
    if names is None:
        labels = [f"digit {n}" for n in labels]
    made = pyarrow.table({"image": cells, "label": labels})
    if names is None:
        return made
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    text = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({"huggingface": text})


@pytest.mark.parametrize("names", [None, [f"n{n}" for n in range(10)]])
def test_parquet_and_arrow_become_splits(tmp_path, names):
    made = table(names)
    options = {"size": 6, "test": 0.2, "validation": 0.2, "data_dir": tmp_path / "c"}
    pyarrow.parquet.write_table(made, tmp_path / "all.parquet")
    one = data.huggingface(tmp_path / "all.parquet", **options)
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    with pyarrow.ipc.new_stream(saved / "data-00000-of-00001.arrow", made.schema) as to:
        to.write_table(made)
    other = data.huggingface(tmp_path / "saved", **options)
    for a, b in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert sum(map(len, one[:3])) == 60
    digits, whole = data.load("digits", "train"), decode.fit(6)
    for image, label, place in zip(
        one.train.images, one.train.labels, one.train.index, strict=True
    ):
        encoded = made["image"][int(place)].as_py()["bytes"]
        np.testing.assert_array_equal(image, whole(encoded, 0))
        assert one.train.classes[label].endswith(str(digits.labels[place]))
    (tmp_path / "saved" / "test").mkdir()
    pyarrow.parquet.write_table(made, tmp_path / "saved/test/0.parquet")
    assert len(data.huggingface(tmp_path / "saved", **options).test) == 60


def test_tables_that_do_not_fit_are_named(tmp_path, monkeypatch):
    options = {"size": 6, "data_dir": tmp_path / "cache"}
    with pytest.raises(FileNotFoundError, match="holds no .parquet"):
        data.huggingface(tmp_path, **options)
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [1], "y": [0]}), path)
    with pytest.raises(ValueError, match="no column 'label', but image, y"):
        data.huggingface(path, **options)
    with pytest.raises(ValueError, match="row 0 must hold an encoded image"):
        data.huggingface(path, label="y", **options)
    path.write_text("text")
    with pytest.raises(ValueError, match="t.parquet cannot be read"):
        data.huggingface(path, **options)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"jaxkd-distill\[huggingface\]"):
        data.huggingface(path, **options)
