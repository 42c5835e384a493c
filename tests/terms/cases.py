"""Two small networks on real images, and what the battery has to know about a Term."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, distill, terms
from jaxkd.data import augment, dataset
from jaxkd.models.convolution import conv_general_dilated
from jaxkd.models.net import from_linen
from jaxkd.types import Outputs


class Tiny(nn.Module):
    """A stem and three stages with BatchNorm, each half as large; taps as in the zoo.

    Attributes:
      widths: channels of the stem and the stages.
      strides: of the stem; 2 makes every map smaller than the other network's.
    """

    widths: tuple[int, int, int, int]
    strides: int = 1
    classes: int = 10

    @nn.compact
    def __call__(self, x, train):
        taps = {}
        for i, width in enumerate(self.widths):
            name = f"stage{i}" if i else "stem"
            x = nn.Conv(
                width,
                (3, 3),
                strides=(self.strides, 1, 2, 2)[i],
                use_bias=False,
                conv_general_dilated=conv_general_dilated,
                name=f"{name}_conv",
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, name=f"{name}_norm"
            )(x)
            if i:
                taps[f"{name}_pre"] = x
            x = taps[name] = nn.relu(x)
        x = taps["pooled"] = x.mean((1, 2))
        return nn.Dense(self.classes, name="head")(x), taps


WIDTHS = (3, 4, 5, 6), (4, 6, 7, 8)  # of student and teacher
student, teacher = (from_linen(Tiny(widths)) for widths in WIDTHS)
BATCH = 8
LEVELS = ["stage1_pre", "stage2_pre", "stage3_pre", "pooled"]


class Case(NamedTuple):
    """One Term with one setting of its knobs.

    Attributes:
      name: the test's name, usually the Term's; its name in the spec too.
      make: from what says which taps are compared to the Term.
      taps: what it is trained on.
      lost: the same with a tap "stage9" that neither network has.
      unfit: the same with taps that cannot be compared; None if all can.
      falls_to: the share of its first values that the loss has to fall below; of a
        loss that may be negative, the difference.
      may_be_negative: whether it may.
    """

    name: str
    make: Callable[[Any], distill.Term]
    taps: Any
    lost: Any = "stage9"
    unfit: Any = None
    falls_to: float = 0.9
    may_be_negative: bool = False


MAP_AND_VECTOR = {"pooled": "stage1"}
PRE_AND_VECTOR = {"pooled": "stage1_pre"}


def ofd(taps):
    norms = {f"stage{i}_pre": f"stage{i}_norm" for i in (1, 2, 3)}
    return terms.ofd(taps, margins=terms.margins(teacher_variables()[0], norms))


@functools.cache
def paraphraser():
    """Untrained: the parameters of one for the teacher's last stage."""
    t = outputs(0, (4, 6, 7, 8))
    init = jax.jit(terms.paraphraser("stage3").init)
    return init(jax.random.key(2), t, t, {})[0]


def crd(taps):
    seen = images(2 * BATCH)
    index, labels = np.asarray(seen["index"]), np.asarray(seen["label"])
    return terms.crd(taps, index=index, labels=labels, dims=6, negatives=8)


