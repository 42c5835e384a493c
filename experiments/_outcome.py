"""What the experiments make of trained networks: numbers, tables, a report."""

import datetime
import pathlib
import time
from typing import Any

import jax
import numpy as np

from jaxkd import cost, data, distill, evaluate, log, report, train
from jaxkd.data import augment
from jaxkd.models import Net


def first(run: train.Run) -> tuple[Any, Any]:
    """The variables of the network of the first seed, ready to teach."""
    pick = lambda tree: jax.tree.map(lambda a: a[0], tree["student"])
    return pick(run.state.params), pick(run.state.state)


def final(run: train.Run, metric: str = "accuracy") -> np.ndarray:
    """A metric after the last epoch, `[seeds]`."""
    return np.asarray(run.history[-1][metric])


def curve(run: train.Run) -> np.ndarray:
    """The accuracy in percent after each epoch, `[epochs, seeds]`."""
    return 100 * np.asarray([row["accuracy"] for row in run.history])


def costs(
    net: Net, variables: tuple[Any, Any], test: data.Dataset, view: augment.View
) -> dict[str, str]:
    """The columns of the table that do not depend on how the network was trained.

    Images per second are those of `evaluate.predict` over the test set, the median of
    five passes.
    """
    of = cost.of(net, test.images.shape[1:])

    @jax.jit
    def predict(variables: tuple[Any, Any], resident: Any) -> jax.Array:
        return evaluate.predict(distill.frozen(net), variables, resident, view=view)

    resident = data.on_device(test)
    jax.block_until_ready(predict(variables, resident))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(predict(variables, resident))
        seconds.append(time.perf_counter() - begin)
    return {
        "parameters": f"{of.parameters:,}",
        "MACs": f"{of.macs:,}",
        "bytes": f"{of.bytes:,}",
        "images/s": f"{len(test.images) / float(np.median(seconds)):,.0f}",
    }


def row(label: str, run: train.Run, costs: dict[str, str]) -> dict[str, str]:
    """A row of the final table: accuracy in percent, after the last epoch."""
    accuracy = report.mean_sd(final(run), scale=100)
    return {"network": label, "test accuracy %": accuracy, **costs}


def gain(distilled: train.Run, alone: train.Run) -> tuple[float, float]:
    """Mean gain of paired seeds in points, and its standard error (nan for one)."""
    difference = 100 * (final(distilled) - final(alone))
    n = len(difference)
    error = difference.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(difference.mean()), float(error)


def gain_sentence(distilled: train.Run, alone: train.Run) -> str:
    """The gain and its standard error, in words."""
    mean, error = gain(distilled, alone)
    if np.isnan(error):
        return f"Distillation changes the accuracy by {mean:+.2f} points (one seed)."
    return (
        f"Distillation changes the accuracy by {mean:+.2f} ± {error:.2f} points "
        f"(mean over {len(final(alone))} paired seeds ± standard error)."
    )


def write_report(
    directory: pathlib.Path,
    title: str,
    rows: report.Rows,
    panels: dict[str, dict[str, np.ndarray]],
    sentences: list[str],
) -> None:
    """Prints the table and the sentences; writes them with a picture to `report.md`."""
    report.show(rows, title)
    print(*sentences, sep="\n")
    drawn = report.curves(directory / "curves.png", panels, y_label="test accuracy, %")
    picture = "![Test accuracy by epoch](curves.png)\n\n" if drawn else ""
    notes = "".join(f"* {sentence}\n" for sentence in sentences)
    made = report.listed(log.versions())
    (directory / "report.md").write_text(
        f"# {title}\n\n{report.markdown(rows)}\nAccuracy after the last epoch, mean ± "
        f"standard deviation over seeds.\n\n{notes}\n{picture}{made}"
    )
    print(f"report: {directory / 'report.md'}")


def run_directory(base: str, name: str) -> pathlib.Path:
    """A new directory under `base/name`, named by the time."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory = pathlib.Path(base) / name / stamp
    suffix = 1
    while directory.exists():
        suffix += 1
        directory = directory.with_name(f"{stamp}_{suffix}")
    return directory
