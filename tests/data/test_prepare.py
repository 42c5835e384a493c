"""From an archive to TFDS' files to the cached split, and what each step refuses."""

import dataclasses
import importlib.util
import io
import multiprocessing
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image
from small_archives import make_idx, make_pickled

from jaxkd import data, store
from jaxkd.data import archives, builders, cache, catalogue, sources, specs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No test finds what the user's own TFDS folder may hold."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-such-folder"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The small idx data set, prepared and decoded once for this module."""
    folder = tmp_path_factory.mktemp("archives")
    made, root = make_idx(folder), tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(specs.SOURCES, "tiny", made.source)
        data.prepare("tiny", archives=folder, data_dir=root)
    return made, root


@pytest.fixture
def root(prepared, tmp_path, monkeypatch):
    """A copy of what was prepared, for a test that changes it."""
    monkeypatch.setitem(specs.SOURCES, "tiny", prepared[0].source)
    shutil.copytree(prepared[1], tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_loaded_split_has_the_archives_bytes_in_their_order(prepared, root, split):
    images, labels = prepared[0].truth[split]
    loaded = data.load("tiny", split, data_dir=root)
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    np.testing.assert_array_equal(loaded.index, np.arange(len(labels)))
    assert loaded.classes == prepared[0].source.classes
    assert isinstance(loaded.images, np.memmap)


def test_colour_images_and_pickled_archives_take_the_same_way(tmp_path, monkeypatch):
    made = make_pickled(tmp_path)
    monkeypatch.setitem(specs.SOURCES, "tiny", made.source)
    loaded = data.load("tiny", "test", archives=tmp_path, data_dir=tmp_path / "data")
    np.testing.assert_array_equal(loaded.images, made.truth["test"][0])
    np.testing.assert_array_equal(loaded.labels, made.truth["test"][1])


def test_tfds_itself_opens_what_was_prepared(prepared, root):
    import tensorflow_datasets as tfds

    directory = builders.folder(root, "tiny")
    builder = tfds.builder_from_directory(str(directory))
    assert builder.info.file_format.value == "array_record"
    assert builder.info.splits["train"].num_examples == 40
    example = builder.as_data_source(split="test")[3]
    images, labels = prepared[0].truth["test"]
    np.testing.assert_array_equal(example["image"], images[example["index"]])
    assert example["label"] == labels[example["index"]]
    assert [path.name for path in (root / "tfds" / "tiny").iterdir()] == ["1.0.0"]


def test_validation_slices_come_from_the_cached_training_set(prepared, root):
    held, rest = (
        data.load("tiny", s, data_dir=root) for s in ("validation", "train_rest")
    )
    assert len(held.labels) == 4 and len(rest.labels) == 36
    images = prepared[0].truth["train"][0]
    np.testing.assert_array_equal(held.images, images[held.index])


def test_the_archives_folder_may_come_from_the_environment(
    made_idx, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAXKD_ARCHIVES", str(made_idx.folder))
    monkeypatch.setenv("JAXKD_DATA", str(tmp_path / "data"))
    loaded = data.load("tiny", "test")
    np.testing.assert_array_equal(loaded.images, made_idx.truth["test"][0])
    assert pathlib.Path(loaded.images.filename).is_relative_to(tmp_path / "data")


def refuse(*_, **__):
    raise AssertionError("this must not be called")


def test_a_cached_split_needs_neither_archives_nor_a_network(root, monkeypatch):
    monkeypatch.setattr(builders, "prepare", refuse)
    monkeypatch.setattr(sources.download, "fetch", refuse)
    shutil.rmtree(root / "tfds")
    assert len(data.load("tiny", "train", data_dir=root).labels) == 40


def test_a_damaged_cache_is_decoded_again_from_the_prepared_files(
    prepared, root, monkeypatch
):
    monkeypatch.setattr(builders, "prepare", refuse)
    path = cache.folder(root, "tiny", "train") / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="decoded again"):
        loaded = data.load("tiny", "train", data_dir=root)
    np.testing.assert_array_equal(loaded.images, prepared[0].truth["train"][0])


def test_a_preparation_that_fails_leaves_nothing_that_looks_prepared(
    made_idx, tmp_path, monkeypatch
):
    def crash(image):
        raise RuntimeError("no space left")

    monkeypatch.setattr(builders, "_png", crash)
    with pytest.raises(RuntimeError, match="no space left"):
        data.load("tiny", "train", archives=made_idx.folder, data_dir=tmp_path / "data")
    assert not builders.is_prepared(builders.folder(tmp_path / "data", "tiny"))
    assert not [*(tmp_path / "data" / "tfds" / "tiny").iterdir()]


def test_missing_archives_are_named_and_nothing_is_downloaded(
    made_idx, tmp_path, monkeypatch
):
    monkeypatch.setattr(sources.download, "fetch", refuse)
    archive = made_idx.source.editions[0].archives[1]
    (made_idx.folder / archive.file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("tiny", "train", archives=made_idx.folder, data_dir=tmp_path)
    for part in (archive.file, archive.checksum, archive.url, str(made_idx.folder)):
        assert part in str(caught.value)


def test_without_archives_they_are_downloaded_and_used(made_idx, tmp_path, monkeypatch):
    def fetch(source, folder):
        assert folder == tmp_path / "data" / "downloads" / "tiny"
        shutil.copytree(made_idx.folder, folder)

    monkeypatch.setattr(sources.download, "fetch", fetch)
    loaded = data.load("tiny", "test", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(loaded.images, made_idx.truth["test"][0])


def test_a_damaged_archive_is_refused_before_anything_is_prepared(
    made_idx, tmp_path, monkeypatch
):
    monkeypatch.setattr(builders, "prepare", refuse)
    path = made_idx.folder / made_idx.source.editions[0].archives[0].file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        data.load("tiny", "train", archives=made_idx.folder, data_dir=tmp_path)


def _prepare(folder, root, barrier):
    made = make_idx(folder)
    specs.SOURCES["tiny"] = made.source
    edition, found = archives.find(made.source, [folder])
    splits = archives.read(made.source, edition, found)
    barrier.wait()
    builders.prepare(made.source, splits, root)
    data.prepare("tiny", archives=folder, data_dir=root)


def test_two_processes_that_prepare_at_once_both_succeed(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, processes = spawn.Barrier(2), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        args = (tmp_path / name, tmp_path / "data", barrier)
        processes.append(spawn.Process(target=_prepare, args=args))
        processes[-1].start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    left = sorted(path.name for path in (tmp_path / "data" / "tfds" / "tiny").iterdir())
    assert left == ["1.0.0"]


KILLED = """
import pathlib, sys, time
from jaxkd import store
with store.workspace(pathlib.Path(sys.argv[1])) as work:
    (work / "large").write_text("half of a data set")
    print(work.name, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def temporary(tmp_path):
    """Start a process that is at work on a path."""
    processes = []

    def start(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", KILLED, str(path)]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        )
        return processes[-1], path.parent / processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_killed_preparation_left_is_removed_by_the_next(
    made_idx, tmp_path, temporary
):
    folder = tmp_path / "data" / "tfds" / "tiny"
    killed, left = temporary(folder / "1.0.0")
    _, at_work = temporary(folder / "1.0.0")
    killed.kill()
    killed.wait()
    assert left.is_dir() and at_work.is_dir()
    data.prepare("tiny", archives=made_idx.folder, data_dir=tmp_path / "data")
    assert not left.exists()
    assert (at_work / "large").exists()  # its process is alive
    assert {path.name for path in folder.iterdir()} == {"1.0.0", at_work.name}


def test_what_a_killed_download_left_is_removed_by_the_next(
    made_idx, tmp_path, temporary, monkeypatch
):
    def transfer(url, target, timeout):
        shutil.copy(made_idx.folder / target.name, target)

    monkeypatch.setattr(sources.download, "_transfer", transfer)
    (file,) = (archive.file for archive in made_idx.source.editions[0].archives[:1])
    killed, left = temporary(tmp_path / file)
    killed.kill()
    killed.wait()
    sources.download.fetch(made_idx.source, tmp_path)
    assert not left.exists() and not [*tmp_path.glob(f"{store.PREFIX}*")]


def python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100
    )


def test_importing_the_room_imports_no_tensorflow_datasets():
    done = python(
        """
        import sys
        from jaxkd import data
        data.load("digits", "train")
        heavy = {"tensorflow_datasets", "tensorflow", "PIL", "array_record", "flax"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_cached_split_loads_where_tensorflow_datasets_is_missing(root):
    done = python(
        """
        import sys
        sys.modules["tensorflow_datasets"] = None
        from jaxkd import data
        from jaxkd.data import specs
        specs.SOURCES["tiny"] = specs.MNIST._replace(name="tiny")
        for split in ("train", "test", "validation", "train_rest"):
            print(len(data.load("tiny", split, data_dir=sys.argv[1]).labels))
        try:
            data.load("mnist", "train", archives="/", data_dir=sys.argv[1])
        except ImportError as error:
            print("pip install" in str(error))
        """,
        root,
    )
    assert done.stdout.split() == ["40", "20", "4", "36", "True"], done.stderr


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "near"), [("cifar11", "cifar10"), ("fashionmnist", "fashion_mnist")]
)
def test_an_unknown_name_lists_what_there_is_and_suggests_the_near_one(
    name, near, tmp_path
):
    with pytest.raises(ValueError, match=f"no data set '{name}'") as caught:
        data.load(name, "train", data_dir=tmp_path)
    assert str(data.names()) in str(caught.value)
    assert near in str(caught.value).split("did you mean")[1]


@pytest.mark.bad_input
def test_an_unknown_split_lists_the_four():
    with pytest.raises(ValueError, match="train_rest.*got 'valid'"):
        data.load("digits", "valid")


def test_names_are_those_offered():
    own = ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"]
    assert data.names() == own


@pytest.fixture
def foreign(root, monkeypatch):
    """The prepared set as one of the catalogue's would lie there."""
    monkeypatch.delitem(specs.SOURCES, "tiny")
    shutil.rmtree(root / "decoded")
    shutil.move(root / "tfds" / "tiny", root / "tfds" / "some_set")
    return root


def test_another_prepared_data_set_of_the_catalogue_loads(prepared, foreign):
    loaded = data.load("some_set", "train", data_dir=foreign)
    np.testing.assert_array_equal(loaded.images, prepared[0].truth["train"][0])
    assert loaded.name == "some_set" and loaded.num_classes == 10
    held = data.load("some_set", "validation", data_dir=foreign)
    assert held.split == "validation" and len(held.labels) == 4
    with pytest.raises(ValueError, match=r"no split 'dev'; there are \['t"):
        data.load("some_set", "dev", data_dir=foreign)


def test_palettes_and_deep_images_of_the_catalogue_have_their_colours(tmp_path):
    import tensorflow_datasets as tfds

    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    files = [
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey).convert("P", palette=Image.Palette.ADAPTIVE),
        Image.fromarray(np.stack([grey, grey, grey, 255 - grey], -1)),
    ]
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = "modes"
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(8, 8, 3)),
                    "label": tfds.features.ClassLabel(names=["a"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i, image in enumerate(files):
                    file = io.BytesIO()
                    image.save(file, "png")
                    yield i, {"image": io.BytesIO(file.getvalue()), "label": 0}

    skip = tfds.download.ComputeStatsMode.SKIP
    config = tfds.download.DownloadConfig(compute_stats=skip, try_download_gcs=False)
    form = tfds.core.FileFormat.ARRAY_RECORD
    builder = Builder(data_dir=str(tmp_path / "tfds"), file_format=form)
    builder.download_and_prepare(download_config=config)
    loaded = data.load("modes", "train", data_dir=tmp_path)
    expected = np.broadcast_to(grey[..., None], (4, 8, 8, 3))
    np.testing.assert_array_equal(loaded.images, expected)


def test_a_cached_data_set_of_the_catalogue_needs_its_prepared_files_no_more(foreign):
    before = data.load("some_set", "validation", data_dir=foreign)
    shutil.rmtree(foreign / "tfds")
    after = data.load("some_set", "validation", data_dir=foreign)
    assert data.fingerprint(before) == data.fingerprint(after)


def test_an_official_validation_split_comes_before_a_slice(foreign):
    whole = data.load("some_set", "test", data_dir=foreign)
    own = dataclasses.replace(whole, split="validation")
    splits = ("train", "test", "validation")
    where = cache.folder(foreign, "some_set", "validation")
    cache.write(where, own, official_splits=splits)
    shutil.rmtree(where.with_name("test"))
    held = data.load("some_set", "validation", data_dir=foreign)
    np.testing.assert_array_equal(held.images, whole.images)
    assert len(data.load("some_set", "train_rest", data_dir=foreign).labels) == 40


def test_the_newest_prepared_version_is_taken(foreign):
    shutil.copytree(foreign / "tfds/some_set/1.0.0", foreign / "tfds/some_set/10.0.0")
    shutil.copytree(foreign / "tfds/some_set/1.0.0", foreign / "tfds/some_set/9.0.0")
    assert catalogue.find("some_set", foreign).name == "10.0.0"


def test_files_that_cannot_be_read_here_are_refused(foreign):
    info = foreign / "tfds/some_set/1.0.0/dataset_info.json"
    assert '"array_record"' in info.read_text()
    info.write_text(info.read_text().replace('"array_record"', '"parquet"'))
    with pytest.raises(ValueError, match="prepared as parquet"):
        data.load("some_set", "train", data_dir=foreign)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_a_catalogue_name_that_is_not_prepared_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match=r"jaxkd-distill\[tf\].*array_record"):
        data.load("svhn_cropped", "train", data_dir=tmp_path)
