"""Losses by their names: from a stage's tables to a `distill.Spec`."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax

from jaxkd import distill, losses, recipes, terms
from jaxkd._text import alternatives
from jaxkd.pipeline import schema
from jaxkd.pipeline.parts import NAME, Losses, Ramp, Weight

Knobs = dict[str, Any]
OWN = ("loss", "weight")
MOST = 10**6  # of a knob that is a whole number: it may be an axis, or counts a loop
SIZE = 1e-6, 1e6  # of a knob that is another number, if it is not 0; none is negative
TEMPERATURE = 1e-3, 1e4
NO_TERMS = ("adapters", "logit_maps", "margins", "measured_margins")  # of jaxkd.terms
NOT_HERE = ("where", "class_mask", "adapter", "index", "labels", "weights")

# What needs more than a configuration can say: arrays of the teacher, another network,
# several stages, or several networks at once.
BEYOND = {
    "factor_transfer": "the paraphraser of an earlier stage",
    "mutual": "several networks that train together",
    "ofd": "the margins of the teacher's BatchNorms",
    "paraphraser": "a stage that trains the teacher's paraphraser",
    "simkd": "a student that is rebuilt around the teacher's head",
    "srrl": "the teacher's head",
    "topk_kd": "stored scores of the teacher",
}


class Kind(NamedTuple):
    """How a loss of some name becomes a term.

    Attributes:
      function: whose signature has the knobs.
      make: `(knobs, examples) -> Term`, the examples being the training data's
        "index" and "label" columns.
      taught: whether it looks at a teacher.
      takes: what it compares: "logits", "labels", "both" or "features".
    """

    function: Callable[..., Any]
    make: Callable[[Knobs, Mapping[str, Any]], distill.Term]
    taught: bool
    takes: str


def kinds() -> dict[str, Kind]:
    """Every loss that a configuration can name."""
    found = {"ce": _lifted(losses.cross_entropy, distill.on_labels, False, "labels")}
    for name in losses.__all__:
        function = getattr(losses, name)
        parameters = inspect.signature(function).parameters.values()
        inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if inputs == ["student_logits", "labels"]:
            found[name] = _lifted(function, distill.on_labels, False, "labels")
        elif inputs == ["student_logits", "teacher_logits"]:
            found[name] = _lifted(function, distill.on_logits, True, "logits")
        elif inputs == ["student_logits", "teacher_logits", "labels"]:
            found[name] = _lifted(function, distill.on_logits_and_labels, True, "both")
    for name in terms.__all__:
        if name not in NO_TERMS:
            found[name] = _term(name, getattr(terms, name))
    return {name: found[name] for name in sorted(found) if name not in BEYOND}


def _lifted(function, lift, taught, takes) -> Kind:
    return Kind(function, lambda knobs, _: lift(function, **knobs), taught, takes)


def _term(name: str, function: Callable[..., distill.Term]) -> Kind:
    def make(knobs: Knobs, examples: Mapping[str, Any]) -> distill.Term:
        if name == "fsp":
            knobs = _flows(knobs)
        if name == "crd":
            index = np.asarray(examples["index"])
            knobs = {**knobs, "index": index, "labels": np.asarray(examples["label"])}
        return function(**knobs)

    return Kind(function, make, True, "features")


def _flows(knobs: Knobs) -> Knobs:
    """FSP's pairs of taps, which in TOML are lists."""
    knobs = dict(knobs)
    own = [tuple(pair) for pair in knobs.pop("layers")]
    theirs = [tuple(pair) for pair in knobs.pop("teacher_layers", own)]
    if len(own) != len(theirs):
        raise ValueError(
            f"teacher_layers must be as many as layers, {len(own)}, got {len(theirs)}"
        )
    return {**knobs, "layers": dict(zip(own, theirs, strict=True))}


