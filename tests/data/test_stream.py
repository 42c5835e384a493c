"""Reading in a fixed order, shared among readers and threads, ahead of the consumer."""

import io
import threading
import time

import jax
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import batches, decode, stream
from jaxkd.data.dataset import Dataset

KEY = jax.random.key(3)
N, SIZE = 40, 8


def words(draws):
    """JAX keeps 32 bits of an integer."""
    return draws.view(np.uint32).reshape(-1, 2)


def counting(n=N):
    """A source whose image is its position and what was drawn for it."""

    def read(positions, draws):
        image = np.column_stack([positions.astype(np.uint32), words(draws)])
        return {"image": image, "label": positions.astype(np.int32)}

    return stream.Source("counting", n, ("a",), read, str)


class Part(stream.Stream):
    """A reader of several, as if this were one of several processes."""

    part = (0, 1)

    def put(self, batch):
        return batch


def all_of(source, *, epochs, part=(0, 1), start=(0, 0), **how):
    one = Part(source, **{"batch_size": SIZE, **how})
    object.__setattr__(one, "part", part)
    with stream.training(one, KEY, epochs=epochs, start=start) as feed:
        return list(iter(feed.take, None))


def test_an_epoch_is_the_one_of_resident_training():
    # train.fit folds the epoch into the key, train.make_epoch splits what comes out.
    for epoch in (0, 5):
        order_key, view_key = jax.random.split(jax.random.fold_in(KEY, epoch))
        expected = batches.epoch(order_key, N, SIZE)
        found = stream.order(KEY, epoch, N, SIZE)
        np.testing.assert_array_equal(found, expected)
        of_step = stream.view_key(KEY, np.int32(epoch), np.int32(2), 5)
        assert of_step == jax.random.split(view_key, 5)[2]
    assert sorted(found.ravel()) == list(range(N))
    assert (found != stream.order(KEY, 4, N, SIZE)).any()
    assert (found != stream.order(jax.random.key(4), 5, N, SIZE)).any()


@pytest.mark.parametrize("readers", [2, 4])
def test_readers_together_read_what_one_reads(readers):
    whole = all_of(counting(), epochs=2)
    parts = [
        all_of(counting(), epochs=2, part=(which, readers)) for which in range(readers)
    ]
    assert len(whole) == 10 and {len(part) for part in parts} == {10}
    for step, expected in enumerate(whole):
        for name in expected:
            rows = [part[step][name] for part in parts]
            assert all(len(row) == SIZE // readers for row in rows)
            np.testing.assert_array_equal(np.concatenate(rows), expected[name])


@pytest.mark.parametrize("workers", [1, 3, 11])
def test_threads_change_nothing(workers):
    slow = counting()

    def read(positions, draws):
        time.sleep(1e-4 * (positions[0] % 5))  # so that parts end out of order
        return slow.read(positions, draws)

    found = all_of(slow._replace(read=read), epochs=2, workers=workers, depth=3)
    jax.tree.map(np.testing.assert_array_equal, found, all_of(slow, epochs=2))


@pytest.mark.parametrize("start", [(0, 0), (0, 3), (1, 0), (1, 4), (2, 0)])
def test_going_on_anywhere_is_going_on(start):
    whole, (epoch, step) = all_of(counting(), epochs=2), start
    jax.tree.map(
        np.testing.assert_array_equal,
        all_of(counting(), epochs=2, start=start),
        whole[5 * epoch + step :],
    )


def test_draws_depend_on_seed_epoch_and_example_alone():
    positions = np.arange(N, dtype=np.int32)
    seed = stream.seed_of(KEY)
    drawn = stream.draws(seed, 1, positions)
    assert drawn.dtype == np.uint64 and len(set(drawn.tolist())) == N
    np.testing.assert_array_equal(
        stream.draws(seed, 1, positions[[7, 3]]), drawn[[7, 3]]
    )
    for other in ((seed, 2), (stream.seed_of(jax.random.key(4)), 1)):
        found = stream.draws(*other, positions)
        assert not set(drawn.tolist()) & set(found.tolist())
    for epoch in (0, 1):  # and that is what a reader is given
        read = all_of(counting(), epochs=epoch + 1, start=(epoch, 2))[0]["image"]
        expected = stream.draws(seed, epoch, read[:, 0].astype(np.int32))
        np.testing.assert_array_equal(read[:, 1:], words(expected))
    halves = jax.random.split(KEY)  # differ in both words
    assert len({stream.seed_of(key) for key in (KEY, *halves)}) == 3
    for word in (0, 1):
        changed = np.array(jax.random.key_data(KEY))
        changed[word] += 1
        other = jax.random.wrap_key_data(jax.numpy.asarray(changed))
        assert stream.seed_of(other) != seed


def test_mapped_examples_are_the_split(tmp_path):
    digits = data.load("digits", "test")
    np.save(tmp_path / "images.npy", digits.images)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = data.mapped(digits.replace(image=images))
    positions = np.array([5, 499, 5])
    found = source.read(positions, np.zeros(3, np.uint64))
    assert type(found["image"]) is np.ndarray  # a copy, not the file
    np.testing.assert_array_equal(found["image"], digits.images[positions])
    np.testing.assert_array_equal(found["label"], digits.labels[positions])
    np.testing.assert_array_equal(found["index"], digits.index[positions])
    assert source.record(5) == "digits/test, image 5" and source.examples == 500


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("feed")]


