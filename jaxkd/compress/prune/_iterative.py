"""Prune in steps, with fine-tuning after each."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import _check, checkpoint, store
from jaxkd.compress.prune.analysis import analyse_net
from jaxkd.compress.prune.plan import Plan
from jaxkd.compress.prune.resized import resized
from jaxkd.compress.prune.targets import Measure, Target, target
from jaxkd.models.net import Net

Variables = tuple[Any, Any]  # (params, state)
Choose = Callable[[Plan, Variables, Target], np.ndarray]


class Steps(NamedTuple):
    """The result of `iterative`.

    Attributes:
      variables: the `(params, state)` that are left, fine-tuned.
      costs: the target's cost before the first step and after each.
    """

    variables: Variables
    costs: list[float]


def iterative(
    net: Net,
    variables: Variables,
    image_shape: tuple[int, ...],
    choose: Choose,
    fine_tune: Callable[[Variables], Variables],
    *,
    kind: str,
    fraction: float,
    steps: int,
    round_to: int = 8,
    measure: Callable[[Plan, Variables], Measure] | None = None,
    directory: str | os.PathLike | None = None,
    **how: Any,
) -> Steps:
    """Prune a little, fine-tune, analyse anew, and so on, until the target is met.

    After step k of K the network costs at most fraction**(k / K) of the whole. Each
    step analyses and scores what is left, so that sensitivities are measured anew::

        def choose(plan, variables, target):
            scores = criteria.l1(plan, variables[0])
            metric = prune.masked_metric(small, plan, variables, resident, view=view)
            return prune.sensitivity(plan, scores, target, metric)

        small = prune.resized(net)
        done = prune.iterative(net, variables, (32, 32, 3), choose, fine_tune,
                              kind="macs", fraction=0.5, steps=3)

    Args:
      net: the network.
      variables: its `(params, state)`.
      image_shape: of one image.
      choose: `(plan, variables, target) -> units to remove`, by any method.
      fine_tune: from pruned variables to trained ones of the same shapes.
      kind: as in `target`.
      fraction: of the whole network's cost, in (0, 1).
      steps: how many.
      round_to: as in `target`.
      measure: for "latency", from a plan and its variables to the measure of `target`.
      directory: where the result of each step is saved; a run that was interrupted
        resumes after its last step. None saves nothing.
      **how: as in `analyse_net`, e.g. exclude.

    Returns:
      What is left.

    Raises:
      ValueError: before anything is trained, if an argument is out of its range, the
        target cannot be met, or the directory is of other steps.
    """
    _check.open_unit("fraction", fraction)
    _check.whole(1)("steps", steps)
    small = resized(net)
    plan = analyse_net(small, *variables, image_shape, **how)
    asked = lambda plan, variables: (
        None if measure is None else measure(plan, variables)
    )
    knobs: dict[str, Any] = {"round_to": round_to, "measure": asked(plan, variables)}
    costs = [float(target(plan, kind, fraction=fraction, **knobs).whole)]
    identity = {
        "variables": store.digest(variables),
        "target": [kind, fraction, steps, round_to],
        "plan": plan.hash,
    }
    folder = _folder(directory, identity)
    for k in range(1, steps + 1):
        if folder is not None and (saved := _load(folder, k)) is not None:
            variables, spent = saved
            costs.append(spent)
            continue
        plan = analyse_net(small, *variables, image_shape, **how)
        knobs["measure"] = asked(plan, variables)
        limit = target(plan, kind, most=costs[0] * fraction ** (k / steps), **knobs)
        dropped = choose(plan, variables, limit)
        spent = float(limit.cost(plan.kept(dropped)))
        if spent > limit.most:
            raise ValueError(
                f"choose left {kind} {spent:,.10g} in step {k}, allowed are "
                f"{limit.most:,.10g}"
            )
        left = plan.apply(variables, dropped)
        variables = fine_tune(left)
        _same_shapes(left, variables)
        costs.append(spent)
        if folder is not None:
            _save(folder, k, variables, spent)
    return Steps(variables, costs)


def _same_shapes(before: Any, after: Any) -> None:
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    if shapes(before) != shapes(after):
        raise ValueError("fine_tune must return (params, state) of the same shapes")


def _folder(
    directory: str | os.PathLike | None, identity: dict[str, Any]
) -> pathlib.Path | None:
    """Return the directory, which is made for these steps or was made for the same."""
    if directory is None:
        return None
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "steps.json"
    if not file.exists():
        store.write_json(file, identity)
    before = store.read_json(file, "delete it, or name another directory")
    store.require_same(folder, before, identity)
    return folder


def _save(folder: pathlib.Path, k: int, variables: Variables, spent: float) -> None:
    params, state = variables
    checkpoint.save(folder / f"step_{k}", {"params": params, "state": state})
    # Last: without it the step does not count as done.
    store.write_json(folder / f"step_{k}.json", {"cost": spent})


def _load(folder: pathlib.Path, k: int) -> tuple[Variables, float] | None:
    done = folder / f"step_{k}.json"
    if not done.exists():
        return None
    saved = checkpoint.load(folder / f"step_{k}")
    spent = store.read_json(done, f"delete it to do step {k} again")["cost"]
    return (saved["params"], saved["state"]), spent
