"""`load_weights`: the variables of a network from a file of any library."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check, _tree
from jaxkd._text import alternatives, did_you_mean
from jaxkd.models.net import Net
from jaxkd.models.weights import formats, rules
from jaxkd.models.weights.preprocessing import preprocessing
from jaxkd.models.weights.rules import FilePlace, Table
from jaxkd.models.weights.tables import TABLES
from jaxkd.models.zoo import ZOO

HEADS = ("head", "distilled_head")
LISTED = 6  # names of each kind in an error


class Report(NamedTuple):
    """What `load_weights` did.

    Attributes:
      source: the table of names, e.g. "torchvision/resnet"; "jaxkd" for our own.
      copied: paths of the variables that are from the file.
      fresh: paths of those that are not: heads, or what the file has not.
      left: names in the file that the network has no place for.
      other_shape: from a path to the shape in the file and in the network.
    """

    source: str
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


class _Match(NamedTuple):
    """A way of naming a network's leaves, and the table that it is from."""

    source: str
    table: Table | None
    places: Mapping[str, FilePlace]

    def known(self, arrays: formats.Arrays) -> int:
        """Return how many leaves a file has under these names."""
        return sum({*p.names} <= {*arrays} for p in self.places.values())


def load_weights(
    net: Net | str,
    path: str | pathlib.Path,
    *,
    source: str | Table = "auto",
    strict: bool = True,
    head: str = "load",
    classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    key: jax.Array | None = None,
) -> tuple[tuple[Any, Any], Report]:
    """Read the variables of a network from a file of PyTorch, JAX or this library.

    Torch is not needed, and no code in a file is run.

    Args:
      net: the network, or its name in `ZOO`.
      path: `.safetensors` (or the `.index.json` of several), `.npz`, `.msgpack`, a
        `.pth` or `.pt` of `torch.save`, a folder of orbax or of a run's `models/`.
      source: whose names the file has: "torchvision", "timm", "repdistiller",
        "transformers", "jaxkd" for paths of ours, "auto" for those that fit best, or
        a table of your own.
      strict: whether everything must fit. Otherwise what the file has not, or has of
        another shape, starts as `net.init` makes it.
      head: "load", or "fresh" for a head that starts as `net.init` makes it, such as
        one of another number of classes.
      classes: of a network given by name; None takes those of the file.
      image_shape: that `net.init` is called with. None takes the size that the zoo's
        network is made for, and 224x224x3 for others; it matters for transformers.
      key: for what starts fresh; `jax.random.key(0)` if None.

    Returns:
      `((params, state), report)`.

    Raises:
      FileNotFoundError: if there is no file.
      KeyError: if the zoo has no network of that name.
      ValueError: if the file is damaged, asks for code, is of another family, does not
        fit (names and shapes are listed), or a number is not finite.
    """
    _check.one_of("load", "fresh")("head", head)
    path = pathlib.Path(path)
    arrays = formats.read(path)
    make, image = _shapes_of(net, classes, image_shape)
    if classes is None and isinstance(net, str):
        if head == "fresh":
            raise ValueError(
                "classes must be given for a fresh head of a named network"
            )
        classes = _classes(_choose(make(1), arrays, source, path), arrays)
    init, shapes = make(classes)
    match = _choose((init, shapes), arrays, source, path)
    found, report = _copied(match, shapes, arrays, head)
    if strict:
        _refuse(report, match, arrays, path, head)
    _finite(found, path)
    start = _fresh(init, report.fresh, image, key)
    whole = _tree.map_with_path(
        lambda at, leaf: jnp.asarray(found[at]) if at in found else start[at], shapes
    )
    return (whole["params"], whole["state"]), report


def _shapes_of(net, classes, image_shape):
    """A function from classes to the `init` and shapes of a network; an image."""
    if isinstance(net, str):
        if net not in ZOO:
            raise KeyError(f"no network {net!r}{alternatives(net, ZOO)}")
        size = preprocessing(net).size
        image = image_shape or (size, size, 3)
        build: Callable[[int], Net] = lambda classes: ZOO[net](classes=classes)
    else:
        if classes is not None:
            raise ValueError("classes is for a network given by its name")
        image, build = image_shape or (224, 224, 3), lambda classes: net
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)

    def make(classes):
        init = lambda key, x: dict(
            zip(("params", "state"), build(classes).init(key, x), strict=True)
        )
        return init, jax.eval_shape(init, jax.random.key(0), x)

    return make, x


def _choose(made, arrays, source, path) -> _Match:
    """Return the names that fit the network and most of the file."""
    shapes = {at: leaf.shape for at, leaf in _tree.flatten(made[1]).items()}
    matches = ways(shapes, source)
    best = max(matches, key=lambda match: match.known(arrays), default=None)
    if best is None or not best.known(arrays):
        fits = ", ".join(sorted({match.source for match in matches}))
        raise ValueError(
            f"{path} is of another network: {_looks_like(arrays)}; it has names such "
            f"as {_list(arrays)}, and the network is read by {fits} "
            f"with names such as {_list(_expected(best or matches[-1]))}"
        )
    return best