def feed(source, *, epochs=1, **how):
    return stream.training(
        stream.Stream(source, **{"batch_size": SIZE, **how}), KEY, epochs=epochs
    )


def test_what_is_read_ahead_is_bounded():
    made = []

    def read(positions, draws):
        made.append(len(made))
        return counting().read(positions, draws)

    with feed(counting()._replace(read=read), epochs=9, depth=2) as ahead:
        while not ahead.ready() or len(made) < 3:
            time.sleep(1e-3)
        time.sleep(0.05)
        # One is in the hands of the feed; two wait; another may be in the thread's.
        assert len(made) <= 4
        for _ in range(45):
            assert ahead.take() is not None
        assert ahead.take() is None and ahead.take() is None
    assert len(made) == 45 and not alive()


def test_the_feed_ends_when_the_consumer_stops():
    with pytest.raises(KeyboardInterrupt), feed(counting(), epochs=1000) as ahead:
        ahead.take()
        raise KeyboardInterrupt
    assert not alive()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_after_the_batches_before_it(workers):
    order = stream.order(KEY, 0, N, SIZE)

    def read(positions, draws):
        if order[2, 6] in positions:
            raise ValueError("file 7, record 3 cannot be read")
        return counting().read(positions, draws)

    with feed(counting()._replace(read=read), workers=workers) as ahead:
        for step in range(2):
            np.testing.assert_array_equal(ahead.take()["label"], order[step])
        for _ in range(2):  # and stays
            with pytest.raises(ValueError, match="file 7, record 3"):
                ahead.take()
    assert not alive()


def test_every_example_is_measured_once_and_the_last_batch_filled_up():
    whole = stream.Stream(counting(20), batch_size=8)
    with stream.once(whole) as ahead:
        found = [ahead.take()["label"] for _ in range(3)]
        assert ahead.take() is None
    np.testing.assert_array_equal(np.concatenate(found), np.arange(24) % 20)


# --- sequences ---


class Records:
    """Grain's protocol of a random-access data source."""

    def __len__(self):
        return N

    def __getitem__(self, position):
        if position == 13:
            raise OSError("disk error")
        length = 4 if position == 17 else 3
        return {"ids": np.full(length, position), "label": position % 2}


def test_anything_with_a_length_and_items_is_a_source():
    source = data.sequence(Records(), classes="ab", name="texts")
    found = source.read(np.array([5, 2]), np.zeros(2, np.uint64))
    np.testing.assert_array_equal(found["ids"], [[5, 5, 5], [2, 2, 2]])
    np.testing.assert_array_equal(found["label"], [1, 0])
    np.testing.assert_array_equal(found["index"], [5, 2])
    assert source.examples == N and source.classes == ("a", "b")

    class Many(Records):
        def __getitems__(self, positions):
            return [{"x": np.float32(p)} for p in positions]

    found = data.sequence(Many()).read(np.array([13, 1]), np.zeros(2, np.uint64))
    np.testing.assert_array_equal(found["x"], [13, 1])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.read(np.array([1, 13]), None), "example 13 cannot be read: disk"),
        (lambda s: s.read(np.array([1, 17]), None), "example 17 is .* unlike .* 1, "),
        (lambda s: data.sequence([]), "sequence has no examples"),
    ],
)
def test_sequences_that_cannot_be_read_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(data.sequence(Records()))


# --- decoding ---


def picture(width, height, kind="jpeg", mode="RGB"):
    """An image that is red on the left half and whose green rises downwards."""
    from PIL import Image

    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    file = io.BytesIO()
    quality = {"quality": 95} if kind == "jpeg" else {}
    Image.fromarray(pixels).convert(mode).save(file, kind, **quality)
    return file.getvalue(), pixels


