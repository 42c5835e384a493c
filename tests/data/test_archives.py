"""Archives are found wherever they may lie, verified, and read to the byte."""

import gzip
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest

from jaxkd.data import archives, readers, specs


def read(made, folder=None):
    edition, found = archives.find(made.source, [folder or made.folder])
    return archives.read(made.source, edition, found)


def assert_truth(splits, made):
    for split, (images, labels) in made.truth.items():
        np.testing.assert_array_equal(splits[split][0], images)
        np.testing.assert_array_equal(splits[split][1], labels)
        assert splits[split][0].dtype == np.uint8
        assert splits[split][1].dtype == np.int32


def test_every_official_format_is_read_to_the_byte(made):
    assert_truth(read(made), made)


def unpack(made, target, flat):
    """Replaces the archives by the files inside."""
    for archive in made.source.editions[0].archives:
        packed = made.folder / archive.file
        if tarfile.is_tarfile(packed):
            with tarfile.open(packed) as tar:
                contents = {
                    m.path: tar.extractfile(m.path).read() for m in archive.members
                }
        else:
            contents = {archive.members[0].path: gzip.decompress(packed.read_bytes())}
        packed.unlink()
        for path, content in contents.items():
            file = target / (path.split("/")[-1] if flat else path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("sub_folder", ["", "tiny"])
def test_unpacked_files_serve_too(made, flat, sub_folder):
    unpack(made, made.folder / sub_folder, flat)
    assert_truth(read(made), made)


def test_the_data_sets_own_sub_folder_comes_before_the_folder(made):
    file = made.source.editions[0].archives[0].file
    (made.folder / "tiny").mkdir()
    for archive in made.source.editions[0].archives:
        content = (made.folder / archive.file).read_bytes()
        (made.folder / "tiny" / archive.file).write_bytes(content)
    (made.folder / file).write_bytes(b"another data set's file of this name")
    assert_truth(read(made), made)


def test_an_archive_packed_anew_has_another_sum_and_serves(made_idx):
    for archive in made_idx.source.editions[0].archives:
        path = made_idx.folder / archive.file
        anew = gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=1234)
        assert archives.checksum("sha256", anew) != archive.checksum
        path.write_bytes(anew)
    assert_truth(read(made_idx), made_idx)


def test_the_second_edition_is_used_where_the_first_is_missing(made):
    absent = specs.Archive(
        "absent.tar.gz", "", "", (specs.ArchiveFile("a", "train", ""),)
    )
    first = specs.Edition((absent,), readers.idx)
    both = made.source._replace(editions=(first, *made.source.editions))
    assert_truth(read(made._replace(source=both)), made)


def test_an_incomplete_set_is_not_found_and_the_advice_names_it(made):
    archive = made.source.editions[0].archives[-1]
    (made.folder / archive.file).unlink()
    assert archives.find(made.source, [made.folder]) is None
    text = archives.missing(made.source, [made.folder], "Do this.")
    line = next(line for line in text.splitlines() if archive.file in line)
    assert "missing" in line and archive.checksum in line and archive.url in line
    assert str(made.folder) in text and text.endswith("Do this.")


def test_a_bomb_is_refused_before_it_is_unpacked(made, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1 << 20)
    path = made.folder / made.source.editions[0].archives[0].file
    path.write_bytes(gzip.compress(b"\0" * (300 << 20), 9))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{path.name} unpacks to more than 1,048,576"):
        read(made)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_no_official_archive_is_larger_than_the_largest():
    for source in specs.SOURCES.values():
        images = sum(source.counts.values()) * np.prod(source.shape)
        # Labels and names are less than a tenth of the images, headers next to nothing.
        assert 1.1 * images < archives.LARGEST


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused_by_name(made, share):
    path = made.folder / made.source.editions[0].archives[0].file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=path.name):
        read(made)


def test_a_changed_byte_is_refused_with_both_sums(made):
    unpack(made, made.folder, flat=False)
    member = made.source.editions[0].archives[0].members[0]
    path = made.folder / member.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    got = archives.checksum("sha256", bytes(content))
    with pytest.raises(ValueError, match=f"{path.name}.*{got}.*{member.checksum}"):
        read(made)


def test_bytes_of_another_known_data_set_are_called_by_name(made_idx, monkeypatch):
    member = made_idx.source.editions[0].archives[0].members[0]
    wrong = member._replace(checksum="sha256:" + "0" * 64)
    archive = made_idx.source.editions[0].archives[0]._replace(members=(wrong,))
    found = archives.Found(archive, made_idx.folder / archive.file, ())
    with pytest.raises(ValueError, match="the bytes of tiny"):
        archives.contents(found)


def test_too_few_examples_are_refused(made):
    counts = {**made.source.counts, "test": 21}
    short = made._replace(source=made.source._replace(counts=counts))
    with pytest.raises(ValueError, match="tiny/test must have 21"):
        read(short)


def test_images_of_another_size_are_refused(made_idx):
    wrong = made_idx._replace(source=made_idx.source._replace(shape=(5, 6, 1)))
    with pytest.raises(ValueError, match=r"images of \(5, 6, 1\).*got \(40, 6, 5, 1\)"):
        read(wrong)


def test_a_pickle_that_calls_a_function_is_refused(tmp_path):
    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "called"), "w"))

    with pytest.raises(pickle.UnpicklingError, match="open"):
        readers.cifar_pickled(b"labels")([pickle.dumps({b"data": Call()})])
    assert not (tmp_path / "called").exists()


def test_an_idx_file_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="0x801"):
        readers.idx([b"\0\0\x08\x01" + b"\0" * 12, b""])


def test_the_specifications_are_complete_and_their_sums_well_formed():
    for source in specs.SOURCES.values():
        digits = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
        assert len(source.classes) == len(set(source.classes)) == digits[source.name]
        for edition in source.editions:
            members = [m for a in edition.archives for m in a.members]
            assert {m.split for m in members} == set(source.counts)
            sums = [m.checksum for m in members] + [
                a.checksum for a in edition.archives
            ]
            assert len(set(sums)) == len(sums)
            for text in sums:
                algorithm, value = text.split(":")
                assert len(bytes.fromhex(value)) == {"md5": 16, "sha256": 32}[algorithm]
