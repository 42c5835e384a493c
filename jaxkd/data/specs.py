"""What the official archives are called, hold and hash to. Data, no behaviour.

The sums of the archives are those their authors or TensorFlow Datasets publish; the
sums of the contents were taken from archives that agreed with these.
"""

from typing import NamedTuple

from jaxkd.data import classes, readers


class ArchiveFile(NamedTuple):
    """A file of examples: its path inside the archive, its split, its content's sum."""

    path: str
    split: str
    checksum: str  # "sha256:..." or "md5:..."


class Archive(NamedTuple):
    """A file as it is distributed: a gzipped tar, or one gzipped member."""

    file: str
    url: str
    checksum: str
    members: tuple[ArchiveFile, ...]


class Edition(NamedTuple):
    """One form in which a data set is distributed, and what reads it."""

    archives: tuple[Archive, ...]
    read: readers.Reader


class DatasetSpec(NamedTuple):
    """A data set with official archives; the first edition is the one downloaded."""

    name: str
    shape: tuple[int, int, int]
    counts: dict[str, int]
    classes: tuple[str, ...]
    folders: tuple[str, ...]  # names of sub-folders in which its files are looked for
    editions: tuple[Edition, ...]
    homepage: str


IDX_FILES = {
    "train-images-idx3-ubyte": "train",
    "train-labels-idx1-ubyte": "train",
    "t10k-images-idx3-ubyte": "test",
    "t10k-labels-idx1-ubyte": "test",
}


def _idx_edition(url: str, gzipped: tuple[str, ...], plain: tuple[str, ...]) -> Edition:
    """Four gzipped files, with the md5 of each and the sha256 of its content."""
    archives = tuple(
        Archive(
            f"{file}.gz",
            f"{url}{file}.gz",
            f"md5:{md5}",
            (ArchiveFile(file, split, f"sha256:{sha256}"),),
        )
        for (file, split), md5, sha256 in zip(
            IDX_FILES.items(), gzipped, plain, strict=True
        )
    )
    return Edition(archives, readers.idx)


def _members(
    folder: str, algorithm: str, *, files: str, sums: tuple[str, ...]
) -> tuple[ArchiveFile, ...]:
    """CIFAR's files; one belongs to "test" if its name starts so."""
    return tuple(
        ArchiveFile(
            f"{folder}/{file}",
            "test" if file.startswith("test") else "train",
            f"{algorithm}:{content}",
        )
        for file, content in zip(files.split(), sums, strict=True)
    )


def _tar_edition(
    file: str, checksum: str, members: tuple[ArchiveFile, ...], read: readers.Reader
) -> Edition:
    """One gzipped tar."""
    url = f"https://www.cs.toronto.edu/~kriz/{file}"
    return Edition((Archive(file, url, checksum, members),), read)


MNIST = DatasetSpec(
    name="mnist",
    shape=(28, 28, 1),
    counts={"train": 60_000, "test": 10_000},
    classes=classes.DIGITS,
    folders=("mnist", "MNIST/raw"),
    homepage="http://yann.lecun.com/exdb/mnist/",
    editions=(
        _idx_edition(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            gzipped=(
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            plain=(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
)

FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    shape=(28, 28, 1),
    counts={"train": 60_000, "test": 10_000},
    classes=classes.FASHION_MNIST,
    folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    editions=(
        # Distributors packed these anew, so only the contents' sums are decisive.
        _idx_edition(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            gzipped=(
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            plain=(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
    ),
)

CIFAR10 = DatasetSpec(
    name="cifar10",
    shape=(32, 32, 3),
    counts={"train": 50_000, "test": 10_000},
    classes=classes.CIFAR10,
    folders=("cifar10",),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    editions=(
        _tar_edition(
            "cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            _members(
                "cifar-10-batches-bin",
                "sha256",
                files=(
                    "data_batch_1.bin data_batch_2.bin data_batch_3.bin "
                    "data_batch_4.bin data_batch_5.bin test_batch.bin"
                ),
                sums=(
                    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
                ),
            ),
            readers.cifar_binary(1),
        ),
        _tar_edition(
            "cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            _members(
                "cifar-10-batches-py",
                "md5",
                files=(
                    "data_batch_1 data_batch_2 data_batch_3 "
                    "data_batch_4 data_batch_5 test_batch"
                ),
                sums=(
                    "c99cafc152244af753f735de768cd75f",
                    "d4bba439e000b95fd0a9bffe97cbabec",
                    "54ebc095f3ab1f0389bbae665268c751",
                    "634d18415352ddfa80567beed471001a",
                    "482c414d41f54cd18b22e5b47cb7c3cb",
                    "40351d587109b95175f43aff81a1287e",
                ),
            ),
            readers.cifar_pickled(b"labels"),
        ),
    ),
)

CIFAR100 = DatasetSpec(
    name="cifar100",
    shape=(32, 32, 3),
    counts={"train": 50_000, "test": 10_000},
    classes=classes.CIFAR100,
    folders=("cifar100",),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    editions=(
        _tar_edition(
            "cifar-100-binary.tar.gz",
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            _members(
                "cifar-100-binary",
                "sha256",
                files="train.bin test.bin",
                sums=(
                    "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
                    "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
                ),
            ),
            readers.cifar_binary(2),
        ),
        _tar_edition(
            "cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
            _members(
                "cifar-100-python",
                "md5",
                files="train test",
                sums=(
                    "16019d7e3df5f24257cddd939b257f8d",
                    "f0ef6b0ae62326f3e7ffdfab6717acfc",
                ),
            ),
            readers.cifar_pickled(b"fine_labels"),
        ),
    ),
)

SOURCES = {s.name: s for s in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}
