"""What is quantized, and how: `Quantization`, and the bits of single layers."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxkd import _check, _tree
from jaxkd._text import alternatives

ACTIVATIONS = ("dynamic", "static", "float")
ESTIMATORS = ("ema", "window_max", "percentile", "mse")


class Bits(NamedTuple):
    """Bits of a layer's weights and of what it reads; None leaves them in floats.

    Attributes:
      weights: of its kernel, 2 to 8 or None.
      activations: of its inputs, 2 to 8 or None.
    """

    weights: int | None = 8
    activations: int | None = 8


FLOAT = Bits(None, None)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a network is quantized.

    Attributes:
      weights: bits of every kernel, 2 to 8. Weights are symmetric about 0 and their
        range is measured anew at each step.
      per_channel: one scale for each output channel of a kernel, or one for all.
      activation: "dynamic" measures a tensor's range in each batch; "static" keeps one
        in the state, moved by training or by `calibrate`; "float" quantizes weights
        only.
      activations: bits of every activation, 2 to 8.
      symmetric: activations about 0, by their largest absolute value. If not, the range
        is from the least (at most 0) to the largest, and a tensor that is nowhere
        negative uses all levels for what it has.
      estimator: of static ranges. "ema": moving average of the batches' ends;
        "window_max": their extremes over the last `window` batches; "percentile" and
        "mse": moving average of an inner percentile, or of the range whose rounding
        error is least in the mean square.
      decay: of the moving average, in (0, 1).
      window: number of batches, for "window_max".
      percentile: how much of a tensor lies inside, in (50, 100], for "percentile".
      lsq: learn the step sizes with the weights (Esser et al., 2020). Static ranges
        then move only by `calibrate`, or in the first batch; their steps are parameters
        relative to them.
      layers: bits of single layers by a pattern of their path, e.g. `{"head": FLOAT,
        "stem_conv": Bits(8, 8)}`; the first that fits counts. `*` also matches "/".
        A layer that is called twice is "fc" and "fc:1"; "fc" fits both.

    Raises:
      ValueError: if a knob is out of its range.
    """

    weights: int = 8
    per_channel: bool = True
    activation: str = "static"
    activations: int = 8
    symmetric: bool = False
    estimator: str = "ema"
    decay: float = 0.9
    window: int = 16
    percentile: float = 99.99
    lsq: bool = False
    layers: Mapping[str, Bits] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _bits("weights", self.weights)
        _bits("activations", self.activations)
        _check.one_of(*ACTIVATIONS)("activation", self.activation)
        _check.one_of(*ESTIMATORS)("estimator", self.estimator)
        _check.open_unit("decay", self.decay)
        _check.whole(1)("window", self.window)
        _check.positive("percentile", self.percentile)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {self.percentile}")
        for name in ("per_channel", "symmetric", "lsq"):
            _check.one_of(True, False)(name, getattr(self, name))
        if self.lsq and self.activation == "dynamic":
            raise ValueError(
                'lsq learns a step size, which activation="dynamic" measures anew in '
                'each batch; use "static" or "float"'
            )
        layers = {pattern: Bits(*bits) for pattern, bits in self.layers.items()}
        for pattern, bits in layers.items():
            for field, value in zip(Bits._fields, bits, strict=True):
                if value is not None:
                    _bits(f"layers[{pattern!r}].{field}", value)
        # A copy: what the caller does to theirs later changes nothing here.
        object.__setattr__(self, "layers", MappingProxyType(layers))


def _bits(name: str, value: int) -> None:
    _check.whole(2)(name, value)
    if value > 8:
        raise ValueError(f"{name} must be 2 to 8 bits, got {value}")


def bits_of(config: Quantization, path: str, name: str = "") -> Bits:
    """The bits of the layer of this path; a pattern may also fit the name of one use.

    >>> bits_of(Quantization(weights=4, layers={"head": FLOAT}), "stage1/conv")
    Bits(weights=4, activations=8)
    """
    bits = Bits(config.weights, config.activations)
    for pattern, own in config.layers.items():
        if _tree.matches(path, pattern) or _tree.matches(name, pattern):
            bits = own
            break
    return bits if config.activation != "float" else bits._replace(activations=None)


def check_patterns(config: Quantization, layers: Iterable[str]) -> None:
    """Refuse a pattern that fits no layer.

    Raises:
      ValueError: with the nearest paths there are.
    """
    layers = list(layers)
    for pattern in config.layers:
        if not any(_tree.matches(layer, pattern) for layer in layers):
            hint = alternatives(pattern, layers)
            raise ValueError(f"the pattern {pattern!r} fits no layer{hint}")
