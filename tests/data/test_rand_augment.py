"""Each operation of RandAugment as Pillow does it, and how they are drawn."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxkd.data import augment, rand_augment as ra

STRENGTHS = (0.0, 0.3, -0.3, 0.55, 1.0, -1.0)
EXACT = {"identity", "solarize", "posterize", "equalize", "translate_x", "translate_y"}
POINTS = {"rotate", "shear_x", "shear_y"}  # may take a neighbour at a pixel's edge
SIDES = (24, 31)


@functools.cache
def pictures(channels):
    """Smooth, noisy, narrow in range, of one level, and of two levels."""
    rng = np.random.default_rng(channels)
    height, width = SIDES
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([(4 + c) * x + (9 - 3 * c) * y for c in range(channels)], -1)
    noise = rng.integers(0, 256, (height, width, channels))
    narrow = rng.integers(90, 97, noise.shape) + np.arange(channels) * 11
    one = np.broadcast_to(np.arange(channels) * 60 + 7, noise.shape)
    two = np.where(noise > 99, 200, 13)
    return np.stack([slopes % 256, noise, narrow, one, two]).astype(np.uint8)


def by_pillow(name, strength, array):
    """The operation as the authors do it, by the library that they do it with."""
    image = Image.fromarray(array.squeeze() if array.shape[-1] == 1 else array)
    width, height = image.size
    s, weak = strength, abs(strength)
    affine = lambda *m: image.transform(image.size, Image.AFFINE, m, Image.NEAREST)
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "colour": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        done = enhance[name](image).enhance(1 + 0.9 * s)
    else:
        done = {
            "identity": lambda: image,
            "auto_contrast": lambda: ImageOps.autocontrast(image),
            "equalize": lambda: ImageOps.equalize(image),
            "solarize": lambda: ImageOps.solarize(image, 256 * (1 - weak)),
            "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * weak)),
            "rotate": lambda: image.rotate(-30 * s, Image.NEAREST),
            "shear_x": lambda: affine(1, 0.3 * s, 0, 0, 1, 0),
            "shear_y": lambda: affine(1, 0, 0, 0.3 * s, 1, 0),
            "translate_x": lambda: affine(1, 0, int(s * width * 150 / 331), 0, 1, 0),
            "translate_y": lambda: affine(1, 0, 0, 0, 1, int(s * height * 150 / 331)),
        }[name]()
    return np.asarray(done).reshape(array.shape)


@functools.cache
def every(channels):
    """Every operation of every picture at every strength, `[strength, picture]`."""

    def of_one(image, strength):
        done = {name: f(image, strength) for name, f in ra.LEVELS.items()}
        for name, matrix in ra.MATRICES.items():
            done[name] = ra.move(image, matrix(strength, *SIDES))
        return done

    over = jax.vmap(jax.vmap(of_one, (0, None)), (None, 0))
    images = jnp.asarray(pictures(channels), jnp.float32)
    found = jax.jit(over)(images, jnp.asarray(STRENGTHS, jnp.float32))
    return {name: np.asarray(a) for name, a in found.items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ra.OPERATIONS)
def test_an_operation_is_pillow_s(name, channels):
    got = every(channels)[name]
    assert ((got >= 0) & (got <= 255) & (got == np.floor(got))).all()
    want = np.array(
        [[by_pillow(name, s, image) for image in pictures(channels)] for s in STRENGTHS]
    ).astype(int)
    difference = np.abs(got - want)
    if name in EXACT:
        assert difference.max() == 0
    elif name in POINTS:
        # Pillow steps in 2**-16 of a pixel: at an edge it may take the next pixel.
        assert (difference > 0).mean() < 0.01
    else:
        assert difference.max() <= 1
        # Pillow's scale of auto_contrast, 255 / span, is rounded: 255 becomes 254.
        assert name == "auto_contrast" or (difference > 0).mean() < 0.05


def test_auto_contrast_is_the_whole_quotient():
    images = pictures(3).astype(int)
    low = images.min((1, 2), keepdims=True)
    span = images.max((1, 2), keepdims=True) - low
    want = np.where(span > 0, (images - low) * 255 // np.maximum(span, 1), images)
    for got in every(3)["auto_contrast"]:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(POINTS))
def test_moved_pixels_are_the_nearest(name, channels):
    """By the definition in float64, where the source is not at a pixel's edge."""
    height, width = SIDES
    y, x = np.mgrid[:height, :width] + 0.5
    got = every(channels)[name]
    for i, s in enumerate(STRENGTHS):
        cos, sin = math.cos(s * math.pi / 6), math.sin(s * math.pi / 6)
        dx, dy = x - width / 2, y - height / 2
        column, row = {
            "rotate": (
                cos * dx + sin * dy + width / 2,
                cos * dy - sin * dx + height / 2,
            ),
            "shear_x": (x + 0.3 * s * y, y),
            "shear_y": (x, y + 0.3 * s * x),
        }[name]
        clear = np.abs(column - np.round(column)) > 1e-4
        clear &= np.abs(row - np.round(row)) > 1e-4
        assert clear.mean() > 0.95
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        r, c = (np.where(inside, np.floor(v), 0).astype(int) for v in (row, column))
        want = np.where(inside[..., None], pictures(channels)[:, r, c], 0)
        np.testing.assert_array_equal(got[i][:, clear], want[:, clear])


