"""Checkpoints: whole or not there, found out when damaged, beside the training."""

import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import checkpoint, store


def state(seed=0):
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (3, 2))}}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(seed),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "nothing": {},
    }


def same(a, b):
    def leaf(x, y):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(leaf, a, b)


def test_what_is_written_comes_back_bit_for_bit_in_its_containers(tmp_path):
    checkpoint.write(tmp_path / "a", state(), {"epoch": 3})
    found = checkpoint.read(tmp_path / "a")
    assert found.meta == {"epoch": 3}
    same(checkpoint.like(found.tree, jax.eval_shape(state)), state())
    assert checkpoint.damage(tmp_path / "a") is None


def test_without_a_template_shapes_are_those_of_the_file(tmp_path):
    checkpoint.write(tmp_path / "a", state(), {})
    kernel = checkpoint.read(tmp_path / "a").tree["params"]["layer"]["kernel"]
    assert kernel.shape == (3, 2)


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_any_byte_changed_or_file_missing_is_found_out(tmp_path):
    path = tmp_path / "a"
    checkpoint.write(path, state(), {"epoch": 3})
    for file in files_of(path):
        content = file.read_bytes()
        for broken in (content[:-1], content + b"x", content[:-1] + b"\0"):
            if broken == content or broken == content.rstrip(b"\n"):
                continue  # without its last newline a JSON file says the same
            file.write_bytes(broken)
            assert checkpoint.damage(path) is not None, (file, broken[-20:])
        file.unlink()
        assert checkpoint.damage(path) is not None, file
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.read(path)
        file.write_bytes(content)
    assert checkpoint.damage(path) is None


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a"
    checkpoint.write(path, state(0), {"n": 0})

    def full(where, tree):
        pathlib.Path(where).mkdir()
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(checkpoint.trees, "save_data", full)
    with pytest.raises(OSError, match="could not be written.*no space left"):
        checkpoint.write(path, state(1), {"n": 1})
    assert checkpoint.read(path).meta == {"n": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_newest_whole_one_is_found_with_a_warning_for_others(tmp_path):
    for step in (1, 2, 10):
        checkpoint.write(tmp_path / f"{step:06d}", state(step), {"step": step})
    (tmp_path / ".partial-000011").mkdir()
    assert checkpoint.newest(tmp_path, pytest.fail).meta["step"] == 10
    (tmp_path / "000010" / "meta.json").write_text("{}")
    warnings = []
    assert checkpoint.newest(tmp_path, warnings.append).meta["step"] == 2
    assert len(warnings) == 1 and "meta.json has changed" in warnings[0]
    odd = checkpoint.newest(
        tmp_path, warnings.append, wanted=lambda meta: meta["step"] % 2
    )
    assert odd.meta["step"] == 1
    assert checkpoint.newest(tmp_path / "none", pytest.fail) is None


def test_a_refused_rename_loses_neither_the_old_nor_the_directory(
    tmp_path, monkeypatch
):
    path, real = tmp_path / "final", store.os.rename
    checkpoint.write(path, {"a": np.zeros(3)}, {"n": 1})

    def refuse(source, target):
        if pathlib.Path(target) == path:
            raise OSError("rename refused")
        real(source, target)

    with monkeypatch.context() as broken, pytest.raises(OSError, match="refused"):
        broken.setattr(store.os, "rename", refuse)
        checkpoint.write(path, {"a": np.ones(3)}, {"n": 2})
    assert checkpoint.read(path).meta == {"n": 1}  # it is looked for where it was put
    checkpoint.write(path, {"a": np.ones(3)}, {"n": 3})
    assert checkpoint.read(path).meta == {"n": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: checkpoint.save(path, {"a": np.ones(3)}),
        lambda path: checkpoint.write(path, {"a": np.ones(3)}, {}),
    ],
)
def test_a_directory_of_others_is_never_replaced(tmp_path, write):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis was not written by jaxkd"):
        write(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file was not written by jaxkd"):
        write(tmp_path / "file")
    for _ in range(2):
        write(tmp_path / "new")
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "new")["a"], np.ones(3))


def test_folders_of_others_are_no_checkpoints(tmp_path):
    for name in ("2023", "2024", "000007", "²"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_text("years of work")
    with checkpoint.writer(tmp_path, keep=1) as saving:
        for step in (1, 2):
            saving.save(step, {"a": np.ones(3)}, {})
            saving.wait()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["000002", "000007", "2023", "2024", "²"]
    assert checkpoint.newest(tmp_path, pytest.fail).meta["step"] == 2
    said: list[str] = []
    checkpoint.clear_after(tmp_path, 1, 7, said.append)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["000007.aside-1", "2023", "2024", "²"]
    assert len(said) == 1 and "it is now 000007.aside-1" in said[0]
    assert checkpoint.newest(tmp_path, pytest.fail) is None


@pytest.mark.bad_input
def test_loading_checks_every_byte_and_refuses_what_is_no_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "a", {"a": np.arange(100.0)})
    file = max((tmp_path / "a" / "data").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"a is damaged: .*{file.name} has changed"):
        checkpoint.load(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="b is no checkpoint: it has no jaxkd.json"):
        checkpoint.load(tmp_path / "b")


