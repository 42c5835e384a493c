"""Whose scores these are: which teacher's variables, which view, which network."""

import pathlib
from typing import Any

import jax
import numpy as np

from jaxkd.cache import keep, replay
from jaxkd.cache.store import Arrays
from jaxkd.data import Dataset
from jaxkd.data.augment import View
from jaxkd.data.dataset import take

PROBED = 32  # examples by which a view and a network are recognised


def first(dataset: Dataset) -> Dataset:
    """Return the examples that are tried."""
    return take(dataset, np.arange(min(PROBED, len(dataset.index))), dataset.split)


def probe(view: View, dataset: Dataset) -> Arrays:
    """A few examples and what the view makes of them, to be stored with the scores.

    A view is a function and has no name to compare; its images have.
    """
    few = first(dataset)
    arrays = {f"probe_{name}": array for name, array in few.columns.items()}
    return {**arrays, "probe_seen": seen(view, arrays)}


def seen(view: View, probe: Arrays) -> np.ndarray:
    """Return the probe's examples under the first and the last view."""
    _, views = replay.settings(view)
    stored = ("probe_seen", "probe_index", "probe_label")
    batch = {
        name.removeprefix("probe_"): array
        for name, array in probe.items()
        if name.startswith("probe_") and name != "probe_seen"
    }
    columns = sorted(set(batch) - {name.removeprefix("probe_") for name in stored})

    @jax.jit
    def show(batch: Any) -> Any:
        shown = view(jax.random.key(0), batch)
        if columns == ["image"]:
            return shown["image"].astype("float32")
        flat = [shown[name].reshape(len(batch["index"]), -1) for name in columns]
        return jax.numpy.concatenate([f.astype("float32") for f in flat], axis=1)

    column = np.zeros(len(batch["index"]), np.int32)
    shown = [show({**batch, "view": column + v}) for v in sorted({0, views - 1})]
    return np.stack([np.asarray(examples, np.float32) for examples in shown])


def same_view(
    path: pathlib.Path, view: View, manifest: dict[str, Any], probe: Arrays
) -> None:
    """By what it makes of images that were stored with what it made of them."""
    seed, views = replay.settings(view)
    if (manifest["seed"], manifest["views"]) != (seed, views):
        raise ValueError(
            f"{path} was scored under another view: {manifest['views']} of each "
            f"example with seed {manifest['seed']}, here {views} with seed {seed}; "
            "train under the view that was scored, or score this one elsewhere"
        )
    stored, now = probe["probe_seen"], seen(view, probe)
    # Not exact: another device or version rounds otherwise.
    if stored.shape != now.shape or not np.allclose(stored, now, 1e-4, 1e-4):
        raise ValueError(
            f"{path} was scored under another view: it shows the stored examples "
            "otherwise; train under the view that was scored, or score this one "
            "elsewhere"
        )


def same_network(
    path: pathlib.Path, kept: keep.Kept, fields: Arrays, logits: np.ndarray
) -> None:
    """The fields begin with what is kept of these logits.

    Variables do not tell a ReLU from a tanh; a few examples do.
    """
    few = {name: array[: len(logits)] for name, array in fields.items()}
    agree, apart = keep.compare(kept, few, logits)
    if not agree:
        largest = float(np.abs(logits[np.isfinite(logits)]).max(initial=0))
        raise ValueError(
            f"{path} has scores that differ from what the teacher gives now, by up to "
            f"{apart:.3g} in the first {len(logits)} examples (largest logit "
            f"{largest:.3g}), though its variables are the same. Either it is another "
            "network with the same variables, or another device, version or "
            "jax_default_matmul_precision rounds otherwise than when it was scored: "
            "restore that setting, or score again under another path"
        )
