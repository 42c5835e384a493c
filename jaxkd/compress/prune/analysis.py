"""Analyse a traced program: which channels go together, and which must stay."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import _check, _tree, jaxpr
from jaxkd._text import alternatives
from jaxkd.compress.prune import _trial
from jaxkd.compress.prune.plan import Frozen, Group, Leaf, Member, Plan
from jaxkd.compress.prune.trace.components import Axes, components
from jaxkd.compress.prune.trace.interpreter import interpret
from jaxkd.compress.prune.trace.labels import Ledger, Traced, constant, variable
from jaxkd.compress.prune.trace.lengths import products, sizes
from jaxkd.compress.prune.trace.sums import WINDOW
from jaxkd.models.net import naming_images

Patterns = str | Iterable[str] | None
FREE = "nothing is tied to it: this program does not use it"
WHOLE = "all its channels are tied together"
EXCLUDED = "left out by include or exclude"


def analyse(
    apply: Callable[..., Any],
    variables: Any,
    *inputs: Any,
    include: Patterns = None,
    exclude: Patterns = None,
    reductions: str = "freeze",
    splits: str = "whole",
) -> Plan:
    """Find the channels that can be removed, and what has to go with each.

    Nothing is computed: the program of `apply(variables, *inputs)` is traced and every
    operation asked which indices of its operands belong together. Sums tie their terms,
    kernels tie inputs to what comes before, concatenation, flattening, groups of
    convolutions and variables used twice are followed index by index. What the inputs
    and results have is fixed, and so is what enters an operation that is not known.
    Then some units of each group are removed and the program is traced again: where it
    is not the same one with fewer channels, the group stays, and `Plan.frozen` has the
    reason.

    Args:
      apply: any function of the variables and the inputs that `jax.make_jaxpr` traces;
        best of inference, returning nothing but what the network is for.
      variables: a tree of arrays or `jax.ShapeDtypeStruct`s. If it is a dict with the
        key "params", only that collection counts as parameters.
      *inputs: arrays or `jax.ShapeDtypeStruct`s. The plan's multiply-accumulates are
        for their shapes.
      include: globs of paths of variables ("stage1/*"; a leading "params/" may be left
        out). Only groups are pruned of which one of them makes the channels.
      exclude: globs, of groups that are not pruned.
      reductions: "freeze" keeps channels that a reduction goes over, as LayerNorm,
        GroupNorm, softmax and products of queries with keys do: with fewer of them the
        result is another. "allow" leaves them free, and `Plan.inexact` says where.
      splits: what channels lose that are cut into sections (groups of GroupNorm,
        attention heads, channel shuffles). "whole": whole sections; nothing else can
        go from a GroupNorm, since the statistics of a group are those of all its
        channels. "equal": of each section the same. Both are right only if the
        network takes the number of sections, or their size, from the shape; where it
        does not, the channels stay.

    Returns:
      The plan.

    Raises:
      ValueError: if a pattern fits no variable, with near names, or nothing is left.
    """
    _check.one_of("freeze", "allow")("reductions", reductions)
    _check.one_of("whole", "equal")("splits", splits)
    paths = list(_tree.flatten(variables))
    specs = jax.tree.map(_spec, variables)
    program, values, ledger = walk(
        apply, specs, inputs, reductions == "allow", splits == "equal"
    )
    chosen = _chooser(include, exclude, paths)
    parts = components(ledger, _axes(values))
    groups, why = _grouped(ledger, parts, paths, chosen)
    plan, unit = _plan(ledger, parts, jax.tree.leaves(specs), paths, groups, why)
    predicted = _trial.marks(ledger, unit[parts.of])
    failed = _trial.failures(plan, predicted, program, apply, specs, inputs)
    if not failed:
        return plan
    for i, reason in failed.items():
        why |= {int(component): [reason] for component in groups[i][0]}
    groups = [group for i, group in enumerate(groups) if i not in failed]
    return _plan(ledger, parts, jax.tree.leaves(specs), paths, groups, why)[0]


def analyse_net(
    net: Any, params: Any, state: Any, image_shape: tuple[int, ...], **how: Any
) -> Plan:
    """Analyse a `jaxkd.models.Net` by its logits for one image, in inference.

    The variables are `{"params": params, "state": state}`; `plan.apply` also takes
    `params` or `state` alone, an optimiser's state or a whole `TrainState`.

    Args:
      net: the network, or one that `resized` made of it.
      params: its parameters, arrays or `jax.ShapeDtypeStruct`s.
      state: what moves without a gradient, as `net.init` gives it.
      image_shape: of one image, without the batch axis.
      **how: include, exclude, reductions, splits.

    Returns:
      The plan, whose costs are those of one image.

    Raises:
      ValueError: as `analyse`, or if the network does not take such an image.

    Example:
      >>> from jaxkd.models import mlp
      >>> net = mlp([4], classes=3)
      >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))
      >>> plan = analyse_net(net, params, state, (2, 2, 1))
      >>> [(group.name, len(group.units)) for group in plan.groups]
      [('hidden1', 4)]
      >>> plan.macs(), plan.macs(dropped=[0, 2])  # 4 * 4 + 4 * 3, and of two units
      (28, 14)
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = {"params": params, "state": state}
    with naming_images(logits_of(net), variables, x):
        return analyse(logits_of(net), variables, x, **how)