def check(table: Losses, temperature: float, *, teacher: str) -> None:
    """The names, knobs and weights of a stage's losses.

    Raises:
      ValueError: naming the loss and the knob, with near names.
    """
    if not table:
        raise ValueError("losses: is empty; there is nothing to minimise")
    known = kinds()
    for name, entry in table.items():
        here = f"losses.{name}"
        if not re.match(NAME, name):
            raise ValueError(
                f"losses.{name!r}: a name is letters, digits and . _ + -, beginning "
                "with a letter or a digit, at most 60"
            )
        kind = _kind(known, entry.get("loss", name), here)
        if kind.taught and not teacher:
            raise ValueError(f"{here}: compares with a teacher, but none is named")
        try:
            weight(entry, 1)
            _check_knobs(kind, _own_knobs(entry), here)
            _try(kind, _knobs(kind, entry, temperature))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{here}: {error}") from error
        except (ValueError, KeyError) as error:
            text = str(error.args[0]) if error.args else str(error)
            prefix = "" if text.startswith("losses.") else f"{here}: "
            raise ValueError(f"{prefix}{text}") from error
    if not any(_weighs(entry) for entry in table.values()):
        raise ValueError("losses: every weight is 0; there is nothing to minimise")


def _weighs(entry: Mapping[str, Any]) -> bool:
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, dict):
        return bool(weight)
    ramp = msgspec.convert(weight, Ramp)
    return bool(ramp.start or ramp.end)


def _kind(known: dict[str, Kind], name: Any, here: str) -> Kind:
    if isinstance(name, str) and name in BEYOND:
        told = "it is for Python, see jaxkd.terms"
        if name in recipes.names():
            told = f'in a distill stage, recipe = "{name}" has them'
        raise ValueError(f"{here}: {name} needs {BEYOND[name]}; {told}")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{here}: no loss {name!r}{alternatives(name, known)}")
    return known[name]


def _own_knobs(entry: Mapping[str, Any]) -> Knobs:
    return {key: value for key, value in entry.items() if key not in OWN}


def _accepted(kind: Kind) -> dict[str, inspect.Parameter]:
    """Return the parameters that a configuration may set."""
    parameters = inspect.signature(kind.function).parameters
    inputs = () if kind.takes == "features" else tuple(parameters)[:3]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return {
        name: p
        for name, p in parameters.items()
        if name not in NOT_HERE and not (name in inputs and p.kind is positional)
    }


def _check_knobs(kind: Kind, knobs: Knobs, here: str) -> None:
    accepted = _accepted(kind)
    extra = {"teacher_layers"} if "layers" in accepted else set()
    for name, value in knobs.items():
        if name not in accepted and name not in extra:
            hint = alternatives(name, [*OWN, *accepted, *extra])
            raise ValueError(f"{here}.{name}: no such key{hint}")
        wanted = _wanted(name, accepted.get(name))
        if not _fits(value, wanted):
            raise ValueError(
                f"{here}.{name}: must be {wanted}, got {schema.shown(value)}"
            )
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and name not in knobs:
            wanted = _wanted(name, parameter)
            raise ValueError(f"{here}: needs {name}, {wanted}")


PAIRS = 'a tap, a list of taps, or a table {student tap = "teacher tap"}'
LAYERS = 'a list of pairs of taps, [["stem", "stage1"], ...]'
WHOLE = f"a whole number >= 1 and <= {MOST}"
NUMBER = f"a number that is 0 or {SIZE[0]:g} to {SIZE[1]:g}"
WARMTH = f"a number >= {TEMPERATURE[0]:g} and <= {TEMPERATURE[1]:g}"


def _wanted(name: str, parameter: inspect.Parameter | None) -> str:
    """Return what a knob must be, told by its name and its default."""
    if name in ("pair", "pairs"):
        return PAIRS
    if name in ("layers", "teacher_layers") or parameter is None:
        return LAYERS
    default = parameter.default
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, tuple):
        whole = all(isinstance(number, int) for number in default)
        return f"a list of numbers, each {WHOLE if whole else WARMTH}"
    if isinstance(default, str):
        return "text"
    if name == "temperature":
        return WARMTH
    whole = isinstance(default, int) or default in (None, parameter.empty)
    return WHOLE if whole else NUMBER


