"""What the battery (test_battery.py) has to know about a loss to test it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

Inputs = dict[str, np.ndarray]  # a loss's array arguments by name, in its own order
Draw = Callable[[np.random.Generator, tuple[int, ...], int], Inputs]


class Case(NamedTuple):
    """One loss with one setting of its knobs.

    Attributes:
      name: the test's name, usually the loss's.
      loss: the public function; called as `loss(*inputs, **knobs)`.
      draw: `(rng, batch, width) -> inputs`. Floats are float64 of about unit size;
        `width` is the number of classes, channels or dimensions. It may be asked for
        a batch `(1,)` and, for losses with `leading`, for `(2, 3)`.
      reference: `(**inputs, **knobs) -> [*batch]`, the definition in float64 numpy. It
        shares no code with the loss and is written another way where there is one.
      knobs: keyword arguments of the loss, `where` and `class_mask` excepted.
      vary: other values of knobs that must not compile a second program.
      pairs: (student, teacher) arguments; the battery sets them equal.
      at_equal: with the pairs equal, the loss and its student gradient are 0 and every
        other loss is greater ("zero"); the same without the 0 ("least"); only the
        gradient is 0 ("flat"); nothing is said (None).
      differentiable: arguments for `check_grads`; None means every float argument.
      smooth: two derivatives exist at drawn inputs, so second order is checked.
      batch_axis: where the examples are in an argument, if not on axis 0; None if it
        has no examples.
      across: an example's loss depends on the other examples of its batch.
      leading: any number of leading batch axes is taken, `[*batch, classes]`.
      class_axis: arguments whose last axis is the classes. Appending classes there and
        masking them changes nothing. Empty: the loss takes no `class_mask`.
      class_square: arguments `[classes, classes]`.
      symmetries: maps of inputs that leave the loss unchanged.
      width: number of classes, channels or dimensions in most tests.
      free_width: the two networks may have different widths.
      narrow: the smallest width that makes sense (two classes, one channel).
      largest: float32 inputs of this size give finite values and gradients.
      rtol: relative tolerance against `reference` in float64.
    """

    name: str
    loss: Callable[..., Any]
    draw: Draw
    reference: Callable[..., np.ndarray]
    knobs: Mapping[str, Any] = {}
    vary: Mapping[str, Any] = {}
    pairs: tuple[tuple[str, str], ...] = (("student_logits", "teacher_logits"),)
    at_equal: Literal["zero", "least", "flat"] | None = "zero"
    differentiable: tuple[str, ...] | None = None
    smooth: bool = True
    batch_axis: Mapping[str, int | None] = {}
    across: bool = False
    leading: bool = False
    class_axis: tuple[str, ...] = ()
    class_square: tuple[str, ...] = ()
    symmetries: tuple[Callable[[Inputs], Inputs], ...] = ()
    width: int = 5
    free_width: bool = False
    narrow: int = 2
    largest: float = 1e4
    rtol: float = 1e-9

    def axis(self, argument: str) -> int | None:
        """Where the examples are in this argument."""
        return self.batch_axis.get(argument, 0)

    def take(self, inputs: Mapping[str, Any], index: Any) -> dict[str, Any]:
        """The inputs of some examples: an index array or a boolean mask of axis 0."""
        (index,) = np.nonzero(index) if np.asarray(index).dtype == bool else (index,)
        axes = {name: self.axis(name) for name in inputs}
        return {
            name: array if axes[name] is None else np.take(array, index, axes[name])
            for name, array in inputs.items()
        }

    def call(self, inputs: Mapping[str, Any], **knobs: Any) -> Any:
        """The loss of these inputs, with this case's knobs and further ones."""
        # A dictionary that went through `jit` comes back sorted.
        order = list(inspect.signature(self.loss).parameters)
        arrays = sorted(inputs, key=order.index)
        knobs = {**self.knobs, **knobs}
        return self.loss(*(inputs[name] for name in arrays), **knobs)


def is_float(array: Any) -> bool:
    """Whether an argument is real-valued (logits, features), not indices or masks."""
    return bool(jnp.issubdtype(jnp.result_type(array), jnp.floating))
