"""Weights that a configuration brings along."""

import pathlib
from typing import Any

import jax

from jaxkd import _tree, checkpoint, train
from jaxkd._text import alternatives
from jaxkd.pipeline import directory, memory, networks, state
from jaxkd.pipeline.config import Config, Space
from jaxkd.pipeline.networks import Held
from jaxkd.pipeline.world import World


def models(config: Config, world: World) -> dict[str, Held]:
    """All models as they are before the first stage.

    Raises:
      ValueError: if a model cannot be made, or its weights do not fit it.
      FileNotFoundError: if there are no weights where they should be.
    """
    found = {}
    for name, model in config.models.items():
        weights = getattr(model, "weights", "")
        try:
            if isinstance(model, Space):
                found[name] = Held(None)
            elif weights:
                found[name] = loaded(config, name, weights, world)
            else:
                found[name] = Held(networks.base(model, world.classes))
                _own(found[name], world)
        except (ValueError, KeyError) as error:
            raise ValueError(f"models.{name}: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"models.{name}.weights: {error}") from error
    return found


def _own(held: Held, world: World):
    """Shapes of the variables that the network makes."""
    batch = jax.eval_shape(lambda r: train.example(r, world.plain), world.resident)
    return memory.traced(held.net.init, jax.random.key(0), batch["image"])


def loaded(config: Config, name: str, weights: str, world: World) -> Held:
    """Return a model with variables from a folder of `checkpoint.save` or `write`.

    In a folder of a run's `models/` lies its recipe: such a model may be pruned or
    quantized.
    """
    folder = pathlib.Path(weights).expanduser()
    tree, notes = _read(folder)
    params, extra = state.variables(tree, notes)
    recipe = tuple(notes["recipe"])
    net = networks.build(
        config.models[name],
        recipe,
        params,
        extra,
        classes=world.classes,
        image_shape=world.image_shape,
    )
    held = Held(net, params, extra, recipe)
    if not recipe:
        _same(_own(held, world), (params, extra), folder)
    return held


def _read(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The arrays of a folder and their recipe."""
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


def _same(own, theirs, folder: pathlib.Path) -> None:
    kinds = lambda tree: {p: (a.shape, a.dtype) for p, a in _tree.flatten(tree).items()}
    own, theirs = kinds(own), kinds(theirs)
    for path in sorted({*own, *theirs}):
        if own.get(path) != theirs.get(path):
            have, want = theirs.get(path, "nothing"), own.get(path, "nothing")
            raise ValueError(
                f"weights: {folder} does not fit: {path.partition('/')[2]} is {have}, "
                f"the network has {want}"
            )
