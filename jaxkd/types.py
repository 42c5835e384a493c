"""The nouns of the library: every room above `losses` speaks these."""

from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

Batch = dict[str, Array]  # "image", "label", "index"; a cached teacher adds "teacher"
Metrics = dict[str, Array]  # scalars, with names like "loss/kd"
Params = PyTree[Any]  # what a gradient moves
State = PyTree[Any]  # what moves without a gradient: batch statistics, memory banks


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
      logits: unnormalised log-probabilities, `[batch, classes]`.
      taps: named features, `{"stage3": [batch, h, w, c], ..., "pooled": [batch, d]}`.
    """

    logits: Array
    taps: dict[str, Array]

    def tap(self, name: str) -> Array:
        """The feature called `name`.

        Raises:
          KeyError: if there is none, listing those there are.
        """
        if name not in self.taps:
            raise KeyError(f"no tap {name!r}; there are {sorted(self.taps)}")
        return self.taps[name]