def logits_of(net: Any) -> Callable[[Any, Any], Any]:
    """Return the function `(variables, x) -> logits` of a network, in inference."""

    def logits(variables: Any, x: Any) -> Any:
        out, _ = net.apply(variables["params"], variables["state"], x, train=False)
        return out.logits

    return logits


def walk(apply, variables, inputs, allow=False, equal=False):
    """Return (program, the value of each variable, ledger) of a function's trace."""
    program = jaxpr.trace(apply, variables, *inputs)
    leaves = jax.tree.leaves(variables)
    ledger = Ledger(allow, equal)
    values = [variable(ledger, np.shape(leaf)) for leaf in leaves]
    given = [
        constant(ledger, program.shape(i), "an input of the network", learned=False)
        for i in program.inputs[len(leaves) :]
    ]
    for value in interpret(ledger, program, [*values, *given]):
        ledger.fix(value.axes, "a result of the network")
    return program, values, ledger


def _axes(values: list[Traced]) -> Axes:
    """Return the axes of the variables that have labels."""
    rows = [
        (i, k, axis.labels[0], len(axis.labels))
        for i, value in enumerate(values)
        for k, axis in enumerate(value.axes)
        if axis.labels is not None
    ]
    leaf, axis, start, length = zip(*rows, strict=True) if rows else ((),) * 4
    return Axes(list(leaf), list(axis), np.array(start, int), np.array(length, int))


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _grouped(ledger, parts, paths, chosen):
    """(components, members, name's axis) of each group, and reasons of the others."""
    in_axes: dict[int, list[int]] = {}
    for j, (start, n) in enumerate(
        zip(parts.axes.start, parts.axes.length, strict=True)
    ):
        for kind in np.unique(parts.kind[parts.of[start : start + n]]):
            in_axes.setdefault(int(kind), []).append(j)
    roles = _roles(ledger, parts.axes)
    why: dict[int, list[str]] = {}
    for labels, reason in ledger.stays:
        for c in np.unique(parts.of[labels]):
            why.setdefault(int(c), []).append(ledger.reasons[-1 - reason])
    groups = []
    for kind, axes in in_axes.items():
        parts_of_kind = np.flatnonzero(parts.kind == kind)
        free = parts_of_kind[~parts.stays[parts_of_kind]]
        members = [
            Member(paths[parts.axes.leaf[j]], parts.axes.axis[j], roles[j])
            for j in axes
        ]
        reason = None
        if len(axes) < 2:
            reason = FREE
        elif len(free) < 2:
            reason = WHOLE
        elif not chosen([m.path for m in members if m.role == "out"]):
            reason = EXCLUDED
        if reason is None:
            groups.append((free, members, axes))
        else:
            why.update({int(c): [reason] for c in free})
    groups.sort(key=lambda g: (parts.maker[g[0]].min(), g[0].min()))
    return groups, why


def _roles(ledger: Ledger, axes: Axes) -> list[str]:
    """Of each axis: "in" if a product sums over it, else "out"."""
    summed = np.zeros(ledger.labels, bool)
    for labels in ledger.contracted:
        summed[labels[labels >= 0]] = True
    return ["in" if summed[start] else "out" for start in axes.start]


