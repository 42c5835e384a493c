"""Sensitivity pruning: each group loses what costs the same predicted loss."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxkd import store
from jaxkd.compress.prune.metric import Metric
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.ratios import by_threshold, lowest
from jaxkd.compress.prune.targets import (
    Target,
    check_ratios,
    check_scores,
    width_at,
)

VERSION = 1
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Points = dict[int, float]  # from how many units a group keeps to the metric


class Curves(NamedTuple):
    """The drop of a metric when one group alone is pruned.

    Attributes:
      whole: the metric of the whole network.
      units: how many units each group has, by its name.
      points: for each group the metric by how many units it keeps.
    """

    whole: float
    units: dict[str, int]
    points: dict[str, Points]

    def losses(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(share of the units removed, drop of the metric) of a group, ascending.

        The drops are made monotone: of points out of order, the mean. Removing nothing
        costs nothing, and no drop is below zero.
        """
        n, kept = self.units[name], sorted(self.points[name], reverse=True)
        drops = [self.whole - self.points[name][k] for k in kept if k < n]
        ratios = np.asarray([0.0, *(1 - k / n for k in kept if k < n)])
        return ratios, np.maximum(monotone(np.asarray([0.0, *drops])), 0.0)


def sensitivity(
    plan: Plan,
    scores: ArrayLike,
    target: Target,
    metric: Metric,
    *,
    ratios: Sequence[float] = RATIOS,
    file: str | os.PathLike | None = None,
) -> np.ndarray:
    """Remove from every group what is predicted to cost the same drop of the metric.

    First each group is pruned alone, at several ratios, and the drop of the metric is
    measured; between the points it is interpolated linearly. Then every group loses as
    much as one common drop allows, and that is raised until the target is met.

    Args:
      plan: of the network.
      scores: of each unit, from `criteria`; in each group the lowest go. `[units]`
      target: from `target`.
      metric: e.g. from `masked_metric`.
      ratios: at which each group is measured, in [0, 1); no group loses more than the
        greatest.
      file: JSON, written after every measurement; an existing file is resumed.

    Returns:
      The numbers of the units to remove; the target is met.

    Raises:
      ValueError: before anything is measured, if an argument is out of its range, the
        target cannot be met with these ratios (with the range that can), or the file is
        of another plan, metric, data or scores.
    """
    reach(plan, target, ratios)
    found = curves(plan, scores, target, metric, ratios=ratios, file=file)
    return equal_loss(plan, scores, target, found)


def reach(plan: Plan, target: Target, ratios: Sequence[float]) -> None:
    """Refuse ratios with which the target cannot be met.

    Raises:
      ValueError: with the range that can be reached.
    """
    most = check_ratios("ratios", ratios)[-1]
    least = target.cost(
        np.asarray([width_at(w, most) for w in target.widths], np.int64)
    )
    if min(least, target.whole) > target.most:
        raise ValueError(
            f"{target.kind} <= {target.most:,.10g} cannot be met with ratios up to "
            f"{most}: they reach {least:,.10g} to {target.whole:,.10g}"
        )


def curves(
    plan: Plan,
    scores: ArrayLike,
    target: Target,
    metric: Metric,
    *,
    ratios: Sequence[float] = RATIOS,
    file: str | os.PathLike | None = None,
    progress: Callable[[str, int, float], None] = lambda name, kept, value: None,
) -> Curves:
    """Measure what pruning each group alone does to the metric.

    Args:
      plan: of the network.
      scores: of each unit. `[units]`
      target: whose widths are measured.
      metric: e.g. from `masked_metric`.
      ratios: at which each group is measured, in [0, 1), rounded to those widths.
      file: JSON, written after every measurement; an existing file is resumed.
      progress: called after each with the group's name, its width and the metric.

    Returns:
      The curves.

    Raises:
      ValueError: if the file is of something else, with the reason.
    """
    scores = check_scores(plan, scores)
    ratios = check_ratios("ratios", ratios)
    settings = {**metric.settings, "plan": plan.hash, "scores": store.digest(scores)}
    path = None if file is None else pathlib.Path(file)
    whole, known = _read(path, settings)
    if whole is None:
        whole = _measured(metric, plan.keep())
        _write(path, settings, whole, known)
    full = [int(widths[-1]) for widths in target.widths]
    points: dict[str, Points] = {}
    for i, group in enumerate(plan.groups):
        own = known.setdefault(group.name, {})
        wanted = sorted({width_at(target.widths[i], r) for r in ratios}, reverse=True)
        for width in wanted:
            if width < full[i] and width not in own:
                kept = [*full[:i], width, *full[i + 1 :]]
                keep = plan.keep(lowest(plan, scores, np.asarray(kept)))
                own[width] = _measured(metric, keep)
                _write(path, settings, whole, known)
                progress(group.name, width, own[width])
        points[group.name] = {w: own[w] for w in wanted if w in own}
    return Curves(whole, {g.name: len(g.units) for g in plan.groups}, points)


def _measured(metric: Metric, keep: np.ndarray) -> float:
    value = float(metric(keep))
    if not np.isfinite(value):
        raise ValueError(f"the metric must be finite, got {value}")
    return value


def equal_loss(
    plan: Plan, scores: ArrayLike, target: Target, curves: Curves
) -> np.ndarray:
    """Return the units to remove for an equal predicted drop in every group.

    Args:
      plan: of the network.
      scores: of each unit; in each group the lowest go. `[units]`
      target: to be met; the common drop is the smallest that does.
      curves: of the same plan.

    Returns:
      The numbers of the units to remove.

    Raises:
      ValueError: if the target cannot be met within the ratios measured.
    """
    prices = []
    for group, widths in zip(plan.groups, target.widths, strict=True):
        ratios, losses = curves.losses(group.name)
        wanted = 1 - widths / widths[-1]
        price = np.interp(wanted, ratios, losses)
        price[wanted > ratios[-1] + 1e-9] = np.inf  # never measured, never removed
        prices.append(price)
    return lowest(plan, scores, by_threshold(target, prices))


def monotone(values: np.ndarray) -> np.ndarray:
    """Return the nearest sequence in squares that never falls (isotonic regression).

    Neighbours that are out of order take their mean, until none is.

    Example:
      >>> monotone(np.array([0.0, 3.0, 1.0, 4.0])).tolist()
      [0.0, 2.0, 2.0, 4.0]

    References:
      M. Ayer, H. D. Brunk, G. M. Ewing, W. T. Reid, E. Silverman. An Empirical
      Distribution Function for Sampling with Incomplete Information. 1955.
      https://doi.org/10.1214/aoms/1177728423
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(n, value) for value, n in blocks])


def _read(
    path: pathlib.Path | None, settings: Mapping[str, Any]
) -> tuple[float | None, dict[str, Points]]:
    """Read the whole network's metric and each group's points, if there is a file."""
    if path is None or not path.exists():
        return None, {}
    content = store.read_json(path, "delete it, or name another file")
    try:
        version, before = content["sensitivity"], dict(content["settings"])
        points = {
            name: {int(kept): float(value) for kept, value in each.items()}
            for name, each in content["points"].items()
        }
        whole = float(content["whole"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of sensitivities: {error!r}") from error
    wanted = store.identity(version=VERSION, **settings)
    store.require_same(path, {"version": version, **before}, wanted)
    return whole, points


def _write(
    path: pathlib.Path | None,
    settings: Mapping[str, Any],
    whole: float,
    points: dict[str, Points],
) -> None:
    """Write the file whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"sensitivity": VERSION, "settings": dict(settings)}
    content |= {"whole": whole, "points": points}
    store.write_json(path, content)
