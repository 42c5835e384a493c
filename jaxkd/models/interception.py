"""Helpers for interceptors of methods (`flax.linen.intercept_methods`)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def arguments(
    call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of an intercepted call by the names of its parameters.

    So that `conv(x)` and `conv(inputs=x)` are the same to an interceptor.

    Args:
      call: the method, as the interceptor gets it.
      args: its positional arguments.
      kwargs: its arguments by keyword.

    Returns:
      Name to value, in the order of the method's signature, defaults left out.

    Example:
      >>> arguments(lambda x, mask=None: x, (), {"mask": 2, "x": 1})
      {'x': 1, 'mask': 2}
    """
    return dict(inspect.signature(call).bind(*args, **kwargs).arguments)


def by_position(
    call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of an intercepted call, by position where that is allowed.

    Args:
      call: the method, as the interceptor gets it.
      args: its positional arguments.
      kwargs: its arguments by keyword.

    Returns:
      `(args, kwargs)` of the same call.

    Example:
      >>> by_position(lambda x, mask=None: x, (), {"mask": 2, "x": 1})
      ((1, 2), {})
    """
    bound = inspect.signature(call).bind(*args, **kwargs)
    return bound.args, bound.kwargs
