"""Networks from what is written down of them: a model's table and its recipe.

A recipe is a list of steps that JSON can hold: what has been done to a network beside
training it. With the variables it is enough to have the network again::

    {"step": "choose", "values": {...}}      of a space, by a search
    {"step": "recipe", "name", "options", "teacher": {...}}    a classifier of another's
    {"step": "prune"}                        widths are those of the variables
    {"step": "fold", "shapes": {...}}        BatchNorm; shapes of the variables before
    {"step": "quantize", "how": {...}}       fields of `Quantization`
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from jaxkd import _tree, cost, models, store
from jaxkd._text import alternatives
from jaxkd.compress import quantize, search
from jaxkd.compress.quantize.net import RANGES, STEPS
from jaxkd.models.net import Net
from jaxkd.pipeline.parts import CnnTable, MlpTable, ModelTable, SpaceTable, Zoo

Step = dict[str, Any]
FREE = ("dropout", "input_dropout", "dtype", "weights")  # any with the same variables


class Model(NamedTuple):
    """A model as it is between two stages.

    Attributes:
      net: a `Net`; None while its space has not been searched.
      params: its parameters, None before it is trained.
      state: what moves without a gradient.
      recipe: what was done to it beside training.
    """

    net: Any
    params: Any = None
    state: Any = None
    recipe: tuple[Step, ...] = ()


class Origin(NamedTuple):
    """What a model is made from, for replaying its recipe.

    Attributes:
      model: its table.
      params: its variables at the end of the recipe.
      state: likewise, what moves without a gradient.
      classes: of the data.
      image_shape: of one image.
    """

    model: ModelTable
    params: Any
    state: Any
    classes: int
    image_shape: tuple[int, ...]


def description(model: ModelTable) -> dict[str, Any]:
    """What of a model's table decides which function its variables make, for JSON."""
    names = [name for name in model.__struct_fields__ if name not in FREE]
    kind = model.__struct_config__.tag
    return store.identity(kind=kind, **{name: getattr(model, name) for name in names})


def base(model: ModelTable, classes: int) -> Net:
    """Return the network of a model's table; not of a space."""
    dtype = jnp.bfloat16 if getattr(model, "dtype", "") == "bfloat16" else None
    if isinstance(model, Zoo):
        return models.ZOO[model.name](classes=classes, dtype=dtype)
    if isinstance(model, CnnTable):
        return models.cnn(
            model.stages,
            hidden=model.hidden,
            classes=classes,
            dropout=model.dropout,
            dtype=dtype,
        )
    if isinstance(model, MlpTable):
        return models.mlp(
            model.widths,
            classes=classes,
            dropout=model.dropout,
            input_dropout=model.input_dropout,
            dtype=dtype,
        )
    raise ValueError("a space has no network before a search")


def space(model: ModelTable, classes: int) -> Any:
    """Return the search space of a model's table.

    Raises:
      ValueError: if it gives widths to the MobileNets, which have their own.
    """
    assert isinstance(model, SpaceTable)
    if model.space == "resnet":
        usual = {"widths": model.widths} if model.widths else {}
        return search.resnet_space(classes, **usual)  # type: ignore[arg-type]
    if model.widths:
        raise ValueError("widths: only the resnet space takes them")
    return search.mobilenet_space(classes)


def build(
    model: ModelTable,
    recipe: Sequence[Step],
    params: Any,
    state: Any,
    *,
    classes: int,
    image_shape: tuple[int, ...],
) -> Net:
    """Return the network of a model with a recipe and the variables at its end.

    Raises:
      ValueError: if a step is not known.
    """
    from jaxkd.pipeline.stages import STEPS as REPLAYS  # the stages need networks

    params = {k: v for k, v in params.items() if k != STEPS}
    state = {k: v for k, v in state.items() if k != RANGES}
    origin = Origin(model, params, state, classes, image_shape)
    net = None if isinstance(model, SpaceTable) else base(model, classes)
    for step in recipe:
        if step["step"] not in REPLAYS:
            hint = alternatives(step["step"], REPLAYS)
            raise ValueError(f"the recipe has an unknown step {step['step']!r}{hint}")
        net = REPLAYS[step["step"]](net, step, origin)
    if net is None:
        raise ValueError("a space has no network before a search")
    return net


def quantization(how: dict[str, Any]) -> quantize.Quantization:
    """Return the configuration of a recipe's step."""
    layers = {name: quantize.Bits(*bits) for name, bits in how["layers"].items()}
    return quantize.Quantization(**{**how, "layers": layers})


def shapes(params: Any, state: Any) -> dict[str, Any]:
    """Shapes and types of variables, for JSON."""
    leaves = _tree.flatten({"params": params, "state": state})
    return {path: [list(a.shape), str(a.dtype)] for path, a in leaves.items()}


def zeros(shapes: dict[str, Any]) -> tuple[Any, Any]:
    """Parameters and state of these `shapes`, zeros."""
    nested: dict[str, Any] = {"params": {}, "state": {}}
    for path, (shape, dtype) in shapes.items():
        *above, name = path.split("/")
        inside = nested
        for key in above:
            inside = inside.setdefault(key, {})
        inside[name] = jnp.zeros(tuple(shape), dtype)
    return nested["params"], nested["state"]


def started(net: Net, variables: tuple[Any, Any] | None) -> Net:
    """The network whose `init` gives these variables, zeros where they are shapes.

    A network's own `init` knows nothing of pruned widths or trained weights. With None
    it is the network itself.
    """
    if variables is None:
        return net

    def leaf(a: Any) -> Any:
        return jnp.zeros(a.shape, a.dtype) if isinstance(a, ShapeDtypeStruct) else a

    return Net(lambda key, x: jax.tree.map(leaf, variables), net.apply)


def without_steps(params: Any) -> Any:
    """Return the parameters of a network without learned step sizes."""
    return {name: tree for name, tree in params.items() if name != STEPS}


def is_quantized(held: Model) -> bool:
    """Return whether the recipe has that step."""
    return any(step["step"] == "quantize" for step in held.recipe)


def stored_bytes(held: Model) -> int:
    """Bytes of the parameters, quantized kernels at their width."""
    if is_quantized(held):
        return quantize.size(held.net, held.params, held.state).after
    return cost.bytes(held.params)
