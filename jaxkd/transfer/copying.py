"""Weights from one network to another, by path and shape."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.distill import TrainState
from jaxkd.types import Params, State

Variables = tuple[Params, State]  # what Net.init returns
Patterns = str | Iterable[str]
Rename = Mapping[str, str] | Callable[[str], str]
Shape = tuple[int, ...]


class CopyReport(NamedTuple):
    """What became of every leaf of a source and a target, by the target's paths.

    Each leaf of the two networks is named once. A leaf of the state has the path of its
    collection, e.g. "batch_stats/BatchNorm_0/mean".

    Attributes:
      copied: in both, with one shape.
      excluded: kept out by a pattern, whichever network has it.
      missing: only in the target, which keeps its own.
      mismatched: `(path, the source's shape, the target's)`; the target keeps its own.
      unused: only in the source, by the source's own path.
    """

    copied: tuple[str, ...]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    unused: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether everything was copied that no pattern excluded."""
        return not (self.missing or self.mismatched or self.unused)

    def rows(self) -> list[dict[str, str]]:
        """One row for each leaf, for `jaxkd.report.markdown` or `show`."""
        found = [
            {"leaf": path, "fate": fate, "shapes": ""}
            for fate in ("copied", "excluded", "missing", "unused")
            for path in getattr(self, fate)
        ]
        return found + [
            {"leaf": path, "fate": "mismatched", "shapes": f"{source} to {target}"}
            for path, source, target in self.mismatched
        ]

    def __str__(self) -> str:
        """One Markdown item for each fate that befell a leaf."""
        by_fate: dict[str, list[str]] = {}
        for row in self.rows():
            leaf = f"{row['leaf']} {row['shapes']}".strip()
            by_fate.setdefault(row["fate"], []).append(leaf)
        return "\n".join(
            f"* {fate} {len(leaves)}: {', '.join(leaves)}"
            for fate, leaves in by_fate.items()
        )


def match(
    source: Variables,
    target: Variables,
    *,
    rename: Rename = {},  # noqa: B006 (never changed)
    exclude: Patterns = (),
) -> CopyReport:
    """Return what `copy` would do; arrays are not touched, ShapeDtypeStructs will do.

    Args:
      source: `(params, state)`, as `Net.init` returns them.
      target: likewise.
      rename: from the source's paths to the target's: a function of a path, or a dict
        from a path, or the beginning of one up to a "/", to what takes its place.
      exclude: patterns of the target's paths that are not to be copied, e.g. "head/*".

    Raises:
      ValueError: if a pattern of `exclude` or a path of `rename` fits nothing, with the
        nearest paths there are; if two leaves get one name.
    """
    theirs, own = _renamed(_leaves(source), rename), _leaves(target)
    every = {**theirs, **own}
    if not isinstance(exclude, str):
        exclude = tuple(exclude)
    _tree.mask(dict.fromkeys(every, 0), exclude)  # refuses a pattern that fits nothing
    copied, excluded, missing, mismatched, unused = [], [], [], [], []
    for path in every:
        if _tree.matches(path, exclude):
            excluded.append(path)
        elif path not in theirs:
            missing.append(path)
        elif path not in own:
            unused.append(theirs[path][0])
        elif theirs[path][1].shape != own[path].shape:
            mismatched.append((path, theirs[path][1].shape, own[path].shape))
        else:
            copied.append(path)
    return CopyReport(
        tuple(copied), tuple(excluded), tuple(missing), tuple(mismatched), tuple(unused)
    )