@pytest.mark.parametrize("name", ra.OPERATIONS)
def test_at_strength_zero_only_the_histogram_s_operations_change_anything(name):
    changes = name in ("auto_contrast", "equalize")
    assert (every(3)[name][0] != pictures(3)).any() == changes
    kept = every(1)["colour"]
    np.testing.assert_array_equal(kept, np.broadcast_to(pictures(1), kept.shape))


def same(n):
    """One picture many times."""
    picture = pictures(3)[0]
    return {"image": jnp.asarray(np.broadcast_to(picture, (n, *picture.shape)))}


def test_each_image_has_one_of_the_operations_equally_often():
    n = 1400
    view = augment.rand_augment(1, 9.0)
    images = np.asarray(jax.jit(view.apply)(jax.random.key(0), same(n))["image"])
    plus, minus = STRENGTHS.index(0.3), STRENGTHS.index(-0.3)
    ways: dict[bytes, set] = {}
    for name in ra.OPERATIONS:
        for place in (plus, minus):
            result = every(3)[name][place, 0].astype(np.uint8).tobytes()
            ways.setdefault(result, set()).add((name, place))
    counts = dict.fromkeys(ways, 0)
    for image in images:
        counts[image.tobytes()] += 1  # a KeyError is what no operation gives
    for result, its in ways.items():
        expected = n * len(its) / (2 * len(ra.OPERATIONS))
        assert abs(counts[result] - expected) < 5 * np.sqrt(expected)
    signed = {next(iter(its))[0] for its in ways.values() if len(its) == 1}
    assert {"rotate", "shear_x", "brightness", "sharpness"} <= signed


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_so_many_operations_one_after_another(count):
    # At full strength solarizing inverts everything: twice is nothing.
    view = augment.rand_augment(count, 30.0, operations=("solarize",))
    got = np.asarray(view(jax.random.key(0), same(3))["image"])
    want = np.asarray(same(3)["image"])
    np.testing.assert_array_equal(got, 255 - want if count % 2 else want)


@pytest.mark.bad_input
def test_bad_input_is_refused_by_name():
    for call, message in [
        (lambda: augment.rand_augment(-1), "count must be >= 0"),
        (lambda: augment.rand_augment(1.5), "count must be an integer"),
        (lambda: augment.rand_augment(2, 31), r"magnitude must be in \[0, 30\]"),
        (lambda: augment.rand_augment(operations=()), "operations must name"),
        (lambda: augment.rand_augment(operations=["tilt"]), "operations must be one"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    view = augment.rand_augment()
    with pytest.raises(ValueError, match=r"expects uint8 .*before to_float"):
        view(jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 3))})
    with pytest.raises(ValueError, match="1 or 3 channels"):
        view(jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 2), jnp.uint8)})
