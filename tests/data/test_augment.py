"""What each view does to each image, and how often."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxkd.data import augment


def batch(n=16, side=6, dtype=np.uint8, channels=3):
    """Images without a zero and without two equal pixels in one channel's place."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (n, side, side, channels)).astype(dtype)
    labels = np.arange(n, dtype=np.int32)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels), "index": labels}


def images(view, key=0, of=None):
    return np.asarray(view(jax.random.key(key), of or batch())["image"])


FLOATS = batch(dtype=np.float32)
VIEWS = {
    "flip": (augment.flip(), batch(), True),
    "crop": (augment.crop(2), batch(), True),
    "crop, reflect": (augment.crop(2, mode="reflect"), batch(), True),
    "jitter": (augment.jitter(1), batch(), True),
    "cutout": (augment.cutout(3), batch(), True),
    "mixup": (augment.mixup(0.4), FLOATS, True),
    "cutmix": (augment.cutmix(1.0), batch(), True),
    "cutmix, floats": (augment.cutmix(1.0), FLOATS, True),
    "resized_crop": (augment.resized_crop(), batch(), True),
    "resized_crop, floats": (augment.resized_crop(), FLOATS, True),
    "colour_jitter": (
        augment.colour_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        batch(),
        True,
    ),
    "rand_augment": (augment.rand_augment(), batch(), True),
    "rand_augment, grey": (augment.rand_augment(), batch(channels=1), True),
    "to_float": (augment.to_float(), batch(), False),
    "normalise": (augment.normalise([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), FLOATS, False),
    "chain": (augment.chain(augment.to_float(), augment.flip()), batch(), True),
    "empty chain": (augment.chain(), batch(), False),
    "fixed chain": (augment.chain(augment.to_float()), batch(), False),
    "crop(0)": (augment.crop(0), batch(), False),
    "jitter(0)": (augment.jitter(0), batch(), False),
    "cutout(0)": (augment.cutout(0), batch(), False),
    "mixup(0)": (augment.mixup(0), FLOATS, False),
    "cutmix(0)": (augment.cutmix(0), batch(), False),
    "resized_crop of all": (
        augment.resized_crop(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
        batch(),
        False,
    ),
    "colour_jitter()": (augment.colour_jitter(), batch(), False),
    "rand_augment(0)": (augment.rand_augment(0), batch(), False),
}


RANDOM_BYTES = ("resized_crop", "colour_jitter", "rand_augment", "cutmix")


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_says_whether_its_key_matters_and_same_key_means_same_view(name):
    view, given, random = VIEWS[name]
    assert view.random is random
    seen = [images(view, key, given) for key in (1, 1, 2, 3)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert random == any((seen[0] != other).any() for other in seen[2:])


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_the_same_eager_compiled_mapped_and_scanned(name):
    view, given, _ = VIEWS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    eager = [view(key, given) for key in keys]
    mapped = jax.jit(jax.vmap(view.apply, (0, None)))(keys, given)

    def step(_, key):
        return None, view(key, given)

    scanned = jax.jit(lambda keys: jax.lax.scan(step, None, keys)[1])(keys)
    for name, column in mapped.items():
        expected = np.stack([np.asarray(one[name]) for one in eager])
        # Compiled, x * w + y may be rounded once less: one unit in the last place.
        tolerance = 1e-6 if name == "image" and expected.dtype == np.float32 else 0
        np.testing.assert_allclose(column, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            scanned[name], expected, rtol=tolerance, atol=tolerance
        )
        assert column.dtype == scanned[name].dtype == expected.dtype


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_shape_type_and_the_rest_of_the_batch(name):
    view, given, _ = VIEWS[name]
    result = view(jax.random.key(0), {**given, "teacher": jnp.arange(16)})
    assert result["image"].shape == given["image"].shape
    floats = name in ("to_float", "chain", "fixed chain")
    assert result["image"].dtype == (jnp.float32 if floats else given["image"].dtype)
    for other in ("label", "index", "teacher"):
        np.testing.assert_array_equal(
            result[other], {**given, "teacher": range(16)}[other]
        )


@pytest.mark.parametrize("name", [n for n in VIEWS if "(0)" in n or n.endswith("all")])
def test_zero_strength_is_the_identity(name):
    view, given, _ = VIEWS[name]
    np.testing.assert_array_equal(images(view, of=given), given["image"])


def test_bytes_become_floats_in_the_unit_interval():
    every = {"image": jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)}
    got = images(augment.to_float(), of=every).ravel()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.arange(256) / 255, rtol=1e-6)
    np.testing.assert_array_equal(
        images(augment.to_float(), of=FLOATS), FLOATS["image"]
    )


def test_normalising_with_ones_own_statistics_gives_zero_and_one():
    pixels = np.asarray(FLOATS["image"]).reshape(-1, 3)
    view = augment.normalise(pixels.mean(0), pixels.std(0))
    got = images(view, of=FLOATS).reshape(-1, 3)
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(0), 1, rtol=1e-5)


