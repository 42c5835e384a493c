"""The store: whole or not there after any kill; nothing of others is lost."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import store

ROOT = pathlib.Path(__file__).parents[1]


def fill(text):
    def write(folder):
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text(text)
        (folder / "c").write_text(text)

    return write


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# A kill at each file operation of a write, in turn: the audit hook counts them.
KILLED = """
    import json, os, pathlib, sys
    from jaxkd import store
    from tests.test_store import fill
    folder = pathlib.Path(sys.argv[1])
    EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}
    left, armed = [0], [False]

    def hook(event, arguments):
        if armed[0] and event in EVENTS:
            left[0] -= 1
            if not left[0]:
                os._exit(9)

    sys.addaudithook(hook)

    def killed(n, work):
        child = os.fork()
        if not child:
            left[0], armed[0] = n, True
            work()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    seen = {"dir": [], "file": []}
    for kind in seen:
        path = folder / kind
        new = {
            "dir": lambda text: store.write_dir(path, fill(text)),
            "file": lambda text: store.write_file(path, text.encode()),
        }[kind]
        def read():
            if kind == "file":
                return path.read_text()
            assert store.damage(path) is None, store.damage(path)
            return (path / "a" / "b").read_text()
        new("old")
        n = 1
        while killed(n, lambda: new("new")):
            seen[kind].append(read())
            new("old")
            assert read() == "old"
            names = sorted(p.name for p in folder.iterdir() if not p.name in seen)
            assert not names, (n, names)
            n += 1
        assert read() == "new"
    print(json.dumps(seen))
