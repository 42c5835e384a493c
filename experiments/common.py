"""What experiments share: options, data, a run's directory, numbers and the report.

The only helper module here. Data, networks, objective and training stand in each
script's `main`, to be read and changed there.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
import timeit
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxkd import cost, data, distill, evaluate, log, report, store, train
from jaxkd.data import augment
from jaxkd.models import Net
from jaxkd.types import Batch

LAST = "Accuracy after the last epoch, mean ± standard deviation over seeds"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of every experiment; each is one of the command line."""

    seeds: int = 3  # number of students, from seeds 0, 1, ...
    evaluate_on: Literal["test", "validation"] = "test"
    archives: str | None = None  # folder of the official archives
    data_dir: str | None = None  # where decoded data are kept
    out: str = "runs"
    resume: str | None = None  # directory of a run that was stopped

    def __post_init__(self) -> None:
        """Refuse to train nobody."""
        if self.seeds < 1:
            raise SystemExit(f"seeds must be >= 1, got {self.seeds}")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """End the program with one line where an option or missing data is to blame."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise SystemExit(f"{what}: {error}") from error


def load(
    config: Config, name: str, train_images: int | None = None
) -> tuple[data.Dataset, data.Dataset]:
    """Load the training images, or a subset of them, and the images to measure on.

    Choose hyper-parameters with `--evaluate-on validation`: a tenth of the training
    images is then measured on and not trained on.
    """
    rest = "train_rest" if config.evaluate_on == "validation" else "train"
    images, test = read(config, name, rest, config.evaluate_on)
    return some(images, train_images), test


def load_three(
    config: Config, name: str, train_images: int | None = None
) -> tuple[data.Dataset, data.Dataset, data.Dataset]:
    """Load as `load` does, and the validation images that choices are made on."""
    splits = "train_rest", "validation", config.evaluate_on
    images, validation, test = read(config, name, *splits)
    return some(images, train_images), validation, test


def read(config: Config, name: str, *splits: str) -> list[data.Dataset]:
    """Load splits of a data set."""
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    with refusing("no data"):
        return [data.load(name, split, **where) for split in splits]


def some(images: data.Dataset, n: int | None) -> data.Dataset:
    """Return a balanced subset of n images; None is all."""
    with refusing("images"):
        return images if n is None else data.subset(images, n, seed=0)


def start(
    name: str, config: Any, *, may_change: Sequence[str] = ()
) -> tuple[pathlib.Path, log.Log]:
    """Open the run's directory, `OUT/NAME/TIME` or the one to resume, and its log.

    A resumed run must have the configuration that it was started with, but for the
    fields that `may_change`.
    """
    if config.resume is None:
        now = np.array(divmod(time.time_ns() // 1000, 10**6), np.int32)
        if jax.process_count() > 1:  # all of them write into one directory
            now = multihost_utils.broadcast_one_to_all(now)
        day = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(int(now[0])))
        directory = pathlib.Path(config.out) / name / f"{day}_{now[1]:06}"
        return directory, log.start(directory, config)
    directory = pathlib.Path(config.resume)
    with refusing("cannot resume"):
        found = json.loads((directory / "config.json").read_text())
        wanted = store.identity(**dataclasses.asdict(config))
        for name in ("resume", "out", *may_change):
            found.pop(name, None), wanted.pop(name, None)
        store.require_same(directory, found, wanted)
    write = functools.partial(store.append_line, directory / "metrics.jsonl")
    return directory, write if jax.process_index() == 0 else lambda row: None


def rehearse(student: Net, resident: Batch, teacher: Net, **how: Any) -> None:
    """Trace a distillation, before hours go into a teacher: refuse what cannot work."""
    view, key = how["view"], jax.random.key(0)
    with refusing("cannot train"):
        batch = jax.eval_shape(lambda: train.example(resident, view))
        variables = jax.eval_shape(teacher.init, key, batch["image"])
        live, tx = distill.frozen(teacher), how["tx"]
        d = distill.distiller(student, live, how["spec"], tx)
        state = jax.eval_shape(d.init, key, variables, batch)
        epoch = train.make_epoch(d, view=view, batch_size=how["batch_size"])
        jax.eval_shape(epoch, state, variables, resident, key)


def table(
    runs: Mapping[str, tuple[Net, train.Run]], test: data.Dataset, view: augment.View
) -> list[dict[str, str]]:
    """Make a row of each run, by its name: accuracy in percent, size and speed."""
    return [
        {
            "network": name,
            "test accuracy %": report.mean_sd(run.final(), scale=100),
            **costs(net, run.seed(0), test, view),
        }
        for name, (net, run) in runs.items()
    ]


def costs(
    net: Net, variables: train.Variables, test: data.Dataset, view: augment.View
) -> dict[str, str]:
    """Columns of size and speed: images/s is the median of five passes over `test`."""
    of = cost.of(net, test.images.shape[1:])
    resident, frozen = data.on_device(test), distill.frozen(net)
    predict = jax.jit(lambda v, x: evaluate.predict(frozen, v, x, view=view))
    run = lambda: jax.block_until_ready(predict(variables, resident))
    seconds = timeit.repeat(run, number=1, repeat=6)[1:]  # the first one compiles
    return {
        "parameters": f"{of.parameters:,}",
        "MACs": f"{of.macs:,}",
        "bytes": f"{of.bytes:,}",
        "images/s": f"{len(test.images) / float(np.median(seconds)):,.0f}",
    }


def curves(directory: pathlib.Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the accuracy after each epoch of runs, by panel and label."""
    percent = lambda run: 100 * np.array([row["accuracy"] for row in run.history])
    lines = {
        title: {k: percent(run) for k, run in p.items()} for title, p in panels.items()
    }
    report.curves(directory / "curves.svg", lines, y_label="test accuracy, %")


def write_report(
    directory: pathlib.Path,
    title: str,
    tables: Mapping[str, report.Rows],
    notes: Sequence[str] = (),
) -> None:
    """Print tables, by caption, and notes; write `report.md`, with the pictures."""
    text = [f"# {title}"]
    print(title)
    for caption, rows in tables.items():
        report.show(rows, caption)
        text += [f"{caption}:", report.markdown(rows).strip()]
    print(*notes, sep="\n")
    text += ["\n".join(f"* {note}" for note in notes)]
    text += [f"![{p.stem}]({p.name})" for p in sorted(directory.glob("*.svg"))]
    text += [report.listed(log.versions())]
    (directory / "report.md").write_text("\n\n".join(filter(None, text)))
    print(f"report: {directory / 'report.md'}")
