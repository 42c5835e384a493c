"""Which indices of which axes belong together: labels, and the ledger of their ties.

Every axis of every array of a program carries one integer label per index. An index of
a variable's axis starts with a label of its own (>= 0); a negative label says that the
index must stay, and its number says why (`Ledger.reasons`). An axis without labels
holds the same at every index, however many there are, so that it asks for nothing.

A dropped index holds zeros in the variables. What depends on it later may not be zero
(sigmoid(0) is 1/2), which matters where indices are summed: `Axis.zero` follows that.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Axis(NamedTuple):
    """One axis of an array.

    Attributes:
      labels: one per index, or None if nothing varies along the axis.
      zero: whether a dropped index holds exact zeros when the variables are masked.
    """

    labels: np.ndarray | None = None
    zero: bool = False

    @property
    def live(self) -> bool:
        """Whether any index may still be dropped."""
        return self.labels is not None and bool((self.labels >= 0).any())


class Traced(NamedTuple):
    """What is known of an array of the program.

    Attributes:
      axes: one for each axis.
      number: its one value, if that is known and the same everywhere.
      learned: whether it depends on the variables alone, and not on the inputs.
      total: of what it is the sum, if it is one over indices that are zero when
        dropped: exact, unless it is divided by their number.
    """

    axes: tuple[Axis, ...]
    number: float | None = None
    learned: bool = True
    total: "Total | None" = None


class Total(NamedTuple):
    """Axes that a sum has gone over.

    Attributes:
      axes: the axes.
      terms: how many numbers were added.
      reason: why they must stay if the sum becomes a mean.
    """

    axes: list[Axis]
    terms: int
    reason: str


class Equation(NamedTuple):
    """One equation of the program, as a rule sees it.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      inputs: shapes of the operands.
      outputs: shapes of the results.
      scope: the module that it is from, as the trace has it.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    scope: str

    def at(self, what: str) -> str:
        """Return a reason: what happens, by which primitive and in which module."""
        return f"{what} ({self.name} in {self.scope or 'the outermost function'})"


class Product(NamedTuple):
    """A number of multiply-accumulates: a constant times the lengths of some axes."""

    constant: int
    axes: tuple[np.ndarray, ...]


@dataclasses.dataclass
class Ledger:
    """All that the walk over a program writes down.

    Attributes:
      allow: whether reductions over channels leave them free (see `analyse`).
      equal: whether channels cut into equal sections lose the same of each, instead of
        whole sections (see `analyse`).
      labels: how many there are.
      reasons: of the negative labels, by -1 - label.
      ties: pairs of arrays of labels >= 0 that must be dropped together.
      stays: (labels >= 0, negative label) of indices that must stay.
      products: multiply-accumulates, one for each convolution or matrix product.
      makers: the output labels of each of them whose kernel is a variable, in order.
      contracted: arrays of labels that a convolution or matrix product sums over.
      inexact: what makes a pruned network differ from a masked one.
      times: how often what is walked over now runs (the length of a scan).
      trace: (equation, results) in order.
    """

    allow: bool = False
    equal: bool = False
    labels: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)
    ties: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    stays: list[tuple[np.ndarray, int]] = dataclasses.field(default_factory=list)
    products: list[Product] = dataclasses.field(default_factory=list)
    makers: list[np.ndarray] = dataclasses.field(default_factory=list)
    contracted: list[np.ndarray] = dataclasses.field(default_factory=list)
    inexact: list[str] = dataclasses.field(default_factory=list)
    times: int = 1
    trace: list[tuple[Equation, list[Traced]]] = dataclasses.field(default_factory=list)

    def fresh(self, length: int) -> np.ndarray:
        """Return `length` new labels."""
        self.labels += length
        return np.arange(self.labels - length, self.labels)

    def stay(self, reason: str) -> int:
        """Return the negative label of a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return -1 - self.reasons.index(reason)

    def fix(self, axes: Iterable[Axis], reason: str) -> None:
        """The indices of these axes must stay."""
        for axis in axes:
            if axis.labels is not None and axis.live:
                labels = axis.labels[axis.labels >= 0]
                self.stays.append((labels, self.stay(reason)))

    def tie(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        """Index by index, both are dropped or none; shapes may broadcast."""
        if a is None or b is None or a is b:
            return
        a, b = (np.ravel(x) for x in np.broadcast_arrays(a, b))
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self.ties.append((a[both], b[both]))
        for one, other in ((a, b), (b, a)):
            half = (one >= 0) & (other < 0)
            for why in np.unique(other[half]):
                self.stays.append((one[half & (other == why)], int(why)))

    def solid(self, axis: Axis, length: int, reason: str) -> np.ndarray:
        """The axis' labels; where it has none, labels that say that it must stay."""
        if axis.labels is None:
            return np.full(length, self.stay(reason))
        return axis.labels


def constant(ledger: Ledger, shape: tuple[int, ...], reason: str, **known) -> Traced:
    """Return an array with nothing to drop, because of `reason`."""
    why = ledger.stay(reason) if shape else 0
    axes = tuple(Axis(np.full(n, why)) if n > 1 else Axis() for n in shape)
    return Traced(axes, **known)


def variable(ledger: Ledger, shape: tuple[int, ...]) -> Traced:
    """Return an array whose every index may be dropped, for all that is known yet."""
    return Traced(
        tuple(Axis(ledger.fresh(n), True) if n > 1 else Axis() for n in shape)
    )
