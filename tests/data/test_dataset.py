"""Subsets, held-out slices, statistics and fingerprints."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxkd import data
from jaxkd.data import dataset as datasets, sources


def make(labels, classes=4):
    labels = np.asarray(labels, np.int32)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (len(labels), 3, 2, 2)).astype(np.uint8)
    index = np.arange(len(labels), dtype=np.int32)
    return data.Dataset.of_images(
        "d", "train", images, labels, index, tuple("abcdefgh"[:classes])
    )


def skewed():
    return make(np.repeat([0, 1, 2, 3], [5, 40, 60, 95]))


@given(n=st.integers(1, 200), seed=st.integers(0, 2**70))
@settings(max_examples=40, deadline=None)
def test_a_subset_has_n_different_examples_balanced_as_far_as_they_go(n, seed):
    whole = skewed()
    part = data.subset(whole, n, seed=seed)
    assert len(part.labels) == n == len(set(part.index))
    np.testing.assert_array_equal(part.images, whole.images[part.index])
    np.testing.assert_array_equal(part.labels, whole.labels[part.index])
    counts = np.bincount(part.labels, minlength=4)
    exhausted = counts == np.bincount(whole.labels)
    assert counts[~exhausted].max(initial=0) - counts[~exhausted].min(initial=n) <= 1
    assert counts[exhausted].max(initial=0) <= counts.max()


@pytest.mark.parametrize("balanced", [True, False])
def test_a_smaller_subset_is_contained_in_a_larger_one(balanced):
    parts = [
        set(data.subset(skewed(), n, seed=3, balanced=balanced).index.tolist())
        for n in (7, 20, 21, 150)
    ]
    assert all(small < large for small, large in itertools.pairwise(parts))


def test_an_unbalanced_subset_follows_the_frequencies():
    counts = np.mean(
        [
            np.bincount(data.subset(skewed(), 100, seed=s, balanced=False).labels)
            for s in range(50)
        ],
        axis=0,
    )
    # Hypergeometric: the mean of 50 draws of 100 from 200 has an error of at most
    # sqrt(100 * .475 * .525 * .5025 / 50) = 0.5; four of these are allowed.
    np.testing.assert_allclose(counts, [2.5, 20, 30, 47.5], atol=2.0)


def test_each_example_is_equally_likely_to_be_chosen():
    chosen = np.zeros(40)
    for seed in range(400):
        chosen[data.subset(make(np.arange(40) % 4), 20, seed=seed).index] += 1
    # Binomial(400, 1/2): mean 200, standard deviation 10.
    assert np.abs(chosen - 200).max() < 45
    assert 7 < chosen.std() < 13


def test_the_choice_is_the_one_written_down():
    """It must never change: results are published for it."""
    keys = [int(key) for key in datasets._shuffle_keys(np.arange(2, dtype=np.int32), 0)]
    # The first outputs of splitmix64 from the state 0, as in Vigna's reference.
    assert keys == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    chosen = data.subset(make(np.arange(200) % 4), 8, seed=0).index
    again = data.subset(make(np.arange(200) % 4), 8, seed=0).index
    np.testing.assert_array_equal(chosen, again)


def test_a_subset_of_a_subset_keeps_its_order():
    whole = make(np.arange(200) % 4)
    direct = data.subset(whole, 20, seed=5).index
    twice = data.subset(data.subset(whole, 100, seed=5), 20, seed=5).index
    np.testing.assert_array_equal(direct, twice)


def test_validation_is_a_balanced_tenth_and_the_rest_is_the_rest():
    whole = make(np.arange(400) % 4)
    held, rest = (sources.held_out(whole, s) for s in ("validation", "train_rest"))
    assert (held.split, rest.split) == ("validation", "train_rest")
    assert np.bincount(held.labels).tolist() == [10] * 4
    both = np.concatenate([held.index, rest.index])
    np.testing.assert_array_equal(np.sort(both), whole.index)


@pytest.mark.bad_input
@pytest.mark.parametrize("n", [0, 201, 2.0, True])
def test_a_subset_of_an_impossible_size_is_refused(n):
    with pytest.raises(ValueError, match="n must be"):
        data.subset(skewed(), n, seed=0)


def test_channel_statistics_are_those_of_all_pixels(monkeypatch):
    monkeypatch.setattr(datasets, "CHUNK", 7)  # several pieces, the last incomplete
    whole = skewed()
    mean, sd = data.channel_statistics(whole)
    pixels = (whole.images / 255.0).reshape(-1, 2)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sd, pixels.std(0), rtol=1e-6)
    assert mean.dtype == sd.dtype == np.float32


def test_constant_images_have_no_deviation():
    whole = skewed().replace(image=np.full((200, 3, 2, 2), 77, np.uint8))
    assert data.channel_statistics(whole)[1].tolist() == [0, 0]


def test_the_fingerprint_depends_on_each_array_and_on_nothing_else():
    whole = skewed()
    first = data.fingerprint(whole)
    assert first == data.fingerprint(whole.replace(name="other", split="other"))
    assert len(bytes.fromhex(first)) == hashlib.sha256().digest_size
    changed = [first]
    for name in ("image", "label", "index"):
        array = whole.columns[name].copy()
        array.flat[17] += 1
        changed.append(data.fingerprint(whole.replace(**{name: array})))
    images = whole.images
    changed.append(data.fingerprint(whole.replace(image=images[::-1])))
    changed.append(data.fingerprint(whole.replace(image=images.reshape(-1, 2, 3, 2))))
    assert len(set(changed)) == 6


BAD = [
    ("images must be uint8", lambda d: {"image": d.images.astype(np.int32)}),
    ("images must be uint8", lambda d: {"image": d.images[..., 0]}),
    ("must not be empty", lambda d: {k: v[:0] for k, v in d.columns.items()}),
    ("labels must be int32", lambda d: {"label": d.labels.astype(np.int64)}),
    ("one length, got .*'label': 199", lambda d: {"label": d.labels[:-1]}),
    ("one length", lambda d: {"index": d.index[:-1]}),
    ("one length", lambda d: {"teacher": np.zeros((60, 4), np.float32)}),
    (
        r"labels must be in \[0, 4\), got -1",
        lambda d: {"label": d.labels - np.int32(1)},
    ),
    (
        r"labels must be in \[0, 4\), got 1 to 4",
        lambda d: {"label": d.labels + np.int32(1)},
    ),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("message", "change"), BAD)
def test_arrays_that_do_not_fit_together_are_refused(message, change):
    whole = skewed()
    with pytest.raises(ValueError, match=message):
        data.on_device(whole.replace(**change(whole)))


def test_columns_are_of_any_type_and_stay_together():
    ids = np.arange(30).reshape(10, 3)
    texts = data.Dataset("texts", "train", {"ids": ids, "label": ids[:, 1:]})
    assert len(texts) == 10 and texts.index.tolist() == [*range(10)]
    part = data.subset(texts, 4, seed=0)
    np.testing.assert_array_equal(part.columns["ids"], ids[part.index])
    np.testing.assert_array_equal(part.labels, ids[part.index, 1:])
    assert set(data.on_device(part)) == {"ids", "label", "index"}
    other = texts.replace(ids=ids + 1, split="test")
    assert other.split == "test" and len(other.columns) == 3
    assert data.fingerprint(other) != data.fingerprint(texts)
    source = data.mapped(texts)
    read = source.read(np.array([3]), np.zeros(1, np.uint64))
    assert read["ids"].tolist() == [[9, 10, 11]]


@pytest.mark.parametrize(("split", "n"), [("train", 1297), ("test", 500)])
def test_the_embedded_digits(split, n):
    digits = data.load("digits", split)
    assert digits.images.shape == (n, 8, 8, 1) and digits.num_classes == 10
    np.testing.assert_array_equal(digits.index, np.arange(n))
    # Sixteen inked pixels of sixteen are white, none of them black.
    inked = digits.images / 255.0 * 16
    assert np.abs(inked - np.rint(inked)).max() < 16 / 510 + 1e-9
    assert set(np.rint(inked).astype(int).flat) == set(range(17))


def test_the_digits_are_divided_without_overlap():
    train, test = (data.load("digits", split) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [50] * 10
    rows = [d.images.reshape(len(d.labels), -1) for d in (train, test)]
    # The first image of the file, a zero, and its counts as UCI publishes them.
    zero = [0, 0, 5, 13, 9, 1, 0, 0]
    everything = np.rint(np.concatenate(rows) / 255.0 * 16)[:, :8].tolist()
    assert zero in everything
    assert len(np.unique(np.concatenate(rows), axis=0)) == 1797


def test_the_digits_validation_slice():
    train, held, rest = (
        data.load("digits", s) for s in ("train", "validation", "train_rest")
    )
    assert len(held.labels) == 130 and np.bincount(held.labels).tolist() == [13] * 10
    np.testing.assert_array_equal(held.images, train.images[held.index])
    assert sorted([*held.index, *rest.index]) == train.index.tolist()


def test_selected_classes_are_labelled_anew_in_the_order_of_the_names():
    digits = data.load("digits", "test")
    part = data.select_classes(digits, ["7", "3"])
    assert part.classes == ("7", "3") and len(part.images) == 100
    assert part.labels.dtype == np.int32
    for label, digit in enumerate((7, 3)):
        expected = digits.index[digits.labels == digit]
        np.testing.assert_array_equal(part.index[part.labels == label], expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["7", "ten"], "classes must be of digits's, 0, 1, .* got 'ten'"),
        (["7", "7"], "classes must be named, each once"),
        ([], "classes must be named, each once"),
    ],
)
def test_classes_that_cannot_be_selected_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        data.select_classes(data.load("digits", "test"), names)