def test_normalise_is_affine_in_each_channel():
    got = images(VIEWS["normalise"][0], of=FLOATS)
    expected = (np.asarray(FLOATS["image"]) - [1, 2, 3]) / np.array([4, 5, 6])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_flip_mirrors_half_of_the_images_and_twice_is_nothing():
    many = batch(n=4000, side=3)
    original, flipped = np.asarray(many["image"]), images(augment.flip(), of=many)
    mirrored = (flipped == original[:, :, ::-1]).all((1, 2, 3))
    untouched = (flipped == original).all((1, 2, 3))
    assert (mirrored | untouched).all()
    # Binomial(4000, 1/2): standard deviation 32.
    assert abs(mirrored.sum() - 2000) < 150
    twice = images(augment.flip(), of={**many, "image": jnp.asarray(flipped)})
    np.testing.assert_array_equal(twice, original)


def place(n, side, channels=2):
    """Images whose pixels say where they were: (row + 1, column + 1)."""
    grid = np.stack(np.mgrid[1 : side + 1, 1 : side + 1], -1).astype(np.uint8)
    return {"image": jnp.asarray(np.broadcast_to(grid, (n, *grid.shape)))}


@pytest.mark.parametrize("view", [augment.crop(2), augment.jitter(2)])
def test_every_shift_occurs_equally_often_and_is_filled_with_zeros(view):
    n, side, pad = 10_000, 6, 2
    shifted = images(view, of=place(n, side))
    padded = np.pad(np.asarray(place(1, side)["image"])[0], ((2, 2), (2, 2), (0, 0)))
    counts = []
    for row, column in itertools.product(range(2 * pad + 1), repeat=2):
        expected = padded[row : row + side, column : column + side]
        counts.append((shifted == expected).all((1, 2, 3)).sum())
    assert sum(counts) == n, "an image is not a shifted original"
    # Binomial(10000, 1/25): mean 400, standard deviation 20. The sum of squares over
    # the mean is chi-squared with 24 degrees of freedom: 60 has a p-value of 7e-5.
    assert ((np.array(counts) - 400) ** 2 / 400).sum() < 60


