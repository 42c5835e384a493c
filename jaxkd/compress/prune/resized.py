"""Run a network with the widths that its variables have.

A linen layer is told its width twice: by its attribute `features`, and by the shape of
its kernel. After pruning the kernel is right. So the same module runs unchanged, with
each layer's attributes set to what its kernel says at the moment it is called, and
without linen's comparison of a parameter's shape with the one that the code asks for.
Most layers of nnx look at nothing but their kernel.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

from jaxkd.models.interception import Called, arguments, intercept_calls
from jaxkd.models.net import Net

Path = tuple[str, ...]
Sizes = Callable[[], dict[Path, int] | None]


class Resized(NamedTuple):
    """A linen module's two functions, of which `apply` takes pruned variables.

    Attributes:
      init: the module's own, for variables of the original widths.
      apply: the module's, with widths from the variables.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


def resized(network: Any) -> Any:
    """Return the same network, for pruned variables.

    Layers of linen that have a width (`Dense`, `DenseGeneral`, `Conv`, `ConvLocal`,
    `ConvTranspose`, `Einsum`, `Embed`) take it from their kernels' shapes, and so does
    every `self.param` of your own modules. `GroupNorm` loses whole groups only: the
    size of a group stays, and there are fewer of them. Everything else takes its width
    from its inputs or, where it reshapes by a number of its own, cannot be resized. Of
    nnx, `Conv` in groups, `GroupNorm` and `LinearGeneral` are resized in the same way.
    With the original variables nothing changes. The module itself is left as it is.

    Args:
      network: a `jaxkd.models.Net` made of a linen or nnx module, or a linen module.

    Returns:
      For a `Net` a `Net`, to be trained, distilled and measured as any other; for a
      module its `init` and `apply`.
    """
    if isinstance(network, Net):
        first = lambda params, state, x, **how: network.init(jax.random.key(0), x)
        return Net(network.init, following(network.apply, first))
    if isinstance(network, nn.Module):
        return Resized(network.init, following(network.apply, _initialised(network)))
    raise ValueError(f"network must be a Net or a linen module, got {type(network)}")


def _initialised(module: nn.Module) -> Callable[..., Any]:
    """A function with the arguments of `module.apply` that runs `module.init`."""

    def first(
        variables: Any,
        *args: Any,
        rngs: Any = None,
        mutable: Any = False,
        capture_intermediates: Any = False,
        **kwargs: Any,
    ) -> Any:
        return module.init(jax.random.key(0), *args, **kwargs)

    return first


def following(apply: Callable[..., Any], whole: Callable[..., Any]) -> Callable:
    """Return `apply` with every linen layer in it as wide as its variables.

    Args:
      apply: a function that calls linen modules.
      whole: a function of the same arguments that calls the same modules with their
        original widths. It is traced only if there is a `GroupNorm` with a number of
        groups: how large they are is in no variable.

    Returns:
      A function of the same arguments.
    """

    def resized_apply(*args: Any, **kwargs: Any) -> Any:
        with widths_of_variables(_once(lambda: whole(*args, **kwargs))):
            return apply(*args, **kwargs)

    return resized_apply


@contextlib.contextmanager
def widths_of_variables(sizes: Sizes) -> Iterator[None]:
    """Inside, linen layers take their widths from their variables.

    Args:
      sizes: from `_once`.
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        if module.scope is not None and not module.is_initializing():
            inputs: tuple[Any, ...] = ()
            if context.method_name == "__call__":
                inputs = tuple(arguments(call, args, kwargs).values())
            for name, value in _widths(module, inputs, sizes).items():
                _set(module, name, value)
            if "param" not in vars(module):
                _set(module, "param", _unchecked(module))
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept), intercept_calls(_resize_nnx):
        yield


def _resize_nnx(call: Callable, args: tuple, kwargs: dict, called: Called) -> Any:
    """Call a layer of nnx with the widths of its variables and inputs.

    The other layers of nnx take their widths from their variables by themselves.
    """
    module = called.module
    if isinstance(module, nnx.Conv | nnx.GroupNorm | nnx.LinearGeneral):
        x = next(iter(arguments(call, args, kwargs).values()))
        if isinstance(module, nnx.Conv) and module.feature_group_count > 1:
            module.in_features = x.shape[-1]
            module.feature_group_count = x.shape[-1] // module.kernel.shape[-2]
        if isinstance(module, nnx.GroupNorm):
            module.num_groups = x.shape[-1] // module.group_size
        if isinstance(module, nnx.LinearGeneral):
            axes = len(module.out_features)
            module.out_features = module.kernel.shape[-axes:]
    return call(*args, **kwargs)


def _once(run: Callable[[], Any]) -> Sizes:
    """Return a function for the sizes of groups in `run`, which traces it once.

    While it is traced, nothing is known, so that its own groups stay as they are.
    """
    tracing, found = False, None

    def sizes() -> dict[Path, int] | None:
        nonlocal tracing, found
        if found is None and not tracing:
            tracing = True
            found = _group_sizes(run)
        return found

    return sizes


def _group_sizes(run: Callable[[], Any]) -> dict[Path, int]:
    """Channels of one group, of each GroupNorm with a number of groups, by its path."""
    found: dict[Path, int] = {}

    def note(call, args, kwargs, context):
        module = context.module
        if _numbered(module) and context.method_name == "__call__":
            x = next(iter(arguments(call, args, kwargs).values()))
            size = x.shape[-1] // module.num_groups
            if found.setdefault(module.path, size) != size:
                raise ValueError(
                    f"two GroupNorms are called {'/'.join(module.path)!r} and have "
                    f"groups of {found[module.path]} and {size} channels; give them "
                    "names of their own"
                )
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(run)
    return found


def _numbered(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.num_groups is not None


def _unchecked(module: nn.Module) -> Callable[..., Any]:
    """Return the module's `param`, for which a stored parameter has the right shape."""
    own = module.param  # of its class, which may compute with the parameter

    def param(name: str, init_fn: Callable, *init_args: Any, **kwargs: Any) -> Any:
        stored: Any = module.get_variable("params", name)
        if stored is None:
            return own(name, init_fn, *init_args, **kwargs)
        return own(name, lambda *_, **__: stored, *init_args, **kwargs)

    return param


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Change an attribute of a bound module, which linen has frozen.

    It is a copy that linen made for this call and throws away after it.
    """
    object.__setattr__(module, name, value)


def _widths(
    module: nn.Module,
    inputs: tuple[Any, ...],
    sizes: Sizes,
) -> dict[str, Any]:
    """Return the attributes of a layer that its variables and inputs know better."""
    if _numbered(module) and inputs:
        known = sizes()
        if known is None:
            return {}
        if module.path not in known:
            raise ValueError(
                f"GroupNorm {'/'.join(module.path)!r} is not called when the network "
                f"is initialized; there are {['/'.join(path) for path in known]}: give "
                "it group_size instead of num_groups"
            )
        return {"num_groups": inputs[0].shape[-1] // known[module.path]}
    if isinstance(module, nn.Embed):
        table: Any = module.get_variable("params", "embedding")
        return {} if table is None else {"features": table.shape[-1]}
    if not isinstance(module, LAYERS):
        return {}
    kernel: Any = module.get_variable("params", "kernel")
    if kernel is None or not inputs:
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
        widths["feature_group_count"] = inputs[0].shape[-1] // kernel.shape[-2]
    return widths


LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Einsum)