def test_what_orbax_alone_wrote_is_read(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as theirs:
        theirs.save(tmp_path / "a", {"a": np.arange(3.0)})
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "a")["a"], np.arange(3.0))


@pytest.mark.bad_input
def test_another_structure_shape_or_type_is_refused():
    tree = checkpoint.as_dicts(state())
    template = jax.eval_shape(state)
    with pytest.raises(ValueError, match="differ at 'extra'"):
        checkpoint.like(tree, {**template, "extra": template["half"]})
    wrong = {**template, "half": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}
    with pytest.raises(ValueError, match="half is bfloat16 .3,. .*expected .* .4,"):
        checkpoint.like(tree, wrong)
    wrong = {**template, "half": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match="half"):
        checkpoint.like(tree, wrong)
    with pytest.raises(FileNotFoundError):
        checkpoint.read("/nowhere/at/all")


def steps(folder):
    return [int(p.name) for p in sorted(folder.iterdir())]


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.3}
    with checkpoint.writer(tmp_path, keep=2, best=True) as saving:
        for step, score in scores.items():
            saving.save(step, {"a": jnp.full(2, step)}, {}, score=score)
            saving.wait()
    assert steps(tmp_path) == [2, 4, 5]  # of two equal ones the first
    assert checkpoint.read(tmp_path / "000002").meta["score"] == 0.9
    with checkpoint.writer(tmp_path, keep=1, best=True) as saving:
        saving.save(6, {"a": jnp.zeros(2)}, {}, score=0.5)
    assert steps(tmp_path) == [2, 6]


def test_training_does_not_wait_and_neither_last_nor_best_is_left_out(
    tmp_path, monkeypatch
):
    go, real, written = threading.Event(), checkpoint.write, []

    def slow(path, tree, meta):
        go.wait(60)
        written.append(meta["step"])
        real(path, tree, meta)

    monkeypatch.setattr(checkpoint.whole, "write", slow)
    with checkpoint.writer(tmp_path, keep=9, best=True) as saving:
        for step in range(1, 21):  # none of these returns later than at once
            saving.save(step, {"a": jnp.full(2, step)}, {}, score=-abs(step - 7))
        go.set()
    assert written[-1] == 20 and 7 in written
    assert len(written) <= 4  # the first, and what waited
    np.testing.assert_array_equal(
        checkpoint.read(tmp_path / "000007").tree["a"], np.full(2, 7)
    )


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    array, rows = np.ones(3), [1]
    with checkpoint.writer(tmp_path) as saving:
        saving.save(1, {"a": array}, {"rows": rows})
        array += 1  # as a donated buffer might
        rows.append(2)
    found = checkpoint.read(tmp_path / "000001")
    np.testing.assert_array_equal(found.tree["a"], np.ones(3))
    assert found.meta["rows"] == [1]


def test_a_failure_is_told_once_and_earlier_ones_stay(tmp_path, monkeypatch):
    real = checkpoint.trees.save_data

    def full(path, tree):
        if int(tree["a"][0]) == 2:
            raise OSError(28, "No space left on device")
        real(path, tree)

    monkeypatch.setattr(checkpoint.trees, "save_data", full)
    with (
        pytest.raises(OSError, match="No space left"),
        checkpoint.writer(tmp_path, keep=2) as saving,
    ):
        saving.save(1, {"a": jnp.full(2, 1)}, {})
        saving.wait()
        saving.save(2, {"a": jnp.full(2, 2)}, {})
        saving.wait()
        pytest.fail("it goes on")
    assert steps(tmp_path) == [1]
    assert checkpoint.read(tmp_path / "000001").meta["step"] == 1


def test_a_checkpoint_with_a_file_of_others_is_renamed_not_removed(tmp_path):
    with (
        pytest.warns(UserWarning, match=r"notes.txt.*it is now 000001.aside-1"),
        checkpoint.writer(tmp_path, keep=1) as saving,
    ):
        saving.save(1, {"a": jnp.ones(1)}, {})
        saving.wait()
        (tmp_path / "000001" / "notes.txt").write_text("mine")
        saving.save(2, {"a": jnp.ones(1)}, {})
    assert (tmp_path / "000001.aside-1" / "notes.txt").read_text() == "mine"
    assert [p.name for p in checkpoint.folders.steps(tmp_path)] == ["000002"]
