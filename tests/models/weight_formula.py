"""Weights and inputs by formula, in numpy only."""

import hashlib
import math
import re
import zlib

import numpy as np

# Class tokens and positions; not `embed_tokens` or `relative_position_bias_table`.
SMALL = re.compile(
    r"(cls|class|dist|reg|register|mask)_tokens?$|token_type|pos_embed|position_embed"
)
SCALES = (
    "gamma",
    "layer_scale",
    "lambda1",
)  # layer scale: timm, torchvision, Hugging Face


def entry(name, shape, dtype, gain=2.0):
    """One entry of a state_dict; whole numbers are 0 (`num_batches_tracked`)."""
    if not dtype.startswith("float"):
        return np.zeros(shape, dtype)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    drawn = np.asarray(rng.standard_normal(shape))
    if leaf == "running_mean":
        value = 0.1 * drawn
    elif SMALL.search(name):
        value = 0.02 * drawn
    elif leaf in SCALES:
        value = 0.5 + 0.1 * drawn
    elif leaf.endswith("bias"):
        value = 0.1 * drawn
    elif leaf == "weight" and len(shape) == 1:
        value = 1 + 0.1 * drawn
    else:
        value = drawn * math.sqrt(
            gain / (math.prod(shape[1:]) if shape[1:] else shape[-1])
        )
    return value.astype(dtype)


def weights(spec, gain=2.0):
    """`spec`: (name, shape, dtype) in the order of the state_dict; a dict of arrays."""
    return {name: entry(name, tuple(shape), dtype, gain) for name, shape, dtype in spec}


def images(shape):
    """The images, (N, C, H, W)."""
    return np.random.default_rng(7).standard_normal(shape).astype("float32")


def digest(arrays):
    """SHA-256 of the bytes of all arrays (C order, little endian)."""
    whole = hashlib.sha256()
    for value in arrays.values():
        whole.update(np.ascontiguousarray(value).tobytes())
    return whole.hexdigest()
