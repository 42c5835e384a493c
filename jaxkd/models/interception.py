"""Functions that calls of modules go through, and helpers for them."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn


class Called(NamedTuple):
    """A module of linen or nnx while it is called.

    Attributes:
      module: the module, bound to its variables.
      path: its path in the network, "stage1/conv"; "" for the network itself.
      leaf: from the name of one of its parameters to its value, or None if there is
        none.
    """

    module: Any
    path: str
    leaf: Callable[[str], Any]


Interceptor = Callable[[Callable[..., Any], tuple, dict[str, Any], Called], Any]

# linen keeps such a stack itself; this one is for networks of nnx.
_STACK: ContextVar[tuple[Interceptor, ...]] = ContextVar("interceptors", default=())


def interceptors() -> tuple[Interceptor, ...]:
    """Return the functions that calls of modules go through, the outermost last."""
    return _STACK.get()


@contextlib.contextmanager
def intercept_calls(interceptor: Interceptor) -> Iterator[None]:
    """Let every call of a module go through a function, in linen and in nnx.

    Only `__call__` of a module is meant, and in nnx only modules of a network from
    `models.from_nnx`.

    Args:
      interceptor: `(call, args, kwargs, called) -> out`, where `call(*args, **kwargs)`
        is what would have been done without it.
    """

    def of_linen(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        leaf = lambda name: module.get_variable("params", name)
        called = Called(module, "/".join(module.path), leaf)
        return interceptor(call, args, kwargs, called)

    token = _STACK.set((*_STACK.get(), interceptor))
    try:
        with nn.intercept_methods(of_linen):
            yield
    finally:
        _STACK.reset(token)


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
