"""`Net`: a network as a pair of pure functions, wherever its layers are from."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from jaxkd.types import Outputs


class Net(NamedTuple):
    """A network with its variables taken out.

    `state` holds what moves without a gradient, such as BatchNorm's running statistics;
    it comes back changed only from a call with `train=True`, and is `{}` for a network
    that has none. `key` feeds dropout and whatever else a module draws when it trains.

    A `Net` made from a linen or nnx module is still open to
    `models.interception.intercept_calls` around `apply`, which is how its layers are
    resized or folded.

    Attributes:
      init: `(key, x) -> (params, state)`.
      apply: `(params, state, x, *, train, key=None) -> (Outputs, state)`.
    """

    init: Callable
    apply: Callable


def from_linen(module: nn.Module) -> Net:
    """Wrap a linen module.

    Args:
      module: its `__call__(x, ...)` returns logits, `(logits, taps)` or `Outputs`.
        `taps` is a dict from names to features; they cost nothing under `jit` when
        nobody reads them. It is told that it trains by the argument it has for it:
        `train`, `deterministic` or `use_running_average`.

    Returns:
      The network. When traced, `init` and `apply` raise a ValueError if the module
      returns something else, or needs a `key` and has none.
    """
    return _net(module, _mode(module), lambda out, _: outputs_of(out))


@contextmanager
def naming_images(f: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Name the images where a block fails because the network cannot take them.

    Libraries of layers say instead which of their parameters has another shape.

    Args:
      f: the network as a function.
      *args: its arguments or their shapes, of which the last are the images.

    Raises:
      ValueError: with their shape, and what the network says.
    """
    try:
        yield
    except Exception:
        try:
            jax.eval_shape(f, *args)
        except Exception as error:  # each library has its own
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"the network does not take images {list(args[-1].shape)}, of which "
                "the first axis is the batch: give image_shape, or inputs, of the "
                f"shape that it was initialised with; it says: {said}"
            ) from error
        raise


def _mode(module: nn.Module) -> Callable[[bool], Mapping[str, Any]]:
    """Return how a module is told that it trains, by the names of its arguments."""
    names = inspect.signature(type(module).__call__).parameters
    if "train" in names:
        return lambda train: {"train": train}
    if "deterministic" in names:
        return lambda train: {"deterministic": not train}
    if "use_running_average" in names:
        return lambda train: {"use_running_average": not train}
    return lambda train: {}


def outputs_of(out: Any) -> Outputs:
    """Return what a module returned as `Outputs`.

    Args:
      out: logits, `(logits, taps)` or `Outputs`.

    Raises:
      ValueError: if it is something else, naming its type.
    """
    if isinstance(out, Outputs):
        return out
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], Mapping):
        return Outputs(out[0], dict(out[1]))
    if hasattr(out, "shape") and hasattr(out, "dtype"):
        return Outputs(out, {})
    raise ValueError(
        "a network must return logits, (logits, taps) or Outputs, got "
        f"{jax.tree.map(lambda leaf: type(leaf).__name__, out)}"
    )


def from_foreign(
    module: nn.Module,
    taps: Mapping[str, str],
    *,
    call: Callable[[bool], Mapping[str, Any]] = lambda train: {},
) -> Net:
    """Wrap a linen module that returns bare logits, tapping submodules by path.

    Libraries disagree on how a module is told that it trains, so the caller says it::

        call=lambda train: {"train": train}                      # flax's own examples
        call=lambda train: {"deterministic": not train}          # transformers
        call=lambda train: {"use_running_average": not train}    # a bare BatchNorm net

    Args:
      module: any linen module whose `__call__(x, ...)` returns logits.
      taps: from the name of a tap to the path of the submodule whose output it is,
        e.g. `{"stage3": "encoder/block_11"}`; of a submodule that is called several
        times, the last output.
      call: from `train` to the keyword arguments of a call; none by default.

    Returns:
      The network. `apply` raises, when traced, a KeyError if no submodule was called
      at one of the paths.
    """
    names = {path: name for name, path in taps.items()}

    def wanted(submodule, method):
        return method == "__call__" and "/".join(submodule.path) in names

    def outputs(logits, captured):
        called = {
            path.removesuffix("/__call__"): out[-1]
            for path, out in flatten_dict(captured, sep="/").items()
        }
        if missing := sorted(set(names) - set(called)):
            raise KeyError(f"no submodule was called at {missing}")
        return Outputs(logits, {name: called[path] for path, name in names.items()})

    return _net(module, call, outputs, wanted)


def _net(module, call, outputs, capture=False) -> Net:
    """Return the two functions, with `outputs(out, captured)` giving `Outputs`."""

    def init(key, x):
        out, variables = module.init_with_output(key, x, **call(False))
        if not capture:
            outputs(out, {})  # refused here, not in the middle of a training
        variables = dict(variables)
        variables.pop("intermediates", None)  # sown while initialising: not a state
        return variables.pop("params", {}), variables

    def apply(params, state, x, *, train, key=None):
        try:
            out, changed = module.apply(
                {"params": params, **state},
                x,
                **call(train),
                # flax gives a stream without a key of its own one of "params".
                rngs=None if key is None else {"dropout": key, "params": key},
                mutable=["intermediates", *(state if train else ())],
                capture_intermediates=capture,
            )
        except flax.errors.InvalidRngError as error:
            raise ValueError(f"key must be a PRNG key, got {key}: {error}") from error
        changed = dict(changed)
        captured = changed.pop("intermediates", {})
        return outputs(out, captured), {**state, **changed}

    return Net(init, apply)
