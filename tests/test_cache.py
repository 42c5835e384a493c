"""A stored teacher says what the live one says, or nothing at all."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import cache, data, distill, models, store as files, train
from jaxkd.cache import keep, store
from jaxkd.data import augment
from jaxkd.data.dataset import take
from jaxkd.types import Outputs
from tests import toys

teacher = distill.frozen(toys.teacher)
RANDOM = augment.chain(augment.flip(), augment.to_float())
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def variables():
    return toys.teacher_variables()


@pytest.fixture
def kept(variables, tmp_path):
    """A whole set of two chunks and more."""
    score(variables, path=tmp_path / "set")
    return tmp_path / "set"


def score(variables, dataset=None, view=toys.view, path=None, **knobs):
    dataset = toys.dataset() if dataset is None else dataset
    knobs = {"batch_size": 16, "chunk_size": 16, **knobs}
    return cache.score(teacher, variables, dataset, view=view, path=path, **knobs)


def load(path, variables, dataset=None, view=toys.view):
    dataset = toys.dataset() if dataset is None else dataset
    return cache.load(path, dataset, view=view, teacher=files.digest(variables))


def live(variables, dataset):
    images = jnp.asarray(dataset.images, jnp.float32) / 255
    return np.asarray(teacher(variables, {"image": images}).logits)


def rows(order):
    return take(toys.dataset(), np.asarray(order), "train")


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_cached_logits_are_the_live_ones(variables, tmp_path):
    path = tmp_path / "logits"
    for where in (None, path, path):
        found = train.cache_teacher(
            teacher, variables, toys.dataset(), view=toys.view, path=where
        )
        assert found.shape == (40, 5) and found.dtype == np.float32
        close(found, live(variables, toys.dataset()))
    assert isinstance(found, np.memmap)


def test_a_second_call_reads_the_files(variables, kept):
    stamps = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    again = score(variables, path=kept)
    close(again.fields["teacher"][:, 0], live(variables, toys.dataset()))
    assert isinstance(again.fields["teacher"], np.memmap)
    assert stamps == {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert set(stamps) >= {"manifest.json", "teacher.npy", "index.npy"}
    assert not [name for name in stamps if "chunk" in name or name.startswith(".")]
    assert not store.partial(kept).exists()


def test_what_is_kept_is_what_the_logits_say(variables, tmp_path):
    exact = live(variables, toys.dataset())
    half = score(variables, dtype="float16").fields["teacher"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half[:, 0], exact, rtol=1e-3, atol=1e-3)
    hard = score(variables, kind="hard", path=tmp_path / "hard").fields
    np.testing.assert_array_equal(hard["teacher_label"][:, 0], exact.argmax(-1))
    knobs = {"kind": "topk", "k": 2, "temperature": 3.0}
    top = score(variables, path=tmp_path / "topk", **knobs).fields
    close(top["teacher_top"][:, 0], -np.sort(-exact, -1)[:, :2])
    np.testing.assert_array_equal(
        top["teacher_top_index"][:, 0], np.argsort(-exact, -1)[:, :2]
    )
    total = np.log(np.exp(exact.astype(np.float64) / 3).sum(-1))
    close(top["teacher_logsumexp"][:, 0], total)


def test_the_shares_of_rounded_logits_are_at_most_one():
    logits = np.random.default_rng(0).normal(0, 30, (500, 1, 7)).astype(np.float32)
    kept = keep.reduce(logits, keep.kept("topk", 7, 1.0, "float16"))
    top, total = kept["teacher_top"], kept["teacher_logsumexp"]
    close(np.exp(top.astype(np.float64) - total[..., None]).sum(-1), 1)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4, -7e4])
def test_what_cannot_be_kept_is_refused(value):
    kept = keep.kept("soft", None, None, "float16")
    with pytest.raises(ValueError, match="float16 cannot keep"):
        keep.reduce(np.array([[0, value]], np.float32), kept)
    absent = keep.reduce(np.array([[0, -np.inf]], np.float32), kept)
    assert absent["teacher"][0, 1] == -np.inf


def test_part_of_the_data_in_any_order_finds_its_rows(variables, kept):
    order = [31, 4, 0, 39, 17]
    found = load(kept, variables, rows(order)).fields["teacher"][:, 0]
    close(found, live(variables, toys.dataset())[order])
    found = score(variables, rows(order[::-1]), path=kept).fields["teacher"][:, 0]
    close(found, live(variables, toys.dataset())[order[::-1]])
    whole = np.random.default_rng(0).permutation(40)
    found = load(kept, variables, rows(whole)).fields["teacher"][:, 0]
    close(found, live(variables, toys.dataset())[whole])


def _moved(order):
    """Images and labels in another order, under the old indices."""
    return rows(order).replace(index=np.arange(len(order), dtype=np.int32))


def _one_pixel():
    whole = toys.dataset()
    images = whole.images.copy()
    images[25, 1, 2, 0] ^= 1
    return whole.replace(image=images)


def _relabelled():
    whole = toys.dataset()
    labels = (whole.labels + (whole.index == 6)) % 5
    return whole.replace(label=labels.astype(np.int32))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "dataset, message",
    [
        (lambda: _moved(np.arange(40)[::-1]), "another order than their index says"),
        (lambda: _moved([1, 0, *range(2, 40)]), "2 of 40 .* another order"),
        (lambda: toys.dataset(seed=1), "changed, or is another data set"),
        (_one_pixel, "1 of 40 .* the first has index 25: the data was changed"),
        (_relabelled, "1 of 40 .* index 6: the data was changed"),
        (lambda: rows([3, 5, 3]), "3 occurs 2 times"),
        (
            lambda: rows([0, 1]).replace(index=np.array([0, 77], np.int32)),
            "1 of 2 examples were not scored, the first has index 77",
        ),
    ],
    ids=["reversed", "swapped", "other", "pixel", "label", "twice", "unknown"],
)
def test_data_that_is_not_the_scored_data_is_refused(variables, kept, dataset, message):
    with pytest.raises(ValueError, match=message):
        load(kept, variables, dataset())
    assert load(kept, variables)  # nothing was harmed


@pytest.mark.bad_input
def test_other_teachers_views_and_kinds_are_refused(variables, kept, tmp_path):
    other = toys.teacher_variables(seed=10)
    for ask in (lambda: load(kept, other), lambda: score(other, path=kept)):
        with pytest.raises(ValueError, match="scored by another teacher"):
            ask()
    darker = augment.chain(toys.view, augment.normalise([0.5] * 3, [0.2] * 3))
    with pytest.raises(ValueError, match="it shows the stored examples otherwise"):
        load(kept, variables, view=darker)
    with pytest.raises(ValueError, match='dtype was "float32"'):
        score(variables, path=kept, dtype="float16")
    with pytest.raises(ValueError, match='kind was "soft", is "hard"'):
        score(variables, path=kept, kind="hard")
    with pytest.raises(ValueError, match="inexact: the view is random"):
        load(kept, variables, view=RANDOM)
    louder = lambda v, batch: distill.Outputs(2 * teacher(v, batch).logits, {})
    with pytest.raises(ValueError, match="another network with the same variables"):
        cache.score(louder, variables, toys.dataset(), view=toys.view, path=kept)


@pytest.mark.bad_input
def test_replayed_views_are_told_apart(variables, tmp_path):
    path = tmp_path / "set"
    replayed = lambda seed, views: cache.replayed(RANDOM, seed=seed, views=views)
    score(variables, view=replayed(1, 2), path=path)
    with pytest.raises(ValueError, match="with seed 1, here 2 with seed 2"):
        load(path, variables, view=replayed(2, 2))
    with pytest.raises(ValueError, match="2 of each example .* here 3"):
        load(path, variables, view=replayed(1, 3))
    with pytest.raises(ValueError, match="here 1 with seed None"):
        load(path, variables)
    other = cache.replayed(augment.to_float(), seed=1, views=2)
    with pytest.raises(ValueError, match="it shows the stored examples otherwise"):
        load(path, variables, view=other)
    with pytest.raises(ValueError, match="use offline.score"):
        train.cache_teacher(teacher, variables, toys.dataset(), view=replayed(1, 2))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "file, harm, message",
    [
        ("teacher.npy", _truncate, "teacher.npy is damaged .*checksum differs"),
        ("teacher.npy", _flip, "teacher.npy is damaged .*checksum differs"),
        ("teacher.npy", pathlib.Path.unlink, "teacher.npy is damaged .*No such file"),
        ("index.npy", _flip, "index.npy is damaged"),
        ("probe_seen.npy", _flip, "probe_seen.npy is damaged"),
        ("manifest.json", _truncate, "manifest.json is damaged"),
        ("manifest.json", lambda p: _edit(p, format=1), "format 1, .* reads 2; read"),
        ("manifest.json", lambda p: _edit(p, views=2), "manifest.json was changed"),
        ("manifest.json", pathlib.Path.unlink, "no manifest.json; delete it"),
    ],
)
def test_damage_is_refused_and_nothing_is_repaired(
    variables, kept, file, harm, message
):
    harm(kept / file)
    after = {f.name: f.read_bytes() for f in kept.iterdir()}
    for ask in (lambda: load(kept, variables), lambda: score(variables, path=kept)):
        with pytest.raises(ValueError, match=message):
            ask()
    assert after == {f.name: f.read_bytes() for f in kept.iterdir()}
    assert not store.partial(kept).exists()


@pytest.mark.bad_input
def test_arguments_are_checked_before_anything_is_scored(variables, tmp_path):
    path = tmp_path / "set"
    for message, knobs in {
        "kind must be one of": {"kind": "logits"},
        "dtype must be one of": {"dtype": "int8"},
        "needs k and temperature": {"kind": "topk", "k": 2},
        "belong to kind": {"temperature": 2.0},
        "temperature must be finite and > 0": {
            "kind": "topk",
            "k": 2,
            "temperature": 0.0,
        },
        "chunk_size must be >= 1": {"chunk_size": 0},
        "inexact: the view is random": {"view": RANDOM},
        "0 occurs 2 times": {"dataset": rows([0, 0, 1])},
    }.items():
        with pytest.raises(ValueError, match=message):
            score(variables, path=path, **knobs)
    with pytest.raises(ValueError, match="nothing was stored at"):
        load(path, variables)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_where_it_was(variables, tmp_path, monkeypatch):
    path, scored = tmp_path / "set", []
    interrupted = [True]
    reduce = keep.reduce

    def watched(logits, kept):
        if len(scored) == 2 and interrupted:
            raise RuntimeError("stopped")
        scored.append(len(logits))
        return reduce(logits, kept)

    monkeypatch.setattr(keep, "reduce", watched)
    with pytest.raises(RuntimeError, match="stopped"):
        score(variables, path=path)
    assert not path.exists()
    with pytest.raises(ValueError, match="set.partial was begun, score again"):
        load(path, variables)
    for message, changes in {
        "teacher was": {"variables": toys.teacher_variables(seed=10)},
        "data was": {"dataset": toys.dataset(seed=1)},
        "chunk was": {"chunk_size": 8},
        "stored examples otherwise": {
            "view": augment.chain(toys.view, augment.normalise([0.5] * 3, [0.2] * 3))
        },
    }.items():
        with pytest.raises(ValueError, match=message):
            score(**{"variables": variables, "path": path, **changes})
    interrupted.clear()
    # A chunk that does not read is computed again, a whole one is not.
    _truncate(store.partial(path) / "chunk-000000.npz")
    found = score(variables, path=path).fields["teacher"][:, 0]
    assert len(scored) == 4  # two before, the damaged one, the missing one
    close(found, live(variables, toys.dataset()))


def test_two_processes_do_not_write_one_set(tmp_path):
    path = tmp_path / "set"

    def compute(number):
        with pytest.raises(ValueError, match="another process is working in"):
            store.fill(path, {}, compute, 1, fixed={})
        return {"a": np.arange(3)}

    assert store.fill(path, {}, compute, 1, fixed={})
    np.testing.assert_array_equal(store.open_arrays(path)[1]["a"], np.arange(3))


SWEEP = """
    import os, pathlib, shutil, signal, sys, warnings
    import numpy as np
    from jaxkd.cache import store

    warnings.simplefilter("ignore")  # forking beside JAX's threads, which are idle
    root = pathlib.Path(sys.argv[1])
    plan, fixed = {"a": 1}, {"index": np.arange(7)}
    compute = lambda i: {"x": np.arange(4.0) + 10 * i, "y": np.full((4, 2), i)}

    def fill(path):
        return store.fill(path, plan, compute, 2, fixed=fixed)

    # The calls by which files change; a buffered write is lost unless it is flushed.
    steps = {"open", "write", "flush", "fsync", "replace", "rename", "unlink", "mkdir"}

    def killed_at(n, path):
        left = [n]
        def watch(frame, event, function):
            if event == "c_call" and function.__name__ in steps:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        if not (child := os.fork()):
            sys.setprofile(watch)
            fill(path)
            os._exit(0)
        return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    n, kills = 1, 0
    while True:
        path = root / str(n)
        died = killed_at(n, path)
        if died:
            kills += 1
            if path.exists():
                store.open_arrays(path)  # only ever whole
            else:
                killed_at(n // 2, path)  # and once more, on the way back
        if not store.exists(path):
            fill(path)
        _, arrays = store.open_arrays(path)
        np.testing.assert_array_equal(
            arrays["x"], np.concatenate([compute(i)["x"] for i in range(2)])
        )
        assert arrays["y"].shape == (8, 2) and len(arrays["index"]) == 7
        names = sorted(f.name for f in path.iterdir())
        assert names == ["index.npy", "manifest.json", "x.npy", "y.npy"], names
        assert not store.partial(path).exists()
        shutil.rmtree(path)
        if not died:
            break
        n += 1
    print(kills)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_moment_it_is_whole_or_not_there(tmp_path):
    """SIGKILL before each single step on the file system, and again while resuming."""
    code = textwrap.dedent(SWEEP)
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) > 60, out.stdout


