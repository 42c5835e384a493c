"""Which tap of the student is compared with which of the teacher."""

from collections.abc import Callable, Mapping, Sequence

import jax

from jaxkd.distill import Term
from jaxkd.types import Batch, Outputs, Params, State

# "stage3" compares taps of the same name, {"stage2": "stage3"} the student's stage2
# with the teacher's stage3; several pairs are summed.
Pairs = str | Sequence[str] | Mapping[str, str]


def of(pairs: Pairs) -> dict[str, str]:
    """Return the pairs as `{student's tap: teacher's tap}`.

    Raises:
      ValueError: if there is none, or one is named twice.
    """
    if isinstance(pairs, str):
        return {pairs: pairs}
    if isinstance(pairs, Mapping):
        found = dict(pairs)
    else:
        found = {name: name for name in pairs}
        if len(found) < len(pairs):
            raise ValueError(f"pairs names a tap twice: {list(pairs)}")
    if not found:
        raise ValueError("pairs names no tap")
    return found


def one(pair: Pairs) -> tuple[str, str]:
    """Return a single pair as `(student's tap, teacher's tap)`.

    Raises:
      ValueError: if there are several.
    """
    names = of(pair)
    if len(names) > 1:
        raise ValueError(f"pair must be one pair of taps, got {names}")
    return next(iter(names.items()))


def total(pairs: Pairs, make: Callable[[str, str], Term]) -> Term:
    """The sum over the pairs of the term that `make(student's, teacher's)` builds.

    Parameters and state have one entry for each pair, under the student's tap.
    """
    return added(
        {student: make(student, teacher) for student, teacher in of(pairs).items()}
    )


def added(terms: Mapping[str, Term]) -> Term:
    """Return the sum of terms; its parameters and state have their names."""

    def init(
        key: jax.Array, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[Params, State]:
        keys = jax.random.split(key, len(terms))
        made = {
            name: term.init(k, s, t, batch)
            for k, (name, term) in zip(keys, terms.items(), strict=True)
        }
        return {n: p for n, (p, _) in made.items()}, {
            n: z for n, (_, z) in made.items()
        }

    def apply(
        params: Params, state: State, s: Outputs, t: Outputs, batch: Batch
    ) -> tuple[jax.Array, State]:
        losses, new = {}, {}
        for name, term in terms.items():
            losses[name], new[name] = term.apply(params[name], state[name], s, t, batch)
        each = [losses[name] for name in terms]
        return sum(each[1:], each[0]), new

    def check(columns: Batch) -> None:
        for term in terms.values():
            term.check(columns)

    return Term(init, apply, check)
