"""BatchNorm's statistics, kept as they were."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
from flax import nnx
from jaxtyping import Array

from jaxkd import _tree
from jaxkd.models.interception import arguments, intercept_calls
from jaxkd.models.net import Net
from jaxkd.types import Params, State

Patterns = str | Iterable[str]


def frozen_statistics(net: Net, patterns: Patterns = "*") -> Net:
    """Return the network whose BatchNorms use their stored statistics also in training.

    Those statistics then never change, so that few new images cannot spoil what many
    old ones measured; dropout and all else train as before. BatchNorm's scale and bias
    are parameters: `freeze` them where they should stay too.

    Args:
      net: from `models.from_linen`, `from_nnx` or `from_foreign`, or a model
        made with them.
      patterns: of the BatchNorms' paths, e.g. "stage1*"; all by default.

    Returns:
      A network with the same `init`; its `apply` raises a ValueError, when traced, if a
      pattern fits no BatchNorm.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)

    def apply(params: Params, state: State, x: Array, *, train: bool, key=None):
        called: set[str] = set()

        def stored(next_call, args, kwargs, module):
            if not isinstance(module.module, nn.BatchNorm | nnx.BatchNorm):
                return next_call(*args, **kwargs)
            called.add(module.path)
            if not _tree.matches(module.path, patterns):
                return next_call(*args, **kwargs)
            return _on_stored(module.module, next_call, args, kwargs)

        with intercept_calls(stored):
            out = net.apply(params, state, x, train=train, key=key)
        for pattern in patterns:
            if not any(_tree.matches(path, pattern) for path in called):
                raise ValueError(
                    f"the pattern {pattern!r} fits no BatchNorm; there are "
                    f"{sorted(called)}"
                )
        return out

    return Net(net.init, apply)


def _on_stored(module: Any, call: Callable, args: tuple, kwargs: dict) -> Any:
    """One call of a BatchNorm with stored statistics, however it was told otherwise."""
    given = arguments(call, args, kwargs)
    x, mask = given["x"], given.get("mask")
    told = module.use_running_average
    # linen refuses the flag as attribute and argument at once, and freezes attributes.
    object.__setattr__(module, "use_running_average", None)
    try:
        return call(x, use_running_average=True, mask=mask)
    finally:
        object.__setattr__(module, "use_running_average", told)