SCORE = """
    import sys, time
    import numpy as np
    from jaxkd import cache, distill
    from tests import toys

    asked = [0]
    kept = cache.keep.reduce
    def slowly(logits, which):
        asked[0] += 1
        if asked[0] > 2:
            time.sleep(600)  # the parent kills it here
        return kept(logits, which)
    cache.keep.reduce = slowly
    cache.score(
        distill.frozen(toys.teacher), toys.teacher_variables(), toys.dataset(),
        view=toys.view, path=sys.argv[1], batch_size=16, chunk_size=8,
    )
"""


@pytest.mark.bad_input
def test_what_others_put_where_the_chunks_would_lie_is_refused(variables, tmp_path):
    work = store.partial(tmp_path / "set")
    work.mkdir()
    for name in ("chunk-000000.npz", "label.npy", "notes.txt"):
        (work / name).write_bytes(b"mine")
        with pytest.raises(ValueError, match=r"set\.partial was not begun by jaxkd"):
            score(variables, path=tmp_path / "set")
        assert [path.name for path in work.iterdir()] == [name]
        assert (work / name).read_bytes() == b"mine"
        (work / name).unlink()
    score(variables, path=tmp_path / "set")  # an empty folder is filled


def test_a_killed_scoring_run_resumes(variables, tmp_path, monkeypatch):
    path = tmp_path / "set"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCORE), str(path)], cwd=ROOT
    )
    third = store.partial(path) / "chunk-000001.npz"
    deadline = time.monotonic() + 240
    while not third.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert third.exists() and not path.exists()
    computed, compute = [], keep.reduce
    monkeypatch.setattr(
        keep, "reduce", lambda *args: computed.append(1) or compute(*args)
    )
    found = score(variables, path=path, chunk_size=8).fields["teacher"][:, 0]
    assert len(computed) == 3  # of five chunks two were whole
    close(found, live(variables, toys.dataset()))


