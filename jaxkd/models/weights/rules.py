"""Names of layers in other libraries' files, from rules that are data.

A rule pairs a layer of ours with its name elsewhere::

    Rule("stage{i}_block{j}/conv{k}", "layer{i}.{j-1}.conv{k}")

A letter in braces stands for a whole number. The right side may compute with them, and
with what `numbers` counts:

* `{n}` the number of the block (or layer) over all stages, from 0; `{N}` how many,
  `{S}` how many stages;
* `{p}` the place of the layer among those units of its block that exist, from 0, in
  the order of `Table.units`;
* `{g}`, `{m}` the group of the block and its place in the group, from 0; a group
  starts with a stage, and where a block changes the number of channels;
* `{leaf}` what is a suffix otherwise: `weight`, `bias`, `running_mean` ...

Values follow from the kind of leaf: kernels of convolutions are HWIO here and OIHW
there, those of dense layers IO here and OI there.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Ours to PyTorch's; a leaf of another name is a parameter of its own.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
TRACKED = "num_batches_tracked"  # a counter in PyTorch's BatchNorm, always ignored
Shape = tuple[int, ...]


class Rule(NamedTuple):
    """One kind of layer, here and there.

    Attributes:
      ours: the path of a layer or of a parameter, with numbers in braces.
      theirs: its name; of several, each is a part of our layer's outputs, in order.
      optional: whether networks of the family may be without it.
      layout: "column" if theirs has two axes of length 1 at the end; "rows" if a dense
        layer is [inputs, outputs] there; "1x1" if it is a convolution.
    """

    ours: str
    theirs: str | tuple[str, ...]
    optional: bool = False
    layout: str = ""


class Table(NamedTuple):
    """The rules of one family as one library writes it.

    Attributes:
      sources: libraries that use these names.
      family: of networks.
      rules: the first that fits a layer counts.
      units: the order of the layers in a block, for `{p}`.
      ignored: pattern of names that hold nothing to learn, such as counters.
      stages: how many a network of the family has; 0 for any number.
    """

    sources: tuple[str, ...]
    family: str
    rules: tuple[Rule, ...]
    units: tuple[str, ...] = ()
    ignored: str = ""
    stages: int = 0

    @property
    def name(self) -> str:
        """Of the table in messages, e.g. "torchvision/resnet"."""
        return f"{self.sources[0]}/{self.family}"


class FilePlace(NamedTuple):
    """Where a leaf of ours is in a file.

    Attributes:
      names: of the arrays; several are put together along their first axis.
      leaf: the name of our leaf.
      layout: see `Rule`.
    """

    names: tuple[str, ...]
    leaf: str
    layout: str = ""


def layer_and_leaf(path: str) -> tuple[str, str]:
    """Cut a path into the layer's and the leaf's name; a bare parameter has no leaf.

    Example:
      >>> layer_and_leaf("state/batch_stats/stem_norm/mean")
      ('stem_norm', 'mean')
      >>> layer_and_leaf("params/class_token")
      ('class_token', '')
    """
    path = path.removeprefix("params/").removeprefix("state/batch_stats/")
    layer, _, leaf = path.rpartition("/")
    return (layer, leaf) if leaf in LEAVES else (path, "")


def places(table: Table, shapes: Mapping[str, Shape]) -> dict[str, FilePlace] | None:
    """Return where a table has every leaf of a network, None if it does not fit.

    It fits if it names every leaf, and every rule that is not optional names one.

    Args:
      table: of the family.
      shapes: of the network's leaves, by their paths.
    """
    counted = numbers(shapes, table.units)
    if table.stages not in (0, *(known["S"] for known in counted.values())):
        return None
    patterns = [(rule, _pattern(rule.ours)) for rule in table.rules]
    used, found = set(), {}
    for path in shapes:
        layer, leaf = layer_and_leaf(path)
        fits = ((r, m) for r, p in patterns if (m := p.fullmatch(layer)))
        rule, match = next(fits, (None, None))
        if rule is None or match is None:
            return None
        used.add(rule)
        known = {k: int(v) for k, v in match.groupdict().items()} | counted[layer]
        theirs = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
        names = tuple(_named(name, known, LEAVES.get(leaf, "")) for name in theirs)
        found[path] = FilePlace(names, leaf, rule.layout)
    return None if {r for r in table.rules if not r.optional} - used else found


def counters(found: Mapping[str, FilePlace]) -> list[str]:
    """Names of the counters that PyTorch's BatchNorm layers have beside their means."""
    return [
        place.names[0].removesuffix("running_mean") + TRACKED
        for place in found.values()
        if place.leaf == "mean"
    ]


