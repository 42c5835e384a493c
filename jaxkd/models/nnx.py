"""Networks of `flax.nnx`: a module's graph once, its variables as plain dicts."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxkd._text import alternatives
from jaxkd.models.interception import Called, Interceptor, interceptors
from jaxkd.models.net import Net, outputs_of
from jaxkd.types import Outputs, Params, State

Mode = Callable[[bool], Mapping[str, Any]]
Path = tuple[Any, ...]  # of a variable in the module's graph
Place = tuple[str, ...]  # of its value in the trees, the collection first

PARAMS = "params"
HOOK = "_interceptors"


def from_nnx(
    make: Callable[..., nnx.Module],
    *,
    taps: Mapping[str, str] | None = None,
    call: Mode | None = None,
) -> Net:
    """Wrap a module of `flax.nnx`.

    `nnx.Param`s are the parameters. Every other variable but the random streams is
    state, by collection: `{"batch_stats": {path: ...}}` of `nnx.BatchStat`, as in
    linen. Random streams are seeded anew from `key` in every call. The module is put
    into training by its `train()` and into inference by its `eval()`.

    Args:
      make: a class of modules or a function, called as `make(rngs=nnx.Rngs(...))`. The
        module's `__call__(x)` returns logits, `(logits, taps)` or `Outputs`.
      taps: from the name of a tap to the path of the submodule whose output it is,
        "encoder/blocks/3" or "encoder.blocks.3"; of a submodule that is called several
        times, the last output. Not of one inside a transformation such as `nnx.remat`
        or `nnx.scan`.
      call: from `train` to further keyword arguments of a call; by default `train`,
        `deterministic` or `use_running_average` if the module's `__call__` has it.

    Returns:
      The network. When traced, `init` and `apply` raise a ValueError if the module
      returns something else, if it draws a random number and has no `key`, or if the
      variables are not the module's, and a KeyError if no submodule was called at the
      path of a tap.

    Raises:
      ValueError: if `make` does not return an nnx module, or one of its attributes is
        an array but not a variable.
      KeyError: if there is no submodule at the path of a tap, with near ones.

    Example:
      >>> class Small(nnx.Module):
      ...     def __init__(self, *, rngs):
      ...         self.body = nnx.Linear(4, 8, rngs=rngs)
      ...         self.head = nnx.Linear(8, 3, rngs=rngs)
      ...
      ...     def __call__(self, x):
      ...         return self.head(nnx.relu(self.body(x)))
      >>> net = from_nnx(Small, taps={"body": "body"})
      >>> params, state = net.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> out, _ = net.apply(params, state, jnp.ones((2, 4)), train=False)
      >>> out.logits.shape, out.taps["body"].shape
      ((2, 3), (2, 8))
    """
    abstract = nnx.eval_shape(lambda: _made(make, nnx.Rngs(0)))
    _no_bare_arrays(abstract)
    paths = {path for path, node in _nodes(abstract) if isinstance(node, nnx.Module)}
    tapped = {name: path.replace(".", "/") for name, path in (taps or {}).items()}
    for name, path in tapped.items():
        if path not in paths:
            raise KeyError(
                f"tap {name!r}: the network has no submodule at {path!r}"
                f"{alternatives(path, sorted(filter(None, paths)))}"
            )
    graph, leaves = nnx.split(abstract)
    places = _places(leaves)
    told = call or _mode(abstract)

    def init(key: Array, x: Array) -> tuple[Params, State]:
        tree = unflatten_dict(_values(_made(make, nnx.Rngs(key)), places))
        params, state = tree.pop(PARAMS, {}), tree
        # Refused here, not in the middle of a training.
        jax.eval_shape(lambda *v: apply(*v, train=False), params, state, x)
        return params, state

    def apply(
        params: Params, state: State, x: Array, *, train: bool, key: Any = None
    ) -> tuple[Outputs, State]:
        outer = interceptors()
        given = flatten_dict({PARAMS: params, **state})
        if not outer:  # an interceptor may run layers of other variables
            _same_variables(given, places)
        module = nnx.merge(graph, _filled(leaves, places, given, key))
        (module.train if train else module.eval)()
        found: dict[str, Any] = {}
        wanted = set(tapped.values())
        _hook(module, (_recording(found, wanted), *outer), given, wanted)
        if key is None:
            _forbid_random(module)
        logits, own = outputs_of(module(x, **told(train)))
        if missing := sorted(wanted - set(found)):
            raise KeyError(f"no submodule was called at {missing}")
        out = Outputs(logits, own | {name: found[p] for name, p in tapped.items()})
        if not train:
            return out, state
        _unhook(module)
        moved = {p: v for p, v in _values(module, places).items() if p[0] != PARAMS}
        return out, unflatten_dict(flatten_dict(state) | moved)

    return Net(init, apply)


def _made(make: Callable[..., Any], rngs: nnx.Rngs) -> nnx.Module:
    module = make(rngs=rngs)
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"make(rngs=...) must return a module of flax.nnx, got {type(module)}"
        )
    return module


def _nodes(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yield every object of a module's graph once, with its path."""
    for path, node in nnx.iter_graph(module):
        yield "/".join(map(str, path)), node


def _no_bare_arrays(abstract: nnx.Module) -> None:
    """Refuse arrays outside variables: nnx traces them into the graph."""
    for path, node in _nodes(abstract):
        if isinstance(node, jax.core.Tracer):
            raise ValueError(
                f"{path!r} of the network is a jax array: make it a variable, such as "
                "nnx.Variable(array), so that it is part of the state"
            )