CASES = [
    Case("hint", terms.hint, "stage2", unfit=MAP_AND_VECTOR),
    Case("hint_resized", terms.hint, {"stage3": "stage2"}, unfit=MAP_AND_VECTOR),
    Case(
        "at", terms.at, {"stage1": "stage2", "stage2": "stage3"}, unfit=MAP_AND_VECTOR
    ),
    Case(
        "at_paper",
        lambda taps: terms.at(taps, variant="paper", p=1),
        "stage2",
        unfit=MAP_AND_VECTOR,
    ),
    Case(
        "fsp",
        terms.fsp,
        [("stem", "stage1"), ("stage1", "stage2")],
        lost=[("stem", "stage9")],
        unfit=[("stem", "pooled")],
    ),
    Case("nst", terms.nst, "stage3", unfit=MAP_AND_VECTOR),
    Case(
        "vid",
        terms.vid,
        ["stage2", "pooled"],
        unfit=MAP_AND_VECTOR,
        falls_to=0.05,
        may_be_negative=True,
    ),
    Case("cwd", terms.cwd, {"stage2": "stage1"}, unfit=MAP_AND_VECTOR),
    Case("ickd", terms.ickd, {"stage3": "stage2"}),
    Case("pearson", terms.pearson, ["stage2", "stage3_pre"], unfit=MAP_AND_VECTOR),
    Case("wasserstein", terms.wasserstein, "stage3", unfit=MAP_AND_VECTOR),
    Case("sp", terms.sp, "stage3"),
    Case("rkd", terms.rkd, "pooled"),
    Case("pkt", terms.pkt, "pooled"),
    Case("cc", terms.cc, "pooled"),
    Case("cc_embedded", lambda taps: terms.cc(taps, dims=5), {"stage3": "pooled"}),
    Case(
        "reviewkd",
        terms.reviewkd,
        LEVELS,
        lost=["stage1", "stage9"],
        unfit=LEVELS[::-1],
    ),
    Case("ab", terms.ab, ["stage1_pre", "stage3_pre"], unfit=PRE_AND_VECTOR),
    Case(
        "ofd",
        ofd,
        {"stage2_pre": "stage1_pre", "stage3_pre": "stage3_pre"},
        lost={"stage9": "stage3_pre"},
        unfit=PRE_AND_VECTOR,
    ),
    Case(
        "factor_transfer",
        lambda taps: terms.factor_transfer(taps, paraphraser=paraphraser()),
        {"stage2": "stage3"},
        unfit={"pooled": "stage3"},
    ),
    Case("crd", crd, "pooled"),
    Case("mgd", terms.mgd, {"stage3": "stage2"}, unfit=MAP_AND_VECTOR),
    Case("srd", terms.srd, {"stage3": "pooled"}, falls_to=0.5, may_be_negative=True),
    Case("vkd", terms.vkd, {"stage3": "pooled"}),
    Case(
        "srrl",
        lambda taps: terms.srrl(taps, head=teacher_variables()[0]["head"]),
        "pooled",
        unfit=MAP_AND_VECTOR,
    ),
]
NAMES = [case.name for case in CASES]


@functools.cache
def images(count: int) -> dict[str, jax.Array]:
    """The first of the embedded digits, as the networks see them."""
    digits = data.load("digits", "train")
    resident = data.on_device(dataset.take(digits, np.arange(count), "train"))
    return augment.to_float()(jax.random.key(0), resident)


def batches(steps: int) -> dict[str, jax.Array]:
    """The same few images, `[steps, BATCH, ...]`."""
    few = images(2 * BATCH)
    order = np.arange(steps * BATCH).reshape(steps, BATCH) % (2 * BATCH)
    return jax.tree.map(lambda a: a[order], few)


@functools.cache
def teacher_variables():
    """Untrained, but with batch statistics of these images, as a trained one has."""
    variables = jax.jit(teacher.init)(jax.random.key(9), images(2 * BATCH)["image"])
    settle = jax.jit(lambda p, z, x: teacher.apply(p, z, x, train=True)[1])
    params, state = variables
    for _ in range(30):
        state = settle(params, state, images(2 * BATCH)["image"])
    return params, state


@functools.cache
def all_terms() -> dict[str, distill.Term]:
    """Every Term by its name; made outside of any trace, with whatever it keeps."""
    return {case.name: case.make(case.taps) for case in CASES}


def outputs(
    key: int, widths: tuple[int, int, int, int], *, batch: int = BATCH
) -> Outputs:
    """What a network might say: its shapes, with normal numbers after a ReLU."""
    shapes = jax.eval_shape(
        lambda key, x: _run(Tiny(widths), key, x),
        jax.random.key(0),
        jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32),
    )
    rng = np.random.default_rng(key)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    drawn = jax.tree.map(draw, shapes)
    rectified = {
        name: tap if name.endswith("_pre") else jnp.maximum(tap, 0)
        for name, tap in drawn.taps.items()
    }
    return drawn._replace(taps=rectified)


def _run(module: nn.Module, key: jax.Array, x: jax.Array) -> Outputs:
    net = from_linen(module)
    return net.apply(*net.init(key, x), x, train=False)[0]
