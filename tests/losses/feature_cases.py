"""The feature and relational losses as the battery sees them."""

import numpy as np

from jaxkd import losses
from tests.losses import feature_definitions as by_hand
from tests.losses.cases import Case, Inputs

# Inputs.


def two_maps(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Feature maps of 4 by 4 positions."""
    shape = (*batch, 4, 4, width)
    return {
        "student_features": rng.normal(size=shape),
        "teacher_features": 2 * rng.normal(size=shape),
    }


def unequal_maps(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """Maps of 5 and 3 rows, neither a multiple of the other, and unequal channels."""
    return {
        "student_features": rng.normal(size=(*batch, 5, 4, width)),
        "teacher_features": rng.normal(size=(*batch, 3, 4, width + 1)),
    }


def resized_maps(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """Equally many channels on maps of different sizes."""
    return {
        "student_features": rng.normal(size=(*batch, 3, 5, width)),
        "teacher_features": rng.normal(size=(*batch, 4, 4, width)),
    }


def two_layers(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Two layers of each network, the second half as large."""
    return {
        "student_first": rng.normal(size=(*batch, 4, 4, width)),
        "student_second": rng.normal(size=(*batch, 2, 2, width + 1)),
        "teacher_first": rng.normal(size=(*batch, 4, 4, width)),
        "teacher_second": rng.normal(size=(*batch, 2, 2, width + 1)),
    }


def with_scale(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """A prediction, and a variance for each channel."""
    maps = two_maps(rng, batch, width)
    return {
        "predicted_features": maps["student_features"],
        "teacher_features": maps["teacher_features"],
        "raw_scale": rng.normal(size=width),
    }


def with_margin(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Pre-activations, and a margin for each channel."""
    margin = -rng.uniform(0.1, 1.0, size=width)
    return {**two_maps(rng, batch, width), "margin": margin}


def two_factors(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Factors of 4 by 4 positions."""
    maps = two_maps(rng, batch, width)
    return dict(zip(("student_factors", "teacher_factors"), maps.values(), strict=True))


def two_embeddings(
    rng: np.random.Generator, batch: tuple[int, ...], width: int
) -> Inputs:
    """Embeddings of different dimensions."""
    return {
        "student_embeddings": rng.normal(size=(*batch, width)),
        "teacher_embeddings": 2 * rng.normal(size=(*batch, width + 2)),
    }


def with_banks(rng: np.random.Generator, batch: tuple[int, ...], width: int) -> Inputs:
    """Unit embeddings, banks of 9 examples and 4 negatives."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    vectors = lambda *shape: unit(rng.normal(size=(*shape, width)))
    return {
        "student_embeddings": vectors(*batch),
        "teacher_embeddings": vectors(*batch),
        "student_bank": vectors(9),
        "teacher_bank": vectors(9),
        "positives": rng.integers(9, size=batch),
        "negatives": rng.integers(9, size=(*batch, 4)),
    }


# Symmetries.


def scale_examples(inputs: Inputs) -> Inputs:
    """Each example of the student's is multiplied by a number of its own."""
    return _times(inputs, lambda x: np.arange(1, len(x) + 1) / 3.0, 0)


def scale_channels(inputs: Inputs) -> Inputs:
    """Each channel of the student's is multiplied by a number of its own."""
    return _times(inputs, lambda x: np.arange(1, x.shape[-1] + 1) / 3.0, -1)


def scale_all(inputs: Inputs) -> Inputs:
    """The student is multiplied by one number."""
    return _times(inputs, lambda x: np.full(len(x), 2.5), 0)


def _times(inputs: Inputs, factors, axis: int) -> Inputs:
    name = next(iter(inputs))
    shape = [1] * inputs[name].ndim
    shape[axis] = -1
    return {**inputs, name: inputs[name] * factors(inputs[name]).reshape(shape)}


def offset_channels(inputs: Inputs) -> Inputs:
    """A constant is added to each channel of the student's."""
    name = next(iter(inputs))
    shape = (1,) * (inputs[name].ndim - 1) + (-1,)
    offsets = np.arange(inputs[name].shape[-1]) - 1.5
    return {**inputs, name: inputs[name] + offsets.reshape(shape)}


def rotate(inputs: Inputs) -> Inputs:
    """The student's last axis is rotated."""
    name = next(iter(inputs))
    size = inputs[name].shape[-1]
    square = np.random.default_rng(7).normal(size=(size, size))
    return {**inputs, name: inputs[name] @ np.linalg.qr(square)[0]}


def rotate_both(inputs: Inputs) -> Inputs:
    """Both networks' last axes are rotated alike."""
    return {name: rotate({name: array})[name] for name, array in inputs.items()}


# Cases.

MAPS = (("student_features", "teacher_features"),)
EMBEDDINGS = (("student_embeddings", "teacher_embeddings"),)
FLOWS = (("student_first", "teacher_first"), ("student_second", "teacher_second"))
RELATION = {"across": True, "free_width": True}

CASES = [
    Case(
        "hint",
        losses.hint,
        two_maps,
        by_hand.hint,
        pairs=MAPS,
        symmetries=(rotate_both,),
    ),
    Case(
        "at",
        losses.at,
        unequal_maps,
        by_hand.at,
        pairs=MAPS,
        free_width=True,
        symmetries=(scale_examples,),
    ),
    Case(
        "at_paper",
        losses.at,
        unequal_maps,
        by_hand.at,
        knobs={"variant": "paper", "p": 3},
        pairs=MAPS,
        at_equal=None,  # a norm has a kink there
        free_width=True,
        symmetries=(scale_examples,),
    ),
    Case("fsp", losses.fsp, two_layers, by_hand.fsp, pairs=FLOWS),
    Case(
        "nst",
        losses.nst,
        unequal_maps,
        by_hand.nst,
        pairs=MAPS,
        free_width=True,
    ),
    Case(
        "nst_of_equal_sizes",
        losses.nst,
        two_maps,
        by_hand.nst,
        pairs=MAPS,
        free_width=True,
        symmetries=(scale_channels,),
    ),
    Case(
        "vid",
        losses.vid,
        with_scale,
        by_hand.vid,
        vary={"epsilon": 0.01},
        pairs=(("predicted_features", "teacher_features"),),
        at_equal="least",
        batch_axis={"raw_scale": None},
    ),
    Case(
        "ab",
        losses.ab,
        two_maps,
        by_hand.ab,
        knobs={"margin": 1.5},
        vary={"margin": 2},
        pairs=MAPS,
        at_equal=None,
        smooth=False,
    ),
    Case(
        "ofd",
        losses.ofd,
        with_margin,
        by_hand.ofd,
        pairs=MAPS,
        at_equal=None,
        batch_axis={"margin": None},
        smooth=False,
    ),
    Case(
        "factor_transfer",
        losses.factor_transfer,
        two_factors,
        by_hand.factor_transfer,
        pairs=(("student_factors", "teacher_factors"),),
        at_equal=None,  # so has an absolute value
        symmetries=(scale_examples,),
        smooth=False,
    ),
    Case("hcl", losses.hcl, two_maps, by_hand.hcl, pairs=MAPS),
    Case(
        "hcl_of_different_sizes",
        losses.hcl,
        resized_maps,
        by_hand.hcl,
        knobs={"levels": (2, 3)},
        pairs=MAPS,
    ),
    Case(
        "cwd",
        losses.cwd,
        two_maps,
        by_hand.cwd,
        knobs={"temperature": 2.0},
        vary={"temperature": 3},
        pairs=MAPS,
        symmetries=(offset_channels,),
    ),
    Case(
        "ickd",
        losses.ickd,
        resized_maps,
        by_hand.ickd,
        pairs=MAPS,
        symmetries=(scale_examples,),
        narrow=1,
    ),
    Case(
        "pearson_features",
        losses.pearson_features,
        two_maps,
        by_hand.pearson,
        pairs=MAPS,
        across=True,
        symmetries=(scale_channels, offset_channels),
    ),
    Case(
        "wasserstein_features",
        losses.wasserstein_features,
        resized_maps,
        by_hand.wasserstein,
        knobs={"mean_weight": 2.0, "deviation_weight": 0.5},
        vary={"mean_weight": 3},
        pairs=MAPS,
    ),
    Case(
        "cosine",
        losses.cosine,
        two_maps,
        by_hand.cosine,
        pairs=MAPS,
        symmetries=(scale_examples, rotate_both),
    ),
    Case(
        "sp",
        losses.sp,
        unequal_maps,
        by_hand.sp,
        pairs=MAPS,
        symmetries=(scale_all, rotate),
        **RELATION,
    ),
    Case(
        "rkd_distance",
        losses.rkd_distance,
        two_embeddings,
        by_hand.rkd_distance,
        pairs=EMBEDDINGS,
        symmetries=(scale_all, rotate, offset_channels),
        smooth=False,
        **RELATION,
    ),
    Case(
        "rkd_angle",
        losses.rkd_angle,
        two_embeddings,
        by_hand.rkd_angle,
        pairs=EMBEDDINGS,
        symmetries=(scale_all, rotate, offset_channels),
        smooth=False,
        **RELATION,
    ),
    Case(
        "rkd_angle_in_parts",
        losses.rkd_angle,
        two_embeddings,
        by_hand.rkd_angle,
        knobs={"chunk": 4},
        pairs=EMBEDDINGS,
        smooth=False,
        **RELATION,
    ),
    Case(
        "pkt",
        losses.pkt,
        two_embeddings,
        by_hand.pkt,
        vary={"epsilon": 1e-3},
        pairs=EMBEDDINGS,
        symmetries=(rotate,),
        **RELATION,
    ),
    Case(
        "cc",
        losses.cc,
        two_embeddings,
        by_hand.cc,
        knobs={"order": 3},
        vary={"gamma": 1},
        pairs=EMBEDDINGS,
        symmetries=(scale_examples, rotate),
        **RELATION,
    ),
    Case(
        "crd",
        losses.crd,
        with_banks,
        by_hand.crd,
        knobs={"temperature": 0.5, "student_normalizer": 2.0},
        vary={"temperature": 1},
        pairs=EMBEDDINGS,
        at_equal=None,
        batch_axis={"student_bank": None, "teacher_bank": None},
    ),
]
