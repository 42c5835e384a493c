"""Views of recent training recipes: CutMix, resized crops, colour jitter."""

import colorsys
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxkd.data import augment, colour, resizing


def numbered(n, height, width):
    """Image k is k everywhere, and so is its label."""
    image = np.broadcast_to(
        np.arange(n, dtype=np.uint8)[:, None, None, None], (n, height, width, 1)
    )
    return {"image": jnp.asarray(image), "label": jnp.arange(n, dtype=jnp.int32)}


# CutMix.


@pytest.fixture(scope="module")
def cut():
    view, (height, width) = augment.cutmix(1.0), (7, 12)
    batch = numbered(250, height, width)
    seen = [jax.jit(view.apply)(jax.random.key(k), batch) for k in range(8)]
    return {
        name: np.concatenate([np.asarray(s[name]) for s in seen]) for name in seen[0]
    }


def test_the_label_s_share_is_the_area_that_is_not_pasted(cut):
    image, other = cut["image"][..., 0], cut["label_other"]
    own = image == cut["label"][:, None, None]
    paste = image == other[:, None, None]
    assert (own | paste).all()
    with_itself = cut["label"] == other
    share = own.mean((1, 2))
    np.testing.assert_allclose(
        cut["label_weight"][~with_itself], share[~with_itself], atol=1e-6
    )
    assert cut["label_weight"].dtype == np.float32
    for k in range(8):  # a partner each
        assert sorted(other[k * 250 : k * 250 + 250]) == list(range(250))


def test_what_is_pasted_is_one_rectangle_of_the_image_s_proportions(cut):
    pasted = cut["image"][..., 0] != cut["label"][:, None, None]
    height, width = pasted.shape[1:]
    whole = 0
    for mask in pasted:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        for line in (rows, columns):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)
        r, c = (np.flatnonzero(line) for line in (rows, columns))
        if (
            len(r)
            and r[0] > 0
            and r[-1] < height - 1
            and c[0] > 0
            and c[-1] < width - 1
        ):
            # Not cut: 2 ((s h) // 2) by 2 ((s w) // 2) for a share s of each side.
            whole += 1
            assert len(r) % 2 == len(c) % 2 == 0
            low, high = (
                max(len(r) / height, len(c) / width),
                min((len(r) + 2) / height, (len(c) + 2) / width),
            )
            assert low < high
    assert whole > 100


def test_cutmix_draws_the_share_from_a_beta_distribution():
    n, side = 2000, 64
    batch = {"image": jnp.zeros((n, side, side, 1)), "label": jnp.arange(n)}
    weight = np.asarray(augment.cutmix(1.0)(jax.random.key(0), batch)["label_weight"])
    # At alpha = 1 the share is uniform before the border cuts: simulated in numpy.
    rng = np.random.default_rng(0)
    half = (np.sqrt(1 - rng.uniform(size=10**5)) * side).astype(int) // 2
    sides = []
    for _ in range(2):
        centre = rng.integers(0, side, len(half))
        ends = np.minimum(centre + half, side), np.maximum(centre - half, 0)
        sides.append(ends[0] - ends[1])
    wanted = 1 - sides[0] * sides[1] / side**2
    deciles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(weight, deciles), np.quantile(wanted, deciles), atol=0.04
    )


@pytest.mark.bad_input
def test_mixing_twice_is_refused():
    view = augment.chain(augment.cutmix(1.0), augment.to_float(), augment.mixup(0.2))
    with pytest.raises(ValueError, match="one view of mixup and cutmix"):
        view(jax.random.key(0), numbered(4, 3, 3))


# Resized crops.


def test_parts_are_within_the_limits_and_everywhere():
    sides = height, width = 48, 60
    draws = resizing.parts(jax.random.key(0), 4000, sides, (0.2, 0.6), (0.5, 2.0))
    (top, left), (h, w) = (np.asarray(d).T for d in draws)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    area, ratio = h * w / (height * width), w / h
    # Limits but for the rounding to whole pixels.
    assert 0.19 < area.min() < 0.22 and 0.56 < area.max() < 0.62
    assert 0.47 < ratio.min() < 0.55 and 1.85 < ratio.max() < 2.13
    # Every part of up to 0.4 of the area fits: uniform up to there.
    small = area < 0.38
    assert abs(area[small].mean() - 0.29) < 0.01
    assert abs(np.log(ratio[small]).mean()) < 0.05
    for start, length, side in ((top, h, height), (left, w, width)):
        share = (start + 0.5) / (side - length + 1)
        assert share.min() < 0.04 and share.max() > 0.96
        assert abs(share.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("sides", "ratio", "start", "length"),
    [
        ((10, 40), (0.8, 1.25), (0, 14), (10, 12)),
        ((40, 10), (1.0, 1.0), (15, 0), (10, 10)),
        ((8, 8), (2.0, 2.0), (2, 0), (4, 8)),
    ],
)
def test_if_none_fits_it_is_the_largest_central_part(sides, ratio, start, length):
    starts, lengths = resizing.parts(jax.random.key(0), 3, sides, (1.0, 1.0), ratio)
    np.testing.assert_array_equal(starts, [start] * 3)
    np.testing.assert_array_equal(lengths, [length] * 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("to", [5, 16, 40])
def test_resizing_is_pillow_s_within_one_level(channels, to):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (20, 20, channels)).astype(np.uint8)
    batch = {"image": jnp.asarray(np.broadcast_to(array, (12, *array.shape)))}
    view = augment.resized_crop(to, scale=(0.2, 1.0))
    got = np.asarray(view(jax.random.key(0), batch)["image"])
    assert got.shape == (12, to, to, channels) and got.dtype == np.uint8
    sides, ratio = (20, 20), (3 / 4, 4 / 3)
    starts, lengths = resizing.parts(jax.random.key(0), 12, sides, (0.2, 1.0), ratio)
    found = np.concatenate([starts, lengths], axis=1)
    picture = Image.fromarray(array.squeeze() if channels == 1 else array)
    for image, (top, left, h, w) in zip(got, found, strict=True):
        part = picture.crop((left, top, left + w, top + h))
        want = np.asarray(part.resize((to, to), Image.BILINEAR)).reshape(image.shape)
        assert np.abs(image.astype(int) - want).max() <= 1


