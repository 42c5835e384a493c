"""A decoded split is written whole, read back mapped, and never trusted blindly."""

import json
import multiprocessing

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import cache


def digits(split="test"):
    return data.load("digits", split)


@pytest.fixture
def where(tmp_path):
    return cache.folder(tmp_path, "digits", "test")


def write(where, dataset=None):
    cache.write(where, dataset or digits(), official_splits=("train", "test"))


def test_what_is_read_is_what_was_written_and_mapped(where):
    write(where)
    back = cache.read(where)
    for name in cache.ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(digits(), name))
    assert (back.name, back.split) == (
        digits().name,
        digits().split,
    ) and back.classes == digits().classes
    assert isinstance(back.images, np.memmap) and back.images.mode == "r"
    assert cache.official_splits(where.parents[2], "digits") == ["train", "test"]


def test_nothing_there_is_none(where):
    assert cache.read(where) is None
    assert cache.official_splits(where, "digits") is None


def test_only_the_finished_folder_is_left(where):
    write(where)
    write(where)
    assert [path.name for path in where.parent.iterdir()] == ["test"]


@pytest.mark.parametrize("file", [f"{name}.npy" for name in cache.ARRAYS])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "empty"])
def test_a_damaged_file_is_noticed(where, file, damage):
    write(where)
    path = where / file
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "changed":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged and will be decoded again"):
        assert cache.read(where) is None
    write(where)
    assert cache.read(where) is not None


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0}', "[]"])
def test_a_damaged_record_is_noticed(where, text):
    write(where)
    (where / cache.RECORD).write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.read(where) is None


def test_a_crash_while_writing_leaves_nothing_that_is_read(where, monkeypatch):
    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.json, "dumps", crash)
    with pytest.raises(KeyboardInterrupt):
        write(where)
    assert cache.read(where) is None and not list(where.parent.iterdir())


def test_labels_out_of_range_are_not_written(where):
    wrong = digits().replace(classes=tuple("012345678"))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 9\), got 0 to 9"):
        write(where, wrong)
    assert not where.exists()


def _repeat(where, barrier, failures):
    barrier.wait()
    try:
        for _ in range(15):
            write(where)
            assert cache.read(where) is not None
    except Exception as error:
        failures.put(repr(error))
        raise


def test_two_processes_that_write_at_once_leave_a_whole_split(where):
    spawn = multiprocessing.get_context("spawn")
    barrier, failures = spawn.Barrier(2), spawn.Queue()
    both = [
        spawn.Process(target=_repeat, args=(where, barrier, failures)) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0], failures.get()
    assert data.fingerprint(cache.read(where)) == data.fingerprint(digits())
    assert [path.name for path in where.parent.iterdir()] == ["test"]


def test_the_fingerprint_of_a_cached_split_comes_from_its_record(where):
    write(where)
    back, expected = cache.read(where), data.fingerprint(digits())
    assert data.fingerprint(back) == expected
    record = json.loads((where / cache.RECORD).read_text())
    record["arrays"]["images"]["digest"] = "0" * 64
    (where / cache.RECORD).write_text(json.dumps(record))
    assert data.fingerprint(back) != expected, "it hashed the images again"
    # Whatever is not the whole mapped file is hashed, not looked up.
    for images in (np.array(back.images), back.images[::-1], back.images[1:]):
        view, copy = back.replace(image=images), np.array(images)
        assert data.fingerprint(view) == data.fingerprint(view.replace(image=copy))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAXKD_DATA": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/jaxkd"),
        ({"HOME": "/c"}, "/c/.cache/jaxkd"),
        ({"JAXKD_DATA": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
    ],
)
def test_where_data_is_kept(monkeypatch, variables, expected):
    for name in ("JAXKD_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache.default_data_dir()) == expected
