import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mlops.image import ImageError, decode, is_image, shrink


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def test_pixels_come_out_as_they_went_in_at_their_own_size():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode(encode(Image.fromarray(pixels)), (5, 7))
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.pixels.dtype == np.uint8
    assert (decoded.width, decoded.height) == (7, 5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:4, :8] = 255  # white in the upper left corner, as its viewer shows it
    turn_back = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(Image.fromarray(np.ascontiguousarray(turn_back(upright))), exif=exif)
    np.testing.assert_array_equal(decode(stored, (8, 16)).pixels, upright)


def test_a_box_is_cut_out_before_anything_else():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    decoded = decode(encode(Image.fromarray(pixels)), (4, 6), box=(2, 3, 8, 7))
    np.testing.assert_array_equal(decoded.pixels, pixels[3:7, 2:8])
    assert (decoded.width, decoded.height) == (6, 4)
    whole = decode(encode(Image.fromarray(pixels)), (9, 12), box=(0, 0, 12, 9))
    np.testing.assert_array_equal(whole.pixels, pixels)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_counts_stored_pixels_and_what_it_cuts_out_is_oriented(orientation: int, format_: str):
    stored = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    boxed = encode(Image.fromarray(stored), format_, exif=exif)
    alone = encode(Image.fromarray(np.ascontiguousarray(stored[3:7, 2:8])), format_, exif=exif)
    expected = decode(alone, (5, 5))
    found = decode(boxed, (5, 5), box=(2, 3, 8, 7))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (expected.width, expected.height)


@pytest.mark.parametrize(
    "box", [(0, 0, 13, 9), (0, 0, 12, 10), (-1, 0, 5, 5), (5, 5, 5, 7), (7, 5, 5, 7), (0, 0, 10**9, 10**9), (), (1, 2)]
)
def test_a_box_that_is_none_or_leaves_the_picture_is_its_reason_not_to_be_read(box: tuple[int, ...]):
    with pytest.raises(ImageError, match=r"its box .*(leaves the 12 x 9 picture|is not four whole numbers)"):
        decode(encode(Image.new("RGB", (12, 9))), (4, 4), box=box)


def test_what_begins_like_an_image_is_told_from_what_does_not():
    assert is_image(encode(Image.new("RGB", (4, 4))))
    assert not is_image(b"")
    assert not is_image(b"<html>404</html>")


def test_a_shrunken_image_keeps_its_aspect_and_a_small_one_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    assert shrink(pixels, 20).shape == (20, 10, 3)
    np.testing.assert_array_equal(shrink(pixels, 200), pixels)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (32768, 128), (65535, 255)])
def test_16_bit_grey_keeps_its_upper_eight_bits(value: int, expected: int):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert (decode(encode(image), (4, 4)).pixels == expected).all()
    assert (decode(encode(image, "TIFF"), (4, 4)).pixels == expected).all()


def test_cmyk_becomes_rgb():
    # No ink but cyan.
    pixels = decode(encode(solid("CMYK", (255, 0, 0, 0), (16, 16)), "JPEG", quality=100), (16, 16)).pixels
    assert abs(pixels.astype(int) - (0, 255, 255)).max() <= 3


def test_a_palette_becomes_its_colours():
    image = solid("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert (decode(encode(image), (4, 4)).pixels == (10, 200, 30)).all()


def test_transparent_pixels_are_laid_over_white():
    assert (decode(encode(solid("RGBA", (10, 20, 30, 0))), (4, 4)).pixels == 255).all()
    assert (decode(encode(solid("RGBA", (0, 0, 0, 128))), (4, 4)).pixels == 127).all()
    assert (decode(encode(solid("LA", (0, 0))), (4, 4)).pixels == 255).all()
    transparent = solid("P", 1)
    transparent.putpalette([0, 0, 0, 10, 200, 30])
    assert (decode(encode(transparent, transparency=1), (4, 4)).pixels == 255).all()


def test_of_an_animation_the_first_frame_counts():
    frames = [solid("RGB", (200, 0, 0)), solid("RGB", (0, 200, 0))]
    for format_ in ("GIF", "PNG"):
        moving = encode(frames[0], format_, save_all=True, append_images=frames[1:])
        assert (decode(moving, (4, 4)).pixels == (200, 0, 0)).all()


def test_grey_and_bilevel_are_repeated_on_three_channels():
    assert (decode(encode(solid("L", 77)), (4, 4)).pixels == 77).all()
    assert (decode(encode(solid("1", 1)), (4, 4)).pixels == 255).all()


def test_squash_fills_the_square_and_pad_keeps_the_aspect_with_black_borders():
    wide = encode(solid("RGB", "white", (40, 20)))
    assert (decode(wide, (8, 8), "squash").pixels == 255).all()
    padded = decode(wide, (8, 8), "pad").pixels
    assert (padded[2:6] == 255).all()
    assert (padded[:2] == 0).all()
    assert (padded[6:] == 0).all()


def test_an_extreme_aspect_ratio_keeps_at_least_one_pixel():
    padded = decode(encode(solid("RGB", "white", (400, 2))), (8, 8), "pad").pixels
    assert (padded == 255).any()


def test_shrinking_is_antialiased():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = decode(encode(Image.fromarray(checkers.astype(np.uint8))), (8, 8)).pixels
    assert abs(small.astype(int) - 127).max() < 20


def bomb() -> bytes:
    """A PNG header that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image of a known format"),
        (encode(solid("RGB", "red", (64, 64)), "JPEG")[:300], "(?i)truncated"),
        (encode(Image.effect_noise((64, 64), 50))[:1000], "truncated"),
        (bomb(), "pixels"),
        (encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), "TIFF"), "32-bit integer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "bomb", "float", "int32", "postscript"],
)
def test_what_is_no_readable_image_is_refused_with_its_reason(data: bytes, reason: str):
    with pytest.raises(ImageError, match=reason):
        decode(data, (4, 4))


def test_what_reads_pictures_can_be_loaded_before_the_first_one_comes():
    program = """
import io, sys
from PIL import Image
from mlops.image import FORMATS, is_image, load_formats
load_formats()
before = set(sys.modules)
assert set(FORMATS) <= set(Image.OPEN)
assert not is_image(b"none of them")
print(*(name for name in set(sys.modules) - before if name.endswith("ImagePlugin")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
