"""What experiments share: options, data, a run's directory, numbers and the report.

The only helper module here. Data, networks, objective and training stand in each
script's `main`, to be read and changed there.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import checkpoint, cost, data, distill, evaluate, log, report, store, train
from jaxkd.data import augment
from jaxkd.models import Net

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
    where: dict[str, Any] = {"archives": config.archives, "data_dir": config.data_dir}
    rest = "train_rest" if config.evaluate_on == "validation" else "train"
    with refusing("no data"):
        images = data.load(name, rest, **where)
        if train_images is not None:
            images = data.subset(images, train_images, seed=0)
        return images, data.load(name, config.evaluate_on, **where)


def start(
    name: str, config: Config, *, may_change: Sequence[str] = ()
) -> tuple[pathlib.Path, log.Log]:
    """Open the run's directory, `OUT/NAME/TIME` or the one to resume, and its log.

    A run is resumed only with the configuration that it was started with, except for
    the fields that `may_change`.
    """
    if config.resume is None:
        now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
        directory = pathlib.Path(config.out) / name / now
        return directory, log.start(directory, config)
    directory = pathlib.Path(config.resume)
    with refusing("cannot resume"):
        found = json.loads((directory / "config.json").read_text())
        wanted = store.identity(**dataclasses.asdict(config))
        for name in ("resume", "out", *may_change):
            found.pop(name, None), wanted.pop(name, None)
        store.require_same(directory, found, wanted)

    def write(row: log.Row) -> None:
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    return directory, write


def learn(folder: pathlib.Path, student: Net, examples: Any, **how: Any) -> train.Run:
    """Call `train.learn` and keep what it trained in `folder`; read it if it is there.

    So a run that was stopped goes on with the first network that it had not finished.
    """
    if folder.exists():
        with refusing("cannot resume"):
            kept = checkpoint.read(folder)
        params, state = (
            {"student": jax.tree.map(jnp.asarray, kept.tree.get(part, {}))}
            for part in ("params", "state")
        )
        key = jnp.zeros(0)  # neither optimiser nor key are needed any more
        old = distill.TrainState(jnp.zeros(()), params, state, (), key)
        return train.Run(old, kept.meta["history"], interrupted=False)
    with refusing(f"cannot train {folder.name}"):
        run = train.learn(student, examples, name=folder.name, **how)
    params, state = run.variables
    tree = {"params": params, "state": state}
    checkpoint.write(folder, tree, {"history": run.history})
    return run


def rehearse(student: Net, examples: data.Dataset, teacher: Net, **how: Any) -> None:
    """Trace a distillation without running it, before hours go into a teacher.

    Raises:
      SystemExit: if an option is out of range, or networks and data do not fit.
    """
    resident, view, key = data.on_device(examples), how["view"], jax.random.key(0)
    with refusing("cannot train"):
        batch = jax.eval_shape(lambda: train.example(resident, view))
        variables = jax.eval_shape(teacher.init, key, batch["image"])
        live = distill.frozen(teacher)
        d = distill.distiller(student, live, how["spec"], how["tx"])
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
    resident, seconds = data.on_device(test), []
    predict = jax.jit(
        lambda v, x: evaluate.predict(distill.frozen(net), v, x, view=view)
    )
    for _ in range(6):  # the first one compiles
        begin = time.perf_counter()
        jax.block_until_ready(predict(variables, resident))
        seconds.append(time.perf_counter() - begin)
    return {
        "parameters": f"{of.parameters:,}",
        "MACs": f"{of.macs:,}",
        "bytes": f"{of.bytes:,}",
        "images/s": f"{len(test.images) / float(np.median(seconds[1:])):,.0f}",
    }


def gain(values: Any, baseline: Any, *, scale: float = 100) -> str:
    """Return the mean difference of paired seeds ± its standard error, as text."""
    difference = scale * (np.asarray(values) - np.asarray(baseline))
    error = difference.std(ddof=1) / np.sqrt(n) if (n := len(difference)) > 1 else None
    return f"{difference.mean():+.2f}" + ("" if error is None else f" ± {error:.2f}")


def gain_sentence(values: Any, baseline: Any) -> str:
    """Return `gain` of a distillation in words."""
    many = f"mean over {len(values)} paired seeds ± standard error"
    how = many if len(values) > 1 else "one seed"
    return (
        f"Distillation changes the accuracy by {gain(values, baseline)} points ({how})."
    )


def curves(directory: pathlib.Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the accuracy after each epoch of runs, by panel and label."""
    percent = lambda run: 100 * np.array([row["accuracy"] for row in run.history])
    lines = {
        title: {label: percent(run) for label, run in runs.items()}
        for title, runs in panels.items()
    }
    report.curves(directory / "curves.png", lines, y_label="test accuracy, %")


def write_report(
    directory: pathlib.Path,
    title: str,
    tables: Mapping[str, report.Rows],
    notes: Sequence[str] = (),
) -> None:
    """Print tables, by their captions, and notes; write both to `report.md`.

    The pictures in the directory are shown below them.
    """
    text = [f"# {title}"]
    print(title)
    for caption, rows in tables.items():
        report.show(rows, caption)
        text += [f"{caption}:", report.markdown(rows).strip()]
    print(*notes, sep="\n")
    text += ["\n".join(f"* {note}" for note in notes)]
    text += [f"![{p.stem}]({p.name})" for p in sorted(directory.glob("*.png"))]
    text += [report.listed(log.versions())]
    (directory / "report.md").write_text("\n\n".join(filter(None, text)))
    print(f"report: {directory / 'report.md'}")
