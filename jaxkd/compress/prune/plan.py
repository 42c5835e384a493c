"""A plan: what can be removed from a network, and how to remove it.

A *unit* is the least that can be removed: one channel of a layer with everything in
other layers that goes with it. A *group* is the units that run through the same axes of
the same variables, such as the channels of one layer. Units are numbered through all
groups, and a set of them to remove is given by their numbers, or by the boolean vector
`keep` of those that remain.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import cost
from jaxkd.compress.prune import _mirror


class Member(NamedTuple):
    """An axis of a variable that a group runs through.

    Attributes:
      path: of the variable.
      axis: of the variable.
      role: "out" where the channels are made, normalised or shifted, "in" where a
        kernel sums over them.
    """

    path: str
    axis: int
    role: str


class Group(NamedTuple):
    """Units of one kind: any of them may be removed, but not all.

    Attributes:
      name: the layer that makes them first.
      units: their numbers, one behind the other, in the order of that layer's channels.
      each: how many of that layer's channels one unit is (more than one in a grouped
        convolution, whose groups lose the same).
      members: the axes of variables that they run through.
    """

    name: str
    units: range
    each: int
    members: tuple[Member, ...]


class Frozen(NamedTuple):
    """Channels that must stay.

    Attributes:
      path: of a variable.
      axis: of the variable.
      channels: how many of its indices must stay.
      reasons: why.
    """

    path: str
    axis: int
    channels: int
    reasons: tuple[str, ...]


class Leaf(NamedTuple):
    """A variable.

    Attributes:
      path: as "params/stem_conv/kernel".
      shape: before anything is removed.
      dtype: of its numbers.
      units: for each axis the unit of every index, -1 where it must stay; None for an
        axis that must stay whole.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    units: tuple[np.ndarray | None, ...]