@pytest.mark.slow
@pytest.mark.skipif("JAXKD_ARCHIVES" not in os.environ, reason="needs CIFAR-10")
def test_cifar10_is_scored_stored_and_found(tmp_path):
    """Real data in several chunks: a part of it finds what the live teacher says."""
    archives = os.environ["JAXKD_ARCHIVES"]
    whole = data.load("cifar10", "train", archives=archives)
    net = models.cnn([[8], [8]], hidden=[], classes=10)
    its = net.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    knobs = {"view": augment.to_float(), "path": tmp_path / "set"}
    cache.score(distill.frozen(net), its, whole, **knobs)
    some = data.subset(whole, 300, seed=0)
    teacher = files.digest(its)
    path, view = knobs["path"], knobs["view"]
    found = cache.load(path, some, view=view, teacher=teacher).fields["teacher"]
    batch = view(jax.random.key(0), data.on_device(some))
    close(found[:, 0], distill.frozen(net)(its, batch).logits)


def test_scores_of_tokens_are_kept_by_position(tmp_path):
    """Logits `[n, sequence, vocabulary]`, and another view of other columns refused."""
    ids = np.random.default_rng(0).integers(0, 7, (20, 4))
    texts = data.Dataset("texts", "train", {"ids": ids, "label": ids})
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
    teacher = lambda variables, batch: Outputs(variables[batch["ids"]], {})
    view = augment.chain()
    how = {"view": view, "path": tmp_path / "scores", "batch_size": 6}
    logits = cache.cache_teacher(teacher, weights, texts, **how)
    np.testing.assert_array_equal(logits, np.asarray(weights)[ids])
    again = cache.cache_teacher(teacher, weights, texts, **how)
    np.testing.assert_array_equal(again, logits)
    part = data.subset(texts, 7, seed=1)
    again = cache.cache_teacher(teacher, weights, part, **how)
    np.testing.assert_array_equal(again, logits[part.index])
    shift = augment.View(lambda key, b: {**b, "ids": (b["ids"] + 1) % 7}, random=False)
    with pytest.raises(ValueError, match="another view"):
        cache.cache_teacher(teacher, weights, texts, **{**how, "view": shift})
    with pytest.raises(ValueError, match="the data was changed"):
        other = texts.replace(ids=(ids + 1) % 7)
        cache.cache_teacher(teacher, weights, other, **how)


