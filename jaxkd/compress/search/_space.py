"""`Space`: which networks a search may choose from, as data."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd import _check
from jaxkd.compress.search._controller import Tokens, check_choices, check_tokens
from jaxkd.models.net import Net


class Space(NamedTuple):
    """Positions with their choices, and the network that a choice at each makes.

    Tokens are indices into the choices; so a ratio on a grid is a position like any
    other. A space of one's own::

        def build(width, layers, kernel):
            return models.from_linen(MyNet(width, layers, kernel))

        space = Space(
            "mine",
            {"width": (16, 24, 32), "layers": (2, 3, 4), "kernel": (3, 5)},
            build,
        )
        start = space.tokens(width=16, layers=2, kernel=3)
        controller = anneal(space.sizes, start)

    Attributes:
      name: of the space.
      choices: for each position, by name, what may stand there: values for JSON.
      build: called with a value for each name, it makes the network.
    """

    name: str
    choices: Mapping[str, Sequence[Any]]
    build: Callable[..., Net]

    @property
    def sizes(self) -> Tokens:
        """How many choices each position has: what controllers take."""
        return check_choices([len(values) for values in self.choices.values()])

    @property
    def size(self) -> int:
        """How many networks there are."""
        return math.prod(self.sizes)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the space in a journal."""
        return {"space": self.name, "names": dict(self.choices)}

    def values(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Return the chosen value at each position, by name.

        Example:
          >>> Space("s", {"width": (8, 16), "kernel": (3, 5)}, None).values((1, 0))
          {'width': 16, 'kernel': 3}
        """
        tokens = check_tokens("tokens", tokens, self.sizes)
        pairs = zip(self.choices.items(), tokens, strict=True)
        return {name: values[token] for (name, values), token in pairs}

    def tokens(self, **values: Any) -> Tokens:
        """Return the tokens of these values.

        Raises:
          KeyError: if a name is unknown or missing.
          ValueError: if a value is not among the choices.

        Example:
          >>> Space("s", {"width": (8, 16), "kernel": (3, 5)}, None).tokens(
          ...     width=16, kernel=3
          ... )
          (1, 0)
        """
        if values.keys() != self.choices.keys():
            unknown = sorted(values.keys() - self.choices.keys())
            missing = sorted(self.choices.keys() - values.keys())
            raise KeyError(f"values: unknown {unknown}, missing {missing}")
        for name, choices in self.choices.items():
            _check.one_of(*choices)(name, values[name])
        return tuple(
            list(choices).index(values[name]) for name, choices in self.choices.items()
        )

    def net(self, tokens: Sequence[int]) -> Net:
        """Return the network of these tokens."""
        return self.build(**self.values(tokens))