def _mode(module: nnx.Module) -> Mode:
    """Return how a module is told that it trains, by the arguments of its call."""
    names = inspect.signature(type(module).__call__).parameters
    if "train" in names:
        return lambda train: {"train": train}
    for name in ("deterministic", "use_running_average"):
        if name in names:
            return lambda train: {name: not train}
    return lambda train: {}


def _places(leaves: nnx.State) -> dict[Path, Place]:
    """Map a variable's path in the graph to its place in the trees, collection first.

    Random streams have no place.
    """
    return {
        path: (_collection(leaf), *map(str, path))
        for path, leaf in nnx.to_flat_state(leaves)
        if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.RngState)
    }


def _collection(variable: nnx.Variable) -> str:
    """Name the kind of a variable, as linen does where it has that kind."""
    if isinstance(variable, nnx.Param):
        return PARAMS
    return (
        "batch_stats"
        if isinstance(variable, nnx.BatchStat)
        else type(variable).__name__
    )


def _values(module: nnx.Module, places: Mapping[Path, Place]) -> dict[Place, Any]:
    """Return the values of a module's variables, by their place."""
    found = dict(nnx.to_flat_state(nnx.state(module)))
    return {place: found[path].get_value() for path, place in places.items()}


def _same_variables(given: Mapping[Place, Any], places: Mapping[Path, Place]) -> None:
    """Refuse variables that are not the module's."""
    expected = set(places.values())
    for what, names in (
        ("has no", expected - set(given)),
        ("has, though the module has not,", set(given) - expected),
    ):
        if names:
            listed = sorted("/".join(name) for name in names)
            raise ValueError(
                f"the tree of variables {what} {listed}; give those that init returned"
            )


def _filled(
    leaves: nnx.State,
    places: Mapping[Path, Place],
    given: Mapping[Place, Any],
    key: Any,
) -> nnx.State:
    """Return the variables of one call; what is not given is left as a shape."""
    if key is not None:
        key = _typed(key)

    def fill(path: Path, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return leaf
        value = leaf.get_value()
        if path in places:
            return leaf.replace(given.get(places[path], value))
        if key is None:  # numbers in place of a key, which nobody may draw from
            return leaf.replace(np.zeros(value.shape, np.uint32))
        if not isinstance(leaf, nnx.RngKey):
            return leaf.replace(jnp.zeros(value.shape, value.dtype))
        # Streams of one name in several places must not draw the same numbers.
        own = jax.random.fold_in(key, zlib.crc32("/".join(map(str, path)).encode()))
        return leaf.replace(jax.random.split(own, value.shape) if value.shape else own)

    return nnx.map_state(fill, leaves)


def _typed(key: Any) -> Array:
    try:
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        return key if typed else jax.random.wrap_key_data(key)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"key must be a PRNG key, got {key}") from error


def _recording(found: dict[str, Any], wanted: set[str]) -> Interceptor:
    """Return an interceptor that keeps the outputs of the modules at some paths."""

    def record(call, args, kwargs, called):
        out = call(*args, **kwargs)
        if called.path in wanted:
            found[called.path] = out
        return out

    return record


@dataclasses.dataclass(frozen=True, eq=False)
class _Hook:
    """What the calls of one instance of a module go through."""

    through: tuple[Interceptor, ...]  # the outermost last
    path: str
    leaf: Callable[[str], Any]


def _hook(
    module: nnx.Module,
    through: tuple[Interceptor, ...],
    given: Mapping[Place, Any],
    wanted: set[str],
) -> None:
    """Let calls of a module's submodules go through interceptors, in this instance.

    Without interceptors from outside only of those whose outputs are wanted.
    """
    for path, node in list(_nodes(module)):
        if isinstance(node, nnx.Module) and (len(through) > 1 or path in wanted):
            prefix = (PARAMS, *filter(None, path.split("/")))
            leaf = lambda name, prefix=prefix: given.get((*prefix, name))
            vars(node)[HOOK] = _Hook(through, path, leaf)
            object.__setattr__(node, "__class__", _hooked(type(node)))


@functools.cache
def _hooked(kind: Any) -> Any:
    """Return a module's class whose call goes through the hook of its instance."""

    def __call__(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        hook = vars(self)[HOOK]
        called = Called(self, hook.path, hook.leaf)
        call: Any = functools.partial(kind.__call__, self)
        signature = inspect.signature(call)
        for interceptor in hook.through:
            call = functools.partial(_through, interceptor, call, called)
            call.__signature__ = signature  # interceptors look for arguments by name
        return call(*args, **kwargs)

    functools.update_wrapper(__call__, kind.__call__)
    return type(kind)(kind.__name__, (kind,), {"__call__": __call__, HOOK: kind})


def _through(
    interceptor: Interceptor, call: Any, called: Called, /, *args: Any, **kwargs: Any
) -> Any:
    return interceptor(call, args, kwargs, called)


def _unhook(module: nnx.Module) -> None:
    for _, node in list(_nodes(module)):
        if isinstance(node, nnx.Module) and vars(node).pop(HOOK, None) is not None:
            object.__setattr__(node, "__class__", getattr(type(node), HOOK))


def _forbid_random(module: nnx.Module) -> None:
    """Name the stream that draws without a key, where it draws."""
    for path, node in list(_nodes(module)):
        if type(node) is nnx.RngStream:
            vars(node)["path"] = path
            object.__setattr__(node, "__class__", _Keyless)


class _Keyless(nnx.RngStream):
    """A random stream in a call that was given no key."""

    path: str

    def __call__(self) -> Array:
        raise ValueError(
            f"the network draws a random number from stream {self.tag!r} at "
            f"{self.path!r}: give apply a key, a PRNG key"
        )