def recognised(table: Table, names: Iterable[str]) -> float:
    """Return the share of a file's names that are like those of a table."""
    theirs = [
        name
        for rule in table.rules
        for name in ((rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs)
    ]
    pattern = re.compile("|".join(map(_their_pattern, theirs)))
    names = [name for name in names if not ignored(table, name)]
    return sum(bool(pattern.fullmatch(n)) for n in names) / max(len(names), 1)


def ignored(table: Table | None, name: str) -> bool:
    """Return whether an array in a file is nothing to learn."""
    own = table.ignored if table else ""
    return name.endswith(TRACKED) or bool(own and re.search(own, name))


def numbers(
    shapes: Mapping[str, Shape], units: tuple[str, ...] = ()
) -> dict[str, dict[str, int]]:
    """Count blocks and the layers in them; see the module.

    Args:
      shapes: of the network's leaves, by their paths.
      units: beginnings of the layers' names in a block, in order.

    Returns:
      For every layer, the numbers `N`, `S`, `n`, `p`, `g` and `m`, if any.
    """
    layers: dict[str, dict[str, Shape]] = {}
    for path, shape in shapes.items():
        layer, leaf = layer_and_leaf(path)
        layers.setdefault(layer, {})[leaf] = shape
    blocks: dict[tuple[int, int], dict[str, Shape]] = {}
    for layer, leaves in layers.items():
        if key := _block(layer):
            own = blocks.setdefault(key, {})
            own[layer.partition("/")[2]] = leaves.get("kernel", ())
    counted: dict[tuple[int, int], dict[str, int]] = {}
    group, place, before = -1, 0, (0, 0)
    for n, key in enumerate(sorted(blocks)):
        starts = key[0] != before[0] or _widens(blocks[key])
        group, place = (group + 1, 0) if starts else (group, place + 1)
        counted[key], before = {"n": n, "g": group, "m": place}, key
    totals = {"N": len(blocks), "S": max((i for i, _ in blocks), default=0)}
    found = {}
    for layer in layers:
        key = _block(layer)
        found[layer] = totals | (counted[key] if key else {})
        here = [u for u in units if key and any(x.startswith(u) for x in blocks[key])]
        unit = layer.partition("/")[2].replace("norm", "conv")
        at = [p for p, u in enumerate(here) if unit.startswith(u)]
        found[layer] |= {"p": at[0]} if at else {}
    return found


def _block(layer: str) -> tuple[int, int] | None:
    """Return the numbers of a layer's stage (0 is the stem) and of its block in it."""
    if match := re.fullmatch(r"stem_(?:conv|norm)(\d+)", layer):
        return 0, int(match[1])
    match = re.match(r"stage(\d+)_(?:block|conv|norm)(\d*)(?:/|$)", layer)
    return (int(match[1]), int(match[2] or 0)) if match else None


def _widens(kernels: Mapping[str, Shape]) -> bool:
    """Whether a block's last convolution gives another width than its first takes."""
    convs = [shape for name, shape in sorted(kernels.items()) if len(shape) == 4]
    if not convs:
        return False
    first, last = convs[0], convs[-1]
    inputs = first[3] if first[2] == 1 else first[2]  # one input: it is depthwise
    return inputs != last[3]


def _pattern(ours: str) -> re.Pattern:
    return re.compile(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours))


def _their_pattern(theirs: str) -> str:
    text = re.escape(theirs if "{leaf}" in theirs else f"{theirs}.{{leaf}}")
    text = re.sub(r"\\\{leaf\\\}", "(weight|bias|running_mean|running_var)", text)
    bare = re.sub(r"\\\.\(weight.*", "", text)  # a parameter without a leaf
    return "|".join(re.sub(r"\\\{.*?\\\}", r"\\d+", t) for t in (text, bare))


def _named(theirs: str, known: Mapping[str, int], leaf: str) -> str:
    """The name with the numbers in it, and the leaf behind it if it has no place."""
    suffix = "" if "{leaf}" in theirs or not leaf else f".{leaf}"
    name = theirs.replace("{leaf}", leaf)
    return re.sub(r"\{(.+?)\}", lambda m: str(_sum(m[1], known)), name) + suffix


def _sum(text: str, known: Mapping[str, int]) -> int:
    """Evaluate sums such as "3n+i-1"."""
    total = 0
    for sign, factor, letter in re.findall(r"([+-]?)(\d*)([a-zA-Z]?)", text):
        if factor or letter:
            term = int(factor or 1) * (known[letter] if letter else 1)
            total += -term if sign == "-" else term
    return total


def ours(place: FilePlace, arrays: list[np.ndarray]) -> np.ndarray:
    """Return a leaf of ours from arrays of a file."""
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if place.layout == "column":
        return array.reshape(array.shape[:1]) if array.size == len(array) else array
    if place.layout == "1x1" and place.leaf == "kernel" and array.ndim == 4:
        return array.reshape(array.shape[:2]).T
    if place.leaf != "kernel" or place.layout == "rows":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def theirs(place: FilePlace, leaf: np.ndarray) -> list[np.ndarray]:
    """Return the arrays of a file from a leaf of ours; the inverse of `ours`."""
    if place.layout == "column":
        leaf = leaf[:, None, None]
    elif place.leaf == "kernel" and place.layout != "rows":
        leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    if place.layout == "1x1" and place.leaf == "kernel":
        leaf = leaf[:, :, None, None]
    return np.split(leaf, len(place.names))