def copy(
    source: Variables,
    target: Variables,
    *,
    rename: Rename = {},  # noqa: B006 (never changed)
    strict: bool = False,
    exclude: Patterns = (),
) -> tuple[Variables, CopyReport]:
    """Copy the leaves that two networks share by path and shape.

    Parameters and state (BatchNorm's running statistics) go together. A leaf of another
    shape is never copied, cut or broadcast; the target keeps its own, and the report
    says so. A head for other classes is `exclude="head/*"`: it keeps the target's fresh
    weights, also where the shapes happen to agree. Floating-point leaves are cast to
    the target's type; between other types nothing is converted.

    The result shares no buffer with either network, so that training, which donates its
    state, leaves both alive. Pure: for several seeds, `jax.vmap` over the target.

    Args:
      source: `(params, state)`, as `Net.init` returns them.
      target: likewise; its structure and its types are the result's.
      rename: see `match`.
      strict: whether to refuse anything short of a complete copy.
      exclude: see `match`.

    Returns:
      The target's variables with the copied leaves in their places, and the report.

    Raises:
      ValueError: as `match` does; if `strict` and a leaf that is not excluded could not
        be copied, with the report; if a pair of leaves differs in type, not both
        floating-point.

    Example:
      >>> from jaxkd.models import mlp
      >>> nets = mlp([3], classes=10), mlp([3], classes=2)
      >>> old, new = (net.init(jax.random.key(0), jnp.ones((1, 4))) for net in nets)
      >>> variables, report = copy(old, new, exclude="head/*")
      >>> print(report)
      * copied 2: hidden1/bias, hidden1/kernel
      * excluded 2: head/bias, head/kernel
    """
    report = match(source, target, rename=rename, exclude=exclude)
    if strict and not report.complete:
        raise ValueError(f"the copy is not complete:\n{report}")
    theirs = _renamed(_leaves(source), rename)
    chosen = {path: theirs[path][1] for path in report.copied}

    def leaf(path: str, own: Array) -> Array:
        new = chosen.get(path, own)
        both = jnp.issubdtype(new.dtype, jnp.floating) and jnp.issubdtype(
            own.dtype, jnp.floating
        )
        if new.dtype != own.dtype and not both:
            raise ValueError(
                f"{path} must have the target's type {own.dtype}, got {new.dtype}"
            )
        return jnp.array(new, own.dtype)  # always a copy: see the docstring

    params, state = (_tree.map_with_path(leaf, tree) for tree in target)
    return (params, state), report


def _leaves(variables: Variables) -> dict[str, Any]:
    """Return the leaves of parameters and state together, by path."""
    params, state = map(_tree.flatten, variables)
    if both := sorted(set(params) & set(state)):
        raise ValueError(f"params and state must not share paths, got {both} in both")
    return {**params, **state}


def _renamed(leaves: dict[str, Any], rename: Rename) -> dict[str, tuple[str, Any]]:
    """By the new name, the old one and the leaf."""
    if isinstance(rename, Mapping):
        rename = _prefixes(rename, list(leaves))
    found: dict[str, tuple[str, Any]] = {}
    for path, leaf in leaves.items():
        new = rename(path)
        if new in found:
            raise ValueError(
                f"rename makes {new!r} of both {found[new][0]!r} and {path!r}"
            )
        found[new] = (path, leaf)
    return found


def _prefixes(names: Mapping[str, str], paths: Sequence[str]) -> Callable[[str], str]:
    """Rename the longest beginning of a path, in whole components, that has a name."""
    for old in names:
        if not any(f"{path}/".startswith(f"{old}/") for path in paths):
            raise ValueError(f"rename names {old!r}, but the source has only {paths}")

    def rename(path: str) -> str:
        fitting = [old for old in names if f"{path}/".startswith(f"{old}/")]
        if not fitting:
            return path
        old = max(fitting, key=len)
        return names[old] + path.removeprefix(old)

    return rename


def warm_start(
    state: TrainState, variables: Variables, tx: optax.GradientTransformation
) -> TrainState:
    """The same start with other weights in the student; the optimiser starts anew.

    For several seeds (states stacked by `vmap`), variables without the axis of seeds go
    to all of them.

    Args:
      state: from `Distiller.init`; its step, key and terms stay.
      variables: of the student, e.g. from `copy`; copied, never aliased.
      tx: the distiller's optimiser, whose state may depend on the parameters.

    Raises:
      ValueError: if paths, shapes or types are not the student's.
    """
    own = state.student
    seeds = state.key.shape
    theirs, known = _leaves(variables), _leaves(own)
    if odd := sorted(set(theirs) ^ set(known)):
        raise ValueError(f"variables must have the student's paths; not in both: {odd}")

    def leaf(path: str, old: Array) -> Array:
        new = theirs[path]
        if new.dtype != old.dtype or new.shape not in (
            old.shape,
            old.shape[len(seeds) :],
        ):
            raise ValueError(
                f"{path} must be {old.dtype} {old.shape}, got {new.dtype} {new.shape}"
            )
        if new.shape != old.shape:
            new = jnp.broadcast_to(new[None], old.shape)
        return jnp.array(new)

    student, statistics = (_tree.map_with_path(leaf, tree) for tree in own)
    params = {**state.params, "student": student}
    return state._replace(
        params=params,
        state={**state.state, "student": statistics},
        opt_state=(jax.vmap(tx.init) if seeds else tx.init)(params),
    )