def _plan(ledger, parts, leaves, paths, groups, why) -> tuple[Plan, np.ndarray]:
    """Return the plan, and the unit of each component, -1 for those that stay."""
    unit = np.full(len(parts.kind), -1)  # of each component
    made, start = [], 0
    names: set[str] = set()
    for together, members, axes in groups:
        owner = parts.made[together[0]]
        owner = owner if owner in axes else axes[0]
        labels = np.arange(parts.axes.length[owner]) + parts.axes.start[owner]
        inside = parts.of[labels]
        inside = inside[np.isin(inside, together)]
        _, order = np.unique(inside, return_index=True)
        ordered = inside[np.sort(order)]
        unit[ordered] = np.arange(start, start + len(ordered))
        name = _unused(_name(paths[parts.axes.leaf[owner]]), names)
        units = range(start, start + len(ordered))
        made.append(Group(name, units, len(inside) // len(ordered), tuple(members)))
        start = units.stop
    described = _leaves(parts, leaves, paths, unit)
    group_of = np.repeat(np.arange(len(made)), [len(g.units) for g in made])
    macs = products(
        [(p.constant, p.axes) for p in ledger.products], unit[parts.of], group_of, made
    )
    lengths = sizes(described, group_of, made)
    inside = any(path.startswith("params/") for path in paths)
    counted = [path.startswith("params/") or not inside for path in paths]
    plan = Plan(
        tuple(made),
        _frozen(parts, paths, unit, why),
        tuple(ledger.inexact),
        described,
        _digest(made, described),
        macs,
        lengths,
        np.array(counted, np.int64),
        ledger.equal,
    )
    return plan, unit


def _name(path: str) -> str:
    return path.removeprefix("params/").removesuffix("/kernel")


def _unused(name: str, names: set[str]) -> str:
    """Return the name, with a number if it is taken."""
    choices = [name, *(f"{name}#{i}" for i in range(2, len(names) + 3))]
    name = next(choice for choice in choices if choice not in names)
    names.add(name)
    return name


def _leaves(parts, leaves, paths, unit) -> tuple[Leaf, ...]:
    units: list[list[np.ndarray | None]] = [[None] * len(leaf.shape) for leaf in leaves]
    for i, k, start, n in zip(*parts.axes, strict=True):
        found = unit[parts.of[start : start + n]]
        if (found >= 0).any():
            units[i][k] = found
    return tuple(
        Leaf(path, leaf.shape, leaf.dtype, tuple(of))
        for path, leaf, of in zip(paths, leaves, units, strict=True)
    )


def _frozen(parts, paths, unit, why) -> tuple[Frozen, ...]:
    """For each axis the channels that must stay, windows of convolutions left out."""
    out = []
    for i, k, start, n in zip(*parts.axes, strict=True):
        components = parts.of[start : start + n]
        stuck = components[unit[components] < 0]
        reasons = dict.fromkeys(
            r for c in np.unique(stuck) for r in why.get(int(c), ())
        )
        if reasons and set(reasons) != {WINDOW}:
            out.append(Frozen(paths[i], k, len(stuck), tuple(reasons)))
    return tuple(out)


def _digest(groups, leaves) -> str:
    digest = hashlib.sha256()
    for group in groups:
        digest.update(repr((group.name, len(group.units), group.each)).encode())
    for leaf in leaves:
        digest.update(repr((leaf.path, leaf.shape, str(leaf.dtype))).encode())
        for units in leaf.units:
            digest.update(b"-" if units is None else units.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _chooser(include: Patterns, exclude: Patterns, paths: list[str]):
    """Return whether a group that makes its channels at these paths is to be pruned."""
    include, exclude = (
        None if p is None else (p,) if isinstance(p, str) else tuple(p)
        for p in (include, exclude)
    )
    short = {path: path.removeprefix("params/") for path in paths}
    fits = lambda path, pattern: any(
        _tree.matches(p, pattern) for p in (path, short[path])
    )
    for name, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(fits(path, pattern) for path in paths):
                hint = alternatives(pattern, sorted(short.values()))
                raise ValueError(
                    f"{name}: the pattern {pattern!r} fits no variable{hint}"
                )
    of_any = lambda made, patterns: any(fits(m, p) for m in made for p in patterns)

    def chosen(made: list[str]) -> bool:
        wanted = include is None or of_any(made, include)
        return wanted and not (exclude is not None and of_any(made, exclude))

    return chosen
