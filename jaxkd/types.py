"""The nouns of the library, shared by every module above `losses`."""

from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

# Columns with one entry for each example: "image", "label" and "index" for images. A
# cached teacher adds "teacher"; "where" is a mask of what counts in losses and metrics.
Batch = dict[str, Any]
Metrics = dict[str, Array]  # scalars, with names like "loss/kd"
Params = PyTree[Any]  # what a gradient moves
State = PyTree[Any]  # what moves without a gradient: batch statistics, memory banks


class Outputs(NamedTuple):
    """What a network computes from a batch.

    Attributes:
      logits: unnormalised log-probabilities, `[batch, classes]`, or with more axes
        between the two, such as `[batch, sequence, vocabulary]`.
      taps: named features, `{"stage3": [batch, h, w, c], ..., "pooled": [batch, d]}`.
    """

    logits: Array
    taps: dict[str, Array]

    def tap(self, name: str) -> Array:
        """Return the feature called `name`.

        Raises:
          KeyError: if there is none, listing those there are.
        """
        if name not in self.taps:
            raise KeyError(f"no tap {name!r}; there are {sorted(self.taps)}")
        return self.taps[name]