@pytest.mark.parametrize("whole", [(64, 48), (300, 500), (1000, 90)])
def test_random_boxes_are_as_they_are_described(whole):
    boxes = np.array(
        [decode.random_box(whole, d, (0.08, 1.0), (3 / 4, 4 / 3)) for d in range(3000)]
    )
    width, height = (boxes[:, 2] - boxes[:, 0]), (boxes[:, 3] - boxes[:, 1])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= whole).all()
    share, shape = width * height / np.prod(whole), width / height
    # A side is rounded to whole pixels, hence by at most half of one.
    slack = 0.5 / min(width.min(), height.min())
    assert shape.min() > 3 / 4 * (1 - 2 * slack) and shape.max() < 4 / 3 * (
        1 + 3 * slack
    )
    if whole == (64, 48):  # of this shape nearly all attempts fit
        assert share.min() > 0.08 * (1 - 3 * slack) and share.max() > 0.9
    if whole == (1000, 90):  # where nothing fits, the largest centred part
        largest = [round((1000 - 120) / 2), 0, round((1000 + 120) / 2), 90]
        assert (boxes == largest).all(1).any()


def test_the_share_of_a_crop_is_uniform():
    # Small enough parts always fit, so that no attempt is thrown away.
    boxes = np.array(
        [decode.random_box((900, 900), d, (0.1, 0.4), (0.8, 1.25)) for d in range(4000)]
    )
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 900**2
    counts, _ = np.histogram(share, 10, (0.1, 0.4))
    # 400 in each of ten bins; 5 standard deviations of a binomial are 95.
    assert (abs(counts - 400) < 95).all()
    edges = [*boxes.min(0)[:2], *boxes.max(0)[2:]]
    assert edges == [0, 0, 900, 900]  # to the very last pixel
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs(middle.mean() - 450) < 5 * middle.std() / np.sqrt(4000)


def test_crops_show_the_part_they_are_of():
    encoded, pixels = picture(64, 48, "png")
    from PIL import Image

    for draw in range(5):
        left, upper, right, lower = decode.random_box(
            (64, 48), draw, (0.08, 1.0), (3 / 4, 4 / 3)
        )
        part = Image.fromarray(pixels[upper:lower, left:right])
        expected = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR))
        found = decode.random_crop(24)(encoded, draw)
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=2)


def test_the_middle_is_the_middle():
    encoded, pixels = picture(64, 48, "png")
    # The shorter side stays 48: the middle 40 by 40 pixels, unchanged.
    found = decode.centre_crop(40, resize=48)(encoded, 0)
    np.testing.assert_array_equal(found, pixels[4:44, 12:52])
    assert decode.centre_crop(224)(encoded, 0).shape == (224, 224, 3)


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same():
    encoded, pixels = picture(800, 640)
    found = decode.centre_crop(40, resize=40)(encoded, 0)
    small = pixels[:, 80:720].reshape(40, 16, 40, 16, 3).mean((1, 3))
    # Away from the edge between red and black, where filters differ.
    apart = [*range(17), *range(23, 40)]
    np.testing.assert_allclose(found[:, apart], small[:, apart], atol=8)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P"])
def test_images_of_other_modes_become_colours(mode):
    encoded, _ = picture(64, 48, "png" if mode == "P" else "jpeg", mode)
    assert decode.random_crop(16)(encoded, 1).shape == (16, 16, 3)


def test_plain_images_stay_as_they_are():
    encoded, pixels = picture(20, 10, "png")
    np.testing.assert_array_equal(decode.plain()(encoded, 0), pixels)
    assert decode.plain()(picture(20, 10, "png", "L")[0], 0).shape == (10, 20, 1)


def test_uniform_numbers():
    # The first outputs of splitmix64 from the seed 1234567, from Rosetta Code.
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = [decode.uniform(1234567, place) for place in range(3)]
    np.testing.assert_allclose(found, [x / 2**64 for x in first], rtol=1e-12)
    many = [decode.uniform(draw, 0) for draw in range(4000)]
    assert (
        0 <= min(many) < max(many) < 1 and abs(np.mean(many) - 0.5) < 5 / 12**0.5 / 63
    )


# --- bad input ---


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: all_of(counting(), epochs=1, part=(0, 3)),
            "multiple of the 3 readers",
        ),
        (lambda: all_of(counting(), epochs=1, part=(2, 2)), "of how many"),
        (lambda: all_of(counting(), epochs=1, workers=0), "workers must be >= 1"),
        (lambda: all_of(counting(), epochs=1, depth=0), "depth must be >= 1"),
        (lambda: decode.random_crop(0), "size must be >= 1"),
        (lambda: decode.random_crop(8, area=(0.5, 2.0)), "within (0, 1]"),
        (lambda: decode.random_crop(8, ratio=(2.0, 1.0)), "ratio must be a range"),
        (lambda: decode.centre_crop(224, resize=200), "resize must be >= 224"),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.bad_input
def test_a_split_that_is_none_is_refused():
    wrong = Dataset("d", "s", {"image": np.zeros((2, 4, 4, 1), np.int64)})
    with pytest.raises(ValueError, match="images must be uint8"):
        data.mapped(wrong)