"""


def test_after_a_kill_at_any_point_the_old_or_the_new_is_there_and_no_rubbish(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for kind, texts in json.loads(ran.stdout).items():
        assert set(texts) == {"old", "new"}, kind
        assert texts == sorted(texts, reverse=True), kind  # never back to the old


def test_a_refused_rename_loses_neither(tmp_path, monkeypatch):
    path, real = tmp_path / "a", os.rename
    store.write_dir(path, fill("old"))

    def refuse(source, target):
        if pathlib.Path(target) == path:
            raise OSError(5, "rename refused")
        real(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(store.os, "rename", refuse)
        with pytest.raises(OSError, match=f"rename refused.*{path}"):
            store.write_dir(path, fill("new"))
        assert not path.exists()
    assert store.damage(path) is None and (path / "c").read_text() == "old"
    store.write_dir(path, fill("new"))
    assert names(tmp_path) == ["a"] and (path / "c").read_text() == "new"


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    def write_and_clean(folder):
        store.clean(tmp_path)
        fill("new")(folder)

    store.write_dir(tmp_path / "a", write_and_clean)
    assert store.damage(tmp_path / "a") is None and names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", [store.remove_dir, lambda p: store.write_dir(p, id)])
def test_directories_of_others_are_neither_replaced_nor_removed(tmp_path, call):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="mine was not written by jaxkd"):
        call(path)
    assert names(path) == ["manifest.json"]
    with pytest.raises(ValueError, match=r"manifest.json was not written by jaxkd"):
        call(path / "manifest.json")


def test_an_empty_directory_may_become_ours_and_what_is_ours_may_go(tmp_path):
    (tmp_path / "a").mkdir()
    store.write_dir(tmp_path / "a", fill("x"))
    assert store.is_ours(tmp_path / "a")
    (tmp_path / "a" / store.MANIFEST).write_text("")  # damaged is still ours
    assert "cannot be read" in store.damage(tmp_path / "a")
    store.remove_dir(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_directory_is_filled_by_calls_of_one_identity(tmp_path):
    path, wanted = tmp_path / "a", store.identity(seed=0, rate=0.1)
    assert store.open_dir(path, wanted) == ""
    (path / "result").write_text("1")
    assert store.open_dir(path, wanted) == ""
    assert store.open_dir(path, {**wanted, "seed": 1}) == "seed was 0, is 1"
    assert (path / "result").read_text() == "1"
    for content in ("", "[]", '{"identity": 3}'):
        (path / store.MANIFEST).write_text(content)
        assert "damaged" in store.open_dir(path, wanted)
    store.remove_dir(path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a").touch()
    with pytest.raises(ValueError, match="theirs was not written by jaxkd"):
        store.open_dir(tmp_path / "theirs", wanted)


def test_what_is_set_aside_is_all_there(tmp_path):
    for text in ("1", "2"):
        (tmp_path / "a").write_text(text)
        assert store.set_aside(tmp_path / "a").read_text() == text
    assert names(tmp_path) == ["a.aside-1", "a.aside-2"]


def test_a_failed_write_names_the_file_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    store.write_json(path, {"a": 1})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    for call in (
        lambda: store.write_json(path, {"a": 2}),
        lambda: store.append_line(tmp_path / "a.jsonl", {}),
        lambda: store.write_dir(tmp_path / "a.dir", fill("x")),
    ):
        with pytest.raises(OSError, match=r"No space left.*a\.(json|jsonl|dir)"):
            call()
    assert store.read_json(path, "") == {"a": 1}
    assert names(tmp_path) == ["a.json", "a.jsonl"]


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"[1]", b"3", b"{", b"\xff{}", b"[" * 10**5])
def test_json_of_the_wrong_type_is_refused_with_the_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged.*; delete it"):
        store.read_json(tmp_path / "a.json", "delete it")


def test_lines_come_back_and_a_torn_last_one_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"a": 1.5}, {"b": [1, 2]}]
    store.append_line(path, rows[0])
    store.append_line(path, {"b": np.array([1, 2])})
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"torn')
    assert store.read_lines(path) == (rows, size)
    path.write_bytes(b'{"a": 1}\n\xff\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is damaged"):
        store.read_lines(path)


def test_only_one_has_the_lock(tmp_path):
    for path in (tmp_path, tmp_path / "lock"):
        busy = f"another process is working in {path}"
        with (
            store.lock(path),
            pytest.raises(ValueError, match=busy),
            store.lock(path),
        ):
            pytest.fail("two have it")
        with store.lock(path):
            pass


def test_a_digest_tells_values_types_shapes_and_paths_apart():
    trees = [
        {"a": np.zeros(3)},
        {"b": np.zeros(3)},
        {"a": np.zeros((3, 1))},
        {"a": np.zeros(3, np.float32)},
        {"a": np.array([0.0, 0.0, -0.0])},
        {"a": {"a": np.zeros(3)}},
        {"a": jax.random.key(0)},
        {"a": jax.random.key(1)},
        {},
    ]
    assert len({store.digest(tree) for tree in trees}) == len(trees)
    assert store.digest({"a": jnp.zeros(3, jnp.float32)}) == store.digest(trees[3])
    assert store.digest({"x": 1, "a": 2}) == store.digest({"a": 2, "x": 1})


def test_identities_are_compared_as_the_file_has_them(tmp_path):
    wanted = store.identity(seed=np.int64(3), widths=(1, 2), weights=np.zeros(2))
    store.write_json(tmp_path / "a", wanted)
    found = store.read_json(tmp_path / "a", "")
    assert store.differences(found, wanted) == ""
    other = store.identity(seed=4, widths=(1, 2), weights=np.zeros(2))
    with pytest.raises(ValueError, match="run: seed was 3, is 4; name another path"):
        store.require_same(tmp_path / "a", found, other)
    assert "epochs was not recorded, is 1" in store.differences({}, {"epochs": 1})
    assert "epochs was 1, is not recorded" in store.differences({"epochs": 1}, {})
    for odd in (object(), float("nan"), {1, 2}):
        with pytest.raises(ValueError, match="fit for JSON"):
            store.identity(odd=odd)


def test_a_folder_with_a_file_of_our_name_is_not_ours(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / store.MANIFEST).write_text('{"my": "settings"}')
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by jaxkd"):
        store.write_dir(tmp_path / "mine", lambda new: None)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_what_a_link_points_to_is_replaced(tmp_path):
    fill = lambda text: lambda new: (new / "a").write_text(text)
    store.write_dir(tmp_path / "disk", fill("old"))
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store.write_dir(tmp_path / "link", fill("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "a").read_text() == "new"


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the working directory"):
        store.write_dir(".", lambda new: None)


@pytest.mark.parametrize("inside", ["notes.txt", "a/notes.txt"])
def test_files_that_others_put_into_our_directory_are_not_lost(tmp_path, inside):
    path = tmp_path / "ours"
    store.write_dir(path, fill("old"))
    assert store.foreign(path) == []
    (path / inside).write_text("mine")
    assert store.foreign(path) == [inside]
    for call in (store.remove_dir, lambda p: store.write_dir(p, fill("new"))):
        with pytest.raises(ValueError, match=rf"did not write \({inside}\).*move them"):
            call(path)
    said = []
    store.make_way(path, said.append)
    store.write_dir(path, fill("new"))
    assert (tmp_path / "ours.aside-1" / inside).read_text() == "mine"
    assert "it is now ours.aside-1" in said[0]
    assert (path / "c").read_text() == "new" and store.damage(path) is None


def test_a_file_put_in_while_the_directory_is_written_is_not_lost(tmp_path):
    path = tmp_path / "ours"
    store.write_dir(path, fill("old"))

    def slowly(new):
        fill("new")(new)
        (path / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match="notes.txt"):
        store.write_dir(path, slowly)
    assert (path / "notes.txt").read_text() == "mine" and names(tmp_path) == ["ours"]