def test_a_reflected_crop_mirrors_at_the_edge_pixel():
    cropped = images(augment.crop(3, mode="reflect"), of=place(200, 6))
    border = ((3, 3), (3, 3), (0, 0))
    padded = np.pad(np.asarray(place(1, 6)["image"])[0], border, mode="reflect")
    allowed = {
        padded[row : row + 6, column : column + 6].tobytes()
        for row, column in itertools.product(range(7), repeat=2)
    }
    seen = {image.tobytes() for image in cropped}
    assert seen <= allowed and len(seen) > 40


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_cutout_erases_one_square_centred_anywhere(size):
    side, n = 5, 5000
    cut = images(augment.cutout(size), of=batch(n, side))
    original = np.asarray(batch(n, side)["image"])
    erased = (cut == 0).all(-1)
    np.testing.assert_array_equal(cut, np.where(erased[..., None], 0, original))
    masks = {}
    for y, x in itertools.product(range(side), repeat=2):
        rows, columns = (
            (np.arange(side) >= c - size // 2)
            & (np.arange(side) < c - size // 2 + size)
            for c in (y, x)
        )
        mask = np.outer(rows, columns)
        masks[mask.tobytes()] = masks.get(mask.tobytes(), 0) + 1
    counts = dict.fromkeys(masks, 0)
    for mask in erased:
        counts[mask.tobytes()] += 1  # a KeyError is a shape that cannot be
    for key, ways in masks.items():
        expected = n * ways / side**2
        assert abs(counts[key] - expected) <= 5 * np.sqrt(expected)


@pytest.mark.parametrize("height, width", [(3, 7), (7, 3)])
def test_images_need_not_be_square(height, width):
    rng = np.random.default_rng(0)
    original = rng.integers(1, 256, (300, height, width, 1)).astype(np.uint8)
    wide = {"image": jnp.asarray(original)}
    cut = images(augment.cutout(1), of=wide)[..., 0] == 0
    assert (cut.sum((1, 2)) == 1).all() and cut.any(0).all()
    assert images(augment.crop(1), of=wide).shape == original.shape
    flipped = images(augment.flip(), of=wide)
    chosen = (flipped != original).any((1, 2, 3))[:, None, None, None]
    np.testing.assert_array_equal(
        flipped, np.where(chosen, original[:, :, ::-1], original)
    )


def test_images_of_a_batch_have_draws_of_their_own():
    same = {**batch(64), "image": jnp.broadcast_to(batch()["image"][:1], (64, 6, 6, 3))}
    for name in ("flip", "crop", "cutout", *RANDOM_BYTES):
        mixed = name == "cutmix"  # needs partners that differ
        seen = images(VIEWS[name][0], of=batch(64) if mixed else same)
        assert len({image.tobytes() for image in seen}) > 1, name


@given(key=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_mixup_is_the_convex_combination_it_says(key):
    mixed = augment.mixup(0.7)(jax.random.key(key), FLOATS)
    original = np.asarray(FLOATS["image"], np.float64)
    own, other = np.asarray(mixed["label"]), np.asarray(mixed["label_other"])
    weight = np.asarray(mixed["label_weight"], np.float64)
    assert weight.shape == (16,) and (weight >= 0).all() and (weight <= 1).all()
    assert mixed["label_weight"].dtype == jnp.float32
    assert sorted(other) == own.tolist() == list(range(16))  # labels are places here
    w = weight[:, None, None, None]
    np.testing.assert_allclose(
        mixed["image"], w * original + (1 - w) * original[other], rtol=1e-5
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_the_weights_from_a_beta_distribution(alpha):
    many = {
        "image": jnp.zeros((20_000, 1, 1, 1)),
        "label": jnp.zeros(20_000, jnp.int32),
    }
    weight = np.asarray(augment.mixup(alpha)(jax.random.key(0), many)["label_weight"])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert abs(weight.mean() - 0.5) < 0.02
    np.testing.assert_allclose(weight.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


def test_mixup_without_strength_still_says_the_labels():
    result = augment.mixup(0)(jax.random.key(0), FLOATS)
    np.testing.assert_array_equal(result["image"], FLOATS["image"])
    np.testing.assert_array_equal(result["label_other"], FLOATS["label"])
    assert (result["label_weight"] == 1).all()


def test_another_epoch_does_not_compile_again():
    view, compiled = augment.chain(*(VIEWS[n][0] for n in RANDOM_BYTES)), [0]

    def counted(key, given):
        compiled[0] += 1
        return view(key, given)

    program = jax.jit(counted)
    for key in range(3):
        program(jax.random.key(key), batch())
    assert compiled == [1]


def test_the_parts_of_a_chain_are_applied_in_order_with_keys_of_their_own():
    add = augment.View(lambda key, b: {**b, "image": b["image"] + 1}, False)
    double = augment.View(lambda key, b: {**b, "image": b["image"] * 2}, False)
    one = {"image": jnp.ones((1, 1, 1, 1))}
    assert images(augment.chain(add, double), of=one).item() == 4
    assert images(augment.chain(double, add), of=one).item() == 3
    # Under one key for both, two flips would always cancel.
    twice = images(augment.chain(augment.flip(), augment.flip()), of=batch(64))
    assert (twice != np.asarray(batch(64)["image"])).any()


BAD = [
    (lambda: augment.crop(-1), "padding must be >= 0"),
    (lambda: augment.crop(1.5), "padding must be an integer"),
    (lambda: augment.crop(1, mode="wrap"), "mode must be one of"),
    (lambda: images(augment.crop(6, mode="reflect")), "padding must be smaller"),
    (lambda: augment.jitter(-1), "pixels must be >= 0"),
    (lambda: augment.cutout(-1), "size must be >= 0"),
    (lambda: augment.mixup(-0.1), "alpha must be"),
    (lambda: images(augment.mixup(1.0)), "mixup expects float images, got uint8"),
    (lambda: augment.normalise([0.0], [0.0]), "sd must be"),
    (lambda: augment.normalise([0.0], [1.0, 1.0]), "shapes must be equal"),
    (lambda: augment.normalise(0.0, 1.0), "mean must be"),
    (lambda: augment.normalise([np.nan], [1.0]), "mean must be"),
    (lambda: images(augment.normalise([0.0], [1.0]), of=FLOATS), "each channel"),
    (lambda: images(augment.normalise([0.0], [1.0])), "normalise expects float"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