def ways(shapes: Mapping[str, tuple[int, ...]], source: str | Table) -> list[_Match]:
    """Return all ways of naming a network's leaves that a source allows.

    Raises:
      ValueError: if there is no such source, or its tables do not fit the network.
    """
    if isinstance(source, Table):
        tables: tuple[Table, ...] = (source,)
    else:
        known = {"auto", "jaxkd", *(s for table in TABLES for s in table.sources)}
        _check.one_of(*sorted(known))("source", source)
        tables = tuple(t for t in TABLES if source in ("auto", *t.sources))
    found = [
        _Match(table.name, table, places)
        for table in tables
        if (places := rules.places(table, shapes))
    ]
    if source in ("auto", "jaxkd"):
        found += [_own(shapes, change) for change in _OWN]
    if not found:
        name = source if isinstance(source, str) else source.name
        fits = {t.name for t in TABLES if rules.places(t, shapes)}
        raise ValueError(
            f"no table of {name} fits the network, whose layers are {_list(shapes)}; "
            f"{', '.join(sorted(fits)) or 'no other'} and jaxkd do"
        )
    return found


# Paths as in {"params", "state"}, as in flax's variables, and of the parameters alone.
_OWN: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: path.removeprefix("state/"),
    lambda path: path.removeprefix("params/"),
    lambda path: path.removeprefix("state/").replace("/", "."),
    lambda path: path.removeprefix("params/").replace("/", "."),
)


def _own(shapes, change) -> _Match:
    places = {path: FilePlace((change(path),), "") for path in shapes}
    return _Match("jaxkd", None, places)


def _classes(match: _Match, arrays: formats.Arrays) -> int:
    """How many the head in a file has; 1 if it has none, which is refused later."""
    for path, place in match.places.items():
        if _is_head(path) and place.names[0] in arrays:
            shape = rules.ours(place, [arrays[place.names[0]]]).shape
            return shape[-1] if shape else 1
    return 1


def _is_head(path: str) -> bool:
    return rules.layer_and_leaf(path)[0] in HEADS


def _copied(match, shapes, arrays, head):
    """Arrays of the file by our paths, and the report."""
    found, fresh, other, used = {}, [], {}, set()
    for path, wanted in _tree.flatten(shapes).items():
        place = match.places[path]
        used |= {*place.names}
        if (head == "fresh" and _is_head(path)) or not {*place.names} <= {*arrays}:
            fresh.append(path)
            continue
        array = rules.ours(place, [arrays[name] for name in place.names])
        if array.shape != wanted.shape and array.squeeze().shape == wanted.shape:
            array = array.squeeze()  # a dense layer kept as a 1x1 convolution
        if array.shape != wanted.shape or not _same_kind(array, wanted):
            other[path] = array.shape, wanted.shape
            fresh.append(path)
            continue
        found[path] = array.astype(wanted.dtype)
    names = sorted({*arrays} - used)
    left = tuple(name for name in names if not rules.ignored(match.table, name))
    return found, Report(match.source, tuple(found), tuple(fresh), left, other)


def _same_kind(array: np.ndarray, wanted: Any) -> bool:
    real = functools.partial(jnp.issubdtype, arg2=jnp.floating)
    return real(array.dtype) == real(wanted.dtype)


def _refuse(report, match, arrays, path, head) -> None:
    """Raise unless the file and the network have the same leaves of the same shapes."""
    missing = [
        name
        for at in report.fresh
        for name in match.places[at].names
        if at not in report.other_shape and not (head == "fresh" and _is_head(at))
    ]
    if not (missing or report.left or report.other_shape):
        return
    said = []
    if report.other_shape:
        shapes = [
            f"{match.places[at].names[0]} gives {has}, the network's {at} is {wants}"
            for at, (has, wants) in report.other_shape.items()
        ]
        said.append(f"of another shape or type: {_list(shapes)}")
        if all(map(_is_head, report.other_shape)):
            said.append('head="fresh" starts the head anew')
    if missing:
        near = did_you_mean(missing[0], report.left)
        said.append(f"not in the file: {_list(missing)}{near}")
    if report.left:
        said.append(f"not in the network: {_list(report.left)}")
    raise ValueError(
        f"{path}, read as {report.source}, does not fit the network: "
        f"{'; '.join(said)}. {_looks_like(arrays)}; strict=False takes what fits"
    )


def _looks_like(arrays: formats.Arrays) -> str:
    """Return the families whose tables know all names of a file, in words."""
    shares = {table.name: rules.recognised(table, arrays) for table in TABLES}
    best = max(shares.values())
    near = [name for name, share in shares.items() if share == best]
    if best == 0:
        return "its names are of no family that is known"
    how = "all" if best == 1 else f"{best:.0%}"
    return f"{how} of its names are like those of {' or '.join(near)}"


def _expected(match: _Match) -> list[str]:
    return [name for place in match.places.values() for name in place.names]


def _list(names) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _finite(found: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    for at, array in found.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {at} has numbers that are not finite in float32")


def _fresh(init, paths, x, key) -> dict[str, Any]:
    """Only these leaves of a new network; what else it would make is not computed."""
    if not paths:
        return {}
    key = jax.random.key(0) if key is None else key

    def leaves(key):
        made = _tree.flatten(init(key, jnp.zeros(x.shape, x.dtype)))
        return {path: made[path] for path in paths}

    return jax.jit(leaves)(key)