class Products(NamedTuple):
    """Products of lengths of axes, linear each in the number of units kept.

    Attributes:
      fixed: of each axis, the indices that stay. `[axes]`
      each: of each axis, the indices of one unit of each group. `[axes, groups]`
      factors: of each product, the constant. `[products]`
      lengths: of each product, its axes; the last axis has length one. `[products, n]`
    """

    fixed: np.ndarray
    each: np.ndarray
    factors: np.ndarray
    lengths: np.ndarray

    def values(self, kept: np.ndarray) -> np.ndarray:
        """Return the products where each group keeps `kept` units."""
        lengths = self.fixed + self.each @ kept
        return self.factors * lengths[self.lengths].prod(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What can be pruned in a network, from `analyse`.

    Attributes:
      groups: what may be removed.
      frozen: what must stay, and why.
      inexact: reductions over channels that were allowed (see `analyse`): with any of
        them, a pruned network differs from a masked one.
      leaves: the variables, in their tree's order.
      hash: a digest of groups and variables, the same in every process.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    inexact: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    hash: str
    _macs: Products = dataclasses.field(repr=False)
    _sizes: Products = dataclasses.field(repr=False)
    _counted: np.ndarray = dataclasses.field(repr=False)
    _equal: bool = dataclasses.field(repr=False)

    @property
    def units(self) -> int:
        """The number of units of all groups."""
        return self.groups[-1].units.stop if self.groups else 0

    def group(self, name: str) -> Group:
        """Return the group of that name.

        Raises:
          KeyError: if no group has that name, listing the groups.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no group {name!r}; there are {[g.name for g in self.groups]}")

    def keep(self, dropped: Iterable[int] | np.ndarray = ()) -> np.ndarray:
        """Return the units that remain, `bool[units]`.

        Raises:
          ValueError: if `dropped` are not numbers of units, without repetition.
        """
        ids = np.asarray(dropped if isinstance(dropped, np.ndarray) else list(dropped))
        if ids.dtype == bool:
            raise ValueError("dropped must be numbers of units; give booleans as keep=")
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            got = f"{ids.dtype} of shape {ids.shape}"
            raise ValueError(f"dropped must be numbers of units, got {got}")
        ids = ids.astype(np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.units):
            raise ValueError(
                f"dropped must be units from 0 to {self.units - 1}, got "
                f"{ids.min()} to {ids.max()}"
            )
        keep = np.ones(self.units, bool)
        keep[ids] = False
        if keep.sum() != self.units - ids.size:
            raise ValueError("dropped names a unit more than once")
        return keep

    def kept(self, dropped: Any = (), *, keep: Any = None) -> np.ndarray:
        """Return how many units of each group remain, `int[groups]`."""
        keep = self._keep(dropped, keep)
        starts = [group.units.start for group in self.groups]
        if not starts:
            return np.zeros(0, np.int64)
        return np.add.reduceat(keep.astype(np.int64), starts)

    def cost(self, kept: ArrayLike) -> cost.Cost:
        """Return the cost of a network that keeps `kept` units of each group.

        In closed form; which of the units remain does not matter. The numbers are those
        of `jaxkd.cost` for the inputs of the analysis.
        """
        counts = np.asarray(kept, np.int64)
        if counts.shape != (len(self.groups),):
            raise ValueError(
                f"kept must hold one number for each of {len(self.groups)} groups, got "
                f"shape {counts.shape}"
            )
        sizes = self._sizes.values(counts) * self._counted
        widths = np.array([jnp.dtype(leaf.dtype).itemsize for leaf in self.leaves])
        return cost.Cost(
            int(sizes.sum()),
            int(self._macs.values(counts).sum()),
            int((sizes * widths).sum()),
        )

    def macs(self, dropped: Any = (), *, keep: Any = None) -> int:
        """Multiply-accumulates of the network without these units."""
        return int(self._macs.values(self.kept(dropped, keep=keep)).sum())

    def params(self, dropped: Any = (), *, keep: Any = None) -> int:
        """Parameters of the network without these units.

        Of the collection "params" if the variables have one, else of all.
        """
        return self.cost(self.kept(dropped, keep=keep)).parameters

    def bytes(self, dropped: Any = (), *, keep: Any = None) -> int:
        """Bytes of these parameters."""
        return self.cost(self.kept(dropped, keep=keep)).bytes

    def apply(self, tree: Any, dropped: Any = (), *, keep: Any = None) -> Any:
        """Remove the units from every copy of the variables in a tree.

        Args:
          tree: the variables, one collection of them ("params" alone, say), or any tree
            with such subtrees: an optimiser's state, a moving average, a `TrainState`.
            What mirrors the variables is found by the paths of its leaves; all else,
            such as counters and keys, stays. Arrays or `jax.ShapeDtypeStruct`s.
          dropped: the numbers of the units to remove.
          keep: instead, `bool[units]`.

        Returns:
          The same structure with smaller arrays.

        Raises:
          ValueError: if nothing in the tree mirrors the variables, if something does
            with other shapes, or if a group would lose all its units.
        """
        keep = self._keep(dropped, keep)
        self._check_left(keep)
        every = np.append(keep, True)  # -1, an index that must stay, finds the last
        select = lambda leaf, a: _select(a, [_at(every, u) for u in leaf.units])
        return self._map(select, tree)

    def mask(self, tree: Any, dropped: Any = (), *, keep: Any = None) -> Any:
        """Replace the units by zeros in every copy of the variables in a tree.

        The reference for what removal does, and the way to try many removals with one
        compilation: `keep` may be traced.

        Args:
          tree: as for `apply`.
          dropped: the numbers of the units to zero.
          keep: instead, `bool[units]`.

        Returns:
          The same structure and shapes.
        """
        if keep is None:
            keep = self.keep(dropped)
            self._check_left(keep)
        elif np.shape(keep) != (self.units,) or np.size(dropped):
            raise ValueError(
                f"keep must have shape ({self.units},) and stand without dropped, got "
                f"{np.shape(keep)} and dropped {dropped}"
            )
        traced = isinstance(keep, jax.core.Tracer)
        every = (jnp if traced else np).append(keep, True).astype(bool)
        return self._map(lambda leaf, a: _zero(leaf, a, every), tree)

    def listing(self) -> str:
        """Return a text that lists the groups, and what must stay with the reasons."""
        lines = [
            f"{len(self.groups)} groups, {self.units} units, {self.params():,} "
            f"parameters, {self.macs():,} multiply-accumulates; plan {self.hash}"
        ]
        for group in self.groups:
            each = f" of {group.each} channels" if group.each > 1 else ""
            lines.append(f"{group.name}: {len(group.units)} units{each}")
            lines += [f"    {m.path} @ {m.axis} ({m.role})" for m in group.members]
        if self.frozen:
            lines.append("must stay:")
        for reasons in dict.fromkeys(frozen.reasons for frozen in self.frozen):
            lines.append(f"  {_few(reasons, 2, '; ')}:")
            where = [
                f"{f.path} @ {f.axis}" for f in self.frozen if f.reasons == reasons
            ]
            lines += [f"    {_few(where, 3, ', ')}"]
        lines += [f"a pruned network is not the masked one: {r}" for r in self.inexact]
        return "\n".join(lines)

    def _keep(self, dropped, keep) -> np.ndarray:
        """Return the concrete vector of what remains, however it was given."""
        if keep is None:
            return self.keep(dropped)
        keep = np.asarray(keep)
        if keep.shape != (self.units,) or keep.dtype != bool or np.size(dropped):
            raise ValueError(
                f"keep must be boolean of shape ({self.units},) and stand without "
                f"dropped, got {keep.dtype} {keep.shape} and dropped {dropped}"
            )
        return keep

    def _check_left(self, keep: np.ndarray) -> None:
        for group in self.groups:
            if not keep[group.units.start : group.units.stop].any():
                raise ValueError(f"group {group.name!r} would lose all its units")

    def _map(self, change, tree):
        """The tree with every copy of a variable changed: `change(leaf, array)`."""
        pairs, structure = _mirror.flatten(tree)
        paths = [tuple(leaf.path.split("/")) for leaf in self.leaves]
        found = _mirror.find(paths, [leaf.shape for leaf in self.leaves], pairs)
        out = []
        for (_, a), i in zip(pairs, found, strict=True):
            leaf = None if i is None else self.leaves[i]
            copied = leaf is not None and np.shape(a) == leaf.shape
            out.append(change(leaf, a) if copied else a)
        return jax.tree_util.tree_unflatten(structure, out)


def _few(texts: Sequence[str], most: int, between: str) -> str:
    """Return the first of them, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more


def _at(every: np.ndarray, units: np.ndarray | None) -> np.ndarray | None:
    """Return which indices of an axis remain; None for all."""
    if units is None:
        return None
    left = every[units]
    return None if left.all() else np.flatnonzero(left)


def _select(a: Any, indices: list[np.ndarray | None]) -> Any:
    if all(i is None for i in indices):
        return a
    lengths = zip(a.shape, indices, strict=True)
    shape = tuple(n if i is None else len(i) for n, i in lengths)
    if isinstance(a, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, a.dtype)
    traced = isinstance(a, jax.core.Tracer)
    # On the host: each shape would be one more compilation on the device.
    out = a if traced else np.asarray(a)
    for axis, index in enumerate(indices):
        if index is not None:
            out = (jnp if traced else np).take(out, index, axis=axis)
    return jnp.asarray(out) if isinstance(a, jax.Array) and not traced else out


def _zero(leaf: Leaf, a: Any, every: Any) -> Any:
    if all(units is None for units in leaf.units):
        return a
    traced = any(isinstance(x, jax.core.Tracer) for x in (a, every))
    np_ = jnp if traced else np  # on the host: each shape would be a compilation
    out = a if traced else np.asarray(a)
    for axis, units in enumerate(leaf.units):
        if units is not None:
            others = tuple(k for k in range(len(leaf.shape)) if k != axis)
            left = np_.expand_dims(every[units], others)
            out = np_.where(left, out, np_.zeros((), out.dtype))
    return jnp.asarray(out) if isinstance(a, jax.Array) and not traced else out
