"""Images of every mode that Pillow writes become the pixels that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import decode

H, W = 8, 12
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (H, W)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (H, W, 3)).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (H, W)).astype(np.uint8)
DEEP = RNG.integers(0, 1 << 16, (H, W)).astype(np.uint16)
NUMBERS = RNG.integers(0, 16, (H, W)).astype(np.uint8)
PALETTE = RNG.integers(0, 256, (16, 3)).astype(np.uint8)
GREY_PALETTE = np.repeat(np.arange(0, 256, 17, np.uint8)[:, None], 3, 1)


def encode(image, kind="png", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def with_palette(colours):
    image = Image.new("P", (W, H))
    image.putdata(NUMBERS.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    return image


def stack(*channels):
    return np.concatenate([c if c.ndim == 3 else c[..., None] for c in channels], -1)


def scaled(values, white):
    """To the nearest of 256 levels, as exact fractions say."""
    return np.floor(values.astype(float) * 255 / white + 0.5).astype(np.uint8)


def cmyk(inks):
    """What paper reflects: each ink takes its share of what black leaves."""
    left = 255.0 - inks
    return left[..., :3] * left[..., 3:] / 255


def tiff(values, bits, *, white_is_zero=False, order="<"):
    """A minimal TIFF of one strip of whole numbers, written by hand."""
    if bits == 12:
        digits = "".join(f"{v:03x}" for v in values.ravel())
        strip = bytes.fromhex(digits)
    else:
        strip = values.astype(f"{order}u2").tobytes()
    height, width = values.shape
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
    }
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()
    )
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8 + len(strip))
    count = struct.pack(f"{order}H", len(tags))
    return head + strip + count + entries + b"\0" * 4


def png(values):
    """Grey and alpha of 16 bits as a PNG file, which Pillow does not write."""
    height, width, _ = values.shape
    rows = values.astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)  # not filtered
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )  # fmt: skip


ONE_BIT = GREY > 127
TWELVE = (DEEP >> 4).astype(np.uint16)
INKS = stack(COLOUR, ALPHA)
PGM = b"P5 %d %d 1000\n" % (W, H) + (DEEP % 1001).astype(">u2").tobytes()
RGBA = Image.fromarray(stack(COLOUR, ALPHA), "RGBA")
HALF = bytes(range(0, 256, 17))  # one alpha for each colour of the palette

# name: (encoded, the pixels, grey or in colour)
CASES = {
    "1": (encode(Image.fromarray(ONE_BIT)), 255 * ONE_BIT.astype(np.uint8)),
    "1 tiff": (encode(Image.fromarray(ONE_BIT), "tiff"), 255 * ONE_BIT),
    "L": (encode(Image.fromarray(GREY)), GREY),
    "L transparent": (
        encode(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        GREY,
    ),
    "LA": (encode(Image.fromarray(stack(GREY, ALPHA), "LA")), GREY),
    "LA of 16 bits": (png(stack(DEEP, DEEP.T.reshape(DEEP.shape))), DEEP >> 8),
    "P": (encode(with_palette(PALETTE)), PALETTE[NUMBERS]),
    "P gif": (encode(with_palette(PALETTE), "gif"), PALETTE[NUMBERS]),
    "P bmp": (encode(with_palette(PALETTE), "bmp"), PALETTE[NUMBERS]),
    "P transparent": (encode(with_palette(PALETTE), transparency=3), PALETTE[NUMBERS]),
    "P alphas": (encode(with_palette(PALETTE), transparency=HALF), PALETTE[NUMBERS]),
    "P gif transparent": (
        encode(with_palette(PALETTE), "gif", transparency=3),
        PALETTE[NUMBERS],
    ),
    "P grey": (encode(with_palette(GREY_PALETTE)), GREY_PALETTE[NUMBERS]),
    "RGB": (encode(Image.fromarray(COLOUR)), COLOUR),
    "RGB transparent": (
        encode(Image.fromarray(COLOUR), transparency=(1, 2, 3)),
        COLOUR,
    ),
    "RGBA": (encode(RGBA), COLOUR),
    "RGBA webp": (encode(RGBA, "webp", lossless=True, exact=True), COLOUR),
    "CMYK": (encode(Image.fromarray(INKS, "CMYK"), "tiff"), cmyk(INKS)),
    "I;16": (encode(Image.fromarray(DEEP)), scaled(DEEP, 65535)),
    "I;16 tiff": (encode(Image.fromarray(DEEP), "tiff"), scaled(DEEP, 65535)),
    "I;16B": (tiff(DEEP, 16, order=">"), scaled(DEEP, 65535)),
    "I;16 of 12 bits": (tiff(TWELVE, 12), scaled(TWELVE, 4095)),
    "I;16 white is 0": (
        tiff(DEEP, 16, white_is_zero=True),
        scaled(65535 - DEEP.astype(int), 65535),
    ),
    "I of 0 to 1000": (PGM, scaled(DEEP % 1001, 1000)),
}


def close(found, expected):
    # Pillow converts inks in whole numbers, and scales odd ranges twice.
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


@pytest.mark.parametrize("name", CASES)
def test_every_mode_has_its_pixels_through_every_decoder(name):
    encoded, pixels = CASES[name]
    expected = pixels if pixels.ndim == 3 else pixels[..., None]
    found = decode.plain()(encoded, 0)
    assert found.shape == expected.shape
    close(found, expected)
    if name.split()[0] not in ("CMYK", "I"):  # nothing is rounded twice here
        np.testing.assert_array_equal(found, expected)
    colour = np.broadcast_to(expected, (H, W, 3))
    close(decode.plain(3)(encoded, 0), colour)
    grey = colour.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R 601
    np.testing.assert_allclose(decode.plain(1)(encoded, 0)[..., 0], grey, atol=1.6)
    # A crop of its own size changes no pixel.
    middle = decode.centre_crop(H, resize=H)(encoded, 0)
    close(middle, colour[:, (W - H) // 2 : (W + H) // 2])
    part = decode.random_crop(H, area=(1.0, 1.0), ratio=(W / H, W / H))(encoded, 0)
    whole = Image.fromarray(colour.astype(np.uint8)).resize((H, H), 2)
    np.testing.assert_allclose(part.astype(int), np.asarray(whole, int), atol=2)


def test_the_cases_hold_every_mode_that_files_have():
    modes = {Image.open(io.BytesIO(encoded)).mode for encoded, _ in CASES.values()}
    assert modes >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B"}


def oriented(kind, orientation, image):
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"quality": 100, "subsampling": 0} if kind == "jpeg" else {}
    return encode(image, kind, exif=exif, **how)


# Where EXIF says that the stored first row and first column are.
MEANT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", MEANT)
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_images_are_turned_as_their_exif_says(orientation, kind):
    # Large and smooth, so that a JPEG is decoded at a part of its size.
    down, across = np.mgrid[0:1:320j, 0:1:480j]
    seen = (255 * np.stack([down, across, down * across], -1)).astype(np.uint8)
    # What is stored is what the inverse of the turn makes of it; 6 and 8 are inverse.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = Image.fromarray(np.ascontiguousarray(MEANT[inverse](seen)))
    encoded = oriented(kind, orientation, stored)
    found = decode.plain()(encoded, 0).astype(int)
    np.testing.assert_allclose(found, seen, atol=4)
    upright = encode(Image.fromarray(seen))
    for decoder in (decode.centre_crop(16), decode.random_crop(16)):
        for draw in range(3):
            expected = decoder(upright, draw).astype(int)
            np.testing.assert_allclose(decoder(encoded, draw), expected, atol=8)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_an_orientation_in_xmp_counts_too(kind):
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/'
        '1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/'
        'tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    how = {"xmp": xmp.encode()}
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        how = {"pnginfo": info}
    encoded = encode(Image.fromarray(COLOUR), kind, **how)
    assert decode.plain()(encoded, 0).shape == (W, H, 3)


def test_exif_that_cannot_be_read_turns_nothing():
    whole = oriented("jpeg", 6, Image.fromarray(COLOUR))
    place = whole.index(b"Exif\0\0") + 6
    broken = whole[:place] + b"XX" + whole[place + 2 :]
    assert decode.plain()(whole, 0).shape == (W, H, 3)
    assert decode.plain()(broken, 0).shape == (H, W, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            Image.fromarray(GREY / np.float32(255)),
            "floating-point numbers .*scale them",
        ),
        (Image.fromarray(GREY.astype(np.int32)), "whole numbers of 32 bits .*TIFF"),
    ],
)
@pytest.mark.parametrize(
    "decoder", [decode.plain(), decode.centre_crop(4), decode.random_crop(4)]
)
def test_numbers_without_a_range_are_refused(image, message, decoder):
    with pytest.raises(ValueError, match=message):
        decoder(encode(image, "tiff"), 0)


@pytest.mark.bad_input
def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="channels must be 1, 3 or None, got 4"):
        decode.plain(4)


def test_fit_crops_pads_or_stretches():
    """A wide image of three bands, left to right, to a square."""
    bands = np.zeros((30, 90, 3), np.uint8)
    for place in range(3):
        bands[:, 30 * place : 30 * place + 30, place] = 255
    encoded = encode(Image.fromarray(bands))
    cropped = decode.fit(15)(encoded, 0)
    middle = cropped[:, 1:14]  # the filter sees the neighbours at the edges
    np.testing.assert_array_equal(middle, np.full((15, 13, 3), [0, 255, 0]))
    padded = decode.fit(15, resize="pad")(encoded, 0)
    assert not padded[:5].any() and not padded[10:].any()
    np.testing.assert_array_equal(padded[7, 2::5], 255 * np.eye(3, dtype=np.uint8))
    stretched = decode.fit((10, 15), resize="stretch")(encoded, 0)
    assert stretched.shape == (10, 15, 3)
    np.testing.assert_array_equal(stretched[9, 2::5], 255 * np.eye(3, dtype=np.uint8))


@pytest.mark.parametrize("resize", decode.RESIZE)
@pytest.mark.parametrize("size", [(7, 3), (1, 50), (333, 2)])
def test_fit_gives_its_size_for_images_of_any_shape(resize, size):
    for shape in [(1, 1), (3, 7), (7, 3), (1, 97), (49, 11)]:
        encoded = encode(Image.new("RGB", shape, "white"), "jpeg")
        pixels = decode.fit(size, resize=resize, channels=1)(encoded, 0)
        assert pixels.shape == (*size, 1)
        assert pixels.max() > 250
        assert resize == "pad" or pixels.min() > 250
