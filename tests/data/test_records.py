"""Encoded images of many sizes in TFDS' record files, as they are streamed."""

import io
import shutil

import jax
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import decode, stream

N, BROKEN = 24, 17


KEY = jax.random.key(0)


def encoded(place):
    """A JPEG whose size and colour tell its place; one is cut off."""
    from PIL import Image

    pixels = np.full((20 + 3 * place, 40 + place, 3), 10 * place, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=95)
    content = file.getvalue()
    return io.BytesIO(content[: len(content) // 2] if place == BROKEN else content)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the data set "pictures", prepared by TFDS itself."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("data")
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = "pictures"
            VERSION = tfds.core.Version("2.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["even", "odd"]),
                    "file_name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(N):
                    name = f"{i}.jpeg"
                    yield i, {"image": encoded(i), "label": i % 2, "file_name": name}

    skip = tfds.download.ComputeStatsMode.SKIP
    config = tfds.download.DownloadConfig(compute_stats=skip, try_download_gcs=False)
    form = tfds.core.FileFormat.ARRAY_RECORD
    builder = Builder(data_dir=str(root / "tfds"), file_format=form)
    builder.download_and_prepare(download_config=config)
    return root


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No test finds what the user's own TFDS folder may hold."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-such-folder"))


def pictures(root, split="train", decoder=None):
    decoder = decoder or decode.centre_crop(16)
    return data.records("pictures", split, decode=decoder, data_dir=root)


def draws(positions):
    return np.asarray(positions, np.uint64)


def test_records_are_read_at_any_position(root):
    source = pictures(root)
    assert source.examples == N and source.classes == ("even", "odd")
    positions = np.array([20, 3, 3, 0])
    found = source.read(positions, draws(positions))
    assert found["image"].shape == (4, 16, 16, 3) and found["image"].dtype == np.uint8
    grey = found["image"].astype(int).mean((1, 2, 3))
    np.testing.assert_allclose(grey, 10 * positions, atol=2)
    np.testing.assert_array_equal(found["label"], positions % 2)
    np.testing.assert_array_equal(found["index"], positions)
    assert found["label"].dtype == found["index"].dtype == np.int32


def test_crops_follow_the_draw_alone(root):
    source = pictures(root, decoder=decode.random_crop(8))
    both = source.read(np.array([5, 9]), np.array([1, 2], np.uint64))["image"]
    other = source.read(np.array([9, 5]), np.array([2, 1], np.uint64))["image"]
    np.testing.assert_array_equal(both, other[::-1])


def test_a_part_of_a_split_is_a_split(root):
    source = pictures(root, "train[50%:]")
    assert source.examples == N // 2
    found = source.read(np.array([0, 11]), draws([0, 0]))
    np.testing.assert_allclose(
        found["image"].astype(int).mean((1, 2, 3)), [120, 230], atol=2
    )
    assert source.record(0).endswith("array_record-00000-of-00001, record 12")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_broken_record_names_its_file_and_place(root, workers):
    key = jax.random.key(0)
    step = int(np.argwhere(stream.order(key, 0, N, 6) == BROKEN)[0, 0])
    reading = stream.Stream(pictures(root), 6, workers=workers)
    with stream.training(reading, key, epochs=1) as feed:
        for _ in range(step):
            assert feed.take()["image"].shape == (6, 16, 16, 3)
        with pytest.raises(ValueError) as error:
            feed.take()
    file = root / "tfds/pictures/2.0.0/pictures-train.array_record-00000-of-00001"
    assert f"{file}, record {BROKEN} cannot be read: " in str(error.value)


def test_many_threads_read_what_one_reads(root):
    source = pictures(root, "train[:50%]", decoder=decode.random_crop(8))
    expected, found = (
        stream.training(stream.Stream(source, 4, workers=n, depth=n), KEY, epochs=2)
        for n in (1, 8)
    )
    with expected as one, found as many:
        for _ in range(2 * N // 2 // 4):
            jax.tree.map(np.testing.assert_array_equal, one.take(), many.take())
        assert one.take() is None and many.take() is None


@pytest.mark.bad_input
def test_images_of_different_sizes_must_be_resized(root):
    source = pictures(root, decoder=decode.plain())
    with pytest.raises(ValueError, match=r"record 4 is \(32, 44, 3\) after \(29, 43"):
        source.read(np.array([3, 4]), draws([0, 0]))


@pytest.mark.bad_input
def test_a_decoder_that_does_not_return_pixels_is_refused(root):
    for value in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)):
        source = pictures(root, decoder=lambda encoded, draw, value=value: value)
        with pytest.raises(ValueError, match=r"record 0 .*uint8 \[height, width, ch"):
            source.read(np.array([0]), draws([0]))


@pytest.mark.bad_input
def test_what_is_not_there_is_said(root, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'trian'; there are \['train'\]"):
        pictures(root, "trian")
    with pytest.raises(ValueError, match=r"no examples in 'train\[:1%\]'"):
        pictures(root, "train[:1%]")
    with pytest.raises(FileNotFoundError) as error:
        data.records("imagenet2012", "train", decode=decode.plain(), data_dir=root)
    said = str(error.value)
    assert "imagenet2012 is not prepared in any of" in said
    assert f"--file_format=array_record --data_dir={root / 'tfds'}" in said


@pytest.mark.bad_input
def test_files_that_cannot_be_read_anywhere_are_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    info = tmp_path / "data/tfds/pictures/2.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepared as tfrecord.*convert_format"):
        pictures(tmp_path / "data")