def test_the_example_of_the_documentation_is_right():
    result = doctest.testmod(resizing)
    assert result.attempted and not result.failed


# Colour jitter.


def colours(n=4):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (n, 9, 9, 3)).astype(np.uint8)
    image[0, 0, :4] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0]]
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.0, 0.45, 1.0, 1.7])
def test_changes_of_colour_are_pillow_s_within_one_level(factor, channels):
    for change, pillow in [
        (colour.brighten, ImageEnhance.Brightness),
        (colour.change_contrast, ImageEnhance.Contrast),
        (colour.saturate, ImageEnhance.Color),
    ]:
        for array in colours()[..., :channels]:
            got = np.floor(change(jnp.asarray(array, jnp.float32), factor) + 0.5)
            picture = Image.fromarray(array.squeeze() if channels == 1 else array)
            want = np.asarray(pillow(picture).enhance(factor)).reshape(array.shape)
            assert np.abs(got - want.astype(int)).max() <= 1


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.3, 0.5])
def test_the_hue_is_turned_as_in_hsv(turns):
    array = colours(1)[0]
    got = np.asarray(colour.turn_hue(jnp.asarray(array, jnp.float32), turns))
    for pixel, result in zip(array.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        want = np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)) * 255
        np.testing.assert_allclose(result, want, atol=2e-3)


def test_factors_are_uniform_between_the_limits():
    image = np.full((3000, 1, 1, 1), 100, np.uint8)
    view = augment.colour_jitter(brightness=0.4)
    got = np.asarray(view(jax.random.key(0), {"image": jnp.asarray(image)})["image"])
    levels = got.ravel().astype(int)
    assert levels.min() == 60 and levels.max() == 140
    counts = np.bincount(levels, minlength=141)[61:140]  # 1/80 each
    assert ((counts - 37.5) ** 2 / 37.5).sum() < 79 + 5 * np.sqrt(2 * 79)
    strong = augment.colour_jitter(brightness=1.5)  # not below 0
    got = np.asarray(strong(jax.random.key(0), {"image": jnp.asarray(image)})["image"])
    assert got.max() > 245 and (got < 20).mean() > 0.05


def test_the_order_is_random():
    # A black and a light pixel. Brightened a thousandfold the light one is white, and
    # less contrast then takes it below; after less contrast, both become white.
    array = np.array([0, 200], np.uint8).reshape(1, 1, 2, 1)
    image = jnp.asarray(np.broadcast_to(array, (400, 1, 2, 1)))
    view = augment.colour_jitter(brightness=1e3, contrast=0.5)
    got = np.asarray(view(jax.random.key(0), {"image": image})["image"])
    black, light = got[:, 0, :, 0].T
    both_white = (black == 255) & (light == 255)
    between = (black > 0) & (black < 65) & (light < 255)
    # A quarter each, and half have more contrast: deviation 8.7.
    assert abs(both_white.sum() - 100) < 40 and abs(between.sum() - 100) < 40


@pytest.mark.bad_input
def test_bad_input_is_refused_by_name():
    floats = {"image": jnp.zeros((1, 4, 4, 3))}
    jitter = augment.colour_jitter(hue=0.1)
    for call, message in [
        (lambda: augment.cutmix(-1), "alpha must be"),
        (lambda: augment.resized_crop(0), "size must be >= 1"),
        (lambda: augment.resized_crop(scale=(0.5, 1.5)), r"scale must be .*<= 1"),
        (lambda: augment.resized_crop(scale=(0.0, 1.0)), "scale must be"),
        (lambda: augment.resized_crop(ratio=(2.0, 1.0)), "ratio must be"),
        (lambda: augment.colour_jitter(brightness=-0.1), "brightness must be"),
        (lambda: augment.colour_jitter(hue=0.6), r"hue must be in \[0, 0.5\]"),
        (lambda: jitter(jax.random.key(0), floats), "uint8 .*before to_float"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