def _fits(value: Any, wanted: str) -> bool:
    if wanted.startswith("a list of numbers, each "):
        each = wanted.removeprefix("a list of numbers, each ")
        numbers = isinstance(value, list) and 0 < len(value) <= 64
        return numbers and all(_fits(number, each) for number in value)
    number = schema.is_number(value)
    texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
    fits = {
        "true or false": isinstance(value, bool),
        "text": isinstance(value, str),
        NUMBER: number and (value == 0 or SIZE[0] <= value <= SIZE[1]),
        WARMTH: number and TEMPERATURE[0] <= value <= TEMPERATURE[1],
        WHOLE: number and isinstance(value, int) and 1 <= value <= MOST,
        PAIRS: isinstance(value, str)
        or (texts and bool(value))
        or (
            isinstance(value, dict)
            and bool(value)
            and all(isinstance(v, str) for v in value.values())
        ),
        LAYERS: isinstance(value, list)
        and bool(value)
        and all(_is_flow(pair) for pair in value),
    }
    return fits[wanted]


def _is_flow(pair: Any) -> bool:
    two = isinstance(pair, list) and len(pair) == 2
    return two and all(isinstance(tap, str) for tap in pair)


def _knobs(kind: Kind, entry: Mapping[str, Any], temperature: float) -> Knobs:
    """The knobs of a loss, the stage's temperature where it has none of its own."""
    knobs = _own_knobs(entry)
    if kind.takes in ("logits", "both") and "temperature" in _accepted(kind):
        knobs.setdefault("temperature", temperature)
    numbers = lambda v: isinstance(v, list) and all(map(schema.is_number, v))
    lists = {k: tuple(v) for k, v in knobs.items() if numbers(v)}
    return {**knobs, **lists}


def _try(kind: Kind, knobs: Knobs) -> None:
    """Has a loss check its knobs, on shapes; features are tried with the networks."""
    two = {"index": np.arange(2, dtype=np.int32), "label": np.arange(2, dtype=np.int32)}
    term = kind.make(knobs, two)
    if kind.takes == "features":
        return
    logits = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((2,), jnp.int32)

    def call(logits, label):
        outputs = distill.Outputs(logits, {})
        return term.apply({}, {}, outputs, outputs, {"label": label})

    jax.eval_shape(call, logits, label)


def weight(entry: Mapping[str, Any], steps: int) -> float | optax.Schedule:
    """Return a loss's weight: a number, or a function of the step for a ramp.

    Raises:
      ValueError: if it is neither.
    """
    raw = entry.get("weight", 1.0)
    if not isinstance(raw, dict | int | float) or isinstance(raw, bool):
        raise ValueError(f"weight: must be a number or a ramp, got {schema.shown(raw)}")
    kind = Ramp if isinstance(raw, dict) else Weight
    for problem in schema.problems(raw, kind, "weight"):
        raise ValueError(problem)
    if isinstance(raw, dict):
        return _ramp(msgspec.convert(raw, Ramp), steps)
    return float(raw)


def _ramp(ramp: Ramp, steps: int) -> optax.Schedule:
    """Return the weight at a step, `steps` being those of an epoch."""
    if ramp.last < ramp.first:
        raise ValueError(f"weight: last ({ramp.last}) is before first ({ramp.first})")

    def at(step: Any) -> Any:
        length = max(ramp.last - ramp.first, 1e-9)
        x = jnp.clip((step / steps - ramp.first) / length, 0.0, 1.0)
        if ramp.form == "cosine":
            x = (1 - jnp.cos(jnp.pi * x)) / 2
        if ramp.form == "step":
            x = jnp.where(x >= 1, 1.0, 0.0)
        return ramp.start + (ramp.end - ramp.start) * x

    return at


def spec(
    table: Losses, temperature: float, *, steps: int, examples: Mapping[str, Any]
) -> distill.Spec:
    """Return the objective of a stage.

    Args:
      table: its losses.
      temperature: of the losses that have one and do not say their own.
      steps: of an epoch, for ramps.
      examples: "index" and "label" of the training data, for losses with a memory.
    """
    known = kinds()
    found = {}
    for name, entry in table.items():
        kind = known[entry.get("loss", name)]
        term = kind.make(_knobs(kind, entry, temperature), examples)
        found[name] = (weight(entry, steps), term)
    return found
