"""Weights that a configuration brings along."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from jaxkd import _tree, checkpoint, store, train
from jaxkd._text import alternatives
from jaxkd.pipeline import directory, memory, networks, state
from jaxkd.pipeline.config import Config, SpaceTable
from jaxkd.pipeline.networks import Model
from jaxkd.pipeline.run_data import RunData


def models(config: Config, splits: RunData) -> dict[str, Model]:
    """All models as they are before the first stage.

    Raises:
      ValueError: if a model cannot be made, or its weights do not fit it.
      FileNotFoundError: if there are no weights where they should be.
    """
    found = {}
    for name, model in config.models.items():
        weights = getattr(model, "weights", "")
        try:
            if isinstance(model, SpaceTable):
                found[name] = Model(None)
            elif weights:
                found[name] = loaded(config, name, weights, splits)
            else:
                found[name] = Model(networks.base(model, splits.classes))
                _own(found[name], splits)
        except (ValueError, KeyError) as error:
            raise ValueError(f"models.{name}: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"models.{name}.weights: {error}") from error
    return found


def _own(held: Model, splits: RunData):
    """Shapes of the variables that the network makes."""
    batch = jax.eval_shape(lambda r: train.example(r, splits.plain), splits.resident)
    return memory.traced(held.net.init, jax.random.key(0), batch["image"])


def loaded(config: Config, name: str, weights: str, splits: RunData) -> Model:
    """Return a model with variables from a folder of `checkpoint.save` or `write`.

    In a folder of a run's `models/` lies its recipe: such a model may be pruned or
    quantized. Its table, and the shapes that its variables had before the recipe, must
    be those of the configuration.

    Raises:
      ValueError: if they are not, naming what differs.
      FileNotFoundError: if there is no such folder.
    """
    folder, model = pathlib.Path(weights).expanduser(), config.models[name]
    tree, notes = _read(folder)
    own = networks.description(model)
    # Folders of earlier versions, and those of `checkpoint.save`, have no table.
    if differ := store.differences(notes.get("model", own), own):
        raise ValueError(f"weights: {folder} is of another model: {differ}")
    params, extra = state.variables(tree, notes)
    recipe = tuple(notes["recipe"])
    if not isinstance(model, SpaceTable) and any(s["step"] == "choose" for s in recipe):
        raise ValueError(f"weights: {folder} is of a space, not of {own['kind']}")
    build = functools.partial(
        networks.build, model, classes=splits.classes, image_shape=splits.image_shape
    )
    first = [step for step in recipe if step["step"] in ("choose", "recipe")]
    whole = _own(Model(build(first, params, extra)), splits)
    _same(whole, _before(recipe, params, extra), folder, recipe)
    try:
        held = Model(build(recipe, params, extra), params, extra, recipe)
        _logits(held, splits)
    except (FlaxError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"weights: {folder} does not fit: {error}") from error
    return held


def _before(recipe: Sequence[networks.Step], params: Any, extra: Any) -> Any:
    """Shapes and types of the variables before BatchNorm was folded and quantized."""
    folded = [step["shapes"] for step in recipe if step["step"] == "fold"]
    if not folded:
        return params, extra
    return jax.eval_shape(lambda: networks.zeros(folded[0]))


def _logits(held: Model, splits: RunData) -> Any:
    """Shapes of the logits of one image."""
    x = jax.ShapeDtypeStruct((1, *splits.image_shape), jnp.float32)
    forward = lambda p, z, x: held.net.apply(p, z, x, train=False)[0].logits
    return jax.eval_shape(forward, held.params, held.state, x)


def _read(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Return the arrays of a folder and their recipe."""
    if directory.is_run(folder):
        there = sorted(path.name for path in (folder / "models").glob("*"))
        raise ValueError(
            f"weights: {folder} is a run; give the folder of one of its models, "
            f"{folder / 'models' / (there or ['NAME'])[0]}{alternatives('', there)}"
        )
    notes: dict[str, Any] = {"recipe": [], "empty": []}
    try:
        if checkpoint.has_notes(folder):
            found = checkpoint.read(folder)
            tree, notes = found.tree, {**notes, **found.meta}
        else:
            tree = checkpoint.load(folder)
    except ValueError as error:
        run = folder.absolute().parents[1]
        again = f"; python -m jaxkd resume {run}, which writes it again"
        raise ValueError(f"weights: {error}{again * directory.is_run(run)}") from error
    if not isinstance(tree, dict) or "params" not in tree:
        raise ValueError(f"weights: {folder} holds no 'params'")
    return tree, notes


def _same(own: Any, theirs: Any, folder: pathlib.Path, recipe: Any) -> None:
    """Refuse variables that the network does not make; pruned ones may be smaller."""
    pruned = any(step["step"] == "prune" for step in recipe)
    kinds = lambda tree: {p: (a.shape, a.dtype) for p, a in _tree.flatten(tree).items()}
    own, theirs = kinds(own), kinds(theirs)
    for path in sorted({*own, *theirs}):
        have, want = theirs.get(path), own.get(path)
        if have == want or (pruned and _smaller(have, want)):
            continue
        raise ValueError(
            f"weights: {folder} does not fit: {path.partition('/')[2]} is "
            f"{have or 'nothing'}, the network has {want or 'nothing'}"
        )


def _smaller(have: Any, want: Any) -> bool:
    if have is None or want is None or have[1] != want[1]:
        return False
    pairs = zip(have[0], want[0], strict=True)
    return len(have[0]) == len(want[0]) and all(a <= b for a, b in pairs)
