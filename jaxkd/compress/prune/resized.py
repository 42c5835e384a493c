"""Running a network with the widths that its variables have.

A linen layer is told its width twice: by its attribute `features`, and by the shape of
its kernel. After pruning the kernel is right. So the same module runs unchanged, with
each layer's attributes set to what its kernel says at the moment it is called.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn

from jaxkd.models.net import Net


class Resized(NamedTuple):
    """A linen module's two functions, of which `apply` takes pruned variables.

    Attributes:
      init: the module's own, for variables of the original widths.
      apply: the module's, with widths from the variables.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def resized(network: Any) -> Any:
    """The same network, for pruned variables.

    Layers of linen that have a width (`Dense`, `DenseGeneral`, `Conv`, `ConvLocal`,
    `ConvTranspose`, `Einsum`, `Embed`) take it from their kernels' shapes; all other
    layers and modules, also your own, take theirs from their inputs or, like those that
    reshape by a number of their own, cannot be resized there. With the original
    variables nothing changes. The module itself is left as it is.

    Args:
      network: a `jaxkd.models.Net` made of a linen module, or a linen module.

    Returns:
      For a `Net` a `Net`, to be trained, distilled and measured as any other; for a
      module its `init` and `apply`.
    """
    if isinstance(network, Net):
        return Net(network.init, following(network.apply))
    if isinstance(network, nn.Module):
        return Resized(network.init, following(network.apply))
    raise ValueError(f"network must be a Net or a linen module, got {type(network)}")


def following(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every linen layer in it as wide as its kernel says."""

    def resized_apply(*args: Any, **kwargs: Any) -> Any:
        with widths_of_variables():
            return apply(*args, **kwargs)

    return resized_apply


@contextlib.contextmanager
def widths_of_variables() -> Iterator[None]:
    """Inside, linen layers take their widths from their variables."""
    with nn.intercept_methods(_interceptor):
        yield


def _interceptor(call, args, kwargs, context):
    module = context.module
    if module.scope is not None and not module.is_initializing():
        for name, value in _widths(module, args).items():
            _set(module, name, value)
    return call(*args, **kwargs)


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Changes an attribute of a bound module, which linen has frozen.

    It is a copy that linen made for this call and throws away after it.
    """
    object.__setattr__(module, name, value)


def _widths(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes of a layer that its variables know better."""
    if isinstance(module, nn.Embed):
        table: Any = module.get_variable("params", "embedding")
        return {} if table is None else {"features": table.shape[-1]}
    if not isinstance(module, LAYERS):
        return {}
    kernel: Any = module.get_variable("params", "kernel")
    if kernel is None or not args:
        return {}
    if isinstance(module, nn.Einsum):
        return {"shape": kernel.shape}
    if isinstance(module, nn.DenseGeneral):
        if isinstance(module.features, int):
            return {"features": kernel.shape[-1]}
        return {"features": kernel.shape[-len(module.features) :]}
    if isinstance(module, nn.ConvTranspose) and module.transpose_kernel:
        return {"features": kernel.shape[-2]}
    widths = {"features": kernel.shape[-1]}
    if isinstance(module, nn.Conv) and module.feature_group_count > 1:
        # As many groups as a kernel's inputs go into the channels: of a depthwise
        # convolution all that are left, of a grouped one as many as before.
        widths["feature_group_count"] = args[0].shape[-1] // kernel.shape[-2]
    return widths


LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Einsum)