@pytest.mark.bad_input
def test_other_scores_under_the_same_variables_are_told_by_how_much(variables, kept):
    coarse = lambda v, batch: distill.Outputs(teacher(v, batch).logits + 0.25, {})
    match = (
        r"by up to 0\.25 in the first \d+ examples .* variables are the same.*another "
        r"network.*jax_default_matmul_precision.*score again under another path"
    )
    with pytest.raises(ValueError, match=match):
        cache.score(coarse, variables, toys.dataset(), view=toys.view, path=kept)


def test_the_difference_from_what_is_kept_is_that_of_the_logits():
    logits = np.float32([[[1.0, -np.inf, 3.0]], [[2.0, 5.0, -1.0]]])
    louder = logits + np.float32([[[0.5, 0, 0]], [[0, 0, -2.0]]])
    for kind, more, expected in (
        ("soft", {}, 2.0),
        ("topk", {"k": 2, "temperature": 1.0}, 0.5),
        ("hard", {}, 0.0),
    ):
        kept = keep.kept(kind, more.get("k"), more.get("temperature"), "float32")
        if kind == "topk":
            few = keep.reduce(logits[:1, :, [0, 2]], kept)
            found = keep.compare(kept, few, louder[:1, :, [0, 2]])
        else:
            found = keep.compare(kept, keep.reduce(logits, kept), louder)
        assert found == (expected == 0.0, expected), kind
    turned = keep.compare(kept, {"teacher_label": np.array([[0], [1]])}, logits)
    assert turned == (False, 2.0)  # class 0 is 2 below class 2
