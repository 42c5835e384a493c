"""The kinds of data that `[data]` of a configuration may name; each loads itself."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from jaxkd import data
from jaxkd.data.preprocessing import of as preprocessing_of
from jaxkd.pipeline.parts import Augment, Options, about, whole

Side = Annotated[int, whole("a side in pixels", 1, 4096)]
Size = (
    Side | Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
)  # [height, width]
Share = Annotated[float, Meta(gt=0, le=0.9)]
ByChannel = Annotated[tuple[float, ...], Meta(min_length=1, max_length=4)]
Resize = Annotated[
    Literal["crop", "pad", "stretch"],
    about("cut the middle out, add black, or change the shape"),
]


class Images(Options, frozen=True, kw_only=True):
    """What all kinds of data have."""

    mean: Annotated[
        Literal["data", "imagenet"] | ByChannel,
        about('subtracted: measured ("data"), "imagenet", or a number each channel'),
    ] = "data"
    deviation: Annotated[
        Literal["same", "data", "imagenet"] | ByChannel,
        about('divided by, likewise; "same": as mean'),
    ] = "same"
    train_images: Annotated[
        int, whole("a balanced subset of so many training images; 0: all", 0, 10**8)
    ] = 0
    class_balanced: Annotated[
        bool, about("repeat images of small classes until all are equally large")
    ] = False
    augment: Augment = Augment()

    @property
    def kind(self) -> str:
        """The kind: "tfds", "folder", ..."""
        return str(self.__struct_config__.tag)

    @property
    def title(self) -> str:
        """Which data, in messages and reports."""
        return getattr(self, "name", "") or getattr(self, "path", "") or self.kind

    def load(self) -> data.Splits:
        """Load the splits.

        Raises:
          ValueError: and FileNotFoundError, naming the key.
        """
        raise NotImplementedError

    def _normalised(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation}


class Tfds(Images, frozen=True, kw_only=True, tag="tfds", tag_field="kind"):
    """A data set of TensorFlow Datasets, or the digits in the package."""

    name: Annotated[str, about('"digits" is embedded; "cifar10", "mnist", ...')] = (
        "digits"
    )
    archives: Annotated[str, about("folder of the official archives")] = ""
    data_dir: Annotated[str, about("where prepared data is kept")] = ""

    def load(self) -> data.Splits:
        """Load the splits, prepared first if need be."""
        where = {"archives": self.archives or None, "data_dir": self.data_dir or None}
        names = ("train_rest", "validation", "test")
        train, validation, test = (data.load(self.name, n, **where) for n in names)
        made = preprocessing_of(train, **self._normalised())
        return data.Splits(train, validation, test, made)


class Divided(Images, frozen=True, kw_only=True):
    """Data of which a share is kept, where they have no splits of their own."""

    test: Annotated[Share, about("the share to measure on, by hash")] = 0.1
    validation: Annotated[Share, about("the share to choose by, by hash")] = 0.1

    def _options(self) -> dict[str, Any]:
        own = {"test": self.test, "validation": self.validation}
        return {**self._normalised(), **own}


class Encoded(Divided, frozen=True, kw_only=True):
    """Image files, decoded once."""

    path: Annotated[str, about("of the data, from the working directory")]
    size: Annotated[Size, about("a side in pixels, or [height, width]")]
    resize: Resize = "crop"
    channels: Annotated[Literal[1, 3], about("grey or colour")] = 3
    skip_unreadable: Annotated[bool, about("leave damaged images out")] = False
    data_dir: Annotated[str, about("where decoded images are kept")] = ""

    def _options(self) -> dict[str, Any]:
        return {
            **super()._options(),
            "size": self.size,
            "resize": self.resize,
            "channels": self.channels,
            "skip_unreadable": self.skip_unreadable,
            "data_dir": self.data_dir or None,
        }


class Folder(Encoded, frozen=True, kw_only=True, tag="folder", tag_field="kind"):
    """A folder of class folders of images; `jaxkd.data.folder`."""

    def load(self) -> data.Splits:
        """Load the splits, decoded first if need be."""
        return data.folder(self.path, **self._options())


class HuggingFace(
    Encoded, frozen=True, kw_only=True, tag="huggingface", tag_field="kind"
):
    """Parquet or Arrow files of Hugging Face; `jaxkd.data.huggingface`."""

    image: Annotated[str, about("column of the images")] = "image"
    label: Annotated[str, about("column of the labels")] = "label"

    def load(self) -> data.Splits:
        """Load the splits, decoded first if need be."""
        options = self._options()
        return data.huggingface(
            self.path, image=self.image, label=self.label, **options
        )


class Arrays(Divided, frozen=True, kw_only=True, tag="arrays", tag_field="kind"):
    """An .npz file or a folder of .npy files; `jaxkd.data.arrays`."""

    path: Annotated[str, about("with image, label and perhaps index, classes")]
    path_test: Annotated[str, about("the test images; empty: a share of path")] = ""

    def load(self) -> data.Splits:
        """Load the splits."""
        path_test = self.path_test or None
        return data.arrays(self.path, path_test=path_test, **self._options())


class Python(Divided, frozen=True, kw_only=True, tag="python", tag_field="kind"):
    """What a function of yours makes; `jaxkd.data.python`."""

    source: Annotated[str, about('"package.module:function", called as it is')]

    @property
    def title(self) -> str:
        """The function."""
        return self.source

    def load(self) -> data.Splits:
        """Call the function and load what it makes."""
        return data.python(self.source, **self._options())


Data = Tfds | Folder | Arrays | HuggingFace | Python
