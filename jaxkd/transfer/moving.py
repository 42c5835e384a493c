"""Which weights move, and how fast: optimisers by path patterns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import _check, _tree
from jaxkd.types import Params

Patterns = str | Iterable[str]
Rate = float | Callable[[Any], Any]  # a number, or an optax schedule


def freeze(
    tx: optax.GradientTransformation, patterns: Patterns
) -> optax.GradientTransformation:
    """The optimiser that leaves alone what fits the patterns, and moves the rest.

    A frozen leaf keeps its bits: no gradient, weight decay or momentum reaches it. It
    has no optimiser state, and does not count in a global norm inside `tx`. (Its
    gradient is still computed where a metric such as "norm/grad" asks for it.)

    Args:
      tx: any optimiser.
      patterns: over the parameters' paths; of a TrainState e.g. "student/stage*".

    Raises:
      ValueError: at `init`, if a pattern fits no parameter, with the nearest paths.
    """
    return _part(tx, patterns, frozen_if=True)


def train_only(
    tx: optax.GradientTransformation, patterns: Patterns
) -> optax.GradientTransformation:
    """Return the opposite of `freeze`: only what fits the patterns moves.

    The terms' own parameters (adapters) are among the rest: name "terms/*" as well if
    there are any.
    """
    return _part(tx, patterns, frozen_if=False)


def _part(
    tx: optax.GradientTransformation, patterns: Patterns, *, frozen_if: bool
) -> optax.GradientTransformation:
    if not isinstance(patterns, str):
        patterns = tuple(patterns)

    def labels(params: Params) -> Any:
        fits = _tree.mask(params, patterns)
        return jax.tree.map(lambda f: "frozen" if f == frozen_if else "moving", fits)

    return optax.partition({"moving": tx, "frozen": _still()}, labels)


def _still() -> optax.GradientTransformation:
    """Updates of minus zero: x + -0.0 has the bits of x, x + 0.0 has not for -0.0."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )


def layer_wise(
    tx_for: Callable[[Any], optax.GradientTransformation],
    rates: Mapping[str, Rate],
    *,
    default: Rate,
) -> optax.GradientTransformation:
    """Return an optimiser for each group of layers, with its own learning rate.

    Each group has a state of its own; what looks at all parameters at once, such as
    clipping by the global norm, belongs outside: `optax.chain(clip, layer_wise(...))`.

    Args:
      tx_for: from a learning rate to the optimiser, e.g. `optax.adam`.
      rates: learning rates, or schedules of the step, by pattern. Where patterns
        overlap, the first in the dict wins.
      default: the rate of what no pattern fits.

    Raises:
      ValueError: at `init`, if a pattern fits no parameter, with the nearest paths, or
        none that an earlier pattern has not taken.

    Example:
      >>> tx = layer_wise(optax.sgd, {"head/*": 0.1}, default=0.01)
      >>> params = {"head": {"bias": jnp.zeros(())}, "stem": jnp.zeros(())}
      >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
      >>> {path: round(float(u), 4) for path, u in _tree.flatten(updates).items()}
      {'head/bias': -0.1, 'stem': -0.01}
    """
    group = {pattern: f"group{i}" for i, pattern in enumerate(rates)}

    def first(path: str, _: Any) -> str:
        return next((group[p] for p in group if _tree.matches(path, p)), "rest")

    def labels(params: Params) -> Any:
        _tree.mask(params, group)  # refuses a pattern that fits nothing
        found = _tree.map_with_path(first, params)
        for pattern in group:
            if group[pattern] not in jax.tree.leaves(found):
                raise ValueError(
                    f"the pattern {pattern!r} fits only parameters that an earlier one "
                    f"of {list(group)} has taken"
                )
        return found

    transforms = {group[pattern]: tx_for(rate) for pattern, rate in rates.items()}
    return optax.partition({**transforms, "rest": tx_for(default)}, labels)


def by_depth(rate: Rate, layers: Sequence[str], *, decay: float) -> dict[str, Rate]:
    """Learning rates that fall with the distance from the output, for `layer_wise`.

    The last layer has `rate`, the one before it `decay * rate`, and so on.

    Args:
      rate: of the last layer; a number or a schedule of the step.
      layers: patterns, from the input to the output.
      decay: > 0; Howard and Ruder take 1 / 2.6.

    Example:
      >>> by_depth(0.8, ["stem/*", "body/*", "head/*"], decay=0.5)
      {'stem/*': 0.2, 'body/*': 0.4, 'head/*': 0.8}

    References:
      Howard, Ruder. `Universal Language Model Fine-tuning for Text Classification
      <https://arxiv.org/abs/1801.06146>`_, 2018. Section 3.2, discriminative
      fine-tuning.
    """
    _check.positive("decay", decay)

    def scaled(factor: float) -> Rate:
        return (lambda step: factor * rate(step)) if callable(rate) else factor * rate

    top = len(layers) - 1
    return {layer: scaled(decay ** (top - i)) for i, layer in enumerate(layers)}
